"""What makes blocks that are timed alone add up to whole networks, and how well their sums do.

Why they do not by themselves is told in `vigcli.measure.build`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vigcli.errors import ConfigError
from vigcli.latency.table import Accuracy, Interval

LEAST_SHARE = 0.2  # of a block's milliseconds alone, that the join leaves it
COVERAGE = 0.9  # of the tests, inside the interval
FIRST_MS = 0.2  # of a block, that are longer in a network
SHRINKING = 0.3  # of what a kind differs by, against the mean square of relative errors
MAX_FACTOR_OFF = 2.0  # a join that doubles or halves is not one of layout and caches


class Join(NamedTuple):
    """What makes blocks add up: `factor` on their milliseconds alone, less `ms_per_mb` for what enters them, and a
    share of their first milliseconds: `share_of_kind`, or `share` for a kind that no anchor has."""

    factor: float
    ms_per_mb: float
    share: float
    share_of_kind: dict[str, float]

    def row_ms(self, kind: str, alone_ms: float, entering_mb: float) -> float:
        """Milliseconds of a block as part of a network; some are always left."""
        cold_ms = self.share_of_kind.get(kind, self.share) * first_ms(alone_ms)
        return max(self.factor * alone_ms - self.ms_per_mb * entering_mb + cold_ms, LEAST_SHARE * alone_ms)


def first_ms(alone_ms: float) -> float:
    """The milliseconds of a block in which it waits for what others have driven out of the caches."""
    return min(alone_ms, FIRST_MS)


class BlockAlone(NamedTuple):
    """A block of a network as it is timed by itself."""

    kind: str
    alone_ms: float
    entering_mb: float


class Chain(NamedTuple):
    """A network beside its blocks; `whole_ms` is what it takes beyond an empty call."""

    whole_ms: float
    blocks: tuple[BlockAlone, ...]


def fit_join(anchors: Sequence[Chain]) -> Join:
    """The join with the least squares of relative errors, by networks; kinds are shrunk towards one another.

    Raises ConfigError where the sums are so far off that no join explains it: the timings are disturbed.
    """
    kinds = sorted({block.kind for chain in anchors for block in chain.blocks})
    terms = np.array([_terms(chain, kinds) for chain in anchors]) / np.array([[c.whole_ms] for c in anchors])
    size = np.sqrt((terms**2).mean(0))
    shrinking = (SHRINKING * len(anchors)) ** 0.5 * np.eye(len(size))[3:]
    wanted = np.concatenate([np.ones(len(anchors)), np.zeros(len(kinds))])
    found = np.linalg.lstsq(np.concatenate([terms / size, shrinking]), wanted, rcond=None)[0] / size
    factor, ms_per_mb, share, *off = map(float, found)
    if not 1 / MAX_FACTOR_OFF < factor < MAX_FACTOR_OFF:
        raise ConfigError(
            f"blocks alone add up to 1/{factor:.2f} of whole networks: the timings are disturbed.",
            "Delete the rounds and build again when the machine is less busy.",
        )
    return Join(factor, ms_per_mb, share, {kind: share + more for kind, more in zip(kinds, off, strict=True)})


def _terms(chain: Chain, kinds: Sequence[str]) -> list[float]:
    """What the numbers of a join are multiplied by: factor, ms_per_mb, share, and what each kind's differs by."""
    first = {kind: sum(first_ms(b.alone_ms) for b in chain.blocks if b.kind == kind) for kind in kinds}
    alone, entering = (sum(sizes) for sizes in zip(*((b.alone_ms, b.entering_mb) for b in chain.blocks), strict=True))
    return [alone, -entering, sum(first.values()), *first.values()]


def accuracy(predicted: Sequence[float], measured: Sequence[float]) -> Accuracy:
    """Of predictions: their mean absolute relative error, the share within 10 %, and Kendall's tau."""
    ours, true = np.array(predicted), np.array(measured)
    error = np.abs(ours / true - 1)
    first, second = np.triu_indices(len(true), 1)
    agree = np.sign(ours[first] - ours[second]) * np.sign(true[first] - true[second])
    return Accuracy(
        mape_percent=round(100 * float(error.mean()), 2),
        within_10_percent=round(100 * float((error <= 0.1).mean()), 1),
        kendall_tau=round(float(agree.mean()), 3) if len(agree) else 0.0,
        num_rows=len(true),
    )


def interval(predicted: Sequence[float], measured: Sequence[float]) -> Interval:
    """The factor that covers `COVERAGE` of networks like these: of n errors, the one at rank COVERAGE * (n + 1)."""
    off = np.sort(np.abs(np.log(np.array(predicted) / np.array(measured))))
    rank = min(math.ceil(COVERAGE * (len(off) + 1)), len(off))
    factor = max(math.ceil(1000 * math.exp(off[rank - 1])) / 1000, 1.001)
    return Interval(factor=factor, coverage_percent=round(100 * float((off <= math.log(factor)).mean()), 1))

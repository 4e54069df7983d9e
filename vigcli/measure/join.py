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
SHRINKING = 0.1  # of what a kind of blocks differs by in the join, against the mean square of relative errors
MAX_FACTOR_OFF = 2.0  # a join that doubles or halves is not one of layout and caches


class Join(NamedTuple):
    """What makes blocks add up: `factor` on their milliseconds alone, less `ms_per_mb` for what enters them, and
    `ms_of_kind` for each, or `ms_per_block` for one of a kind that no anchor has."""

    factor: float
    ms_per_mb: float
    ms_per_block: float
    ms_of_kind: dict[str, float]

    def row_ms(self, kind: str, alone_ms: float, entering_mb: float) -> float:
        """Milliseconds of a block as part of a network; some are always left."""
        joined = self.factor * alone_ms - self.ms_per_mb * entering_mb + self.ms_of_kind.get(kind, self.ms_per_block)
        return max(joined, LEAST_SHARE * alone_ms)


class Chain(NamedTuple):
    """A network beside its blocks: what it takes beyond an empty call, and their sums."""

    whole_ms: float
    alone_ms: float
    entering_mb: float
    kinds: tuple[str, ...]  # of its blocks


def fit_join(anchors: Sequence[Chain]) -> Join:
    """The join with the least squares of relative errors, by networks; kinds are shrunk towards one another.

    Raises ConfigError where the sums are so far off that no join explains it: the timings are disturbed.
    """
    kinds = sorted({kind for chain in anchors for kind in chain.kinds})
    rows = [[c.alone_ms, -c.entering_mb, len(c.kinds), *(c.kinds.count(kind) for kind in kinds)] for c in anchors]
    relative = np.array(rows) / np.array([[chain.whole_ms] for chain in anchors])
    size = np.sqrt((relative**2).mean(0))
    shrinking = (SHRINKING * len(anchors)) ** 0.5 * np.eye(len(size))[3:]
    wanted = np.concatenate([np.ones(len(anchors)), np.zeros(len(kinds))])
    found = np.linalg.lstsq(np.concatenate([relative / size, shrinking]), wanted, rcond=None)[0] / size
    factor, ms_per_mb, ms_per_block, *off = map(float, found)
    if not 1 / MAX_FACTOR_OFF < factor < MAX_FACTOR_OFF:
        raise ConfigError(
            f"blocks alone add up to 1/{factor:.2f} of whole networks: the timings are disturbed.",
            "Delete the rounds and build again when the machine is less busy.",
        )
    return Join(factor, ms_per_mb, ms_per_block, {k: ms_per_block + ms for k, ms in zip(kinds, off, strict=True)})


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

"""Fitting the score to published networks, and how wrong it is on families that a fit has not seen."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigcli.latency.published import read_csv
from vigcli.runs.provenance import sha256
from vigcli.search.score import (
    FEATURES,
    NUM_SHAPE_FEATURES,
    Array,
    Errors,
    FamilyOffset,
    GapOrder,
    Interval,
    Ordering,
    Score,
    Seen,
    Size,
    recipe_features,
    shape_features,
)

Mask = NDArray[np.bool_]

ALPHA = 3.0
SIZE_ALONE = ("ln_params", "ln_macs", *FEATURES[NUM_SHAPE_FEATURES:])
EQUAL = 1.3  # two numbers of parameters or MACs within that factor are equal
EQUAL_MS = 1.2  # two published latencies
EQUAL_EPOCHS = 1.5
GAPS = (0.0, 0.25, 0.5, 1.0, 2.0)
_HINT = "Compare it with the file of the same name in search_spaces/published/."


class Row(NamedTuple):
    """A published network: its ImageNet-1k top-1 in percent, how it was trained, and its size."""

    network: str
    family: str
    resolution: int
    top1: float
    distilled: bool
    epochs: float
    old_recipe: bool
    size: Size
    domain: str
    primary: bool
    source: str

    @property
    def is_own(self) -> bool:
        """Whether it is of the families that this program builds."""
        return self.domain == "core"

    @property
    def is_fitted(self) -> bool:
        """Whether the score is fitted to it: networks for phones, each once."""
        return self.primary and self.domain in ("mobile", "core")

    @property
    def own_family(self) -> str:
        """The family by this program's names: what its name begins with."""
        return self.network.partition("_")[0]


def read_accuracy(path: Path) -> list[Row]:
    """The published networks of a CSV file. Raises ConfigError with file and line for a value that is none."""
    flags = ("0", "1")
    rows = []
    for line in read_csv(path, _HINT):
        size = Size(
            line.whole("params", 1),
            line.whole("macs", 1),
            line.whole("longest_path_layers", 1),
            line.at_least_0("depthwise_share_of_macs"),
        )
        row = Row(
            line.text("network"), line.text("family"), line.whole("resolution", 1), line.positive("top1_percent"),
            line.one_of("distilled", flags) == "1", line.positive("epochs"), line.one_of("old_recipe", flags) == "1",
            size, line.one_of("domain", ("mobile", "core", "other")), line.one_of("primary", flags) == "1",
            line.text("source"),
        )  # fmt: skip
        if row.top1 >= 100:
            raise line.wrong("top1_percent", "is no percentage below 100")
        if size.depthwise_share > 1:
            raise line.wrong("depthwise_share_of_macs", "is no share, from 0 to 1")
        rows.append(row)
    return rows


def read_latencies(path: Path) -> list[tuple[str, int, str, float]]:
    """(network, resolution, lab, milliseconds) of the published latencies. Raises ConfigError."""
    found = []
    for line in read_csv(path, "Compare it with the file of the same name in latency_tables/published/."):
        if line.cells.get("builder"):
            network = line.text("builder").partition(":")[2]
            found.append((network, line.whole("resolution", 1), line.text("group"), line.positive("latency_ms")))
    return found


def ridge(features: Array, target: Array, alpha: float = ALPHA) -> Array:
    """Intercept and coefficients by least squares, shrunk on standardised features: (N, k), (N,) -> (1 + k,)."""
    mean, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 0, scale, 1)
    x = (features - mean) / scale
    slope = np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), x.T @ (target - target.mean())) / scale
    return np.array([target.mean() - mean @ slope, *slope])


def _applied(coefficients: Array, features: Array) -> Array:
    return coefficients[0] + features @ coefficients[1:]


class Study:
    """The rows that the score is fitted to, and every prediction of a row by a fit that has not seen its family.

    Args:
        rows: of the accuracy file, of which those that are fitted are taken.
        latencies: (network, resolution, lab, milliseconds).
    """

    def __init__(self, rows: Sequence[Row], latencies: Sequence[tuple[str, int, str, float]]):
        self.rows = [row for row in rows if row.is_fitted]
        self.latencies = latencies
        sizes = Size(*map(np.array, zip(*(row.size for row in self.rows), strict=True)))
        recipe = recipe_features(*(self._of(name) for name in ("distilled", "epochs", "old_recipe")))
        self.features = np.stack([*shape_features(sizes), *recipe], 1).astype(float)  # (N, features)
        self.sizes = sizes
        self.top1 = self._of("top1")
        self.target = -np.log(100 - self.top1)
        names = [row.family for row in self.rows]
        self.families = list(dict.fromkeys(names))
        self.family = np.array([self.families.index(name) for name in names])
        self.first, self.second = np.triu_indices(len(self.rows), 1)  # all pairs of rows

    def _of(self, name: str) -> Array:
        return np.array([getattr(row, name) for row in self.rows], float)

    # -------------------------------------------------------------------------------------------- held out

    def held_out(self, columns: Sequence[str] = FEATURES) -> Array:
        """s of every row by the fit without two families (the same twice: without one): (families, families, N)."""
        x = self.features[:, [FEATURES.index(name) for name in columns]]
        found = np.zeros((len(self.families), len(self.families), len(x)))
        for a, b in itertools.combinations_with_replacement(range(len(self.families)), 2):
            kept = (self.family != a) & (self.family != b)
            found[a, b] = found[b, a] = _applied(ridge(x[kept], self.target[kept]), x)
        return found

    def errors(self, columns: Sequence[str] = FEATURES) -> Errors:
        """Errors of the fit of some features, each row predicted without its family."""
        held_out = self.held_out(columns)
        own = held_out[self.family, self.family, np.arange(len(self.rows))]
        first, second = self.first, self.second
        gap = self._gaps(held_out)
        is_own = np.array([row.is_own for row in self.rows])
        macs, params = self._near(self.sizes.macs, EQUAL), self._near(self.sizes.params, EQUAL)
        alike = self.trained_alike
        return Errors(
            mae_points=_rounded(np.abs(100 - np.exp(-own) - self.top1).mean()),
            tau=self._ordering(own[first] - own[second], np.ones(len(first), bool)).tau,
            equal_macs=self._ordering(gap, macs & alike),
            equal_params=self._ordering(gap, params & alike),
            equal_both=self._ordering(gap, macs & params & alike),
            equal_latency=self._ordering(gap, self._timed_alike & alike & (self.family[first] != self.family[second])),
            own_families=self._ordering(gap, is_own[first] & (self.family[first] == self.family[second])),
        )

    def right_order(self) -> tuple[GapOrder, ...]:
        """How often the better prediction is right, at equal MACs, by the size of the predicted gap."""
        held_out = self.held_out()
        pairs = self.family[self.first], self.family[self.second]
        points = np.exp(-held_out[(*pairs, self.second)]) - np.exp(-held_out[(*pairs, self.first)])
        better = self.top1[self.first] - self.top1[self.second]
        used = self._near(self.sizes.macs, EQUAL) & self.trained_alike & (better != 0)
        found = []
        for low, high in zip(GAPS, (*GAPS[1:], None), strict=True):
            inside = used & (np.abs(points) >= low) & (np.abs(points) < (high or np.inf))
            right = 100 * (points * better > 0)[inside].mean()
            percent, num_pairs = _rounded(right, 1), int(inside.sum())
            found.append(GapOrder(from_points=low, below_points=high, right_percent=percent, num_pairs=num_pairs))
        return tuple(found)

    def new_family(self) -> Interval:
        """How far off a row of a family is that the fit has not seen."""
        own = self.held_out()[self.family, self.family, np.arange(len(self.rows))]
        return _interval(100 - np.exp(-own) - self.top1)

    def known_family(self) -> Interval:
        """How far off an own network is that the fit has not seen, of a family whose offset the others give."""
        off = []
        for i in (i for i, row in enumerate(self.rows) if row.is_own):
            kept = np.arange(len(self.rows)) != i
            s = _applied(ridge(self.features[kept], self.target[kept]), self.features)
            offset = _offset((self.target - s)[kept & self._is_of(self.rows[i].own_family)])
            off.append(100 - np.exp(-s[i] - offset) - self.top1[i])
        return _interval(np.array(off))

    def _is_of(self, own_family: str) -> Mask:
        return np.array([row.is_own and row.own_family == own_family for row in self.rows])

    def _gaps(self, held_out: Array) -> Array:
        """Of s, of every pair, by the fit without either family."""
        pairs = self.family[self.first], self.family[self.second]
        return held_out[(*pairs, self.first)] - held_out[(*pairs, self.second)]

    def _ordering(self, gap: Array, used: Mask) -> Ordering:
        agree = np.sign(gap) * np.sign(self.top1[self.first] - self.top1[self.second])
        return Ordering(tau=_rounded(agree[used].mean()), num_pairs=int(used.sum()))

    def _near(self, values: Array | float, factor: float) -> Mask:
        logs = np.log(np.asarray(values))
        return np.abs(logs[self.first] - logs[self.second]) <= np.log(factor)

    @cached_property
    def trained_alike(self) -> Mask:
        """Pairs whose recipes are of one class: distilled or not, old or not, epochs within a factor of 1.5."""
        same = [self._of(name)[self.first] == self._of(name)[self.second] for name in ("distilled", "old_recipe")]
        return same[0] & same[1] & self._near(self._of("epochs"), EQUAL_EPOCHS * (1 + 1e-9))

    @cached_property
    def _timed_alike(self) -> Mask:
        """Pairs that one lab timed within `EQUAL_MS` of each other."""
        known: dict[tuple[str, int], list[int]] = {}  # a network was trained more than once
        for i, row in enumerate(self.rows):
            known.setdefault((row.network, row.resolution), []).append(i)
        labs: dict[str, list[tuple[int, float]]] = {}
        for network, resolution, lab, ms in self.latencies:
            labs.setdefault(lab, []).extend((i, ms) for i in known.get((network, resolution), ()))
        alike = np.zeros((len(self.rows), len(self.rows)), bool)
        for timed in labs.values():
            for (i, one), (j, other) in itertools.combinations(timed, 2):
                alike[i, j] |= abs(np.log(one / other)) <= np.log(EQUAL_MS * (1 + 1e-9))
        return (alike | alike.T)[self.first, self.second]

    # -------------------------------------------------------------------------------------------- the fit

    def fit(self, source: Path) -> Score:
        """The score fitted to all rows, with its errors and without effects; `source` is the accuracy file."""
        found = ridge(self.features, self.target)
        residual = self.target - _applied(found, self.features)
        offsets = {}
        for name in dict.fromkeys(row.own_family for row in self.rows if row.is_own):
            chosen = self._is_of(name)
            offsets[name] = FamilyOffset(s=_rounded(_offset(residual[chosen]), 4), num_rows=int(chosen.sum()))
        is_own = np.array([row.is_own for row in self.rows])
        return Score(
            format=1,
            source=source.name,
            source_sha256=sha256(source),
            date=datetime.date.today().isoformat(),
            tools={name: version(name) for name in ("vig", "numpy")},
            num_rows=len(self.rows),
            num_families=len(self.families),
            alpha=ALPHA,
            intercept=_rounded(found[0], 6),
            coefficients={name: _rounded(x, 6) for name, x in zip(FEATURES, found[1:], strict=True)},
            means={name: _rounded(x, 6) for name, x in zip(FEATURES, self.features.mean(0), strict=True)},
            family_offsets=offsets,
            errors=self.errors(),
            size_alone=self.errors(SIZE_ALONE),
            new_family=self.new_family(),
            known_family=self.known_family(),
            right_order=self.right_order(),
            seen={"all": self._seen(np.ones(len(self.rows), bool)), "own": self._seen(is_own)},
            effects=(),
        )

    def _seen(self, chosen: Mask) -> Seen:
        ranges = {name: np.asarray(values)[chosen] for name, values in self.sizes._asdict().items()}
        return Seen(**{name: (float(x.min()), float(x.max())) for name, x in ranges.items()})


def load_study(spaces: Path, tables: Path) -> Study:
    """The study of the built-in files. Raises ConfigError where one is damaged.

    Args:
        spaces: the folder of the accuracy file.
        tables: the folder of the published latencies.
    """
    return Study(read_accuracy(spaces / "accuracy.csv"), read_latencies(tables / "published_latencies.csv"))


def _offset(residuals: Array) -> float:
    return float(residuals.sum() / (len(residuals) + 1))


def _interval(off: Array) -> Interval:
    return Interval(**{f"points_{n}": _rounded(np.quantile(np.abs(off), n / 100), 2) for n in (80, 90)})


def _rounded(value: float, digits: int = 3) -> float:
    return round(float(value), digits)

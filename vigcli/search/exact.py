"""The network of the greatest score under a budget, proven: branch and bound over genes.

The bound of a partial candidate never lies below what a completion scores. Three relaxations make it a sum over parts,
which `elimination` maximises exactly:

* The score is, in s = -ln(100 - top1), a sum of functions of the parameters, of the layers and of (MACs, depthwise
  share), each rising in its arguments. s therefore lies below a plane over the totals (parameters, MACs, layers,
  depthwise MACs) whose height is the greatest excess over the cells of a grid: within a cell the functions are at most
  their values at its upper corner, the plane at least its value at one of the corners.
* What published ablations add in points is turned into a part of s (`_weigh_points`).
* The budget is weighed in by a multiplier (Lagrange): whatever the multiplier m >= 0, a network within the budget has
  plane(x) <= plane(x) + m * (budget - latency). Of several tables the first alone is weighed.

Rules that are no sum over parts (shares, the fitted range) only judge whole candidates. So the answer is exact for
every encoding whose score rises as said; that it does is what the tests hold the score to.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vigcli.search.columns import (
    COLUMNS,
    POINTS,
    SCORE_DEPTHWISE,
    SCORE_LAYERS,
    SCORE_MACS,
    SCORE_PARAMS,
    ms_column,
    score_of,
)
from vigcli.search.elimination import Elimination, eliminate, elimination_order, extended, unordered
from vigcli.search.encoding import Encoding, Population
from vigcli.search.evolution import broken, evolve

Array = NDArray[np.float64]

MAX_SECONDS = 60.0
_INPUTS = (SCORE_PARAMS, SCORE_MACS, SCORE_LAYERS, SCORE_DEPTHWISE)
_CELLS = 512  # of the grid, in each direction
_CHUNK = 50_000  # partial candidates that are bounded at once
_FIRST_CANDIDATES = 20_000  # of the evolution that gives the first best
_SLACK = 1e-9  # relative; the parts of a sum are added in another order than an evaluation adds them


@dataclass(frozen=True)
class Exact:
    """The best candidate under a budget, or the best known when the time was up.

    Attributes:
        candidate: None where no candidate keeps the budget and every rule.
        bound: no candidate scores more than this, in points of top-1; `score` itself when `proven`.
        num_bounded: partial candidates that were bounded.
    """

    candidate: tuple[int, ...] | None
    latency_ms: float
    score: float
    bound: float
    num_bounded: int

    @property
    def proven(self) -> bool:
        return self.bound <= self.score

    def as_json(self) -> dict[str, Any]:
        return {
            "latency_ms": round(self.latency_ms, 4),
            "top1_percent": round(self.score, 4),
            "proven": self.proven,
            "gap_points": round(self.gap_points, 4),
            "num_bounded": self.num_bounded,
        }

    @property
    def gap_points(self) -> float:
        """By how much a better network could be better; 0 when proven."""
        return 0.0 if self.proven else self.bound - self.score


def exact_best(
    encoding: Encoding,
    budget_ms: float,
    seeds: Population,
    generator: np.random.Generator,
    *,
    max_seconds: float = MAX_SECONDS,
) -> Exact:
    """The candidate of the greatest score that keeps the budget and every rule.

    When `max_seconds` have passed the best known is given with a bound on what is left: `proven` is False then.
    """
    deadline = time.monotonic() + max_seconds
    found = evolve(encoding, budget_ms, seeds, generator, num_candidates=_FIRST_CANDIDATES)
    best = found.candidates[-1] if len(found.candidates) else None
    ms, score = (float(found.latency_ms[-1]), float(found.score[-1])) if best is not None else (np.inf, -np.inf)
    bounds = _Bounds(encoding, budget_ms, best)
    sizes, order = encoding.num_choices, bounds.order
    start = np.zeros((1, 0), np.intp)
    stack, num_bounded = [(start, bounds(start))], 1
    while stack and time.monotonic() < deadline:
        prefixes, bound = stack.pop()
        prefixes = prefixes[bound > score]
        if not len(prefixes):
            continue
        if prefixes.shape[1] == len(order):
            rows = unordered(prefixes, order)
            values = encoding.evaluate(rows)
            scores = np.where(broken(values, budget_ms) == 0, values.score, -np.inf)
            top = int(scores.argmax())
            if scores[top] > score:
                best, ms, score = rows[top], float(values.latency_ms[top]), float(scores[top])
            continue
        children = extended(prefixes, int(sizes[order[prefixes.shape[1]]]))
        bound = bounds(children)
        num_bounded += len(children)
        promising = np.flatnonzero(bound > score)
        promising = promising[np.argsort(bound[promising], kind="stable")]  # the best is taken up first
        for chunk in np.split(promising, range(len(promising) % _CHUNK, len(promising), _CHUNK)):
            stack.append((children[chunk], bound[chunk]))
    left = max((float(bound.max(initial=-np.inf)) for _, bound in stack), default=-np.inf)
    return Exact(_tuple(best), ms, score, max(left, score), num_bounded)


def _tuple(candidate: Population | None) -> tuple[int, ...] | None:
    return None if candidate is None else tuple(int(i) for i in candidate)


class _Bounds:
    """What a completion of a partial candidate scores at most; -inf where none keeps the budget.

    Completions that score less than `best` may be bounded too low: they are of no interest.
    """

    def __init__(self, encoding: Encoding, budget_ms: float, best: Population | None):
        self.encoding, self.parts = encoding, encoding.parts
        self.sizes = encoding.num_choices.tolist()
        self.order = elimination_order([part.axes for part in self.parts], self.sizes)
        self.planes: list[tuple[Elimination, float]] = []
        self.points = [np.zeros(part.allowed.shape) for part in self.parts]  # what ablations say, as a part of s
        self.least_ms = self._greatest(np.zeros(4), 1.0)  # its negative
        most_ms = _root(self._greatest(np.zeros(4), -1.0))
        self.blocks_ms = min(budget_ms - float(encoding.tables[0].network_ms(0.0)), most_ms) * (1 + _SLACK)
        if _root(self.least_ms) < -self.blocks_ms:
            return  # nothing keeps the budget
        low, high = self._box()
        at = np.sqrt(low * high) if best is None else _with_share(self._totals(best))
        self._weigh_points(high, best)
        if best is not None:
            low = self._narrowed(low, high, -np.log(100 - (self.best_score - self.most_points)))
        slopes, height = self._plane(at, low, high)
        multipliers = np.geomspace(0.01, 10, 61) * max(float(slopes @ _with_depthwise(at)), 1e-9) / self.blocks_ms
        tops = [m * self.blocks_ms + _root(self._scored(slopes, m)) for m in multipliers]
        tight = int(np.argmin(tops))
        for i in dict.fromkeys((tight, max(tight - 4, 0), min(tight + 4, len(tops) - 1))):  # the tightest first
            multiplier = float(multipliers[i])
            self.planes.append((self._scored(slopes, multiplier), height + multiplier * self.blocks_ms))

    def __call__(self, prefixes: Population) -> Array:
        """(N, decided genes, in their order) -> (N,), in points of top-1."""
        bound = np.where(self.least_ms(prefixes) >= -self.blocks_ms, np.inf, -np.inf)
        for greatest, height in self.planes:
            open_ = np.flatnonzero(bound > -np.inf)
            bound[open_] = np.minimum(bound[open_], greatest(prefixes[open_]) + height)
        return np.asarray(100 - np.exp(-(bound + _SLACK)))

    def _s(self, points: Array) -> Array:
        """-ln(100 - top1) at (parameters, MACs, layers, depthwise share): (N, 4) -> (N,)."""
        columns = np.zeros((len(points), len(COLUMNS)))
        columns[:, _INPUTS] = _with_depthwise(points)
        return -np.log(100 - score_of(columns, self.encoding.base))

    def _totals(self, candidate: Population) -> Array:
        picked = sum(part.costs[tuple(candidate[axis] for axis in part.axes)] for part in self.parts)
        return np.asarray(picked)[list(_INPUTS)]

    def _greatest(self, slopes: Array, multiplier: float) -> Elimination:
        """The greatest of slopes @ totals - multiplier * milliseconds over what is undecided."""
        return self._sum_of(self._weighed(slopes, multiplier))

    def _scored(self, slopes: Array, multiplier: float) -> Elimination:
        """The same with the points of ablations."""
        values = zip(self._weighed(slopes, multiplier), self.points, strict=True)
        return self._sum_of([value + points for value, points in values])

    def _weighed(self, slopes: Array, multiplier: float) -> list[Array]:
        weights = np.zeros(self.parts[0].costs.shape[-1])
        weights[list(_INPUTS)], weights[ms_column(0)] = slopes, -multiplier
        return [part.costs @ weights for part in self.parts]

    def _sum_of(self, values: list[Array]) -> Elimination:
        terms = [
            (part.axes, np.where(part.allowed, value, -np.inf)) for part, value in zip(self.parts, values, strict=True)
        ]
        return eliminate(terms, self.order, self.sizes, lambda values: values.max(-1))

    def _weigh_points(self, high: Array, best: Population | None) -> None:
        """Turn points of ablations into a part of s that never says less of a network that beats the best.

        A network of p points scores more than B where s > -ln(100 - B + p), and ln(1 + p / (100 - B)) is at most
        p / (100 - B): with B at its greatest for gains, and at its least, the best known, for losses.
        """
        points = [part.costs[..., POINTS] for part in self.parts]
        self.most_points = max(_root(self._sum_of(points)), 0.0)
        self.best_score = 0.0 if best is None else float(self.encoding.evaluate(best[None]).score[0])
        rest = np.exp(-self._s(high[None])[0]) - self.most_points  # 100 less the greatest score
        gain = 1 / max(float(rest), 1.0)
        self.points = [np.where(p > 0, p * gain, p / (100 - self.best_score)) for p in points]

    # ------------------------------------------------------------------------------------------------ the plane

    def _box(self) -> tuple[Array, Array]:
        """What parameters, MACs, layers and depthwise share are at least, and at most within the budget: (4,), (4,)."""
        parameters, macs, layers, depthwise = np.eye(4)
        low = [-_root(self._greatest(-unit, 0.0)) for unit in (parameters, macs, layers)]
        high = []
        for unit in (parameters, macs, layers):
            most = _root(self._greatest(unit, 0.0))
            weights = (np.geomspace(0.05, 20, 30) * most / self.blocks_ms).tolist()
            high.append(min([most, *(m * self.blocks_ms + _root(self._greatest(unit, m)) for m in weights)]))
        low.append(_last_that(lambda share: _root(self._greatest(share * macs - depthwise, 0.0)) <= 0, 0.0, 1e-5, 1.0))
        high.append(_last_that(lambda share: _root(self._greatest(depthwise - share * macs, 0.0)) <= 0, 1.0, 1.0, 1e-5))
        return np.array(low) * (1 - _SLACK), np.array(high) * (1 + _SLACK)

    def _narrowed(self, low: Array, high: Array, least_s: float) -> Array:
        """The box without the values that, even with all others at their greatest, score less than `least_s`."""
        result = low.copy()
        for i in range(len(low)):
            points = np.tile(high, (4 * _CELLS, 1))
            points[:, i] = _spaced(low[i], high[i], 4 * _CELLS)
            reach = np.flatnonzero(self._s(points) >= least_s)
            result[i] = points[max(reach[0] - 1, 0), i] if len(reach) else low[i]
        return result

    def _plane(self, at: Array, low: Array, high: Array) -> tuple[Array, float]:
        """A plane over the totals that s is nowhere above in the box: slopes (4,) and height at the origin.

        Its slopes are those of s at the point `at`. The excess of s over it is bounded cell by cell, for parameters
        and layers each alone and for MACs and share together, and summed.
        """
        totals, origin = _with_depthwise(at), float(self._s(at[None])[0])
        moved = totals * (1 + 1e-4 * np.concatenate([np.eye(4), -np.eye(4)]))
        up, down = self._s(_with_share(moved)).reshape(2, 4)
        slopes = np.maximum((up - down) / (2e-4 * np.maximum(totals, 1e-9)), 0)
        height = origin
        for i in (0, 2):
            edges = _spaced(low[i], high[i], 8 * _CELLS)
            points = np.tile(at, (len(edges) - 1, 1))
            points[:, i] = edges[1:]
            height += float((self._s(points) - origin - slopes[i] * edges[:-1]).max())
        macs, shares = (_spaced(low[i], high[i], _CELLS) for i in (1, 3))
        points = np.tile(at, (_CELLS - 1, _CELLS - 1, 1))
        points[..., 1], points[..., 3] = macs[1:, None], shares[1:]
        plane = macs[:-1, None] * (slopes[1] + slopes[3] * shares[:-1])
        return slopes, height + float((self._s(points.reshape(-1, 4)) - origin - plane.reshape(-1)).max())


def _last_that(holds: Callable[[float], bool], sure: float, start: float, end: float) -> float:
    """Nearly the last value from `start` towards `end` for which a condition holds, by bisection; `sure` if none does.

    The condition holds from one end up to some value, and not beyond.
    """
    if not holds(start):
        return sure
    for _ in range(24):
        middle = math.sqrt(start * end)
        start, end = (middle, end) if holds(middle) else (start, middle)
    return start


def _root(elimination: Elimination) -> float:
    return float(sum(float(value) for _, value in elimination.levels[0]))


def _spaced(low: float, high: float, number: int) -> Array:
    return np.geomspace(low, high, number) if low > 0 else np.linspace(low, high, number)


def _with_share(totals: Array) -> Array:
    """(..., 4) with the depthwise share instead of the depthwise MACs."""
    return np.concatenate([totals[..., :3], totals[..., 3:] / totals[..., 1:2]], -1)


def _with_depthwise(points: Array) -> Array:
    """(..., 4) with the depthwise MACs instead of the depthwise share."""
    return np.concatenate([points[..., :3], points[..., 3:] * points[..., 1:2]], -1)

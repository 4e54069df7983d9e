"""Points that none beats in both latency and score: ranks, crowding, the front itself and its hypervolume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Population = NDArray[np.intp]  # (candidates, genes)


@dataclass(frozen=True)
class Front:
    """Candidates none of which beats another, by rising latency and score; of equal ones the first that came."""

    candidates: Population
    latency_ms: Array
    score: Array

    @classmethod
    def of(cls, candidates: Population, latency_ms: Array, score: Array) -> Front:
        front = np.flatnonzero(ranks(latency_ms, score, 1) == 0)
        front = front[np.argsort(latency_ms[front], kind="stable")]
        return cls(candidates[front], latency_ms[front], score[front])

    def joined(self, candidates: Population, latency_ms: Array, score: Array) -> Front:
        """The front of this one and further candidates."""
        return Front.of(
            np.concatenate([self.candidates, candidates]),
            np.concatenate([self.latency_ms, latency_ms]),
            np.concatenate([self.score, score]),
        )


def hypervolume(latency_ms: Array, score: Array, worst_ms: float, worst_score: float = 0.0) -> float:
    """The area that points dominate, up to the reference (worst_ms, worst_score), in ms x points of top-1.

    Points that do not beat the reference in both add nothing.
    """
    order = np.lexsort((-score, latency_ms))
    ms, best = latency_ms[order], np.maximum.accumulate(np.maximum(score[order] - worst_score, 0))
    width = np.diff(np.minimum(np.append(ms, worst_ms), worst_ms))
    return float((width * best).sum())


def ranks(latency_ms: Array, score: Array, enough: int | None = None) -> Array:
    """The non-dominated rank of each point, 0 for the front, peeled front by front; of equal points one is before.

    Once `enough` points have theirs the others all get the next one.
    """
    order = np.lexsort((-score, latency_ms))
    result = np.zeros(len(order))
    rank, left = 0, len(order) - (enough if enough is not None else len(order))
    while len(order) > max(left, 0):
        points = score[order]
        front = np.ones(len(order), bool)
        front[1:] = points[1:] > np.maximum.accumulate(points)[:-1]
        result[order[front]] = rank
        order, rank = order[~front], rank + 1
    result[order] = rank
    return result


def crowding(latency_ms: Array, score: Array, rank: Array) -> Array:
    """How far apart the neighbours of each point on its own front are, in units of the range; infinite at the ends."""
    order = np.lexsort((latency_ms, rank))
    result = np.full(len(order), np.inf)
    if len(order) < 3:
        return result
    distance = np.zeros(len(order) - 2)
    for values in (latency_ms, score):
        spread = values.max() - values.min()
        distance += np.abs(values[order[2:]] - values[order[:-2]]) / (spread if spread > 0 else 1)
    inside = (rank[order[2:]] == rank[order[1:-1]]) & (rank[order[:-2]] == rank[order[1:-1]])
    result[order[1:-1][inside]] = distance[inside]
    return result

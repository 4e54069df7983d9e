"""Which of several candidates to take that the score cannot tell apart.

A predicted gap below `TIE_POINTS` says nothing, so that nearness to a shape that was trained decides, then latency.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigcli.latency.table import distinguishable
from vigcli.search.score import TIE_POINTS

Array = NDArray[np.float64]

AS_CLOSE = 1.1  # distances from a published shape within that factor of the least are equal
CLOSE = 0.01  # and so are those within that much of it: a hundredth of the blocks, MACs or weights elsewhere


def closeness(shapes: ArrayLike, published: ArrayLike) -> Array:
    """How far shapes are from the nearest of some published ones: 0 for the same proportions, whatever the scale.

    Args:
        shapes: (N, stages, 5): convolution blocks, graph blocks or transformer layers, width / width of the stage
            before, share of the network's MACs, share of its weights.
        published: (variants, stages, 5) of the family.

    The distance is the sum of four: the shares of blocks (each kind by itself, among all blocks), of MACs and of
    weights that would have to move to another place, each from 0 to 1, and the octaves that the steps of the width
    are apart, in the mean over the stages.
    """
    ours, theirs = _proportions(np.asarray(shapes, float)), _proportions(np.asarray(published, float))
    least = np.full(len(ours), np.inf)
    for one in theirs:  # one by one: all at once would not fit the processor's cache
        np.minimum(least, np.abs(ours - one).sum(1), out=least)
    return least


def _proportions(shapes: Array) -> Array:
    """Numbers whose absolute differences sum up to the distance: (N, stages, 5) -> (N, 5 * stages)."""
    blocks, ratios, shares = shapes[..., :2], shapes[..., 2:3], shapes[..., 3:]
    share_of_blocks = blocks / np.maximum(blocks.sum((1, 2), keepdims=True), 1)
    octaves = np.log2(ratios) / shapes.shape[1]
    return np.concatenate([share_of_blocks / 2, octaves, shares / 2], -1).reshape(len(shapes), -1)


def choose(score: ArrayLike, latency_ms: ArrayLike, distance: ArrayLike) -> int:
    """The index of the candidate to take: among those within `TIE_POINTS` of the best score the closest to a published
    shape; of equally close ones the fastest, where latencies can be told apart, else the one of the greatest score.

    Args:
        score: predicted top-1 in percent, (N,) with N of at least 1.
        latency_ms: (N,).
        distance: from a published shape, by `closeness`, (N,).
    """
    scores, times, distances = (np.asarray(values, float) for values in (score, latency_ms, distance))
    left = np.flatnonzero(scores >= scores.max() - TIE_POINTS)
    least = distances[left].min()
    left = left[distances[left] <= max(least * AS_CLOSE, least + CLOSE)]
    fastest = float(times[left].min())
    left = np.array([i for i in left if not distinguishable(float(times[i]), fastest)])
    return int(left[np.lexsort((left, times[left], -scores[left]))[0]])

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
CLOSE = 0.01  # and so are those within that much of it: a hundredth of the depths, widths or MACs elsewhere


def closeness(shapes: ArrayLike, published: ArrayLike) -> Array:
    """How far shapes are from the nearest of some published ones: 0 for the same proportions, whatever the scale.

    Args:
        shapes: (N, stages, 4): convolution blocks, graph blocks or transformer layers, channels and MACs of each stage.
        published: (variants, stages, 4) of the family.

    The distance is the sum of three: the share of the blocks (each kind by itself, among all blocks of the network)
    and the share of the MACs that would have to move to another place, both from 0 to 1, and the mean over the stages
    of the octaves that the widths, relative to their geometric mean, are apart.
    """
    ours, theirs = _proportions(np.asarray(shapes, float)), _proportions(np.asarray(published, float))
    each = [sum(np.abs(a - b[i]).sum(1) for a, b in zip(ours, theirs, strict=True)) for i in range(len(theirs[0]))]
    return np.min(each, axis=0)


def _proportions(shapes: Array) -> tuple[Array, Array, Array]:
    """Shares of blocks, shares of MACs and octaves of width, weighted so that their absolute differences sum up to the
    three distances: (N, 2 * stages), (N, stages) twice."""
    blocks = shapes[..., :2].reshape(len(shapes), -1)
    octaves = np.log2(shapes[..., 2])
    macs = shapes[..., 3]
    return (
        blocks / np.maximum(blocks.sum(1, keepdims=True), 1) / 2,
        macs / macs.sum(1, keepdims=True) / 2,
        (octaves - octaves.mean(1, keepdims=True)) / octaves.shape[1],
    )


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

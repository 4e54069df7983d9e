"""Partitions of the tokens of an image into clusters: k-means, and the cells of a grid; what clusters and graphs are
decided by. `cluster.py` makes graphs of them.

All images and clusters of a batch are computed at once, by matrix products with the memberships of the tokens: shapes
do not depend on the clusters. An iteration of k-means is eight operations of a package, and no transposition.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vigcli.config.archs.clustervig import grid_cells
from vigcli.nn.decisions import Decision

STARTS = 4  # of k-means, of which the best goes on
TRIALS = 2  # iterations after which it is known well enough
APART = -1000.0  # added to what is not to count; far below any x_v . x_u / |x_u| of scaled tokens
SMALL = 1e-4  # the least that is divided by; fp16 has it as a normal number


def memberships(labels: Tensor, clusters: int) -> Tensor:
    """Whether a token is in a cluster: (..., 1, N) labels -> (..., clusters, N)."""
    return labels == torch.arange(clusters, device=labels.device)[:, None]


def grid_labels(height: int, width: int, clusters: int) -> Tensor:
    """The cells of the grid, as square as the number of clusters allows, as a partition: (N,) labels."""
    rows, columns = grid_cells(clusters)
    row = torch.arange(height, device="cpu") * rows // height  # also where networks are built without memory
    column = torch.arange(width, device="cpu") * columns // width
    return (columns * row[:, None] + column).flatten()


def apart(members: Tensor, dtype: torch.dtype) -> Tensor:
    """Memberships as logits, 0 or far below: their softmax over tokens are the weights of the tokens in the means of
    clusters (of all tokens alike where a cluster has none)."""
    logits = torch.where(members, 0.0, APART)
    return logits if logits.dtype == dtype else logits.to(dtype)


def not_zero(x: Tensor) -> Tensor:
    """What may be divided by. No clamp, whose open end becomes a number that fp16 does not have."""
    return torch.maximum(x, x.new_tensor(SMALL))


class Gram(NamedTuple):
    """The inner products of the tokens of every image, (B, N, N), and their halved diagonal, as (B, N, 1) and as
    (B, 1, N).

    They decide clusters and graph.
    """

    products: Tensor
    column: Tensor
    row: Tensor


@torch.no_grad()
def gram(x: Tensor) -> Gram:
    """Of tokens (B, C, N) divided by their greatest number, which changes no order and stays within fp16."""
    x = x / not_zero(x.abs().amax((1, 2), keepdim=True))
    products = x.transpose(1, 2) @ x
    halves = products * (torch.eye(x.shape[2], dtype=x.dtype, device=x.device) / 2)
    return Gram(products, halves.sum(2, keepdim=True), halves.sum(1, keepdim=True))


@torch.no_grad()
def kmeans(inner: Gram, clusters: int, iterations: int, decision: Decision) -> Tensor:
    """Lloyd's k-means of the tokens of every image -> memberships (B, clusters, N).

    Nothing is drawn. There are `STARTS` starts, each from another token of the image; what joins it are, one after
    another, the tokens that leave the least squared distances (greedy k-means++ that tries every token). After
    `TRIALS` iterations the start with the least inertia goes on alone. A cluster that loses its tokens starts again
    from the mean of all.
    """
    return memberships(decision.least(final_distances(inner, clusters, iterations, decision), 1), clusters)


def final_distances(inner: Gram, clusters: int, iterations: int, decision: Decision) -> Tensor:
    """Half the squared distances from the centroids that k-means ends with to tokens, but for a constant of each token:
    (B, clusters, N)."""
    dtype = inner.products.dtype
    half = inner.products.new_full((inner.products.shape[1], 1), 0.5)

    def distances(weights: Tensor) -> Tensor:
        """Half the squared ones from centroids to tokens, but for a constant of each token: (B, [S,] clusters, N)."""
        if weights.dim() == 3:
            products = weights @ inner.products
        else:
            products = (weights.flatten(1, 2) @ inner.products).unflatten(1, weights.shape[1:3])
        # half the square of a centroid, as one product: a sum and its half would be one operation more
        return (weights * products) @ half - products

    def nearest(weights: Tensor) -> Tensor:
        """Memberships in the nearest cluster; a token between two that are equally near is in both."""
        return decision.all_least(distances(weights), -2)

    weights = _starts(inner, clusters, decision)  # of the tokens in the centroids: (B, S, clusters, N)
    for _ in range(min(TRIALS, iterations - 1)):
        weights = apart(nearest(weights), dtype).softmax(-1)
    inertia = distances(weights).amin(2, keepdim=True).mean(3, keepdim=True)  # but for a constant
    best = decision.least(inertia, 1) == torch.arange(weights.shape[1], device=weights.device)[:, None, None]
    weights = (weights * best.to(dtype)).sum(1)  # (B, clusters, N)
    members = None
    for _ in range(max(iterations - TRIALS, 1)):
        before, members = members, nearest(weights)
        if not decision.is_followed and _same(before, members):  # no further iteration would change it
            break
        weights = apart(members, dtype).softmax(-1)
    return distances(weights)


def _starts(inner: Gram, clusters: int, decision: Decision) -> Tensor:
    """Tokens to start from, one-hot: (B, S, clusters, N)."""
    distance = inner.column + inner.row - inner.products  # half the squared one: (B, N, N)
    tokens, dtype = distance.shape[1], distance.dtype
    first = range(tokens // (2 * STARTS), tokens, max(tokens // STARTS, 1))[:STARTS]
    places = torch.arange(tokens, device=distance.device)
    start = torch.tensor(first, device=distance.device)[:, None] == places
    chosen = [start.to(dtype).expand(len(distance), -1, -1)]  # (B, S, N) each
    nearest = distance[:, first.start : first.stop : first.step]  # from every token to the nearest that is chosen
    while len(chosen) < clusters:
        nearest = torch.minimum(nearest, chosen[-1] @ distance) if len(chosen) > 1 else nearest
        left = torch.minimum(distance[:, None], nearest[:, :, None]).mean(-1)  # with each token added: (B, S, N)
        chosen.append((decision.least(left, -1) == places).to(dtype))
    return torch.stack(chosen, 2)


def _same(before: Tensor | None, now: Tensor) -> bool:
    """Whether to stop. Elsewhere than on a CPU asking costs more, and a trace must be that of any image."""
    is_traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return before is not None and now.device.type == "cpu" and not is_traced and torch.equal(before, now)

"""Plain readings: what `forward.py` times our blocks against, with the same weights and, in float64, the same result.

Each is written as its paper or its authors write it: `torch.roll` for shifts, `Unfold` and `Fold` for patches, edges
gathered and scattered, one image and one cluster after another where the paper loops.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigcli.nn.attention import MobileViTBlock
from vigcli.nn.cluster import CentroidAttention, Degc, GlobalMrgcn
from vigcli.nn.dynamic import KnnGraph, MaskedMaxRelative
from vigcli.nn.graph import MaxRelative
from vigcli.nn.kmeans import STARTS, TRIALS


class PlainMaxRelative(nn.Module):
    """The authors' loop: a roll, a difference and a maximum for every link, from zero."""

    def __init__(self, ours: MaxRelative):
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        greatest = x - x
        for shifts, dim, _ in self.ours.links:
            for by in shifts:
                difference = torch.roll(x, by, dim) - x
                greatest = torch.maximum(greatest, -difference if self.ours.of_token else difference)
        return greatest


class PlainMaskedMaxRelative(nn.Module):
    """GreedyViG Algorithm 1: for every link a roll, a distance, a mask and a maximum."""

    def __init__(self, ours: MaskedMaxRelative):
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.ours.grid
        far = torch.roll(x, (-(-rows // 2), -(-columns // 2)), (2, 3))
        distance = (x - far).abs().sum(1, keepdim=True)
        limit = distance.mean((2, 3), keepdim=True) - distance.std((2, 3), keepdim=True)
        greatest = x - x
        for by, dim, size, both in self.ours.links:
            for shift in {by, size - by} if both else {by}:
                difference = torch.roll(x, shift, dim) - x
                near = difference.abs().sum(1, keepdim=True) < limit
                greatest = torch.maximum(greatest, torch.where(near, difference, 0.0))
        return greatest


class PlainKnnGraph(nn.Module):
    """ViG's graph: all distances, the nearest of them, and both ends of every edge gathered."""

    def __init__(self, ours: KnnGraph):
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        ours = self.ours
        nodes = F.avg_pool2d(x, ours.reduction).flatten(2) if ours.reduction > 1 else x.flatten(2)
        starts, ends = F.normalize(x.flatten(2), dim=1).transpose(1, 2), F.normalize(nodes, dim=1).transpose(1, 2)
        distance = torch.cdist(starts, ends).square()
        if ours.relative_pos is not None:
            distance = distance + ours.relative_pos
        index = distance.topk(ours.neighbours * ours.dilation, largest=False).indices[:, :, :: ours.dilation]
        edges = index.flatten(1)[:, None].expand(-1, x.shape[1], -1)  # (B, C, N * K)
        theirs = nodes.gather(2, edges).unflatten(2, index.shape[1:])  # (B, C, N, K)
        m = (theirs - x.flatten(2)[..., None]).amax(3).view_as(x)
        return ours.act(ours.proj(torch.stack([x, m], 2).flatten(1, 2)))


class PlainDegc(nn.Module):
    """ClusterViG Algorithm 1 with the update G-MRGCN: a loop over images, in it one over clusters."""

    def __init__(self, ours: Degc):
        super().__init__()
        assert isinstance(ours.update, GlobalMrgcn)
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.image(tokens) for tokens in x.flatten(2).transpose(1, 2)])

    def image(self, x: Tensor) -> Tensor:
        """(N, C) tokens -> (C', H, W)."""
        ours = self.ours
        if ours.center_tokens:
            x = x - x.mean(0)
        fixed = ours.cells is not None
        labels = torch.tensor(ours.cells) if fixed else plain_kmeans(x, ours.clusters, ours.kmeans_iterations)
        centroids, edges = [], []
        for i in labels.unique().tolist():
            nodes = (labels == i).nonzero()[:, 0]
            unit = F.normalize(x[nodes], dim=1)
            near = torch.cdist(unit, unit).topk(min(ours.neighbours, len(nodes)), largest=False).indices
            edges.append(torch.stack([nodes[:, None].expand_as(near), nodes[near]]).flatten(1))
            centroids.append(x[nodes].mean(0))
        z = plain_attention(ours.attention, torch.stack(centroids))
        own, other = torch.cat(edges, 1)
        index = own[:, None].expand(-1, x.shape[1])
        greatest = torch.full_like(x, -torch.inf).scatter_reduce(0, index, x[other] - x[own], "amax")
        of_token = z[labels.unique(return_inverse=True)[1]]
        features = torch.cat([torch.stack([x, greatest], 2).flatten(1), of_token], 1)
        assert isinstance(ours.update, GlobalMrgcn)
        return F.gelu(ours.update.mlp(features.T[None, :, :, None]))[0, :, :, 0].unflatten(1, ours.grid)


def plain_kmeans(x: Tensor, clusters: int, iterations: int) -> Tensor:
    """Our k-means of (N, C) tokens, start after start: (N,) labels."""
    distance, inertia, centroids = torch.cdist(x, x).square(), torch.inf, x
    for first in range(len(x) // (2 * STARTS), len(x), max(len(x) // STARTS, 1))[:STARTS]:
        chosen = [first]
        while len(chosen) < clusters:
            nearest = distance[chosen].amin(0)
            chosen.append(int(torch.minimum(distance, nearest).mean(1).argmin()))
        means = x[chosen]
        for _ in range(min(TRIALS, iterations - 1)):
            means = plain_means(x, torch.cdist(x, means).argmin(1), clusters)
        found = float(torch.cdist(x, means).square().amin(1).mean())
        if found < inertia:
            inertia, centroids = found, means
    labels = torch.full_like(x[:, 0], -1, dtype=torch.int64)
    for _ in range(max(iterations - TRIALS, 1)):
        before, labels = labels, torch.cdist(x, centroids).argmin(1)
        if torch.equal(before, labels):
            break
        centroids = plain_means(x, labels, clusters)
    return torch.cdist(x, centroids).argmin(1)


def plain_means(x: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """(N, C) tokens -> (P, C); the mean of all where a cluster is empty."""
    sums = x.new_zeros(clusters, x.shape[1]).index_add(0, labels, x)
    counts = labels.bincount(minlength=clusters)[:, None]
    return torch.where(counts > 0, sums / counts, x.mean(0))


def plain_attention(ours: CentroidAttention, z: Tensor) -> Tensor:
    """GATv2 edge by edge, gathered and scattered: (P, C) -> (P, C)."""
    source, target = ours.lin_l(z), ours.lin_r(z)
    to, of = torch.cartesian_prod(torch.arange(len(z)), torch.arange(len(z))).T
    scores = (F.leaky_relu(target[to] + source[of], 0.2) * ours.att).sum(1)
    greatest = torch.full_like(z[:, 0], -torch.inf).scatter_reduce(0, to, scores, "amax")
    weights = (scores - greatest[to]).exp()
    weights = weights / torch.zeros_like(z[:, 0]).index_add(0, to, weights)[to]
    return torch.zeros_like(z).index_add(0, to, weights[:, None] * source[of]) + ours.bias


class PlainMobileViTBlock(nn.Module):
    """Patches by Unfold and Fold, as MobileViT Section 3.1 describes them."""

    def __init__(self, ours: MobileViTBlock):
        super().__init__()
        self.ours = ours
        ours._unfold, ours._fold = self.unfold, self.fold  # type: ignore[method-assign]

    def unfold(self, x: Tensor) -> Tensor:
        patch = self.ours.patch
        columns = F.unfold(x, patch, stride=patch)  # (B, C * P, N)
        return columns.unflatten(1, (x.shape[1], patch**2)).transpose(2, 3)

    def fold(self, x: Tensor) -> Tensor:
        patch = self.ours.patch
        return F.fold(x.transpose(2, 3).flatten(1, 2), self.ours.grid, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.ours(x)


PLAIN: dict[type[nn.Module], Callable[..., nn.Module]] = {
    MaxRelative: PlainMaxRelative,
    MaskedMaxRelative: PlainMaskedMaxRelative,
    KnnGraph: PlainKnnGraph,
    Degc: PlainDegc,
    MobileViTBlock: PlainMobileViTBlock,
}


def plain(network: nn.Module) -> nn.Module:
    """A copy of a network in which every module of `PLAIN` is read as its paper writes it."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in PLAIN:
                setattr(parent, name, PLAIN[type(child)](child))
    return network

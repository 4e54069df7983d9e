"""DEGC, the graph convolution of ClusterViG: tokens in clusters, a graph in each, and a graph of their centroids.

All images and clusters of a batch are computed at once, by matrix products with the memberships of the tokens: shapes
do not depend on the clusters. What depends on the data is one top-k and one gather.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigcli.config.archs.clustervig import grid_cells
from vigcli.nn.decisions import Decision
from vigcli.nn.deploy import Foldable, fold_norm

STARTS = 4  # of k-means, of which the best goes on
TRIALS = 2  # iterations after which it is known well enough
_APART = -1000.0  # far below any x_v . x_u / |x_u|: no number of a scaled token is greater than 1


# ------------------------------------------------------------------------------------------------------- partitions


def memberships(labels: Tensor, clusters: int, dtype: torch.dtype) -> Tensor:
    """1 where a token is in a cluster, else 0: (..., N) labels -> (..., clusters, N)."""
    return (labels.unsqueeze(-2) == torch.arange(clusters, device=labels.device)[:, None]).to(dtype)


def grid_labels(height: int, width: int, clusters: int) -> Tensor:
    """The cells of the grid, as square as the number of clusters allows, as a partition: (N,) labels."""
    rows, columns = grid_cells(clusters)
    row = torch.arange(height, device="cpu") * rows // height  # also where networks are built without memory
    column = torch.arange(width, device="cpu") * columns // width
    return (columns * row[:, None] + column).flatten()


def _or_one(x: Tensor) -> Tensor:
    """What may be divided by: 1 in place of 0. No clamp, whose open end becomes a number that fp16 does not have."""
    return torch.where(x > 0, x, 1.0)


def _means(members: Tensor) -> Tensor:
    """The weights of the tokens in the means of clusters, by memberships (..., N); none in an empty one."""
    count = members.sum(-1, keepdim=True)
    return members / torch.maximum(count, torch.ones(1, dtype=count.dtype, device=count.device))


class Gram(NamedTuple):
    """The inner products of the tokens of every image, (B, N, N), and their diagonal, (B, N).

    They decide clusters and graph.
    """

    products: Tensor
    squares: Tensor


@torch.no_grad()
def gram(x: Tensor) -> Gram:
    """Of tokens (B, N, C) divided by their greatest number, which changes no order and stays within fp16."""
    x = x / _or_one(x.abs().amax((1, 2), keepdim=True))
    return Gram(x @ x.transpose(1, 2), x.square().sum(-1))


@torch.no_grad()
def kmeans(inner: Gram, clusters: int, iterations: int, decision: Decision) -> Tensor:
    """Lloyd's k-means of the tokens of every image -> memberships (B, clusters, N).

    Nothing is drawn. There are `STARTS` starts, each from another token of the image; what joins it are, one after
    another, the tokens that leave the least squared distances (greedy k-means++ that tries every token). After
    `TRIALS` iterations the start with the least inertia goes on alone. A cluster that loses its tokens starts again
    from the origin.
    """

    def nearest(weights: Tensor) -> Tensor:
        """Memberships in the nearest cluster; a token between two that are equally near is in both."""
        return decision.all_least(_distances(inner, weights), -2).to(weights.dtype)

    weights = _starts(inner, clusters, decision)  # of the tokens in the centroids: (B, S, clusters, N)
    for _ in range(min(TRIALS, iterations - 1)):
        weights = _means(nearest(weights))
    inertia = _distances(inner, weights).amin(2).mean(-1)  # but for a constant
    best = memberships(decision.least(inertia, 1), weights.shape[1], weights.dtype).transpose(0, 1)  # (B, S)
    weights = (weights * best[:, :, None, None]).sum(1)  # (B, clusters, N)
    members = weights
    for _ in range(max(iterations - TRIALS, 1)):
        before, members = members, nearest(weights)
        if not decision.is_followed and _same(before, members):  # no further iteration would change it
            break
        weights = _means(members)
    return memberships(decision.least(_distances(inner, weights), 1), clusters, weights.dtype)


def _starts(inner: Gram, clusters: int, decision: Decision) -> Tensor:
    """Tokens to start from, one-hot: (B, S, clusters, N)."""
    square, tokens, dtype = inner.squares, inner.squares.shape[1], inner.squares.dtype
    distance = square[:, :, None] + square[:, None] - 2 * inner.products  # squared, (B, N, N)
    first = range(tokens // (2 * STARTS), tokens, max(tokens // STARTS, 1))[:STARTS]
    places = torch.arange(first.start, first.stop, first.step, device=square.device)
    chosen = [memberships(places, tokens, dtype).transpose(0, 1).expand(len(square), -1, -1)]  # (B, S, N) each
    nearest = distance[:, first.start : first.stop : first.step]  # from every token to the nearest that is chosen
    while len(chosen) < clusters:
        nearest = torch.minimum(nearest, chosen[-1] @ distance) if len(chosen) > 1 else nearest
        left = torch.minimum(distance[:, None], nearest[:, :, None]).mean(-1)  # with each token added: (B, S, N)
        chosen.append(memberships(decision.least(left, -1), tokens, dtype).transpose(1, 2))
    return torch.stack(chosen, 2)


def _distances(inner: Gram, weights: Tensor) -> Tensor:
    """Squared, from the centroids to the tokens, but for a constant of each token: (B, [S,] clusters, N)."""
    if weights.dim() == 3:
        products = weights @ inner.products
    else:
        products = (weights.flatten(1, 2) @ inner.products).unflatten(1, weights.shape[1:3])
    return (weights * products).sum(-1, keepdim=True) - 2 * products


def _same(before: Tensor, now: Tensor) -> bool:
    """Whether to stop. Elsewhere than on a CPU asking costs more, and a trace must be that of any image."""
    is_traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return now.device.type == "cpu" and not is_traced and torch.equal(before, now)


# ----------------------------------------------------------------------------------------------------------- graphs


class Graph(NamedTuple):
    """The neighbours of every token, as rows of the (B * N, C) tokens of a batch: both (B, N, K).

    A token whose cluster has fewer than K tokens has all of them, and itself in the places that are left.
    """

    rows: Tensor
    is_neighbour: Tensor  # false where a place is left

    def gather(self, x: Tensor) -> Tensor:
        """The features of the neighbours: (B, C, N) -> (B, N, K, C)."""
        rows = x.transpose(1, 2).flatten(0, 1).contiguous()  # one copy in memory order, in which rows are read quickly
        return rows.index_select(0, self.rows.flatten()).unflatten(0, self.rows.shape)


@torch.no_grad()
def nearest_in_cluster(inner: Gram, members: Tensor, neighbours: int, decision: Decision) -> Graph:
    """The K tokens of the own cluster whose directions are nearest, oneself among them (Algorithm 1, line 5).

    Between normalized features the least distance is the greatest cosine, and a token's own length does not change
    its order: x_v . x_u / |x_u|.

    Args:
        members: memberships (B, clusters, N).
    """
    batch, tokens = inner.squares.shape
    together = members.transpose(1, 2) @ members > 0.5  # (B, N, N)
    length = _or_one(inner.squares.sqrt())
    closeness = torch.where(together, inner.products / length[:, None], _APART)
    index = decision.greatest(closeness, min(neighbours, tokens))
    # Sorted, the tokens of the own cluster come first.
    is_neighbour = together.sum(-1, keepdim=True) > torch.arange(index.shape[2], device=members.device)
    index = torch.where(is_neighbour, index, torch.arange(tokens, device=members.device)[:, None])
    first = torch.arange(batch, device=members.device)[:, None, None] * tokens  # row of the image
    return Graph(index + first, is_neighbour)


class GraphLinear(nn.Linear):
    """A linear layer of a type by itself, as PyTorch Geometric's are in the authors' code: thop counts no such."""


class CentroidAttention(nn.Module):
    """GATv2 (arXiv:2105.14491) on the complete graph of the centroids (Eq. 2 and 3): (B, P, C) -> (B, P, C).

    One head; LIN_L and LIN_R have biases, and a bias is added to the sum, as in the authors' code. A cluster without
    tokens has no centroid, so that nothing comes from it.
    """

    def __init__(self, width: int):
        super().__init__()
        self.lin_l = GraphLinear(width, width)
        self.lin_r = GraphLinear(width, width)
        self.att = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As PyG does (Glorot and Bengio, uniform)."""
        for linear in (self.lin_l, self.lin_r):
            nn.init.xavier_uniform_(linear.weight)
        nn.init.xavier_uniform_(self.att[None])

    def forward(self, z: Tensor, is_there: Tensor) -> Tensor:
        source, target = self.lin_l(z), self.lin_r(z)
        paired = F.leaky_relu(target[:, :, None] + source[:, None], 0.2)  # (B, P, P, C)
        scores = torch.where(is_there[:, None], (paired * self.att).sum(-1), -1e4)
        return scores.softmax(-1) @ source + self.bias


# ---------------------------------------------------------------------------------------------------- local updates


class GroupedLinear(Foldable):
    """A 1x1 convolution in groups with a weight for each: (B, C, H, W) -> (B, C', H, W); folds into a `Conv2d`."""

    def __init__(self, width: int, out_width: int, groups: int):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width // groups, out_width // groups) for _ in range(groups))

    def joined(self, name: str) -> Tensor:
        """The weights or biases of all groups."""
        parts = [head.get_parameter(name) for head in self.heads]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.joined("weight")[:, :, None, None], self.joined("bias"), groups=len(self.heads))

    def fold(self, keep_norm: bool) -> nn.Module:
        weight, groups = self.joined("weight"), len(self.heads)
        conv = nn.utils.skip_init(
            nn.Conv2d, weight.shape[1] * groups, len(weight), 1, groups=groups, device=weight.device, dtype=weight.dtype
        )  # draws no weights
        conv.weight.copy_(weight[:, :, None, None])
        conv.bias.copy_(self.joined("bias"))
        return conv


class LinearNorm(Foldable):
    """What the paper calls MLP: a linear layer in groups and batch norm, after which GELU (sigma of Eq. 5) comes."""

    def __init__(self, width: int, out_width: int, groups: int):
        super().__init__()
        self.linear: nn.Module = GroupedLinear(width, out_width, groups)
        self.norm = nn.BatchNorm2d(out_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))

    def fold(self, keep_norm: bool) -> nn.Module:
        if keep_norm:
            return self
        assert isinstance(self.linear, nn.Conv2d)  # its own fold came first
        return fold_norm(self.linear, self.norm)


def _perceive(mlp: nn.Module, x: Tensor) -> Tensor:
    """MLP and GELU of every token: (B, C, N) -> (B, C', N)."""
    return F.gelu(_pointwise(mlp, x))


def _pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer of maps applied to tokens: (B, C, N) -> (B, C', N)."""
    return layer(x.unsqueeze(3)).squeeze(3)


def _slice_inputs(conv: nn.Conv2d, start: int, stop: int) -> nn.Conv2d:
    """The part of a convolution that these input channels have in its result; the first has the bias."""
    weight = conv.weight[:, start:stop]
    part = nn.utils.skip_init(
        nn.Conv2d, weight.shape[1], len(weight), 1, bias=start == 0, device=weight.device, dtype=weight.dtype
    )  # draws no weights
    part.weight.copy_(weight)
    if part.bias is not None:
        part.bias.copy_(conv.bias)
    return part


class TokenAndCluster(Foldable):
    """MLP(x_v | z') and GELU: (B, C1, N) of tokens, (B, C, P) of clusters and memberships (B, P, N) -> (B, C', N).

    Deployed without groups, what z' says is computed once a cluster, not once a token.
    """

    def __init__(self, token_width: int, width: int, hidden: int, groups: int):
        super().__init__()
        self.mlp: nn.Module = LinearNorm(token_width + width, hidden, groups)
        self.of_cluster: nn.Module | None = None
        self.token_width = token_width

    def forward(self, x: Tensor, z: Tensor, members: Tensor) -> Tensor:
        if self.of_cluster is None:
            return _perceive(self.mlp, torch.cat([x, z @ members], 1))
        return F.gelu(_pointwise(self.mlp, x) + _pointwise(self.of_cluster, z) @ members)

    def fold(self, keep_norm: bool) -> nn.Module:
        if isinstance(self.mlp, nn.Conv2d) and self.mlp.groups == 1:
            whole = self.mlp
            self.of_cluster = _slice_inputs(whole, self.token_width, whole.in_channels)
            self.mlp = _slice_inputs(whole, 0, self.token_width)
        return self


class GlobalMrgcn(TokenAndCluster):
    """MLP(x_v | max_u(x_u - x_v) | z'), the first two interleaved by channel as in the authors' code (Table II)."""

    def __init__(self, width: int, hidden: int, groups: int):
        super().__init__(2 * width, width, hidden, groups)

    def forward(self, x: Tensor, z: Tensor, members: Tensor, graph: Graph) -> Tensor:  # type: ignore[override]
        greatest = graph.gather(x).amax(2).transpose(1, 2) - x
        return super().forward(torch.stack([x, greatest], 2).flatten(1, 2), z, members)


class GlobalEdgeConv(Foldable):
    """max_u MLP(x_v | x_u - x_v | z') (Table II).

    Deployed without groups the linear layer is computed once a token, as W_v x_v + b + W_z z' and W_u x_u, and of their
    sums over u only the greatest and the least can have the greatest GELU, which falls and then rises.
    """

    def __init__(self, width: int, hidden: int, groups: int):
        super().__init__()
        self.mlp: nn.Module = LinearNorm(3 * width, hidden, groups)
        self.of_neighbour: nn.Module | None = None
        self.of_cluster: nn.Module | None = None

    def forward(self, x: Tensor, z: Tensor, members: Tensor, graph: Graph) -> Tensor:
        if self.of_neighbour is None or self.of_cluster is None:
            near = graph.gather(x).permute(0, 3, 1, 2)  # (B, C, N, K)
            x, z = (part.unsqueeze(3).expand_as(near) for part in (x, z @ members))
            return F.gelu(self.mlp(torch.cat([x, near - x, z], 1))).amax(3)
        own = _pointwise(self.mlp, x) + _pointwise(self.of_cluster, z) @ members
        said = graph.gather(_pointwise(self.of_neighbour, x))  # (B, N, K, C')
        ends = (own + said.amax(2).transpose(1, 2), own + said.amin(2).transpose(1, 2))
        return torch.maximum(F.gelu(ends[0]), F.gelu(ends[1]))

    def fold(self, keep_norm: bool) -> nn.Module:
        if isinstance(self.mlp, nn.Conv2d) and self.mlp.groups == 1:
            whole, width = self.mlp, self.mlp.in_channels // 3
            self.of_cluster = _slice_inputs(whole, 2 * width, 3 * width)
            self.of_neighbour = _slice_inputs(whole, width, 2 * width)
            self.mlp = own = _slice_inputs(whole, 0, width)
            own.weight.copy_(own.weight.double() - self.of_neighbour.weight.double())
        return self


class GlobalGraphSage(TokenAndCluster):
    """MLP_psi(x_v | max_u MLP_phi(x_u) | z') (Table II); MLP_phi is computed once a token, not once an edge."""

    def __init__(self, width: int, hidden: int, groups: int):
        super().__init__(2 * width, width, hidden, groups)
        self.mlp_phi = LinearNorm(width, width, groups)

    def forward(self, x: Tensor, z: Tensor, members: Tensor, graph: Graph) -> Tensor:  # type: ignore[override]
        said = graph.gather(_perceive(self.mlp_phi, x)).amax(2).transpose(1, 2)
        return super().forward(torch.cat([x, said], 1), z, members)


class GlobalGin(nn.Module):
    """MLP((1 + epsilon) x_v + sum_u x_u + (1 + delta) z'), both scalars learned from 0 (Table II)."""

    def __init__(self, width: int, hidden: int, groups: int):
        super().__init__()
        self.mlp = LinearNorm(width, hidden, groups)
        self.eps = nn.Parameter(torch.zeros(1))
        self.delta = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, z: Tensor, members: Tensor, graph: Graph) -> Tensor:
        total = (graph.gather(x) * graph.is_neighbour[..., None]).sum(2).transpose(1, 2)
        return _perceive(self.mlp, (1 + self.eps) * x + total + (1 + self.delta) * z @ members)


LOCAL_UPDATES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "mrgcn": GlobalMrgcn,
    "edgeconv": GlobalEdgeConv,
    "graphsage": GlobalGraphSage,
    "gin": GlobalGin,
}
"""By name: channels C, hidden channels C' and groups -> tokens (B, C, N), z' of the clusters (B, C, P), memberships
(B, P, N) and a graph to (B, C', N)."""


class Degc(nn.Module):
    """Dynamic Efficient Graph Convolution (ClusterViG Algorithm 1, arXiv:2501.10640): (B, C, H, W) -> (B, C', H, W).

    With `center_tokens` the mean over the tokens is subtracted from them first, as in the authors' code, of which the
    paper says nothing.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        hidden: int,
        clusters: int,
        neighbours: int,
        local_update: str = "mrgcn",
        groups: int = 1,
        partition: str = "kmeans",
        center_tokens: bool = False,
        kmeans_iterations: int = 20,
    ):
        super().__init__()
        width, *grid = in_shape
        self.grid = grid[0], grid[1]
        self.clusters, self.neighbours, self.center_tokens = clusters, neighbours, center_tokens
        self.attention = CentroidAttention(width)
        self.update = LOCAL_UPDATES[local_update](width, hidden, groups)
        self.kmeans_iterations = kmeans_iterations
        self.decision = Decision()
        # Numbers, not a buffer: what a checkpoint does not hold would have no values after loading.
        self.cells = grid_labels(*self.grid, clusters).tolist() if partition == "grid" else None

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """With `labels` (B, N), integers below the number of clusters, they are the partition."""
        x = x.flatten(2)  # (B, C, N)
        if self.center_tokens:
            x = x - x.mean(2, keepdim=True)
        tokens = x.transpose(1, 2).contiguous()
        inner = gram(tokens)
        members = self._partition(inner, labels)  # (B, P, N)
        centroids = _means(members) @ tokens
        z = self.attention(centroids, members.amax(2) > 0).transpose(1, 2)  # (B, C, P)
        graph = nearest_in_cluster(inner, members, self.neighbours, self.decision)
        return self.update(x, z, members, graph).unflatten(2, self.grid)

    def _partition(self, inner: Gram, labels: Tensor | None) -> Tensor:
        if labels is None and self.cells is not None:
            labels = torch.tensor(self.cells, device=inner.squares.device).expand(len(inner.squares), -1)
        if labels is None:
            return kmeans(inner, self.clusters, self.kmeans_iterations, self.decision)
        return memberships(labels, self.clusters, inner.squares.dtype)

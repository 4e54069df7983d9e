"""DEGC, the graph convolution of ClusterViG: tokens in clusters, a graph in each, and a graph of their centroids.

All images and clusters of a batch are computed at once; what depends on the data is one top-k and one gather.
`kmeans.py` makes the clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigcli.nn.decisions import Decision
from vigcli.nn.deploy import Foldable, fold_norm, with_weights
from vigcli.nn.dynamic import rows
from vigcli.nn.kmeans import APART, Gram, apart, gram, grid_labels, kmeans, memberships, not_zero

# ----------------------------------------------------------------------------------------------------------- graphs


class Graph(NamedTuple):
    """Neighbours and cluster of every token of a grid.

    A token whose cluster has fewer than K tokens has all of them, and itself in the places that are left.
    """

    neighbours: Tensor  # (B, N, K), their numbers
    is_neighbour: Tensor  # (B, N, K), false where a place is left
    members: Tensor  # (B, P, N), 1 where a token is in a cluster, else 0
    grid: tuple[int, int]

    def gather(self, x: Tensor) -> Tensor:
        """The features of the neighbours: (B, C, H, W) -> (B, N, K, C)."""
        return rows(x.flatten(2).transpose(1, 2), self.neighbours)

    def of_tokens(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, C, H, W)."""
        return x.transpose(1, 2).unflatten(2, self.grid)

    def of_clusters(self, z: Tensor) -> Tensor:
        """What the own cluster says to every token: (B, P, C) -> (B, C, H, W)."""
        return (z.transpose(1, 2) @ self.members).unflatten(2, self.grid)


@torch.no_grad()
def nearest_in_cluster(
    inner: Gram, members: Tensor, logits: Tensor, neighbours: int, decision: Decision
) -> tuple[Tensor, Tensor]:
    """The K tokens of the own cluster whose directions are nearest, oneself among them (Algorithm 1, line 5), and which
    of them are there: both (B, N, K).

    Between normalized features the least distance is the greatest cosine, and a token's own length does not change
    its order: x_v . x_u / |x_u|.

    Args:
        members, logits: memberships (B, P, N), as 0 and 1 and `apart`.
    """
    tokens = inner.products.shape[1]
    length = not_zero(inner.row.sqrt())  # but for the root of 2
    closeness = inner.products / length + members.transpose(1, 2) @ logits  # which adds 0 within a cluster
    values, index = decision.greatest(closeness, min(neighbours, tokens))
    is_neighbour = values > APART / 2
    return torch.where(is_neighbour, index, torch.arange(tokens, device=index.device)[:, None]), is_neighbour


class GraphLinear(nn.Linear):
    """A linear layer of a type by itself, as PyTorch Geometric's are in the authors' code: thop counts no such."""


class CentroidAttention(Foldable):
    """GATv2 (arXiv:2105.14491) on the complete graph of the centroids (Eq. 2 and 3): (B, P, C) -> (B, P, C).

    One head; LIN_L and LIN_R have biases, and a bias is added to the sum, as in the authors' code; deployed it is in
    those of the two. A cluster without tokens has no centroid, so that nothing comes from it.
    """

    bias: nn.Parameter | None

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

    def forward(self, z: Tensor, there: Tensor) -> Tensor:
        """With (B, P, 1), 0 for a cluster of tokens and far below for none, to add to what is attended to."""
        source, target = self.lin_l(z), self.lin_r(z)
        paired = F.leaky_relu(source[:, :, None] + target[:, None], 0.2)  # (B, P, P, C)
        scores = (paired * self.att).sum(-1) + there
        said = scores.softmax(1).transpose(1, 2) @ source
        return said if self.bias is None else said + self.bias

    def fold(self, keep_norm: bool) -> nn.Module:
        """What is attended to has shares of 1 in all, so that the bias may be in it; LIN_R takes it out of the sums."""
        if not keep_norm and self.bias is not None:
            self.lin_l.bias.add_(self.bias)
            self.lin_r.bias.sub_(self.bias)
            self.bias = None
        return self


# ---------------------------------------------------------------------------------------------------- local updates


class GroupedLinear(Foldable):
    """A 1x1 convolution in groups with a weight for each: (B, C, H, W) -> (B, C', H, W); folds into a `Conv2d`."""

    def __init__(self, width: int, out_width: int, groups: int):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width // groups, out_width // groups) for _ in range(groups))

    def joined(self, name: str) -> Tensor:
        """The weights or biases of all groups."""
        parts: list[Tensor] = [getattr(head, name) for head in self.heads]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.joined("weight")[:, :, None, None], self.joined("bias"), groups=len(self.heads))

    def fold(self, keep_norm: bool) -> nn.Module:
        weight, groups = self.joined("weight"), len(self.heads)
        conv = nn.utils.skip_init(
            nn.Conv2d, weight.shape[1] * groups, len(weight), 1, groups=groups, device=weight.device, dtype=weight.dtype
        )  # draws no weights
        return with_weights(conv, weight[:, :, None, None], self.joined("bias"))


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


def _input_part(conv: nn.Conv2d, start: int, stop: int) -> nn.Conv2d:
    """The part that these input channels have in a convolution's result; the first has the bias."""
    weight = conv.weight[:, start:stop]
    part = nn.utils.skip_init(
        nn.Conv2d, weight.shape[1], len(weight), 1, bias=start == 0, device=weight.device, dtype=weight.dtype
    )  # draws no weights
    return with_weights(part, weight, conv.bias if start == 0 else None)


def _cluster_part(conv: nn.Conv2d, start: int) -> nn.Linear:
    """The part that the last input channels have, of clusters: (B, P, C) -> (B, P, C')."""
    weight = conv.weight[:, start:, 0, 0]
    part = nn.utils.skip_init(
        nn.Linear, weight.shape[1], len(weight), bias=False, device=weight.device, dtype=weight.dtype
    )  # draws no weights
    return with_weights(part, weight, None)


class TokenAndCluster(Foldable):
    """MLP(x_v | z') and GELU: (B, 2C, H, W) of tokens, (B, P, C) of clusters and a graph -> (B, C', H, W).

    Deployed without groups, what z' says is computed once a cluster, not once a token.
    """

    def __init__(self, width: int, hidden: int, groups: int):
        super().__init__()
        self.mlp: nn.Module = LinearNorm(3 * width, hidden, groups)
        self.of_cluster: nn.Module | None = None

    def forward(self, x: Tensor, z: Tensor, graph: Graph) -> Tensor:
        if self.of_cluster is None:
            return F.gelu(self.mlp(torch.cat([x, graph.of_clusters(z)], 1)))
        return F.gelu(self.mlp(x) + graph.of_clusters(self.of_cluster(z)))

    def fold(self, keep_norm: bool) -> nn.Module:
        if isinstance(self.mlp, nn.Conv2d) and self.mlp.groups == 1:
            token_width = self.mlp.in_channels * 2 // 3
            self.of_cluster = _cluster_part(self.mlp, token_width)
            self.mlp = _input_part(self.mlp, 0, token_width)
        return self


class GlobalMrgcn(TokenAndCluster):
    """MLP(x_v | max_u(x_u - x_v) | z'), the first two interleaved by channel as in the authors' code (Table II).

    Deployed without groups they stand one after the other.
    """

    def forward(self, x: Tensor, z: Tensor, graph: Graph) -> Tensor:
        parts = x, graph.of_tokens(graph.gather(x).amax(2)) - x
        joined = torch.stack(parts, 2).flatten(1, 2) if self.of_cluster is None else torch.cat(parts, 1)
        return super().forward(joined, z, graph)

    def fold(self, keep_norm: bool) -> nn.Module:
        super().fold(keep_norm)
        if self.of_cluster is not None:
            assert isinstance(self.mlp, nn.Conv2d)
            order = torch.arange(self.mlp.in_channels, device=self.mlp.weight.device).view(-1, 2).T.flatten()
            self.mlp = with_weights(self.mlp, self.mlp.weight[:, order], self.mlp.bias)
        return self


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

    def forward(self, x: Tensor, z: Tensor, graph: Graph) -> Tensor:
        if self.of_neighbour is None or self.of_cluster is None:
            near = graph.gather(x).permute(0, 3, 1, 2)  # (B, C, N, K)
            x, z = (part.flatten(2).unsqueeze(3).expand_as(near) for part in (x, graph.of_clusters(z)))
            return F.gelu(self.mlp(torch.cat([x, near - x, z], 1))).amax(3).unflatten(2, graph.grid)
        own = self.mlp(x) + graph.of_clusters(self.of_cluster(z))
        said = graph.gather(self.of_neighbour(x))  # (B, N, K, C')
        ends = own + graph.of_tokens(said.amax(2)), own + graph.of_tokens(said.amin(2))
        return torch.maximum(F.gelu(ends[0]), F.gelu(ends[1]))

    def fold(self, keep_norm: bool) -> nn.Module:
        if isinstance(self.mlp, nn.Conv2d) and self.mlp.groups == 1:
            whole, width = self.mlp, self.mlp.in_channels // 3
            self.of_cluster = _cluster_part(whole, 2 * width)
            self.of_neighbour = _input_part(whole, width, 2 * width)
            own = _input_part(whole, 0, width)
            self.mlp = with_weights(own, own.weight.double() - self.of_neighbour.weight.double(), own.bias)
        return self


class GlobalGraphSage(TokenAndCluster):
    """MLP_psi(x_v | max_u MLP_phi(x_u) | z') (Table II); MLP_phi is computed once a token, not once an edge."""

    def __init__(self, width: int, hidden: int, groups: int):
        super().__init__(width, hidden, groups)
        self.mlp_phi = LinearNorm(width, width, groups)

    def forward(self, x: Tensor, z: Tensor, graph: Graph) -> Tensor:
        said = graph.gather(F.gelu(self.mlp_phi(x))).amax(2)
        return super().forward(torch.cat([x, graph.of_tokens(said)], 1), z, graph)


class GlobalGin(nn.Module):
    """MLP((1 + epsilon) x_v + sum_u x_u + (1 + delta) z'), both scalars learned from 0 (Table II)."""

    def __init__(self, width: int, hidden: int, groups: int):
        super().__init__()
        self.mlp = LinearNorm(width, hidden, groups)
        self.eps = nn.Parameter(torch.zeros(1))
        self.delta = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, z: Tensor, graph: Graph) -> Tensor:
        total = graph.of_tokens((graph.gather(x) * graph.is_neighbour[..., None]).sum(2))
        return F.gelu(self.mlp((1 + self.eps) * x + total + graph.of_clusters((1 + self.delta) * z)))


LOCAL_UPDATES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "mrgcn": GlobalMrgcn,
    "edgeconv": GlobalEdgeConv,
    "graphsage": GlobalGraphSage,
    "gin": GlobalGin,
}
"""By name: channels C, hidden channels C' and groups -> tokens (B, C, H, W), z' of the clusters (B, P, C) and a graph
to (B, C', H, W)."""


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
        if self.center_tokens:
            x = x - x.mean((2, 3), keepdim=True)
        tokens = x.flatten(2)  # (B, C, N)
        inner = gram(tokens)
        members = self._partition(inner, labels)  # (B, P, N)
        logits = apart(members, x.dtype)
        z = self.attention(logits.softmax(2) @ tokens.transpose(1, 2), logits.amax(2, keepdim=True))  # (B, P, C)
        members = members.to(x.dtype)
        near = nearest_in_cluster(inner, members, logits, self.neighbours, self.decision)
        return self.update(x, z, Graph(*near, members, self.grid))

    def _partition(self, inner: Gram, labels: Tensor | None) -> Tensor:
        if labels is None and self.cells is not None:
            labels = torch.tensor(self.cells, device=inner.row.device).expand(len(inner.row), -1)
        if labels is None:
            return kmeans(inner, self.clusters, self.kmeans_iterations, self.decision)
        return memberships(labels.unsqueeze(-2), self.clusters)

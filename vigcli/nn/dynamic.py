"""Dynamic graph updates: which tokens are neighbours is decided by the features of each picture.

DAGC (GreedyViG, arXiv:2405.06849) masks the links of a static graph, so it needs no gather. kNN (ViG, arXiv:2206.00272)
chooses among all tokens: one top-k and one gather a block, and no other operation whose memory access depends on data.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigcli.nn.blocks import ConvNorm
from vigcli.nn.decisions import Decision
from vigcli.nn.deploy import Foldable, with_weights
from vigcli.nn.shifts import shift, svga_links

GROUPS = 4  # of the 1x1 convolution after a kNN graph, as in the authors' code


# ---------------------------------------------------------------------------------------------------- DAGC


class MaskedMaxRelative(nn.Module):
    """What the neighbours j of a token i that are like it say, max(0, max_j(x_j - x_i)): (B, C, H, W) -> the same.

    The candidates are every K-th token of the token's row and column, as in SVGA. One is a neighbour where its distance
    is below mean - standard deviation of the distances between tokens half a picture apart (GreedyViG Algorithm 1).
    Distances are L1, as in the authors' code where the paper says Euclidean, and mean over channels where it sums them:
    all are divided by the same number, and none leaves the range of fp16. The code's shift by 0 adds x - x and is left
    out. A shift back by s is the shift forth seen from the neighbour, so the two share their distances and mask.
    """

    def __init__(self, reach: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.decision = Decision()
        self.links: list[tuple[int, int, int, bool]] = []  # shift, axis, its size, whether the shift back is a link too
        for dim, size in ((2, grid[0]), (3, grid[1])):
            shifts = svga_links(reach, size)
            for by in shifts:
                if size - by not in shifts or by <= size - by:
                    self.links.append((by, dim, size, by < size - by and size - by in shifts))

    def forward(self, x: Tensor) -> Tensor:
        limit = self._limit(x)
        greatest, least = None, None
        for by, dim, size, both in self.links:
            difference = shift(x, by, dim, size) - x
            with torch.no_grad():
                near = self.decision.below(difference.abs().mean(1, keepdim=True), limit)  # (B, 1, H, W)
            masked = difference * near.to(x.dtype)
            greatest = masked if greatest is None else torch.maximum(greatest, masked)
            if both:
                back = shift(masked, size - by, dim, size)  # x_i - x_j of the neighbours on the other side
                least = back if least is None else torch.minimum(least, back)
        assert greatest is not None
        return (greatest if least is None else torch.maximum(greatest, -least)).relu()

    @torch.no_grad()
    def _limit(self, x: Tensor) -> Tensor:
        """Mean - standard deviation (Bessel's correction) of the distances half a picture apart: (B, 1, 1, 1).

        As mean * (1 - deviation / mean): the squares of small distances would vanish in fp16. The halves keep Bessel's
        correction away from a factor of 1, which coremltools takes out.
        """
        rows, columns = self.grid
        far = shift(shift(x, -(-rows // 2), 2, rows), -(-columns // 2), 3, columns)  # an odd half is rounded up
        distance = (x - far).abs().mean(1, keepdim=True)  # (B, 1, H, W)
        mean = distance.mean((2, 3), keepdim=True)
        quarter = (distance / (2 * mean) - 0.5).square().mean((2, 3), keepdim=True)  # of the variance
        return mean * (1 - (quarter * (4 * rows * columns / (rows * columns - 1))).sqrt())


class MaskedGraph(nn.Module):
    """DAGC: 1x1 convolution, batch norm and GELU of a token beside what its neighbours say.

    (B, C, H, W) -> (B, C', H, W), GreedyViG Section 3.2.
    """

    def __init__(self, in_shape: tuple[int, int, int], hidden: int, reach: int):
        super().__init__()
        width, *grid = in_shape
        self.aggregate = MaskedMaxRelative(reach, (grid[0], grid[1]))
        self.proj: nn.Module = ConvNorm(2 * width, hidden)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.proj(torch.cat([x, self.aggregate(x)], 1)))  # (B, 2C, H, W) -> (B, C', H, W)


# ---------------------------------------------------------------------------------------------------- kNN


def relative_positions(width: int, side: int, grid: tuple[int, int], reduction: int) -> Tensor:
    """What Pyramid ViG adds to the distance of tokens i and j: (1, N, N / reduction^2), the nearer the less.

    -2 P P^T / C of the sine-cosine table P of a grid of `side` x `side` tokens, in float32, then bicubic to the tokens
    and nodes of that grid, and again, where it is another, to those of `grid`.
    """
    exponents = torch.arange(width // 4, dtype=torch.float64) / (width // 4)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * 10000.0**-exponents
    axis = torch.cat([angles.sin(), angles.cos()], 1)  # (side, C / 2)
    table = torch.cat([axis.repeat(side, 1), axis.repeat_interleave(side, 0)], 1)  # (N, C): by column, by row
    alike = (2 / width * table @ table.T).float()[None, None]
    for tokens in dict.fromkeys((side**2, grid[0] * grid[1])):
        size = tokens, tokens // reduction**2
        if alike.shape[2:] != size:
            alike = F.interpolate(alike, size, mode="bicubic", align_corners=False)
    return -alike[0]


def unit(x: Tensor) -> Tensor:
    """Features (B, C, N) of length 1. Less than fp16's least number would be 0 there, and 0 / 0 no number."""
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-7)


class KnnGraph(Foldable):
    """Max-relative convolution over the nearest tokens (ViG Eq. 5 and 7): (B, C, H, W) -> (B, C', H, W).

    Of the `neighbours * dilation` nodes nearest to a token every `dilation`-th is a neighbour; the nodes are the tokens
    of the map averaged over squares of `reduction`. Features have length 1, so the squared distance is 2 - 2 cos, and
    the nearest have the greatest cosine. By max_j(x_j - x_i) = max_j(x_j) - x_i one subtraction serves all neighbours.

    Attributes:
        relative_pos: added to distances where the mixer has positions, frozen; of a grid of so many tokens a side.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        hidden: int,
        neighbours: int,
        dilation: int = 1,
        reduction: int = 1,
        relative_pos: int = 0,
    ):
        super().__init__()
        width, *grid = in_shape
        self.grid, self.neighbours, self.dilation, self.reduction = grid, neighbours, dilation, reduction
        table = relative_positions(width, relative_pos, (grid[0], grid[1]), reduction) if relative_pos else None
        self.relative_pos = None if table is None else nn.Parameter(table, requires_grad=False)
        self.decision = Decision()
        self.proj: nn.Module = ConvNorm(2 * width, hidden, groups=GROUPS)
        self.act = nn.GELU()
        self.is_folded = False

    def forward(self, x: Tensor) -> Tensor:
        nodes = (F.avg_pool2d(x, self.reduction) if self.reduction > 1 else x).flatten(2)  # (B, C, M)
        index = self._nearest(x, nodes)  # (B, N, K)
        said = rows(nodes.transpose(1, 2), index).amax(2).transpose(1, 2)  # (B, N, K, C) -> (B, C, N)
        m = said.unflatten(2, self.grid) - x
        return self.act(self.proj(self._joined(x, m)))

    def _joined(self, x: Tensor, m: Tensor) -> Tensor:
        """Channels x0, m0, x1, m1, ... as in the authors' code; once folded, the x and then the m of each group."""
        if not self.is_folded:
            return torch.stack([x, m], 2).flatten(1, 2)
        parts = zip(x.chunk(GROUPS, 1), m.chunk(GROUPS, 1), strict=True)
        return torch.cat([part for pair in parts for part in pair], 1)

    @torch.no_grad()
    def _nearest(self, x: Tensor, nodes: Tensor) -> Tensor:
        """The neighbours of every token by their number: (B, C, H, W) and (B, C, M) -> (B, N, K)."""
        ends = unit(nodes)
        starts = ends if self.reduction == 1 else unit(x.flatten(2))
        closeness = starts.transpose(1, 2) @ ends  # (B, N, M)
        if self.relative_pos is not None:
            # the distance is 2 - 2 cos + position
            closeness = closeness - (self.relative_pos if self.is_folded else self.relative_pos / 2)
        _, index = self.decision.greatest(closeness, self.neighbours * self.dilation)
        return index[:, :, :: self.dilation] if self.dilation > 1 else index

    def fold(self, keep_norm: bool) -> nn.Module:
        """The convolution takes the halves of each group one after the other, and positions are halved once."""
        if not keep_norm:
            assert isinstance(self.proj, nn.Conv2d)
            order = torch.arange(self.proj.weight.shape[1], device=self.proj.weight.device)
            self.proj = with_weights(self.proj, self.proj.weight[:, order.view(-1, 2).T.flatten()], self.proj.bias)
            if self.relative_pos is not None:
                self.relative_pos.div_(2)
            self.is_folded = True
        return self


def rows(nodes: Tensor, index: Tensor) -> Tensor:
    """Each picture's own nodes (B, M, C) by their numbers (B, N, K): (B, N, K, C), as one gather of whole rows."""
    batch, count, width = nodes.shape
    if batch > 1:  # a single picture, such as an exported network's, is spared the sum
        index = index + count * torch.arange(batch, device=index.device)[:, None, None]
    return F.embedding(index, nodes.reshape(-1, width))

"""Static graph blocks: which tokens are neighbours is fixed when the network is built, so nothing is gathered.

A graph is a list of cyclic shifts of the feature map. By max_j(shift_j(x) - x) = max_j(shift_j(x)) - x one subtraction
serves all. `dynamic.py` has the graphs that the features themselves decide.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vigcli.nn.blocks import ConvNorm, ResidualBranch, feed_forward
from vigcli.nn.cluster import Degc
from vigcli.nn.deploy import Foldable
from vigcli.nn.dynamic import KnnGraph, MaskedGraph
from vigcli.nn.shifts import Links, mgc_links, shifts, svga_links


class MaxRelative(nn.Module):
    """What the neighbours j of a token i say: (B, C, H, W) -> (B, C, H, W).

    max_j(x_j - x_i) where the difference is the `neighbour`'s (MobileViGv2 Eq. 2), max_j(x_i - x_j) where it is the
    `token`'s (MobileViG's code); the token itself is among its neighbours in both.
    """

    def __init__(self, links: Links, reach: int, difference: str, grid: tuple[int, int]):
        super().__init__()
        self.of_token = difference == "token"
        self.links = [(links(reach, size), dim, size) for dim, size in ((2, grid[0]), (3, grid[1]))]

    def forward(self, x: Tensor) -> Tensor:
        choose = torch.minimum if self.of_token else torch.maximum
        extreme = x
        for link in self.links:
            for shifted in shifts(x, *link):
                extreme = choose(extreme, shifted)
        return x - extreme if self.of_token else extreme - x


class ConditionalEncoding(Foldable):
    """x + depthwise convolution of x (CPE, MobileViGv2 Eq. 4); folds into the convolution alone."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)

    def fold(self, keep_norm: bool) -> nn.Module:
        middle = self.conv.kernel_size[0] // 2
        self.conv.weight[:, :, middle, middle] += 1
        return self.conv


class StaticGraph(nn.Module):
    """1x1 convolution, batch norm and GELU of a token beside what its neighbours say: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, links: Links, in_shape: tuple[int, int, int], hidden: int, reach: int, difference: str):
        super().__init__()
        width, *grid = in_shape
        self.aggregate = MaxRelative(links, reach, difference, (grid[0], grid[1]))
        self.proj: nn.Module = ConvNorm(2 * width, hidden)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.proj(torch.cat([x, self.aggregate(x)], 1)))  # (B, 2C, H, W) -> (B, C', H, W)


class FullyConnected(nn.Sequential):
    """What stands in for a graph without one (MobileViGv2 Table 3, *): (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, in_shape: tuple[int, int, int], hidden: int):
        super().__init__(ConvNorm(in_shape[0], hidden), nn.GELU())


UPDATES: dict[str, Callable[..., nn.Module]] = {
    "mgc": partial(StaticGraph, mgc_links),
    "svga": partial(StaticGraph, svga_links),
    "dagc": MaskedGraph,
    "knn": KnnGraph,
    "fc": FullyConnected,
    "degc": Degc,
}
"""By the mixer's name: in_shape (C, H, W), hidden channels C' and the mixer's own options -> (B, C, H, W) to
(B, C', H, W)."""


class Mixer(nn.Sequential):
    """Positional encoding, 1x1 convolution, update, 1x1 convolution (MobileViGv2 Eq. 4): (B, C, H, W) -> the same."""

    def __init__(self, in_shape: tuple[int, int, int], mixer: str, cpe: int, mixer_expansion: int, **options: Any):
        width, hidden = in_shape[0], mixer_expansion * in_shape[0]
        encoding = ConditionalEncoding(width, cpe) if cpe else nn.Identity()
        update = UPDATES[mixer](in_shape, hidden, **options)
        super().__init__(encoding, ConvNorm(width, width), update, ConvNorm(hidden, width))


class GraphBlock(nn.Sequential):
    """A mixer and a feed-forward layer, each with a residual and on request layer scale (MobileViGv2 Eq. 3 and 4).

    The mixer `none` leaves the feed-forward layer alone; the `options` are those of the mixer.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        mixer: str,
        expansion: int,
        layer_scale: bool,
        cpe: int = 0,
        mixer_expansion: int = 1,
        drop_path: float = 0.0,
        **options: Any,
    ):
        width = in_shape[0]
        mix: nn.Module = nn.Identity()
        if mixer != "none":
            branch = Mixer(in_shape, mixer, cpe, mixer_expansion, **options)
            mix = ResidualBranch(branch, width, layer_scale, drop_path)
        super().__init__(mix, ResidualBranch(feed_forward(width, expansion), width, layer_scale, drop_path))

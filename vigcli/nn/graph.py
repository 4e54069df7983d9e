"""Static graph blocks: which tokens are neighbours is fixed when the network is built, so nothing is gathered.

A graph is a list of cyclic shifts of the feature map, each made of two slices and a concat (`torch.roll` would become
a gather, which leaves the Neural Engine). By max_j(shift_j(x) - x) = max_j(shift_j(x)) - x one subtraction serves all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vigcli.nn.blocks import ConvNorm, ScaledBranch, feed_forward
from vigcli.nn.deploy import Foldable


def links(mixer: str, reach: int, size: int) -> list[int]:
    """The shifts along an axis of `size` tokens: MGC's two at distance L, or SVGA's K, 2K, ... below the size.

    MobileViGv2 Section 4.1; the authors' code wraps around at the border.
    """
    return [reach % size, -reach % size] if mixer == "mgc" else list(range(reach, size, reach))


def shift(x: Tensor, by: int, dim: int, size: int) -> Tensor:
    """`torch.roll(x, by, dim)` for 0 < by < size, as slices and a concat; `size` is a number, not read off `x`."""
    return torch.cat([x.narrow(dim, size - by, by), x.narrow(dim, 0, size - by)], dim)


class MaxRelative(nn.Module):
    """max over neighbours j, and the token itself, of x_j - x_i (MobileViGv2 Eq. 2): (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, mixer: str, reach: int, grid: tuple[int, int]):
        super().__init__()
        self.shifts = [
            (by, dim, size) for dim, size in ((2, grid[0]), (3, grid[1])) for by in links(mixer, reach, size)
        ]

    def forward(self, x: Tensor) -> Tensor:
        greatest = x
        for by, dim, size in self.shifts:
            greatest = torch.maximum(greatest, shift(x, by, dim, size))
        return greatest - x


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


class GraphUpdate(nn.Module):
    """1x1 convolution, batch norm and GELU of a token beside what its neighbours say: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, in_shape: tuple[int, int, int], mixer: str, reach: int):
        super().__init__()
        width, *grid = in_shape
        self.aggregate = MaxRelative(mixer, reach, (grid[0], grid[1]))
        self.proj: nn.Module = ConvNorm(2 * width, width)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.proj(torch.cat([x, self.aggregate(x)], 1)))  # (B, 2C, H, W) -> (B, C, H, W)


class GraphBlock(nn.Sequential):
    """A graph mixer and a feed-forward layer, each with layer scale and residual (MobileViGv2 Eq. 3 and 4)."""

    def __init__(
        self, in_shape: tuple[int, int, int], mixer: str, reach: int, cpe: int, expansion: int, drop_path: float = 0.0
    ):
        width = in_shape[0]
        mix = nn.Sequential(
            ConditionalEncoding(width, cpe), ConvNorm(width, width), GraphUpdate(in_shape, mixer, reach),
            ConvNorm(width, width),
        )  # fmt: skip
        super().__init__(
            ScaledBranch(mix, width, drop_path), ScaledBranch(feed_forward(width, expansion), width, drop_path)
        )

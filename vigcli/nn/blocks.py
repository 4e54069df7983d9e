"""Convolution blocks that families share; `graph.py` has the graph blocks, `attention.py` the transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vigcli.nn.deploy import Foldable, fold_norm, scale_output


class ConvNorm(Foldable):
    """Convolution, then batch norm: (B, C_in, H, W) -> (B, C_out, H', W').

    The authors of MobileViG give the convolution a bias of its own, those of MobileViT do not.
    """

    def __init__(
        self, in_chans: int, out_chans: int, kernel: int = 1, stride: int = 1, groups: int = 1, bias: bool = True
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(out_chans)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def fold(self, keep_norm: bool) -> nn.Module:
        return self if keep_norm else fold_norm(self.conv, self.norm)


class LayerScale(nn.Module):
    """A learned factor for each channel (CaiT, arXiv:2103.17239)."""

    def __init__(self, width: int, init_value: float = 1e-5):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma[:, None, None]


class DropPath(nn.Module):
    """In training, drops the branch of a picture with probability `rate` and scales the others (arXiv:1603.09382)."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)


class ResidualBranch(Foldable):
    """x + branch(x) with drop path and on request layer scale; the branch's last layer is a convolution."""

    def __init__(self, branch: nn.Sequential, width: int, layer_scale: bool = True, drop_path: float = 0.0):
        super().__init__()
        self.branch = branch
        self.layer_scale: nn.Module = LayerScale(width) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.layer_scale(self.branch(x)))

    def fold(self, keep_norm: bool) -> nn.Module:
        if not keep_norm and isinstance(self.layer_scale, LayerScale):
            self.branch[-1] = scale_output(self.branch[-1], self.layer_scale.gamma)
            self.layer_scale = nn.Identity()
        return self


def feed_forward(width: int, expansion: int) -> nn.Sequential:
    """Two 1x1 convolutions with batch norm, GELU between (MobileViGv2 Eq. 3)."""
    hidden = expansion * width
    return nn.Sequential(ConvNorm(width, hidden), nn.GELU(), ConvNorm(hidden, width))


class InvertedResidual(ResidualBranch):
    """1x1 expansion, depthwise 3x3, 1x1 projection, with layer scale (MobileViGv2 Fig. 2a)."""

    def __init__(self, in_shape: tuple[int, int, int], expansion: int, drop_path: float = 0.0):
        width, hidden = in_shape[0], expansion * in_shape[0]
        branch = nn.Sequential(
            ConvNorm(width, hidden), nn.GELU(), ConvNorm(hidden, hidden, 3, groups=hidden), nn.GELU(),
            ConvNorm(hidden, width),
        )  # fmt: skip
        super().__init__(branch, width, drop_path=drop_path)


class Stem(nn.Sequential):
    """Two 3x3 convolutions of stride 2 with batch norm and GELU: (B, 3, H, W) -> (B, C, H/4, W/4)."""

    def __init__(self, in_shape: tuple[int, int, int], width: int):
        super().__init__(
            ConvNorm(in_shape[0], width // 2, 3, 2), nn.GELU(), ConvNorm(width // 2, width, 3, 2), nn.GELU()
        )


class Downsample(ConvNorm):
    """A 3x3 convolution of stride 2 with batch norm: (B, C_in, H, W) -> (B, C_out, H/2, W/2)."""

    def __init__(self, in_shape: tuple[int, int, int], width: int):
        super().__init__(in_shape[0], width, 3, 2)


class MobileNetV2Block(nn.Module):
    """1x1 expansion, depthwise 3x3, 1x1 projection, with SiLU: (B, C, H, W) -> (B, C', H / stride, W / stride).

    MobileViT Fig. 1; the input is added where the shape stays.
    """

    def __init__(self, in_shape: tuple[int, int, int], width: int, stride: int, expansion: int):
        super().__init__()
        hidden = expansion * in_shape[0]
        self.branch = nn.Sequential(
            ConvNorm(in_shape[0], hidden, bias=False), nn.SiLU(),
            ConvNorm(hidden, hidden, 3, stride, groups=hidden, bias=False), nn.SiLU(),
            ConvNorm(hidden, width, bias=False),
        )  # fmt: skip
        self.residual = stride == 1 and in_shape[0] == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.residual else self.branch(x)

"""Transformers over the patches of a feature map, as in MobileViT v1, v2 and v3.

Attention goes over the tokens at one place of all patches: P places, N patches. Nothing is gathered: unfolding is
reshapes and transpositions of at most five axes, which is what CoreML has.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigcli.nn.blocks import ConvNorm
from vigcli.nn.deploy import Foldable, scale_input


class MultiHeadAttention(Foldable):
    """Scaled dot-product self-attention: (B, N, C) -> (B, N, C)."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.head_width = width // num_heads  # stays when heads are pruned
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.is_scaled = False  # the queries by 1 / sqrt(channels of a head)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, -1, self.head_width))  # (B, N, 3, heads, C / heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, C / heads); one transposition for all three
        if not self.is_scaled:
            q = q * q.shape[-1] ** -0.5
        x = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).flatten(2))

    def fold(self, keep_norm: bool) -> nn.Module:
        """The scale goes into the weights that make the queries."""
        if not keep_norm:
            width = self.qkv.out_features // 3
            self.is_scaled = True
            for parameter in self.qkv.parameters():
                parameter[:width] = (parameter[:width].double() * self.head_width**-0.5).to(parameter.dtype)
        return self


class SeparableAttention(nn.Module):
    """Self-attention that is linear in the tokens (MobileViTv2 Eq. 2): (B, C, N, P) -> (B, C, N, P)."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv = nn.Conv2d(width, 1 + 2 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        width = self.qkv.out_channels // 2
        q, k, v = self.qkv(x).split([1, width, width], 1)
        scores = q.softmax(2) * x.shape[2]  # near 1, and a mean for a sum: near 1 / N their products vanish in fp16
        context = (k * scores).mean(2, keepdim=True)  # (B, C, 1, P)
        return self.proj(v.relu() * context)


class GlobalNorm(nn.GroupNorm):
    """Group norm of one group: over channels, patches and places, (B, C, N, P) -> (B, C, N, P).

    Computed as a layer norm, which CoreML has as one operation; a group norm it takes apart, and squares in fp16 are
    where small deviations vanish.
    """

    def __init__(self, width: int, affine: bool = True):
        super().__init__(1, width, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x, [int(size) for size in x.shape[1:]], eps=self.eps)  # numbers: tracing sees constants
        if not self.affine:
            return x
        # As a batch norm, because coremltools would make one of a product and a sum, and add 1e-5 to its variance.
        mean, variance = torch.zeros_like(self.weight), torch.ones_like(self.weight)
        return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=0.0)


Norm = nn.LayerNorm | GlobalNorm


class TransformerLayer(Foldable):
    """Attention and a feed-forward layer, each after a norm and with a residual."""

    def __init__(self, norms: tuple[Norm, Norm], attention: nn.Module, ffn: nn.Sequential, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = norms
        self.attention = attention
        self.ffn = ffn
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.ffn(self.norm2(x)))

    def fold(self, keep_norm: bool) -> nn.Module:
        """The factors of a global norm go into the convolution behind it; a layer norm has them for nothing."""
        if not keep_norm and isinstance(self.attention, SeparableAttention):
            self.attention.qkv = scale_input(self.attention.qkv, self.norm1.weight, self.norm1.bias)
            self.ffn[0] = scale_input(self.ffn[0], self.norm2.weight, self.norm2.bias)
            self.norm1 = self.norm2 = GlobalNorm(self.attention.proj.out_channels, affine=False)
        return self


class MultiHeadTransformer(nn.Sequential):
    """Layers with multi-head attention (MobileViT Section 3.1): (B, C, N, P) -> (B, C, N, P).

    Each of the P places is a sequence of N tokens by itself.
    """

    def __init__(self, width: int, depth: int, expansion: int, dropout: float, num_heads: int):
        hidden = expansion * width
        layers = [
            TransformerLayer(
                (nn.LayerNorm(width), nn.LayerNorm(width)),
                MultiHeadAttention(width, num_heads),
                nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width)),
                dropout,
            )
            for _ in range(depth)
        ]
        super().__init__(*layers, nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        places = x.shape[3]
        x = super().forward(x.transpose(1, 3).flatten(0, 1))  # (B, C, N, P) -> (B * P, N, C)
        return x.unflatten(0, (-1, places)).transpose(1, 3)


class SeparableTransformer(nn.Sequential):
    """Layers with separable attention (MobileViTv2 Section 3): (B, C, N, P) -> (B, C, N, P)."""

    def __init__(self, width: int, depth: int, expansion: int, dropout: float):
        hidden = expansion * width
        layers = [
            TransformerLayer(
                (GlobalNorm(width), GlobalNorm(width)),
                SeparableAttention(width),
                nn.Sequential(nn.Conv2d(width, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, width, 1)),
                dropout,
            )
            for _ in range(depth)
        ]
        super().__init__(*layers, GlobalNorm(width))


class MobileViTBlock(nn.Module):
    """Convolutions, a transformer over patches, and the fusion of both: (B, C, H, W) -> (B, C, H, W).

    MobileViT Fig. 1b; the options are the steps of MobileViTv3 Table 5. A patch that does not divide the feature map
    has it resized bilinearly to the next multiple, and back (MobileViT Table 6).
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        attention: str,
        width: int,
        depth: int,
        patch: int,
        ffn_expansion: int,
        local_conv: str,
        fusion: str,
        fusion_kernel: int,
        residual: bool,
        num_heads: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__()
        outer, *grid = in_shape
        self.grid, self.patch = (grid[0], grid[1]), patch
        self.attention, self.fusion, self.residual = attention, fusion, residual
        joined = {"input": outer, "local": width, "none": 0}[fusion]
        groups = outer if local_conv == "depthwise" else 1
        self.local = nn.Sequential(
            ConvNorm(outer, outer, 3, groups=groups, bias=False), nn.SiLU(), nn.Conv2d(outer, width, 1, bias=False)
        )
        self.transformer: nn.Module
        self.proj: nn.Module = nn.Identity()
        self.fuse: nn.Module = nn.Identity()
        if attention == "multi_head":
            self.transformer = MultiHeadTransformer(width, depth, ffn_expansion, dropout, num_heads)
            self.proj = nn.Sequential(ConvNorm(width, outer, bias=False), nn.SiLU())
            if joined:
                self.fuse = nn.Sequential(ConvNorm(joined + outer, outer, fusion_kernel, bias=False), nn.SiLU())
        else:
            self.transformer = SeparableTransformer(width, depth, ffn_expansion, dropout)
            self.fuse = ConvNorm(width + joined, outer, fusion_kernel, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        local = self.local(x)
        y = self.proj(self._fold(self.transformer(self._unfold(local))))
        if self.fusion != "none":
            other = x if self.fusion == "input" else local
            y = torch.cat([other, y] if self.attention == "multi_head" else [y, other], 1)
        y = self.fuse(y)
        return x + y if self.residual else y

    def _unfold(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, N, P): patch by patch."""
        patches = self._patches
        x = _resized(x, self.grid, (self.patch * patches[0], self.patch * patches[1]))
        rows = x.reshape(-1, self.patch, patches[1], self.patch)  # (B * C * rows of patches, p, columns, p)
        return rows.transpose(1, 2).reshape(-1, x.shape[1], patches[0] * patches[1], self.patch**2)

    def _fold(self, x: Tensor) -> Tensor:
        """(B, C, N, P) -> (B, C, H, W): the inverse."""
        patches, width = self._patches, x.shape[1]
        rows = x.reshape(-1, patches[1], self.patch, self.patch).transpose(1, 2)
        size = self.patch * patches[0], self.patch * patches[1]
        return _resized(rows.reshape(-1, width, *size), size, self.grid)

    @property
    def _patches(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return -(-self.grid[0] // self.patch), -(-self.grid[1] // self.patch)


def _resized(x: Tensor, size: tuple[int, int], to: tuple[int, int]) -> Tensor:
    return x if to == size else F.interpolate(x, to, mode="bilinear", align_corners=False)

"""Stems that end in a learned position for every token."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from vigcli.nn.blocks import ConvNorm


class PositionedStem(nn.Module):
    """3x3 convolutions with batch norm, GELU between, then learned positions: (B, 3, H, W) -> (B, C, H / s, W / s).

    As many of stride 2 as the whole stride `s` asks for, each of twice the channels of the one before, then one of
    stride 1 without activation (ViG's and Pyramid ViG's code).
    """

    def __init__(self, in_shape: tuple[int, int, int], width: int, stride: int):
        super().__init__()
        halvings = stride.bit_length() - 1
        widths = [in_shape[0], *(width >> i for i in reversed(range(halvings)))]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [ConvNorm(before, after, 3, 2), nn.GELU()]
        self.convs = nn.Sequential(*layers, ConvNorm(width, width, 3))
        self.pos_embed = nn.Parameter(torch.zeros(1, width, in_shape[1] // stride, in_shape[2] // stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x) + self.pos_embed

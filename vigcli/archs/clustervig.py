"""ClusterViG (arXiv:2501.10640): a stem of convolutions, then isotropic blocks of DEGC."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vigcli.archs.mobilevig import initialize
from vigcli.archs.official import Names, join_names
from vigcli.config.archs.clustervig import ClusterViGConfig
from vigcli.nn.blocks import ConvNorm
from vigcli.nn.graph import GraphBlock
from vigcli.nn.heads import Head

__all__ = ["BLOCKS", "initialize", "official_names"]


class IsotropicStem(nn.Module):
    """3x3 convolutions with batch norm, GELU between, and a learned positional encoding.

    (B, C_in, H, W) -> (B, C, H / stride, W / stride). The first convolutions halve, the others keep the size (Section
    IV-C), five in all or more; widths double up to C, from 64 at the least, as in the authors' code, where the last has
    no GELU and the encoding is.
    """

    def __init__(self, in_shape: tuple[int, int, int], width: int, stride: int):
        super().__init__()
        halvings = stride.bit_length() - 1
        growing = max(halvings, 4)
        chans, layers = in_shape[0], []
        for i in range(growing):
            before, chans = chans, min(width, max(width >> (growing - 1 - i), 64))
            layers += [ConvNorm(before, chans, 3, 2 if i < halvings else 1), nn.GELU()]
        self.convs = nn.Sequential(*layers, ConvNorm(width, width, 3))
        self.pos_embed = nn.Parameter(torch.zeros(width, in_shape[1] // stride, in_shape[2] // stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x) + self.pos_embed


BLOCKS = {"isotropic_stem": IsotropicStem, "graph": GraphBlock, "head": Head}

_CONV = {"0": "conv", "1": "norm"}
_CONVS = {"cpe.pe": "0.branch.0.conv"} | {
    f"{theirs}.{key}": f"0.branch.{ours}.{name}"
    for theirs, ours in (("fc1", 1), ("fc2", 3))
    for key, name in _CONV.items()
}
_FFN = {
    f"{theirs}.{key}": f"1.branch.{ours}.{name}"
    for theirs, ours in (("fc1", 0), ("fc2", 2))
    for key, name in _CONV.items()
}
_MLP = {"layer.lins.0.head_list": "linear.heads", "layer.norms.0.module": "norm"}
_GRAPH = _CONVS | join_names("graphconv.layer", "0.branch.2", {
    "nn_centroids.layer.layer": "attention", "eps": "update.eps", "delta": "update.delta",
} | join_names("nn_vertex", "update.mlp", _MLP) | join_names("nn_edge", "update.mlp_phi", _MLP))  # fmt: skip


def official_names(config: ClusterViGConfig) -> tuple[Names, ...]:
    """The authors' parameter names and ours: `backbone.2.cpe.pe` -> `stages.0.1.0.branch.0.conv`."""
    names = {"pos_embed": "stem.pos_embed", "prediction.1": "head.1.conv", "prediction.2": "head.1.norm"}
    names |= {"head": "head.3.fc", "dist_head": "head.3.fc_dist"} if config.distilled else {"head": "head.3.0"}
    for i in range(max(config.stride.bit_length() - 1, 4) + 1):
        names |= {
            f"stem.convs.{3 * i}": f"stem.convs.{2 * i}.conv",
            f"stem.convs.{3 * i + 1}": f"stem.convs.{2 * i}.norm",
        }
    for i in range(config.depth):
        names |= join_names(f"backbone.{2 * i}", f"stages.0.{i}", _GRAPH)
        names |= join_names(f"backbone.{2 * i + 1}", f"stages.0.{i}", _FFN)
    return (names,)

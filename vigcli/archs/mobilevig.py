"""MobileViG (arXiv:2307.00395): convolution stages, and static graph blocks in the last."""

from __future__ import annotations

from torch import nn

from vigcli.archs.official import Names, join_names
from vigcli.config.archs.mobilevig import MobileGraphConfig
from vigcli.nn.blocks import Downsample, InvertedResidual, Stem
from vigcli.nn.graph import GraphBlock
from vigcli.nn.heads import Head

BLOCKS = {
    "stem": Stem,
    "downsample": Downsample,
    "inverted_residual": InvertedResidual,
    "graph": GraphBlock,
    "head": Head,
}

# The authors' parameter names inside a block, and ours.
STEM = {
    "stem.stem.0": "stem.0.conv",
    "stem.stem.1": "stem.0.norm",
    "stem.stem.3": "stem.2.conv",
    "stem.stem.4": "stem.2.norm",
}
DOWNSAMPLE = {"conv.0": "conv", "conv.1": "norm"}
_INVERTED_RESIDUAL = {
    "mlp.fc1": "branch.0.conv", "mlp.norm1": "branch.0.norm", "mlp.mid": "branch.2.conv",
    "mlp.mid_norm": "branch.2.norm", "mlp.fc2": "branch.4.conv", "mlp.norm2": "branch.4.norm",
    "layer_scale_2": "layer_scale.gamma",
}  # fmt: skip
_GRAPH = {
    "0.fc1.0": "0.branch.1.conv", "0.fc1.1": "0.branch.1.norm",
    "0.graph_conv.nn.0": "0.branch.2.proj.conv", "0.graph_conv.nn.1": "0.branch.2.proj.norm",
    "0.fc2.0": "0.branch.3.conv", "0.fc2.1": "0.branch.3.norm",
    "1.fc1.0": "1.branch.0.conv", "1.fc1.1": "1.branch.0.norm",
    "1.fc2.0": "1.branch.2.conv", "1.fc2.1": "1.branch.2.norm",
}  # fmt: skip
_NAMES = {"downsample": DOWNSAMPLE, "inverted_residual": _INVERTED_RESIDUAL, "graph": _GRAPH}


def head_names(config: MobileGraphConfig) -> Names:
    """The authors' names in the head, which their families share."""
    one, two = {"head": "head.3.0"}, {"head": "head.3.fc", "dist_head": "head.3.fc_dist"}
    return {"prediction.1": "head.1.conv", "prediction.2": "head.1.norm", **(two if config.distilled else one)}


def official_names(config: MobileGraphConfig) -> tuple[Names, ...]:
    """The authors' parameter names and ours. They number blocks in two lists: up to the first graph block, and from
    it on; the released networks have no convolution block after a graph block."""
    names = STEM | head_names(config)
    local, graph = 0, 0
    _, *stages, _ = config.segments()
    for i, stage in enumerate(stages):
        for j, spec in enumerate(stage):
            theirs = f"backbone.{graph}" if graph or spec.kind == "graph" else f"local_backbone.{local}"
            graph, local = (graph + 1, local) if theirs.startswith("b") else (graph, local + 1)
            names |= join_names(theirs, f"stages.{i}.{j}", _NAMES[spec.kind])
    return (names,)


def initialize(module: nn.Module) -> None:
    """As the authors do: He et al., fan-in, zero bias."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

"""MobileViGv2 (arXiv:2406.05850): convolution stages with a few static graph blocks in the last three."""

from __future__ import annotations

from collections.abc import Mapping

from vigcli.archs.mobilevig import BLOCKS, DOWNSAMPLE, STEM, head_names, initialize
from vigcli.archs.official import Names, join_names
from vigcli.config.archs.mobilevig import MobileGraphConfig

__all__ = ["BLOCKS", "NAMES", "initialize", "official_names", "staged_names"]

# The authors' parameter names inside a block, and ours.
NAMES = {
    "downsample": DOWNSAMPLE,
    "inverted_residual": {
        "dws.pw1": "branch.0.conv", "dws.norm1": "branch.0.norm", "dws.dw": "branch.2.conv",
        "dws.norm2": "branch.2.norm", "dws.pw2": "branch.4.conv", "dws.norm3": "branch.4.norm",
        "layer_scale_1": "layer_scale.gamma",
    },
    "graph": {
        "mixer.cpe.pe": "0.branch.0.conv", "mixer.fc1.0": "0.branch.1.conv", "mixer.fc1.1": "0.branch.1.norm",
        "mixer.graph_conv.nn.0": "0.branch.2.proj.conv", "mixer.graph_conv.nn.1": "0.branch.2.proj.norm",
        "mixer.fc2.0": "0.branch.3.conv", "mixer.fc2.1": "0.branch.3.norm", "layer_scale_1": "0.layer_scale.gamma",
        "ffn.0": "1.branch.0.conv", "ffn.1": "1.branch.0.norm", "ffn.3": "1.branch.2.conv",
        "ffn.4": "1.branch.2.norm", "layer_scale_2": "1.layer_scale.gamma",
    },
}  # fmt: skip


def official_names(config: MobileGraphConfig) -> tuple[Names, ...]:
    """The authors' parameter names and ours (`backbone.1.3.mixer.fc1.0` -> `stages.1.3.0.branch.1.conv`)."""
    return (staged_names(config, NAMES),)


def staged_names(config: MobileGraphConfig, names_of: Mapping[str, Names]) -> Names:
    """The names of networks that number their blocks by stage, by the names inside each kind of block."""
    names = STEM | head_names(config)
    _, *stages, _ = config.segments()
    for i, stage in enumerate(stages):
        for j, spec in enumerate(stage):
            names |= join_names(f"backbone.{i}.{j}", f"stages.{i}.{j}", names_of[spec.kind])
    return names

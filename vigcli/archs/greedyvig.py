"""GreedyViG (arXiv:2405.06849): MobileViGv2's blocks in every stage, their graphs masked by what the features say."""

from __future__ import annotations

from vigcli.archs.mobilevig import BLOCKS, initialize
from vigcli.archs.mobilevigv2 import NAMES, staged_names
from vigcli.archs.official import Names
from vigcli.config.archs.greedyvig import GreedyViGConfig

__all__ = ["BLOCKS", "initialize", "official_names"]

# As in MobileViGv2, but for the layer scale of inverted residuals, which is the second here.
_LOCAL = {theirs.replace("layer_scale_1", "layer_scale_2"): ours for theirs, ours in NAMES["inverted_residual"].items()}
_NAMES = {**NAMES, "inverted_residual": _LOCAL}


def official_names(config: GreedyViGConfig) -> tuple[Names, ...]:
    """The authors' parameter names and ours (`backbone.0.2.mixer.fc1.0` -> `stages.0.2.0.branch.1.conv`)."""
    return (staged_names(config, _NAMES),)

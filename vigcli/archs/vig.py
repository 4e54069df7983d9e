"""ViG (arXiv:2206.00272): kNN graph blocks of one width on a grid of 14 x 14 tokens."""

from __future__ import annotations

from vigcli.archs.mobilevig import DOWNSAMPLE, initialize
from vigcli.archs.official import Names, join_names
from vigcli.config.archs.vig import KnnGraphConfig
from vigcli.nn.graph import GraphBlock
from vigcli.nn.heads import Head
from vigcli.nn.stems import PositionedStem

__all__ = ["BLOCKS", "initialize", "official_names"]

BLOCKS = {"stem": PositionedStem, "graph": GraphBlock, "head": Head}

# The authors' parameter names inside a block, and ours.
_GRAPH = {
    "0.relative_pos": "0.branch.2.relative_pos",
    "0.fc1.0": "0.branch.1.conv", "0.fc1.1": "0.branch.1.norm",
    "0.graph_conv.gconv.nn.0": "0.branch.2.proj.conv", "0.graph_conv.gconv.nn.1": "0.branch.2.proj.norm",
    "0.fc2.0": "0.branch.3.conv", "0.fc2.1": "0.branch.3.norm",
    "1.fc1.0": "1.branch.0.conv", "1.fc1.1": "1.branch.0.norm",
    "1.fc2.0": "1.branch.2.conv", "1.fc2.1": "1.branch.2.norm",
}  # fmt: skip
_NAMES = {"downsample": DOWNSAMPLE, "graph": _GRAPH}


def official_names(config: KnnGraphConfig) -> tuple[Names, ...]:
    """The authors' parameter names and ours; they number blocks and downsamplings of all stages in one list."""
    head = "head.3.fc" if config.distilled else "head.3.0"
    names = {"pos_embed": "stem.pos_embed", "prediction.0": "head.1.conv", "prediction.1": "head.1.norm"}
    names["prediction.4"] = head
    for i in range(config.first_stride.bit_length()):  # an activation between two
        ours = f"stem.convs.{2 * i}"
        names |= {f"stem.convs.{3 * i}": f"{ours}.conv", f"stem.convs.{3 * i + 1}": f"{ours}.norm"}
    _, *stages, _ = config.segments()
    places = [(f"stages.{i}.{j}", spec) for i, stage in enumerate(stages) for j, spec in enumerate(stage)]
    for k, (place, spec) in enumerate(places):
        names |= join_names(f"backbone.{k}", place, _NAMES[spec.kind])
    return (names,)

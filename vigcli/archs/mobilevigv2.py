"""MobileViGv2 (arXiv:2406.05850): convolution stages with a few static graph blocks in the last three."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vigcli.config.archs import BlockSpec, MobileViGv2Config
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
_OFFICIAL = {
    "stem": {"stem.0": "0.conv", "stem.1": "0.norm", "stem.3": "2.conv", "stem.4": "2.norm"},
    "downsample": {"conv.0": "conv", "conv.1": "norm"},
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
_OFFICIAL_HEAD = {"prediction.1": "head.1.conv", "prediction.2": "head.1.norm"}
_OFFICIAL_CLASSIFIERS = {
    True: {"head": "head.3.fc", "dist_head": "head.3.fc_dist"},
    False: {"head": "head.3.0"},
}


def official_prefixes(config: MobileViGv2Config) -> dict[str, str]:
    """The authors' parameter name prefixes and ours (`backbone.1.3.mixer.fc1.0` -> `stages.1.3.0.branch.1.conv`)."""
    stem, *stages, _ = config.segments()
    places = [("stem", "stem", stem[0].kind)]
    for i, stage in enumerate(stages):
        places += [(f"backbone.{i}.{j}", f"stages.{i}.{j}", spec.kind) for j, spec in enumerate(stage)]
    names = {f"{a}.{x}": f"{b}.{y}" for a, b, kind in places for x, y in _OFFICIAL[kind].items()}
    return names | _OFFICIAL_HEAD | _OFFICIAL_CLASSIFIERS[config.distilled]


class MobileViGv2(nn.Module):
    """(B, in_chans, R, R) -> (B, num_classes) logits; in training with two heads, a pair of them."""

    def __init__(self, config: MobileViGv2Config):
        super().__init__()
        self.config = config
        rates = self._drop_path_rates(config)
        stem, *stages, head = config.segments()
        self.stem = build_block(stem[0])
        self.stages = nn.Sequential(*(self._stage(stage, rates) for stage in stages))
        self.head = build_block(head[0])
        self.apply(_initialize)

    @staticmethod
    def _drop_path_rates(config: MobileViGv2Config) -> list[float]:
        count = sum(stage.local_depth + stage.graph_depth for stage in config.stages)
        return torch.linspace(0, config.drop_path_rate, max(count, 1), device="cpu").tolist()

    @staticmethod
    def _stage(specs: tuple[BlockSpec, ...], rates: list[float]) -> nn.Sequential:
        """As in the authors' code the schedule advances at graph blocks only: `rates` loses its first there."""
        blocks = []
        for spec in specs:
            blocks.append(build_block(spec, rates[0]))
            if spec.kind == "graph" and len(rates) > 1:
                rates.pop(0)
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)))


def build_block(spec: BlockSpec, drop_path: float = 0.0) -> nn.Module:
    """The module of one block."""
    options = dict(spec.options)
    if spec.kind in ("inverted_residual", "graph"):
        options["drop_path"] = drop_path
    return BLOCKS[spec.kind](spec.in_shape, **options)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):  # as the authors initialize: He et al., fan-in, zero bias
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

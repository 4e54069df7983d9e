"""MobileViT v1, v2 and v3: MobileNetV2 blocks, and in the last three stages a block with a transformer over patches."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from vigcli.archs.official import Names, join_names
from vigcli.config.archs.mobilevit import MobileTransformerConfig
from vigcli.nn.attention import MobileViTBlock
from vigcli.nn.blocks import ConvNorm, MobileNetV2Block
from vigcli.nn.heads import PooledHead


class Stem(nn.Sequential):
    """A 3x3 convolution of stride 2 with batch norm and SiLU: (B, 3, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, in_shape: tuple[int, int, int], width: int):
        super().__init__(ConvNorm(in_shape[0], width, 3, 2, bias=False), nn.SiLU())


BLOCKS = {"stem": Stem, "mobilenetv2": MobileNetV2Block, "mobilevit": MobileViTBlock, "head": PooledHead}


class Publisher(NamedTuple):
    """How one publisher names parameters; every field maps prefixes to ours, inside the part that it is of."""

    conv: Names  # a convolution with batch norm
    whole: Names  # convolutions outside the stages
    stage: str  # of a stage, by its index from 0
    mobilenetv2: Names
    block: Names  # convolutions of a MobileViT block
    bare: Names  # what has no batch norm, or is one
    layer: tuple[str, Names]  # a transformer layer, and what it is in
    last_norm: str  # after the last transformer layer, by their number
    classifier: str


def _cvnets(separable: bool) -> Publisher:
    norms = {"pre_norm_attn.0" if separable else "pre_norm_mha.0": "norm1", "pre_norm_ffn.0": "norm2"}
    if separable:
        layer = {
            "pre_norm_attn.1.qkv_proj.block.conv": "attention.qkv",
            "pre_norm_attn.1.out_proj.block.conv": "attention.proj",
            "pre_norm_ffn.1.block.conv": "ffn.0", "pre_norm_ffn.3.block.conv": "ffn.2",
        }  # fmt: skip
    else:
        layer = {
            "pre_norm_mha.1.qkv_proj": "attention.qkv", "pre_norm_mha.1.out_proj": "attention.proj",
            "pre_norm_ffn.1": "ffn.0", "pre_norm_ffn.4": "ffn.2",
        }  # fmt: skip
    local = ("0", "1") if separable else ("conv_3x3", "conv_1x1")
    return Publisher(
        conv={"block.conv": "conv", "block.norm": "norm"},
        whole={"conv_1": "stem.0", "conv_1x1_exp": "head.0.0"},
        stage="layer_{one}",
        mobilenetv2={"block.exp_1x1": "branch.0", "block.conv_3x3": "branch.2", "block.red_1x1": "branch.4"},
        block={f"local_rep.{local[0]}": "local.0", "conv_proj": _PROJ[separable], "fusion": "fuse.0"},
        bare={f"local_rep.{local[1]}.block.conv": "local.2"},
        layer=("global_rep", norms | layer),
        last_norm="global_rep.{depth}",
        classifier="classifier.1" if separable else "classifier.fc",
    )


def _timm(separable: bool) -> Publisher:
    attention = ("qkv_proj", "out_proj") if separable else ("qkv", "proj")
    return Publisher(
        conv={"conv": "conv", "bn": "norm"},
        whole={"stem": "stem.0", "final_conv": "head.0.0"},
        stage="stages.{zero}",
        mobilenetv2={"conv1_1x1": "branch.0", "conv2_kxk": "branch.2", "conv3_1x1": "branch.4"},
        block={"conv_kxk": "local.0", "conv_proj": _PROJ[separable], "conv_fusion": "fuse.0"},
        bare={"conv_1x1": "local.2"},
        layer=("transformer", {
            "norm1": "norm1", f"attn.{attention[0]}": "attention.qkv", f"attn.{attention[1]}": "attention.proj",
            "norm2": "norm2", "mlp.fc1": "ffn.0", "mlp.fc2": "ffn.2",
        }),
        last_norm="norm",
        classifier="head.fc",
    )  # fmt: skip


_PROJ = {True: "fuse", False: "proj.0"}  # what both publishers call conv_proj, by `separable`


def official_names(config: MobileTransformerConfig) -> tuple[Names, ...]:
    """The names in the authors' code (cvnets), then those in timm, and ours."""
    separable = config.attention == "separable"
    return tuple(_names(config, publisher(separable)) for publisher in (_cvnets, _timm))


def _names(config: MobileTransformerConfig, publisher: Publisher) -> Names:
    names = {publisher.classifier: "head.3.fc" if config.distilled else "head.3.0"}
    convs = dict(publisher.whole)
    _, *stages, _ = config.segments()
    for i, stage in enumerate(stages):
        for j, spec in enumerate(stage):
            theirs, ours = f"{publisher.stage.format(zero=i, one=i + 1)}.{j}", f"stages.{i}.{j}"
            if spec.kind == "mobilenetv2":
                convs |= join_names(theirs, ours, publisher.mobilenetv2)
                continue
            convs |= join_names(theirs, ours, publisher.block)
            depth = config.stages[i].transformer_depth
            layers, layer = publisher.layer
            bare = publisher.bare | {publisher.last_norm.format(depth=depth): f"transformer.{depth}"}
            for k in range(depth):
                bare |= join_names(f"{layers}.{k}", f"transformer.{k}", layer)
            names |= join_names(theirs, ours, bare)
    for theirs, ours in convs.items():
        names |= join_names(theirs, ours, publisher.conv)
    return names


def initialize(module: nn.Module) -> None:
    """As cvnets does: convolutions He et al. with fan-out, linear layers normal with deviation 0.01, zero bias."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    bias = getattr(module, "bias", None)
    if isinstance(module, (nn.Conv2d, nn.Linear)) and bias is not None:
        nn.init.zeros_(bias)

"""MobileViT v1 (arXiv:2110.02178), v2 (arXiv:2206.02680) and v3 (arXiv:2209.15159): convolutions and transformers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vigcli.config.archs.base import (
    Ablation,
    ArchConfig,
    BlockSpec,
    CountedWith,
    Depth,
    Expansion,
    Published,
    Size,
    StageShape,
)
from vigcli.config.load import Strict

STRIDES = (2, 4, 8, 16, 32)

# Fields of which every version has a default of its own; `Field` says what they are, here for all.
HeadWidth = Annotated[
    int, Field(ge=0, le=65536, description="Channels of the 1x1 convolution before the classifier; 0 for none.")
]
LocalExpansion = Annotated[int, Field(ge=1, le=16, description="Hidden / incoming channels of MobileNetV2 blocks.")]
Attention = Annotated[
    Literal["multi_head", "separable"],
    Field(description="`multi_head` self-attention (v1), or `separable` self-attention (v2), linear in the tokens."),
]
LocalConv = Annotated[
    Literal["dense", "depthwise"],
    Field(description="The 3x3 convolution before the transformer: `dense` (v1), or `depthwise` (v2, v3)."),
]
Fusion = Annotated[
    Literal["input", "local", "none"],
    Field(
        description="What is joined to the transformer's output: the block's `input` (v1), its `local` features (v3), "
        "or `none` (v2)."
    ),
]
FusionKernel = Annotated[
    Literal[1, 3], Field(description="Kernel of the convolution that fuses the two: 3 in v1, 1 in v3.")
]
Residual = Annotated[bool, Field(description="The block's input is added to its output (v3).")]
Dropout = Annotated[float, Field(ge=0, lt=1, description="In training, of the transformer's branches.")]
HeadDropout = Annotated[float, Field(ge=0, lt=1, description="In training, before the classifier.")]


class TransformerStage(Strict):
    """One stage: MobileNetV2 blocks, the first of which halves the feature map, then a MobileViT block."""

    local_depth: Annotated[int, Field(ge=1, le=64)] = 1
    """MobileNetV2 blocks; the first changes stride and width."""
    width: Size
    """Channels."""
    transformer_depth: Depth = 0
    """Transformer layers in the MobileViT block, the papers' L; 0 for no such block."""
    transformer_width: Size = 64
    """Channels of the transformer, the papers' d."""
    patch: Annotated[int, Field(ge=1, le=64)] = 2
    """Height and width of a patch in tokens: attention goes over the tokens at one place of all patches."""


class MobileTransformerConfig(ArchConfig):
    """What the three versions have in common: the layout, and every way in which they differ as a field.

    The fields of the MobileViT block are the steps of MobileViTv3 Table 5.
    """

    resolution: Annotated[int, Field(ge=32, le=1024)] = 256
    """Height and width of the input in pixels, a multiple of 32; fixed when the network is built."""
    stem_width: Size = 16
    """Channels of the first convolution."""
    stages: Annotated[tuple[TransformerStage, ...], Field(min_length=5, max_length=5)]
    """Five stages, at strides 2, 4, 8, 16 and 32."""
    head_width: HeadWidth
    expansion: LocalExpansion
    attention: Attention
    num_heads: Annotated[int, Field(ge=1, le=64)] = 4
    """Heads of multi-head attention; they divide every transformer width."""
    ffn_expansion: Expansion = 2
    """Hidden / outer channels of the transformer's feed-forward layers."""
    local_conv: LocalConv
    fusion: Fusion
    fusion_kernel: FusionKernel = 1
    residual: Residual
    resample: bool = False
    """Where a patch does not divide the feature map, resize it bilinearly to the next multiple and back (MobileViT
    Table 6); without it such a patch is refused."""
    dropout: Dropout
    head_dropout: HeadDropout
    distilled: bool = False
    """A second classifier for distillation; the output is the mean of the two."""

    @model_validator(mode="after")
    def _sound(self) -> MobileTransformerConfig:
        for i, (stage, grid) in enumerate(zip(self.stages, self.grids, strict=True)):
            if not stage.transformer_depth:
                continue
            if self.attention == "multi_head" and stage.transformer_width % self.num_heads:
                raise ValueError(
                    f"stages[{i}].transformer_width = {stage.transformer_width} is no multiple of num_heads = "
                    f"{self.num_heads}\nEvery head has the same number of channels."
                )
            if grid % stage.patch and not self.resample:
                fits = STRIDES[i] * stage.patch * -(-grid // stage.patch)
                raise ValueError(
                    f"stages[{i}].patch = {stage.patch} does not divide its feature map of {grid} x {grid} "
                    f"(resolution {self.resolution})\nTake resolution {fits}, another patch, or resample: true."
                )
        if self.fusion == "none" and self.fusion_kernel != 1:
            raise ValueError("fusion_kernel = 3 without a fusion\nSet fusion to input or local, or fusion_kernel to 1.")
        return self

    def stage_shapes(self) -> tuple[StageShape, ...]:
        return tuple(
            StageShape(s.local_depth, s.transformer_depth, s.width, stride)
            for s, stride in zip(self.stages, STRIDES, strict=True)
        )

    def layout(self) -> tuple[tuple[BlockSpec, ...], ...]:
        first = BlockSpec("stem", (self.in_chans, self.resolution, self.resolution), (("width", self.stem_width),))
        segments: list[tuple[BlockSpec, ...]] = [(first,)]
        shape = (self.stem_width, self.grids[0], self.grids[0])
        for i, (stage, grid) in enumerate(zip(self.stages, self.grids, strict=True)):
            blocks = []
            for j in range(stage.local_depth):
                stride = 2 if i and not j else 1
                options = (("width", stage.width), ("stride", stride), ("expansion", self.expansion))
                blocks.append(BlockSpec("mobilenetv2", shape, options))
                shape = (stage.width, grid, grid)
            if stage.transformer_depth:
                training = (("dropout", self.dropout),)
                blocks.append(BlockSpec("mobilevit", shape, tuple(self._block_options(stage).items()), training))
            segments.append(tuple(blocks))
        head = (("width", self.head_width), ("num_classes", self.num_classes), ("distilled", self.distilled))
        return (*segments, (BlockSpec("head", shape, head, (("dropout", self.head_dropout),)),))

    def _block_options(self, stage: TransformerStage) -> dict[str, Any]:
        """What a MobileViT block is built by, and no more: an unused option would make two rows of one block."""
        options: dict[str, Any] = {"attention": self.attention}
        if self.attention == "multi_head":
            options["num_heads"] = self.num_heads
        options |= {"width": stage.transformer_width, "depth": stage.transformer_depth, "patch": stage.patch}
        options |= {"ffn_expansion": self.ffn_expansion, "local_conv": self.local_conv, "fusion": self.fusion}
        return options | {"fusion_kernel": self.fusion_kernel, "residual": self.residual}


class MobileViTConfig(MobileTransformerConfig):
    """MobileViT (arXiv:2110.02178): multi-head attention between dense convolutions."""

    family: Literal["mobilevit"] = "mobilevit"
    expansion: LocalExpansion = 4
    attention: Attention = "multi_head"
    local_conv: LocalConv = "dense"
    fusion: Fusion = "input"
    fusion_kernel: FusionKernel = 3
    residual: Residual = False
    dropout: Dropout = 0.1
    head_dropout: HeadDropout = 0.1


class MobileViTv2Config(MobileTransformerConfig):
    """MobileViTv2 (arXiv:2206.02680): separable attention, no fusion."""

    family: Literal["mobilevitv2"] = "mobilevitv2"
    head_width: HeadWidth = 0
    expansion: LocalExpansion = 2
    attention: Attention = "separable"
    local_conv: LocalConv = "depthwise"
    fusion: Fusion = "none"
    residual: Residual = False
    dropout: Dropout = 0.0
    head_dropout: HeadDropout = 0.0


class MobileViTv3Config(MobileTransformerConfig):
    """MobileViTv3 (arXiv:2209.15159): local features fused by a 1x1 convolution, the input added.

    XXS, XS and S are built on MobileViT's attention, 0.5, 0.75 and 1.0 on MobileViTv2's.
    """

    family: Literal["mobilevitv3"] = "mobilevitv3"
    expansion: LocalExpansion = 4
    attention: Attention = "multi_head"
    local_conv: LocalConv = "depthwise"
    fusion: Fusion = "local"
    residual: Residual = True
    dropout: Dropout = 0.1
    head_dropout: HeadDropout = 0.1


def _stages(
    local_depths: tuple[int, ...], widths: tuple[int, ...], depths: tuple[int, ...], dims: tuple[int, ...]
) -> tuple[TransformerStage, ...]:
    """The transformers are in the last three stages."""
    first = [TransformerStage(local_depth=n, width=width) for n, width in zip(local_depths, widths[:2], strict=True)]
    last = [
        TransformerStage(width=width, transformer_depth=depth, transformer_width=dim)
        for width, depth, dim in zip(widths[2:], depths, dims, strict=True)
    ]
    return (*first, *last)


_DIMS = {"xxs": (64, 80, 96), "xs": (96, 120, 144), "s": (144, 192, 240)}
_DEPTHS, _FAST = (2, 4, 3), (2, 2, 3)


def _of_size(size: str) -> dict[str, Any]:
    """What the smallest of three sizes has less of; its dropout is in the authors' configurations alone."""
    return {"expansion": 2, "dropout": 0.05} if size == "xxs" else {"expansion": 4, "dropout": 0.1}


def _mobilevit(size: str, widths: tuple[int, ...], head_width: int) -> MobileViTConfig:
    stages = _stages((1, 3), widths, _DEPTHS, _DIMS[size])
    return MobileViTConfig(stages=stages, head_width=head_width, **_of_size(size))


def _mobilevitv3(size: str, widths: tuple[int, ...], head_width: int, depths: tuple[int, ...]) -> MobileViTv3Config:
    stages = _stages((1, 3), widths, depths, _DIMS[size])
    return MobileViTv3Config(stages=stages, head_width=head_width, **_of_size(size))


def _scaled(percent: int) -> tuple[int, tuple[TransformerStage, ...]]:
    """Stem width and stages of MobileViTv2 times a width multiplier, which MobileViTv3-0.5 to 1.0 share."""
    widths = tuple(width * percent // 100 for width in (64, 128, 256, 384, 512))
    dims = tuple(width * percent // 100 for width in (128, 192, 256))
    return 32 * percent // 100, _stages((1, 2), widths, _DEPTHS, dims)


def _mobilevitv2(percent: int) -> MobileViTv2Config:
    stem_width, stages = _scaled(percent)
    return MobileViTv2Config(stem_width=stem_width, stages=stages)


def _mobilevitv3_scaled(percent: int) -> MobileViTv3Config:
    stem_width, stages = _scaled(percent)
    return MobileViTv3Config(
        stem_width=stem_width, stages=stages, head_width=0, expansion=2, attention="separable", dropout=0.0,
        head_dropout=0.0,
    )  # fmt: skip


_V3_WIDTHS = {
    "xxs": ((16, 24, 64, 80, 128), 512),
    "xs": ((32, 48, 96, 160, 160), 640),
    "s": ((32, 64, 128, 256, 320), 960),  # Table 1 prints 1280; the code has 960, which alone gives the 5.8 M
}
VARIANTS: dict[str, MobileViTConfig | MobileViTv2Config | MobileViTv3Config] = {
    "mobilevit_xxs": _mobilevit("xxs", (16, 24, 48, 64, 80), 320),
    "mobilevit_xs": _mobilevit("xs", (32, 48, 64, 80, 96), 384),
    "mobilevit_s": _mobilevit("s", (32, 64, 96, 128, 160), 640),
    **{f"mobilevitv2_{percent:03}": _mobilevitv2(percent) for percent in (50, 75, 100, 125, 150, 175, 200)},
    **{
        f"mobilevitv3_{size}{suffix}": _mobilevitv3(size, widths, head_width, depths)
        for size, (widths, head_width) in _V3_WIDTHS.items()
        for suffix, depths in (("", _DEPTHS), ("_fast", _FAST))
    },
    **{f"mobilevitv3_{percent:03}": _mobilevitv3_scaled(percent) for percent in (50, 75, 100)},
}

_V3, _GPU = "arXiv:2209.15159 Table 2", "RTX 2080 Ti"
_V3_SPEED = (_GPU, "arXiv:2209.15159 Tables 2, 8")
_CVNETS = (None, None, "apple/ml-cvnets, README-model-zoo: ImageNet-1k, 256 px")
_V2_SPEED = ("iPhone 13 mini", "arXiv:2209.15159 Table 2; ms: arXiv:2406.05850 Table 1")
PUBLISHED = {
    "mobilevit_xxs": Published(1.3, 0.364, 69.0, 7.24, *_V3_SPEED),
    "mobilevit_xs": Published(2.3, 0.986, 74.8, 7.28, "iPhone 12", "arXiv:2209.15159 Table 2; ms: arXiv:2110.02178"),
    "mobilevit_s": Published(5.6, 2.009, 78.4, 7.34, *_V3_SPEED),
    "mobilevitv2_050": Published(1.4, 0.466, 70.18, None, None, _V3),
    "mobilevitv2_075": Published(2.9, 1.03, 75.56, None, None, _V3),
    "mobilevitv2_100": Published(4.9, 1.851, 78.09, 3.0, *_V2_SPEED),
    "mobilevitv2_125": Published(7.5, None, 79.65, *_CVNETS),
    "mobilevitv2_150": Published(10.6, None, 80.38, *_CVNETS),
    "mobilevitv2_175": Published(14.3, None, 80.84, *_CVNETS),
    "mobilevitv2_200": Published(
        18.4, None, 81.17, 6.3, "iPhone 13 mini", f"{_CVNETS[2]}; ms: arXiv:2406.05850 Table 1, of other weights"
    ),
    "mobilevitv3_xxs": Published(1.25, 0.289, 70.98, 7.12, *_V3_SPEED),
    "mobilevitv3_xxs_fast": Published(1.14, 0.256, 70.23, 6.24, *_V3_SPEED),
    "mobilevitv3_xs": Published(2.5, 0.927, 76.7, 7.2, *_V3_SPEED),
    "mobilevitv3_xs_fast": Published(2.3, 0.853, 76.1, 6.35, *_V3_SPEED),
    "mobilevitv3_s": Published(5.8, 1.841, 79.3, 7.29, *_V3_SPEED),
    "mobilevitv3_s_fast": Published(5.2, 1.651, 79.06, 6.6, *_V3_SPEED),
    "mobilevitv3_050": Published(1.4, 0.481, 72.33, None, None, _V3),
    "mobilevitv3_075": Published(3.0, 1.064, 76.55, None, None, _V3),
    "mobilevitv3_100": Published(5.1, 1.876, 78.64, None, None, _V3),
}
COUNTED_WITH = {  # the repositories of v1 and of v3-XXS, -XS and -S are made of cvnets 0.1, the others of 0.2
    name: CountedWith("true", "cvnets-0.1" if config.attention == "multi_head" else "cvnets-0.2", 3)
    for name, config in VARIANTS.items()
}
UNEXPLAINED = {"mobilevitv2_100": "no counter gives 1.851 GMACs; perhaps two digits of 1.815 changed places."}


def _patches(*patches: int) -> dict[str, int | str | bool]:
    return {f"stages[{i}].patch": patch for i, patch in enumerate(patches, 2)}


_FIVE = "arXiv:2209.15159 Table 5"
_STEPS: dict[str, int | str | bool] = {
    "fusion_kernel": 1, "fusion": "local", "residual": True, "local_conv": "depthwise",
}  # fmt: skip


def _steps(count: int) -> dict[str, int | str | bool]:
    """The first steps from MobileViT to MobileViTv3."""
    return dict(list(_STEPS.items())[:count])


ABLATIONS = (
    Ablation("arXiv:2110.02178 Table 6", "patches 2, 2, 2", "mobilevit_s", _patches(2, 2, 2), 5.7, 78.4),
    Ablation(
        "arXiv:2110.02178 Table 6", "patches 3, 3, 3", "mobilevit_s", _patches(3, 3, 3) | {"resample": True}, 5.7, 78.5
    ),
    Ablation("arXiv:2110.02178 Table 6", "patches 4, 4, 4", "mobilevit_s", _patches(4, 4, 4), 5.7, 77.6),
    Ablation("arXiv:2110.02178 Table 6", "patches 8, 4, 2", "mobilevit_s", _patches(8, 4, 2), 5.7, 77.3),
    Ablation(_FIVE, "MobileViT-S", "mobilevit_s", _steps(0), None, 73.7),
    Ablation(_FIVE, "+ 1x1 fusion", "mobilevit_s", _steps(1), None, 74.8),
    Ablation(_FIVE, "+ local features fused", "mobilevit_s", _steps(2), None, 74.7),
    Ablation(_FIVE, "+ input added", "mobilevit_s", _steps(3), None, 75.3),
    Ablation(_FIVE, "+ depthwise convolution", "mobilevit_s", _steps(4), 4.3, 75.0),  # its parameters are in Table 6
)

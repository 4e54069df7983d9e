"""ViG and Pyramid ViG (arXiv:2206.00272): blocks whose tokens are linked to the nearest of all by their features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vigcli.config.archs.base import ArchConfig, BlockSpec, CountedWith, Expansion, Published, Rate, Size, StageShape
from vigcli.config.archs.mobilevig import MixerExpansion, Nearest, Neighbours, Reduction
from vigcli.config.load import Strict

TRAINED_AT = 224  # the resolution of whose grid the authors' table of relative positions is

LastNeighbours = Annotated[
    int, Field(ge=1, le=256, description="Neighbours of a token in the last block; linear in between, cut off.")
]
RelativePos = Annotated[
    bool, Field(description="Frozen sine-cosine similarities of the tokens' places, subtracted from their distances.")
]


class KnnStage(Strict):
    """One stage of kNN graph blocks, each a graph (ViG's Grapher) and a feed-forward layer."""

    depth: Annotated[int, Field(ge=1, le=64)]
    """Blocks."""
    width: Size
    """Channels."""
    reduction: Reduction = 1
    """Neighbours are means over squares of so many tokens a side."""


class KnnGraphConfig(ArchConfig):
    """What ViG and Pyramid ViG have in common; the stages are all that makes one of the other."""

    first_stride: ClassVar[int]  # of the first stage; every further one doubles it

    stages: tuple[KnnStage, ...]
    """Stages, each at twice the stride of the one before."""
    neighbours: Neighbours = 9
    """Neighbours of a token in the first block, itself among them."""
    last_neighbours: LastNeighbours
    dilated: bool = True
    """Every fourth block the dilation grows by one, as far as the last stage has tokens: of the nearest every so many
    is a neighbour."""
    relative_pos: RelativePos
    mixer_expansion: MixerExpansion = 2
    expansion: Expansion = 4
    """Hidden / outer channels of feed-forward layers."""
    head_width: Size = 1024
    """Hidden channels of the classifier."""
    head_dropout: Rate = 0.0
    """In training, before the classifier."""
    drop_path_rate: Rate = 0.1
    """End of the linear schedule of stochastic depth in training, over the blocks."""
    distilled: bool = False
    """A second classifier for distillation; the output is the mean of the two."""

    @model_validator(mode="after")
    def _sound(self) -> KnnGraphConfig:
        width, least = self.stages[0].width, self.first_stride // 2
        if width < least:
            raise ValueError(f"stages[0].width must be at least {least}, not {width}\nThe stem halves it.")
        for i, stage, grid, nearest in self._blocks():
            if self.relative_pos and stage.width % 4:
                raise ValueError(
                    f"stages[{i}].width = {stage.width} is no multiple of 4\n"
                    "Relative positions have a sine and a cosine of the row and of the column."
                )
            nearest.check(f"stages[{i}]", grid, stage.width, self.mixer_expansion * stage.width)
        return self

    def stage_shapes(self) -> tuple[StageShape, ...]:
        return tuple(StageShape(0, s.depth, s.width, self.first_stride << i) for i, s in enumerate(self.stages))

    def _blocks(self) -> Iterator[tuple[int, KnnStage, int, Nearest]]:
        """Every block in order: the index of its stage, its stage, tokens a side, and what its graph is built by."""
        last = sum(stage.depth for stage in self.stages) - 1
        most = max(self.neighbours, self.last_neighbours)
        widest = max(self.grids[-1] ** 2 // most, 1) if self.dilated else 1
        j = 0
        for i, (stage, grid) in enumerate(zip(self.stages, self.grids, strict=True)):
            for _ in range(stage.depth):
                more = (self.last_neighbours - self.neighbours) * j // max(last, 1)
                yield i, stage, grid, Nearest(self.neighbours + more, min(j // 4 + 1, widest), stage.reduction)
                j += 1

    def layout(self) -> tuple[tuple[BlockSpec, ...], ...]:
        """The blocks of each stage after its downsampling. `relative_pos` of a block is the grid of its table."""
        stages: list[list[BlockSpec]] = [[] for _ in self.stages]
        for i, (before, after) in enumerate(zip(self.stages, self.stages[1:], strict=False)):
            shape = (before.width, self.grids[i], self.grids[i])
            stages[i + 1].append(BlockSpec("downsample", shape, (("width", after.width),)))
        rest = {"cpe": 0, "mixer_expansion": self.mixer_expansion, "expansion": self.expansion, "layer_scale": False}
        last = max(sum(stage.depth for stage in self.stages) - 1, 1)
        for j, (i, stage, grid, nearest) in enumerate(self._blocks()):
            side = TRAINED_AT // (self.first_stride << i) if self.relative_pos else 0
            options = {"mixer": "knn", **nearest._asdict(), "relative_pos": side, **rest}
            training = (("drop_path", self.drop_path_rate * j / last),)
            stages[i].append(BlockSpec("graph", (stage.width, grid, grid), tuple(options.items()), training))
        return ((self._stem(),), *map(tuple, stages), (self._head(),))

    def _stem(self) -> BlockSpec:
        options = (("width", self.stages[0].width), ("stride", self.first_stride))
        return BlockSpec("stem", (self.in_chans, self.resolution, self.resolution), options)

    def _head(self) -> BlockSpec:
        options = (("width", self.head_width), ("num_classes", self.num_classes), ("distilled", self.distilled))
        shape = (self.stages[-1].width, self.grids[-1], self.grids[-1])
        return BlockSpec("head", shape, options, (("dropout", self.head_dropout),))


class ViGConfig(KnnGraphConfig):
    """ViG (arXiv:2206.00272), isotropic: one stage, whose feature map at stride 16 is the only one that it gives."""

    stride: ClassVar[int] = 16
    first_stride: ClassVar[int] = 16

    family: Literal["vig"] = "vig"
    stages: Annotated[tuple[KnnStage, ...], Field(min_length=1, max_length=1)]
    """One stage, at stride 16."""
    last_neighbours: LastNeighbours = 18
    relative_pos: RelativePos = False


class PyramidViGConfig(KnnGraphConfig):
    """Pyramid ViG (arXiv:2206.00272 Table 2): four stages, whose neighbours are pooled where there are many tokens."""

    first_stride: ClassVar[int] = 4

    family: Literal["pvig"] = "pvig"
    stages: Annotated[tuple[KnnStage, ...], Field(min_length=4, max_length=4)]
    """Four stages, at strides 4, 8, 16 and 32."""
    last_neighbours: LastNeighbours = 9
    relative_pos: RelativePos = True


def _vig(depth: int, width: int) -> ViGConfig:
    return ViGConfig(stages=(KnnStage(depth=depth, width=width),))


def _pvig(depth: int, widths: tuple[int, ...]) -> PyramidViGConfig:
    stages = zip((2, 2, depth, 2), widths, (4, 2, 1, 1), strict=True)
    return PyramidViGConfig(stages=tuple(KnnStage(depth=n, width=width, reduction=r) for n, width, r in stages))


VARIANTS: dict[str, ViGConfig | PyramidViGConfig] = {
    "vig_ti": _vig(12, 192),
    "vig_s": _vig(16, 320),
    "vig_b": _vig(16, 640),
    "pvig_ti": _pvig(6, (48, 96, 240, 384)),
    "pvig_s": _pvig(6, (80, 160, 400, 640)),
    "pvig_m": _pvig(16, (96, 192, 384, 768)),
    "pvig_b": _pvig(18, (128, 256, 512, 1024)),
}

_README = (None, None, "huawei-noah/Efficient-AI-Backbones, vig_pytorch/README.md")
_QUOTED = (None, None, "arXiv:2206.00272, as ClusterViG's Table IV quotes it")
PUBLISHED = {
    "vig_ti": Published(7.1, 1.3, 73.9, *_README),
    "vig_s": Published(22.7, 4.5, 80.4, *_README),
    "vig_b": Published(86.8, 17.7, 82.3, *_README),
    "pvig_ti": Published(10.7, 1.7, 78.2, *_QUOTED),
    "pvig_s": Published(27.3, 4.6, 82.1, *_QUOTED),
    "pvig_m": Published(51.7, 8.9, 83.1, *_README),
    "pvig_b": Published(92.6, 16.8, 83.7, *_QUOTED),
}
COUNTED_WITH = {  # of Pyramid ViG-M's parameters alone the frozen ones seem to have been counted
    name: CountedWith("true" if name == "pvig_m" else "trainable", "fvcore", 1) for name in PUBLISHED
}
UNEXPLAINED = {"pvig_b": "no counter gives 92.6 M parameters; 92.98 M learn, and 2.23 M of positions are frozen."}

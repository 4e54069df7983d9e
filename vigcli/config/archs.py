"""Architectures as frozen plain data: one configuration class a family, and the named variants of the papers.

A configuration lists its blocks (`segments`), each with a signature that latency tables key their rows by; how a
block computes is the matter of `vigcli.archs` and `vigcli.nn`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from vigcli.config.load import Strict, parse_as
from vigcli.errors import ConfigError, did_you_mean

Size = Annotated[int, Field(ge=1, le=65536)]


class BlockSpec(NamedTuple):
    """One block of a network: what it is, its options, and the shape (C, H, W) that enters it."""

    kind: str
    in_shape: tuple[int, int, int]
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def signature(self) -> str:
        """The key of a latency table's row: `inverted_residual[expansion=4] 64x28x28`."""
        options = " ".join(f"{name}={value}" for name, value in self.options)
        return f"{self.kind}[{options}] {'x'.join(map(str, self.in_shape))}"


class StageShape(NamedTuple):
    """What the shape rules of a search look at."""

    depth: int  # blocks, a downsampling convolution left out
    graph_depth: int  # graph blocks among them
    width: int  # channels


class ArchConfig(Strict):
    """What every family has: the input, the classes, and blocks in segments.

    Attributes:
        resolution: height and width of the input in pixels; fixed when the network is built.
        in_chans: channels of the input.
        num_classes: classes of the classifier.
    """

    resolution: Annotated[int, Field(ge=32, le=1024)] = 224
    in_chans: Size = 3
    num_classes: Size = 1000
    if TYPE_CHECKING:
        family: str  # each family's own field, of one literal value: the key of its line in the registry

    def segments(self) -> tuple[tuple[BlockSpec, ...], ...]:
        """The blocks in the order in which they run: stem, stages, head."""
        raise NotImplementedError

    def stage_shapes(self) -> tuple[StageShape, ...]:
        """The shape of every stage: `segments()` without stem and head."""
        raise NotImplementedError

    def blocks(self) -> tuple[BlockSpec, ...]:
        """All blocks in the order in which they run."""
        return tuple(block for segment in self.segments() for block in segment)


def check_reach(stage: str, mixer: str, reach: int, grid: int) -> None:
    """Refuse a graph that does nothing on a square grid of `grid` tokens a side.

    Raises ValueError (a ConfigError once it has left pydantic) for a shift that is a multiple of the grid, where every
    token would be its own neighbour, and for the two links of an MGC axis coinciding.
    """
    sound = f"At this resolution the grid is {grid} x {grid}: choose another reach or resolution."
    if reach % grid == 0 or (mixer == "svga" and reach >= grid):
        raise ValueError(f"K = {reach} on a grid of {grid} links every token to itself alone ({stage})\n{sound}")
    if mixer == "mgc" and 2 * reach % grid == 0:
        raise ValueError(f"K = {reach} on a grid of {grid}: the two links of an axis coincide ({stage})\n{sound}")


class MobileViGv2Stage(Strict):
    """One stage of MobileViGv2 (paper Fig. 2).

    Attributes:
        local_depth: inverted residual blocks, the paper's N_i.
        graph_depth: graph blocks after them, the paper's M_i.
        width: channels.
        mixer: `mgc`, two links an axis at distance L (Section 4.1), or `svga`, a link to every K-th token of the axis.
        reach: the paper's L for mgc and K for svga (the authors' code calls both K), in tokens.
    """

    local_depth: Annotated[int, Field(ge=0, le=64)]
    graph_depth: Annotated[int, Field(ge=0, le=64)] = 0
    width: Size
    mixer: Literal["mgc", "svga"] = "mgc"
    reach: Annotated[int, Field(ge=1, le=512)] = 2


class MobileViGv2Config(ArchConfig):
    """MobileViGv2 (arXiv:2406.05850).

    Attributes:
        stages: four stages; the stem halves the input twice, every later stage once more.
        head_width: hidden channels of the classifier.
        expansion: hidden / outer channels of inverted residuals and feed-forward layers.
        cpe_kernel: kernel of the conditional positional encoding (Eq. 4).
        drop_path_rate: end of the linear schedule. As in the authors' code it advances only at graph blocks, so the
            largest rate that occurs is below it (0.029 of 0.1 in Ti).
        distilled: a second classifier for distillation; the output is the mean of the two.
    """

    family: Literal["mobilevigv2"] = "mobilevigv2"
    stages: Annotated[tuple[MobileViGv2Stage, ...], Field(min_length=4, max_length=4)]
    head_width: Size = 512
    expansion: Annotated[int, Field(ge=1, le=16)] = 4
    cpe_kernel: Annotated[int, Field(ge=1, le=31)] = 7
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.1
    distilled: bool = True

    @model_validator(mode="after")
    def _sound(self) -> MobileViGv2Config:
        if self.cpe_kernel % 2 == 0:
            raise ValueError(f"cpe_kernel must be odd, not {self.cpe_kernel}\nAn even one has no middle.")
        if self.stages[0].width % 2:
            raise ValueError("stages[0].width must be even\nThe stem starts with half of it.")
        for i, (stage, grid) in enumerate(zip(self.stages, self.grids, strict=True)):
            if stage.graph_depth:
                check_reach(f"stages[{i}]", stage.mixer, stage.reach, grid)
        return self

    @property
    def grids(self) -> tuple[int, ...]:
        """Tokens a side in each stage: strides 4, 8, 16, 32, rounded up."""
        return tuple(-(-self.resolution // stride) for stride in (4, 8, 16, 32))

    def stage_shapes(self) -> tuple[StageShape, ...]:
        return tuple(StageShape(s.local_depth + s.graph_depth, s.graph_depth, s.width) for s in self.stages)

    def segments(self) -> tuple[tuple[BlockSpec, ...], ...]:
        first = BlockSpec("stem", (self.in_chans, self.resolution, self.resolution), (("width", self.stages[0].width),))
        segments: list[tuple[BlockSpec, ...]] = [(first,)]
        for i, (stage, grid) in enumerate(zip(self.stages, self.grids, strict=True)):
            shape = (stage.width, grid, grid)
            blocks: list[BlockSpec] = []
            if i:
                before = (self.stages[i - 1].width, self.grids[i - 1], self.grids[i - 1])
                blocks.append(BlockSpec("downsample", before, (("width", stage.width),)))
            blocks += [BlockSpec("inverted_residual", shape, (("expansion", self.expansion),))] * stage.local_depth
            graph = (("mixer", stage.mixer), ("reach", stage.reach), ("cpe", self.cpe_kernel))
            blocks += [BlockSpec("graph", shape, (*graph, ("expansion", self.expansion)))] * stage.graph_depth
            segments.append(tuple(blocks))
        head = (("width", self.head_width), ("num_classes", self.num_classes), ("distilled", self.distilled))
        last = (self.stages[-1].width, self.grids[-1], self.grids[-1])
        return (*segments, (BlockSpec("head", last, head),))


class TimmConfig(ArchConfig):
    """A network of timm by its name, for comparison: `timm:fastvit_t8`."""

    family: Literal["timm"] = "timm"
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.]+$", max_length=100)]

    def segments(self) -> tuple[tuple[BlockSpec, ...], ...]:
        raise NotImplementedError("a timm network is traced whole")


AnyArch = Annotated[MobileViGv2Config | TimmConfig, Field(discriminator="family")]


def _mobilevigv2(depths: tuple[tuple[int, int], ...], widths: tuple[int, ...], head_width: int) -> MobileViGv2Config:
    reaches = (2, 8, 4, 2)  # stage 1 has no graph block, so its reach is of no consequence
    return MobileViGv2Config(
        stages=tuple(
            MobileViGv2Stage(local_depth=n, graph_depth=m, width=width, reach=reach)
            for (n, m), width, reach in zip(depths, widths, reaches, strict=True)
        ),
        head_width=head_width,
    )


class Published(NamedTuple):
    """What a paper prints of a variant; `top1` in percent on ImageNet-1k, `latency_ms` on its `device`."""

    params_m: float
    gmacs: float
    top1: float
    latency_ms: float | None
    device: str
    source: str


_TI, _SMALL = ((2, 0), (2, 2), (6, 2), (2, 2)), ((3, 0), (3, 3), (9, 3), (3, 3))
VARIANTS: dict[str, AnyArch] = {
    "mobilevigv2_ti": _mobilevigv2(_TI, (32, 64, 128, 256), 512),
    "mobilevigv2_s": _mobilevigv2(_SMALL, (32, 64, 128, 256), 512),
    "mobilevigv2_m": _mobilevigv2(_SMALL, (32, 64, 192, 384), 512),
    "mobilevigv2_b": _mobilevigv2(_SMALL, (64, 128, 256, 512), 768),
}

_V2 = ("iPhone 13 mini", "arXiv:2406.05850 Table 1")
PUBLISHED = {
    "mobilevigv2_ti": Published(5.6, 0.6, 77.7, 0.9, *_V2),
    "mobilevigv2_s": Published(7.7, 0.9, 79.8, 1.1, *_V2),
    "mobilevigv2_m": Published(15.4, 1.6, 81.7, 1.6, *_V2),
    "mobilevigv2_b": Published(27.7, 3.6, 83.4, 2.7, *_V2),
}


def arch_config(name: str) -> AnyArch:
    """The configuration that a name means: a variant of the papers, or `timm:NAME`.

    Raises ConfigError with the nearest known name.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    if name.startswith("timm:"):
        return parse_as(TimmConfig, {"name": name.removeprefix("timm:")}, name)
    return _unknown(name)


def _unknown(name: str) -> AnyArch:
    raise ConfigError(f"'{name}' is no known network.", did_you_mean(name, VARIANTS) or "`vig ls archs` lists them.")


def _known(name: str) -> str:
    try:
        arch_config(name)
    except ConfigError as error:
        raise ValueError(f"{error}\n{error.hint}") from None
    return name


ArchName = Annotated[str, AfterValidator(_known)]
"""A name that `arch_config` knows."""


def variant_name(config: ArchConfig) -> str | None:
    """The published variant that a configuration is, whatever its resolution and classes."""
    for name, variant in VARIANTS.items():
        same = {"resolution": variant.resolution, "num_classes": variant.num_classes, "in_chans": variant.in_chans}
        if type(config) is type(variant) and config.model_copy(update=same) == variant:
            return name
    return None

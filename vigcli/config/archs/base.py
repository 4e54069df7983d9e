"""What the configurations of all families have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, model_validator

from vigcli.config.load import Strict

Size = Annotated[int, Field(ge=1, le=65536)]
Depth = Annotated[int, Field(ge=0, le=64)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Expansion = Annotated[int, Field(ge=1, le=16)]


class BlockSpec(NamedTuple):
    """One block of a network: what it is, its options, and the shape (C, H, W) that enters it.

    `training` holds what matters in training alone (drop path, dropout), and is no part of the signature.
    """

    kind: str
    in_shape: tuple[int, int, int]
    options: tuple[tuple[str, Any], ...] = ()
    training: tuple[tuple[str, Any], ...] = ()

    @property
    def signature(self) -> str:
        """The key of a latency table's row: `inverted_residual[expansion=4] 64x28x28`."""
        options = " ".join(f"{name}={value}" for name, value in self.options)
        return f"{self.kind}{f'[{options}]' if options else ''} {'x'.join(map(str, self.in_shape))}"

    def counted(self) -> BlockSpec:
        """The block without what matters in training alone: what counts and prices are kept by."""
        return self._replace(training=())


class StageShape(NamedTuple):
    """A stage from outside: what the shape rules of a search look at, and what its feature map is like."""

    local_depth: int  # convolution blocks, a downsampling convolution left out
    global_depth: int  # graph blocks or transformer layers
    width: int  # channels
    stride: int  # pixels of the input / tokens of the feature map, a side


class ArchConfig(Strict):
    """What every family has: the input, the classes, and blocks in segments."""

    stride: ClassVar[int] = 32  # of the last feature map

    resolution: Annotated[int, Field(ge=32, le=1024)] = 224
    """Height and width of the input in pixels, a multiple of the last stride; fixed when the network is built."""
    in_chans: Size = 3
    """Channels of the input."""
    num_classes: Size = 1000
    """Classes of the classifier."""
    if TYPE_CHECKING:
        family: str  # each family's own field, of one literal value: the key of its line in the registry

    @model_validator(mode="after")
    def _strides_divide_the_input(self) -> ArchConfig:
        below, rest = divmod(self.resolution, self.stride)
        if rest:
            near = f"{below * self.stride} or {(below + 1) * self.stride}"
            raise ValueError(
                f"resolution = {self.resolution} is no multiple of {self.stride}, the stride of the last feature map\n"
                f"Take {near}."
            )
        return self

    def segments(self) -> tuple[tuple[BlockSpec, ...], ...]:
        """The blocks in the order in which they run: stem, stages, head."""
        raise NotImplementedError

    def named_blocks(self) -> dict[str, BlockSpec]:
        """The blocks in the order in which they run, by name: `stem`, `stages[0].blocks[1]`, `head`."""
        stem, *stages, head = self.segments()
        between = {f"stages[{i}].blocks[{j}]": spec for i, stage in enumerate(stages) for j, spec in enumerate(stage)}
        return {"stem": stem[0], **between, "head": head[0]}

    def stage_shapes(self) -> tuple[StageShape, ...]:
        """The shape of every stage: `segments()` without stem and head."""
        raise NotImplementedError

    @property
    def grids(self) -> tuple[int, ...]:
        """Tokens a side in each stage."""
        return tuple(self.resolution // shape.stride for shape in self.stage_shapes())

    def blocks(self) -> tuple[BlockSpec, ...]:
        """All blocks in the order in which they run."""
        return tuple(block for segment in self.segments() for block in segment)

    def is_network(self, other: ArchConfig) -> bool:
        """Whether both build the same network; what matters in training alone (dropout, drop path) may differ."""
        return type(self) is type(other) and [b.counted() for b in self.blocks()] == [
            b.counted() for b in other.blocks()
        ]


class Published(NamedTuple):
    """What a paper prints of a variant; `top1` in percent on ImageNet-1k, `latency_ms` on its `device`."""

    params_m: float
    gmacs: float | None
    top1: float
    latency_ms: float | None
    device: str | None
    source: str


class CountedWith(NamedTuple):
    """The counters, of `vigcli.measure.counters`, that a paper's figures come from, inferred from their agreement."""

    params: str
    macs: str
    gmacs_decimals: int  # of GMACs, that the paper prints


class Ablation(NamedTuple):
    """A row of a paper's ablation as a configuration, with the figures printed there."""

    table: str
    row: str
    base: str  # a variant
    changes: dict[str, int | str | bool]  # configuration paths
    params_m: float | None
    top1: float

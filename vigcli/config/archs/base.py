"""What the configurations of all families have in common."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from vigcli.config.load import Strict

Size = Annotated[int, Field(ge=1, le=65536)]
Depth = Annotated[int, Field(ge=0, le=64)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Expansion = Annotated[int, Field(ge=1, le=16)]
TensorName = Annotated[str, Field(pattern=r"^\w+(\.\w+)*$", max_length=200)]
PrunedShape = tuple[Annotated[int, Field(ge=0, le=65536)], ...]
"""Of a tensor that pruning made smaller; 0 stands for a size that the configuration itself gives."""


class BlockSpec(NamedTuple):
    """One block of a network: what it is, its options, and the shape (C, H, W) that enters it.

    `training` holds what matters in training alone (drop path, dropout), and is no part of the signature. What is
    `pruned` are weights of the block that are smaller than its options and `in_shape` make them, with their shapes.
    """

    kind: str
    in_shape: tuple[int, int, int]
    options: tuple[tuple[str, Any], ...] = ()
    training: tuple[tuple[str, Any], ...] = ()
    pruned: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def signature(self) -> str:
        """The key of a latency table's row: `inverted_residual[expansion=4] 64x28x28`.

        A pruned block has a hash of its shapes in it, so that no row is taken for its.
        """
        options = " ".join(f"{name}={value}" for name, value in (*self.options, *self._pruned_option()))
        return f"{self.kind}{f'[{options}]' if options else ''} {'x'.join(map(str, self.in_shape))}"

    def _pruned_option(self) -> tuple[tuple[str, str], ...]:
        shapes = repr(self.pruned).encode()
        return (("pruned", hashlib.sha256(shapes).hexdigest()[:12]),) if self.pruned else ()

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
    pruned: dict[TensorName, PrunedShape] = Field(default_factory=dict)
    """The weights that pruning made smaller, by their names, with their shapes; 0 where a size is as the other fields
    make it. `vig prune` writes it."""
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

    @model_serializer(mode="wrap")
    def _without_what_is_not_pruned(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """At the end, for it is long."""
        data: dict[str, Any] = handler(self)
        pruned = data.pop("pruned")
        return data | ({"pruned": pruned} if pruned else {})

    def __hash__(self) -> int:
        fields = (value for key, value in self.__dict__.items() if key != "pruned")
        return hash((type(self), *fields, frozenset(self.pruned.items())))

    def layout(self) -> tuple[tuple[BlockSpec, ...], ...]:
        """`segments()` of the network before any pruning."""
        raise NotImplementedError

    def segments(self) -> tuple[tuple[BlockSpec, ...], ...]:
        """The blocks in the order in which they run: stem, stages, head."""
        if not self.pruned:
            return self.layout()
        stem, *stages, head = self.layout()
        between = ([self._of(f"stages.{i}.{j}", b) for j, b in enumerate(stage)] for i, stage in enumerate(stages))
        return (self._of("stem", stem[0]),), *map(tuple, between), (self._of("head", head[0]),)

    def _of(self, block: str, spec: BlockSpec) -> BlockSpec:
        """A block with what is pruned of it."""
        start = f"{block}."
        own = ((name.removeprefix(start), shape) for name, shape in self.pruned.items() if name.startswith(start))
        return spec._replace(pruned=tuple(sorted(own)))

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

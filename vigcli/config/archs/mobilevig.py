"""MobileViG (arXiv:2307.00395) and MobileViGv2 (arXiv:2406.05850): convolution stages with static graph blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from vigcli.config.archs.base import (
    Ablation,
    ArchConfig,
    BlockSpec,
    CountedWith,
    Depth,
    Expansion,
    Published,
    Rate,
    Size,
    StageShape,
)
from vigcli.config.load import Strict

Mixer = Literal["mgc", "svga", "dagc", "knn", "degc", "fc", "none"]
STRIDES = (4, 8, 16, 32)

# Fields of which every family has a default of its own; `Field` says what they are, here for all.
CpeKernel = Annotated[
    int,
    Field(
        ge=0,
        le=31,
        description="Kernel of the conditional positional encoding before mixers (MobileViGv2 Eq. 4), odd; 0 for none.",
    ),
]
MixerExpansion = Annotated[int, Field(ge=1, le=16, description="Hidden / outer channels of the graph update.")]
GraphLayerScale = Annotated[
    bool, Field(description="A learned factor for each channel of the graph blocks' branches, as in MobileViGv2.")
]
Neighbours = Annotated[int, Field(ge=1, le=256)]
Reduction = Annotated[int, Field(ge=1, le=32)]
Difference = Annotated[
    Literal["neighbour", "token"],
    Field(
        description="`neighbour`: max_j(x_j - x_i) (MobileViGv2 Eq. 2), `token`: max_j(x_i - x_j) (MobileViG's code)."
    ),
]
DropPathSteps = Annotated[
    Literal["block", "graph"],
    Field(
        description="Where the schedule of drop_path_rate advances: at every `block`, or at every `graph` block alone, "
        "which leaves the largest rate that occurs far below it (0.029 of 0.1 in MobileViGv2-Ti, as in the code)."
    ),
]  # fmt: skip


def idle_reach(mixer: Mixer, reach: int, grid: int) -> str:
    """Why a graph does nothing on a square grid of `grid` tokens a side; empty where it does something.

    A shift that is a multiple of the grid makes every token its own neighbour (GreedyViG's shift by 0 is such a link
    too), and the two links of an MGC axis may coincide.
    """
    if mixer not in ("mgc", "svga", "dagc"):
        return ""
    if reach % grid == 0 or (mixer in ("svga", "dagc") and reach >= grid):
        return f"K = {reach} on a grid of {grid} links every token to itself alone"
    if mixer == "mgc" and 2 * reach % grid == 0:
        return f"K = {reach} on a grid of {grid}: the two links of an axis coincide"
    return ""


class Nearest(NamedTuple):
    """The options of a kNN mixer (ViG, arXiv:2206.00272), by which `vigcli.nn.dynamic.KnnGraph` is built."""

    neighbours: int
    dilation: int
    reduction: int

    def check(self, stage: str, grid: int, width: int, hidden: int) -> None:
        """Refuse what a square grid of `grid` tokens a side, or its channels, cannot give. Raises ValueError."""
        if grid % self.reduction:
            fits = ", ".join(str(n) for n in range(1, grid + 1) if grid % n == 0)
            raise ValueError(
                f"reduction = {self.reduction} does not divide the grid of {grid} x {grid} ({stage})\n"
                f"Take one of {fits}."
            )
        if self.neighbours == self.reduction == 1:
            raise ValueError(f"1 neighbour of a token is the token itself ({stage})\nTake 2 or more.")
        wanted, nodes = self.neighbours * self.dilation, (grid // self.reduction) ** 2
        if wanted > nodes:
            raise ValueError(
                f"{self.neighbours} neighbours with dilation {self.dilation} are among the {wanted} nearest, and there "
                f"are {nodes} ({stage})\nChoose fewer, a smaller reduction or a larger resolution."
            )
        if width % 2 or hidden % 4:
            raise ValueError(
                f"width = {width} does not fit a kNN mixer ({stage})\n"
                f"Its convolution has four groups: twice the width and its {hidden} hidden channels divide by 4."
            )


class GraphStage(Strict):
    """One stage: convolution blocks, then graph blocks (MobileViGv2 Fig. 2)."""

    local_depth: Depth
    """Inverted residual blocks, the paper's N_i."""
    graph_depth: Depth = 0
    """Graph blocks after them, the paper's M_i."""
    width: Size
    """Channels."""
    mixer: Mixer = "mgc"
    """What a graph block mixes tokens by. `mgc`: two links an axis at distance L (MobileViGv2 Section 4.1); `svga`: a
    link to every K-th token of the axis (MobileViG Algorithm 1); `dagc`: to those of them that are like the token
    (GreedyViG Algorithm 1); `knn`: to the nearest of all tokens (ViG), with a top-k and a gather that leave the Neural
    Engine; `degc`: to the nearest of the own one of some clusters, and to their centroids (ClusterViG Algorithm 1);
    `fc`: a fully connected layer in place of the graph (MobileViGv2 Table 3, *); `none`: nothing, the block is
    its feed-forward layer alone."""
    reach: Annotated[int, Field(ge=1, le=512)] = 2
    """L of mgc and K of svga and dagc (the authors' code calls all K), in tokens."""
    neighbours: Neighbours = 9
    """Neighbours of a token in knn and degc, itself among them."""
    dilation: Annotated[int, Field(ge=1, le=64)] = 1
    """Of knn: every so many of the nearest is a neighbour."""
    reduction: Reduction = 1
    """Of knn: neighbours are means over squares of so many tokens a side."""
    clusters: Annotated[int, Field(ge=1, le=64)] = 4
    """Clusters of the tokens in degc."""


class MobileGraphConfig(ArchConfig):
    """What MobileViG, MobileViGv2 and GreedyViG share: the layout, and every way in which they differ as a field."""

    stages: Annotated[tuple[GraphStage, ...], Field(min_length=4, max_length=4)]
    """Four stages, at strides 4, 8, 16 and 32."""
    head_width: Size = 512
    """Hidden channels of the classifier."""
    expansion: Expansion = 4
    """Hidden / outer channels of inverted residuals and feed-forward layers."""
    cpe_kernel: CpeKernel
    mixer_expansion: MixerExpansion
    graph_layer_scale: GraphLayerScale
    difference: Difference
    drop_path_rate: Rate = 0.1
    """End of the linear schedule of stochastic depth in training."""
    drop_path_steps: DropPathSteps
    distilled: bool = True
    """A second classifier for distillation; the output is the mean of the two."""

    @model_validator(mode="after")
    def _sound(self) -> MobileGraphConfig:
        if self.cpe_kernel and self.cpe_kernel % 2 == 0:
            raise ValueError(f"cpe_kernel must be odd, not {self.cpe_kernel}\nAn even one has no middle; 0 is none.")
        if self.stages[0].width % 2:
            width = self.stages[0].width
            raise ValueError(f"stages[0].width must be even, not {width}\nThe stem starts with half of it.")
        for i, (stage, grid) in enumerate(zip(self.stages, self.grids, strict=True)):
            if stage.graph_depth and (reason := idle_reach(stage.mixer, stage.reach, grid)):
                raise ValueError(f"{reason} (stages[{i}])\n{self._other_resolutions()}")
            if stage.graph_depth and stage.mixer == "degc" and max(stage.clusters, stage.neighbours) > grid**2:
                raise ValueError(
                    f"stages[{i}] has {grid**2} tokens, fewer than its clusters = {stage.clusters} or neighbours = "
                    f"{stage.neighbours}\nTake fewer, or a larger resolution."
                )
            if stage.graph_depth and stage.mixer == "knn":
                nearest = Nearest(stage.neighbours, stage.dilation, stage.reduction)
                nearest.check(f"stages[{i}]", grid, stage.width, self.mixer_expansion * stage.width)
        return self

    def _other_resolutions(self) -> str:
        """The nearest at which every graph does something, as a hint."""

        def is_sound(resolution: int) -> bool:
            grids = (resolution // stride for stride in STRIDES)
            return not any(
                s.graph_depth and idle_reach(s.mixer, s.reach, grid) for s, grid in zip(self.stages, grids, strict=True)
            )

        step = self.stride
        sides = range(self.resolution - step, 0, -step), range(self.resolution + step, 1025, step)
        near = [str(found) for side in sides if (found := next(filter(is_sound, side), None))]
        return f"Take {' or '.join(near)} px, or another reach." if near else "Choose another reach."

    def stage_shapes(self) -> tuple[StageShape, ...]:
        return tuple(
            StageShape(s.local_depth, s.graph_depth * (s.mixer != "none"), s.width, stride)
            for s, stride in zip(self.stages, STRIDES, strict=True)
        )

    def segments(self) -> tuple[tuple[BlockSpec, ...], ...]:
        rates = self._drop_path_rates()
        first = BlockSpec("stem", (self.in_chans, self.resolution, self.resolution), (("width", self.stages[0].width),))
        segments: list[tuple[BlockSpec, ...]] = [(first,)]
        for i, (stage, grid) in enumerate(zip(self.stages, self.grids, strict=True)):
            shape = (stage.width, grid, grid)
            blocks: list[BlockSpec] = []
            if i:
                before = (self.stages[i - 1].width, self.grids[i - 1], self.grids[i - 1])
                blocks.append(BlockSpec("downsample", before, (("width", stage.width),)))
            for kind, options, depth in (
                ("inverted_residual", (("expansion", self.expansion),), stage.local_depth),
                ("graph", self._graph_options(stage), stage.graph_depth),
            ):
                blocks += [BlockSpec(kind, shape, options, (("drop_path", next(rates)),)) for _ in range(depth)]
            segments.append(tuple(blocks))
        head = (("width", self.head_width), ("num_classes", self.num_classes), ("distilled", self.distilled))
        last = (self.stages[-1].width, self.grids[-1], self.grids[-1])
        return (*segments, (BlockSpec("head", last, head),))

    def _graph_options(self, stage: GraphStage) -> tuple[tuple[str, str | int | bool], ...]:
        """What a graph block is built by, and no more: what its mixer does not use would make two rows of one block."""
        options: dict[str, str | int | bool] = {"mixer": stage.mixer}
        if stage.mixer in ("mgc", "svga"):
            options |= {"reach": stage.reach, "difference": self.difference}
        elif stage.mixer == "dagc":
            options["reach"] = stage.reach
        elif stage.mixer == "knn":
            options |= Nearest(stage.neighbours, stage.dilation, stage.reduction)._asdict()
        elif stage.mixer == "degc":
            options |= {"clusters": stage.clusters, "neighbours": stage.neighbours}
        if stage.mixer != "none":
            options |= {"cpe": self.cpe_kernel, "mixer_expansion": self.mixer_expansion}
        return (*options.items(), ("expansion", self.expansion), ("layer_scale", self.graph_layer_scale))

    def _drop_path_rates(self) -> Iterator[float]:
        """A rate for every block in order."""
        kinds = [kind for s in self.stages for kind in ["local"] * s.local_depth + ["graph"] * s.graph_depth]
        step, last = 0, max(len(kinds) - 1, 1)
        for kind in kinds:
            yield self.drop_path_rate * step / last
            step += self.drop_path_steps == "block" or kind == "graph"


class MobileViGConfig(MobileGraphConfig):
    """MobileViG (arXiv:2307.00395): SVGA graph blocks in the last stage alone."""

    family: Literal["mobilevig"] = "mobilevig"
    cpe_kernel: CpeKernel = 0
    mixer_expansion: MixerExpansion = 2
    graph_layer_scale: GraphLayerScale = False
    difference: Difference = "token"
    drop_path_steps: DropPathSteps = "block"


class MobileViGv2Config(MobileGraphConfig):
    """MobileViGv2 (arXiv:2406.05850): MGC graph blocks with positional encoding in the last three stages."""

    family: Literal["mobilevigv2"] = "mobilevigv2"
    cpe_kernel: CpeKernel = 7
    mixer_expansion: MixerExpansion = 1
    graph_layer_scale: GraphLayerScale = True
    difference: Difference = "neighbour"
    drop_path_steps: DropPathSteps = "graph"


def _mobilevig(
    local_depths: tuple[int, ...], graph_depth: int, widths: tuple[int, ...], head_width: int
) -> MobileViGConfig:
    depths = (*((n, 0) for n in local_depths), (0, graph_depth))
    return MobileViGConfig(
        stages=tuple(
            GraphStage(local_depth=n, graph_depth=m, width=width, mixer="svga")
            for (n, m), width in zip(depths, widths, strict=True)
        ),
        head_width=head_width,
    )


def _mobilevigv2(depths: tuple[tuple[int, int], ...], widths: tuple[int, ...], head_width: int) -> MobileViGv2Config:
    reaches = (2, 8, 4, 2)  # stage 1 has no graph block, so its reach is of no consequence
    return MobileViGv2Config(
        stages=tuple(
            GraphStage(local_depth=n, graph_depth=m, width=width, reach=reach)
            for (n, m), width, reach in zip(depths, widths, reaches, strict=True)
        ),
        head_width=head_width,
    )


_TI, _SMALL = ((2, 0), (2, 2), (6, 2), (2, 2)), ((3, 0), (3, 3), (9, 3), (3, 3))
VARIANTS: dict[str, MobileViGConfig | MobileViGv2Config] = {
    "mobilevig_ti": _mobilevig((2, 2, 6), 2, (42, 84, 168, 256), 512),
    "mobilevig_s": _mobilevig((3, 3, 9), 3, (42, 84, 176, 256), 512),
    "mobilevig_m": _mobilevig((3, 3, 9), 3, (42, 84, 224, 400), 768),
    "mobilevig_b": _mobilevig((5, 5, 15), 5, (42, 84, 240, 464), 768),
    "mobilevigv2_ti": _mobilevigv2(_TI, (32, 64, 128, 256), 512),
    "mobilevigv2_s": _mobilevigv2(_SMALL, (32, 64, 128, 256), 512),
    "mobilevigv2_m": _mobilevigv2(_SMALL, (32, 64, 192, 384), 512),
    "mobilevigv2_b": _mobilevigv2(_SMALL, (64, 128, 256, 512), 768),
}

_TABLE_1 = ("iPhone 13 mini", "arXiv:2406.05850 Table 1")
PUBLISHED = {
    "mobilevig_ti": Published(5.2, 0.7, 75.7, 0.9, *_TABLE_1),
    "mobilevig_s": Published(7.2, 1.0, 78.2, 1.1, *_TABLE_1),
    "mobilevig_m": Published(14.0, 1.5, 80.6, 1.5, *_TABLE_1),
    "mobilevig_b": Published(26.7, 2.8, 82.6, 2.4, *_TABLE_1),
    "mobilevigv2_ti": Published(5.6, 0.6, 77.7, 0.9, *_TABLE_1),
    "mobilevigv2_s": Published(7.7, 0.9, 79.8, 1.1, *_TABLE_1),
    "mobilevigv2_m": Published(15.4, 1.6, 81.7, 1.6, *_TABLE_1),
    "mobilevigv2_b": Published(27.7, 3.6, 83.4, 2.7, *_TABLE_1),
}
# The parameters tell: by this profiler alone all eight round to what is printed. GMACs of one decimal tell less.
COUNTED_WITH = dict.fromkeys(PUBLISHED, CountedWith("sld", "sld", 1))

# What the paper leaves open is inferred from the parameters, which all six give: the rows with graphs in three stages
# have MobileViGv2-B's layout, and the fully connected layer takes C to 2C channels.
_THREE_SVGA = {f"stages[{i}].mixer": "svga" for i in (1, 2, 3)}
_THREE_FC = {f"stages[{i}].mixer": "fc" for i in (1, 2, 3)}
ABLATIONS = tuple(
    Ablation("arXiv:2406.05850 Table 3", *row)
    for row in (
        ("SVGA, one stage", "mobilevig_b", {}, 26.7, 82.6),
        ("SVGA, three stages", "mobilevigv2_b", {"cpe_kernel": 0, **_THREE_SVGA}, 27.6, 83.2),
        ("SVGA, one stage, CPE", "mobilevig_b", {"cpe_kernel": 7}, 26.8, 82.9),
        ("SVGA, three stages, CPE", "mobilevigv2_b", {**_THREE_SVGA}, 27.7, 83.3),
        ("fully connected", "mobilevigv2_b", {"cpe_kernel": 0, "mixer_expansion": 2, **_THREE_FC}, 28.6, 83.0),
        ("MGC, three stages, CPE", "mobilevigv2_b", {}, 27.7, 83.4),
    )
)

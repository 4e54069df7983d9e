"""ClusterViG (arXiv:2501.10640): isotropic, every block a graph inside clusters of tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vigcli.config.archs.base import (
    ArchConfig,
    BlockSpec,
    CountedWith,
    Expansion,
    Published,
    Rate,
    Size,
    StageShape,
)  # fmt: skip

Neighbours = Annotated[int, Field(ge=1, le=64)]


class ClusterViGConfig(ArchConfig):
    """One stage of blocks, each a DEGC graph layer and a feed-forward layer, behind a stem of convolutions.

    The family is isotropic: its one feature map has `stem_stride` pixels of the input a token, a side, from the first
    block to the last. The defaults are those of the paper; `groups` 1 in all variants and `center_tokens` true make
    the released code's networks.
    """

    family: Literal["clustervig"] = "clustervig"
    stem_stride: Literal[4, 8, 16, 32] = 16
    """Of the one feature map, in pixels of the input; the stem has a convolution of stride 2 for every factor of 2."""
    depth: Annotated[int, Field(ge=1, le=64)] = 12
    """Blocks, the paper's n_b."""
    width: Size = 192
    """Channels, the paper's C_iso."""
    clusters: Annotated[int, Field(ge=1, le=64)] = 4
    """Partitions of the tokens, the paper's kappa."""
    neighbours: tuple[Neighbours, Neighbours] = (9, 18)
    """Neighbours of a token in its cluster in the first and in the last block; they grow evenly between, rounded
    down."""
    local_update: Literal["mrgcn", "edgeconv", "graphsage", "gin"] = "mrgcn"
    """How a token takes up its neighbours and its cluster (the paper's Table II)."""
    groups: Annotated[int, Field(ge=1, le=64)] = 1
    """Groups of the linear layers of the local update. The parameters in the paper's Table III follow from 1 in Ti and
    4 in the others; the released code has 1 throughout."""
    partition: Literal["kmeans", "grid"] = "kmeans"
    """`kmeans` of the tokens (Section IV-A), or the cells of a fixed `grid`, which do not depend on the image."""
    center_tokens: bool = False
    """Subtract the mean over the tokens before graph and update. The paper's equations do not; the released code does,
    in the k-means library that it calls, so that its weights want `true`."""
    kmeans_iterations: Annotated[int, Field(ge=1, le=100)] = 20
    """Iterations of k-means at the most (Section IV-B: 20)."""
    cpe_kernel: Annotated[int, Field(ge=0, le=31)] = 7
    """Kernel of the conditional positional encoding before graph layers (Eq. 5), odd; 0 for none."""
    expansion: Expansion = 4
    """Hidden / outer channels of feed-forward layers (Eq. 6)."""
    head_width: Size = 1024
    """Hidden channels of the classifier."""
    drop_path_rate: Rate = 0.0
    """End of the linear schedule of stochastic depth in training."""
    distilled: bool = True
    """A second classifier for distillation; the output is the mean of the two."""

    @model_validator(mode="after")
    def _sound(self) -> ClusterViGConfig:
        if self.cpe_kernel and self.cpe_kernel % 2 == 0:
            raise ValueError(f"cpe_kernel must be odd, not {self.cpe_kernel}\nAn even one has no middle; 0 is none.")
        if self.width % self.groups:
            raise ValueError(
                f"width = {self.width} is no multiple of groups = {self.groups}\nTake a divisor of the width."
            )
        if self.clusters > self.grid**2:
            raise ValueError(
                f"clusters = {self.clusters} are more than the {self.grid**2} tokens\n"
                "Take fewer, or a larger resolution."
            )
        if self.partition == "grid" and max(grid_cells(self.clusters)) > self.grid:
            rows, columns = grid_cells(self.clusters)
            raise ValueError(
                f"clusters = {self.clusters} make a grid of {rows} x {columns} cells, and there are {self.grid} tokens "
                "a side\nTake a number that is a product of two smaller ones."
            )
        if max(self.neighbours) > self.grid**2:
            raise ValueError(
                f"neighbours = {list(self.neighbours)} of {self.grid**2} tokens\n"
                f"Take {self.grid**2} at the most, or a larger resolution."
            )
        return self

    @property
    def stride(self) -> int:  # type: ignore[override]  # a constant of other families
        return self.stem_stride

    @property
    def grid(self) -> int:
        """Tokens a side."""
        return self.resolution // self.stride

    def stage_shapes(self) -> tuple[StageShape, ...]:
        return (StageShape(0, self.depth, self.width, self.stride),)

    def layout(self) -> tuple[tuple[BlockSpec, ...], ...]:
        image = (self.in_chans, self.resolution, self.resolution)
        stem = BlockSpec("isotropic_stem", image, (("width", self.width), ("stride", self.stride)))
        shape = (self.width, self.grid, self.grid)
        head = (("width", self.head_width), ("num_classes", self.num_classes), ("distilled", self.distilled))
        return (stem,), tuple(self._block(i, shape) for i in range(self.depth)), (BlockSpec("head", shape, head),)

    def _block(self, i: int, shape: tuple[int, int, int]) -> BlockSpec:
        first, last = self.neighbours
        steps = max(self.depth - 1, 1)
        options: dict[str, str | int | bool] = {
            "mixer": "degc",
            "clusters": self.clusters,
            "neighbours": first + (last - first) * i // steps,
            "local_update": self.local_update,
            "groups": self.groups,
            "partition": self.partition,
            "center_tokens": self.center_tokens,
        }
        if self.partition == "kmeans":
            options["kmeans_iterations"] = self.kmeans_iterations
        options |= {"cpe": self.cpe_kernel, "mixer_expansion": 2, "expansion": self.expansion, "layer_scale": False}
        return BlockSpec("graph", shape, tuple(options.items()), (("drop_path", self.drop_path_rate * i / steps),))


def grid_cells(clusters: int) -> tuple[int, int]:
    """Rows and columns of the partition `grid`: as square as the number allows."""
    rows = max(rows for rows in range(1, clusters + 1) if clusters % rows == 0 and rows * rows <= clusters)
    return rows, clusters // rows


VARIANTS: dict[str, ClusterViGConfig] = {
    "clustervig_ti": ClusterViGConfig(),
    "clustervig_s": ClusterViGConfig(depth=16, width=320, groups=4),
    "clustervig_b": ClusterViGConfig(depth=16, width=640, groups=4),
    "clustervig_b_hr": ClusterViGConfig(depth=16, width=640, groups=4, stem_stride=8, clusters=6),
}

_TABLES = (None, None, "arXiv:2501.10640 Tables III, IV")
PUBLISHED = {
    "clustervig_ti": Published(11.5, 1.3, 80.3, *_TABLES),
    "clustervig_s": Published(28.2, 4.2, 83.7, *_TABLES),
    "clustervig_b": Published(104.8, 16.2, 85.6, *_TABLES),
    "clustervig_b_hr": Published(105.2, 62.3, 87.2, *_TABLES),
}
COUNTED_WITH = dict.fromkeys(PUBLISHED, CountedWith("true", "thop", 1))
UNEXPLAINED = {
    "clustervig_b": "no counter gives 16.2 GMACs; thop, which fits the others, would with the linear layers of the "
    "attention over centroids (16.197), which it does not see."
}

"""What blocks and networks sum up to, column by column: costs, what the score looks at, milliseconds by each table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigcli.config.archs import ArchConfig, BlockSpec
from vigcli.latency.table import LatencyTable
from vigcli.measure.count import count_block
from vigcli.search.effects import network_points
from vigcli.search.score import load_score, predicted_top1_percent
from vigcli.search.size import block_size
from vigcli.units import format_count

Array = NDArray[np.float64]

# What a part is summed up to; `peak_mb` alone is the greatest. The score is of the network with its ImageNet classifier
# and both heads; `points` are what published ablations say of choices that it does not see; `doubts` counts blocks
# with operations that a table was not fitted to. Behind these columns each table has two: milliseconds, and those of
# its second opinion.
COLUMNS = (
    "macs", "weight_mb", "act_mb", "num_ops", "params", "peak_mb",
    "score_params", "score_macs", "score_depthwise_macs", "score_layers", "points", "doubts",
)  # fmt: skip
(
    MACS, WEIGHT_MB, ACT_MB, NUM_OPS, PARAMS, PEAK_MB,
    SCORE_PARAMS, SCORE_MACS, SCORE_DEPTHWISE, SCORE_LAYERS, POINTS, DOUBTS,
) = range(len(COLUMNS))  # fmt: skip
SHAPE_NUMBERS = ("local_depth", "global_depth", "width_ratio", "macs_share", "weights_share")


def ms_column(table: int) -> int:
    """The column of milliseconds by the table of this index; behind it is the second opinion."""
    return len(COLUMNS) + 2 * table


class Limits(NamedTuple):
    """What a network may have at the most, the latency aside."""

    params: float = math.inf  # at inference
    macs: float = math.inf
    size_mb: float = math.inf  # fp16 weights, 1e6 bytes
    memory_mb: float = math.inf  # fp16 activations alive at once, 1e6 bytes

    def texts(self) -> dict[str, str]:
        """What is limited, for people."""
        units = {"params": "params", "macs": "MACs", "size_mb": "MB of fp16 weights", "memory_mb": "MB of activations"}
        values = {
            name: format_count(limit) if name in ("params", "macs") else f"{limit:g}"
            for name, limit in self._asdict().items()
        }
        return {units[name]: text for name, text in values.items() if getattr(self, name) < math.inf}

    def of_sums(self) -> list[tuple[int, float]]:
        """The columns that are limited and add up over the parts, with their limits."""
        limits = zip((PARAMS, MACS, WEIGHT_MB), self, strict=False)
        return [(column, limit) for column, limit in limits if limit < math.inf]

    def excess(self, total: Array) -> Array:
        """By how much networks are over, as shares of the limits: (N, columns) -> (N,)."""
        over = np.zeros(len(total))
        for limit, column in zip(self, (PARAMS, MACS, WEIGHT_MB, PEAK_MB), strict=True):
            if limit < math.inf:
                over += np.maximum(total[:, column] / limit - 1, 0)
        return over


NO_LIMITS = Limits()


def score_of(total: Array, base: ArchConfig) -> Array:
    """Predicted top-1 of networks of the base's family from their summed columns: (N, columns) -> (N,)."""
    by_size = predicted_top1_percent(
        total[:, SCORE_PARAMS],
        total[:, SCORE_MACS],
        total[:, SCORE_LAYERS],
        total[:, SCORE_DEPTHWISE] / total[:, SCORE_MACS],
        distilled=getattr(base, "distilled", False),
        offset=load_score().offset(base.family),
    )
    return np.asarray(by_size + total[:, POINTS])


class Columns:
    """The columns of blocks and networks; each block is counted and priced once."""

    def __init__(self, tables: Sequence[LatencyTable]):
        self.tables = tuple(tables)
        self._known: dict[tuple[str, BlockSpec], Array] = {}

    def network(self, config: ArchConfig) -> Array:
        """What one network sums up to: (columns,)."""
        return self.stages(config)[0]

    def stages(self, config: ArchConfig) -> tuple[Array, Array]:
        """What one network sums up to, and MACs and weights of its stages: (columns,), (stages, 2)."""
        segments = [self.blocks(config.family, blocks) for blocks in config.segments()]
        total = np.sum(segments, 0)
        total[PEAK_MB] = max(segment[PEAK_MB] for segment in segments)
        total[POINTS] = points_of(config)
        return total, np.array(segments)[1:-1, : WEIGHT_MB + 1]

    def blocks(self, family: str, specs: Iterable[BlockSpec]) -> Array:
        """What blocks sum up to: (columns,)."""
        total = self._nothing()
        for spec in specs:
            block = self._block(family, spec.counted())
            peak = max(total[PEAK_MB], block[PEAK_MB])
            total += block
            total[PEAK_MB] = peak
        return total

    def points(self, points: float) -> Array:
        """The columns of what an ablation says."""
        total = self._nothing()
        total[POINTS] = points
        return total

    def _nothing(self) -> Array:
        return np.zeros(len(COLUMNS) + 2 * len(self.tables))

    def _block(self, family: str, spec: BlockSpec) -> Array:
        if (family, spec) not in self._known:
            count, scored = count_block(family, spec), block_size(family, spec)
            deployed = count.deployed
            prices = [table.block_ms(spec.signature, deployed) for table in self.tables]
            doubted = any(price.doubts for price in prices)
            self._known[family, spec] = np.array([
                deployed.macs, deployed.weight_mb, deployed.act_mb, deployed.num_ops, count.params.inference,
                count.peak_bytes / 1e6, scored.params, scored.macs, scored.depthwise_macs, scored.path_layers,
                0.0, doubted,
                *(ms for price in prices for ms in (price.ms, price.second_ms or 0.0)),
            ])  # fmt: skip
        return self._known[family, spec]


def points_of(config: ArchConfig) -> float:
    """Points of top-1 that published ablations give a network over its family's published pattern."""
    return network_points(config)


def shape_of(config: ArchConfig, columns: Columns) -> Array:
    """`SHAPE_NUMBERS` of the stages of one network: (stages, numbers)."""
    total, by_stage = columns.stages(config)
    return np.concatenate([np.array(shape_numbers(config)), by_stage / total[: WEIGHT_MB + 1]], 1)


def shape_numbers(config: ArchConfig) -> list[tuple[float, float, float]]:
    stages = config.stage_shapes()
    widths = [stages[0].width, *(stage.width for stage in stages)]
    return [(s.local_depth, s.global_depth, s.width / before) for s, before in zip(stages, widths, strict=False)]


def hull_features(total: Array) -> Array:
    return np.stack([total[:, ACT_MB], total[:, WEIGHT_MB], total[:, NUM_OPS], total[:, MACS] / 1e9], 1)

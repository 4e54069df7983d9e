"""A search space as arrays: what every part of every candidate costs, so that a population is priced by indexing.

A network is a sequence of segments (stem, stages, head), and the blocks of one kind in a segment are a part. A part
depends on a few genes only, and all combinations of their choices are counted and priced once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigcli.config.archs import ArchConfig, BlockSpec
from vigcli.config.space import SearchSpace
from vigcli.config.space_blocks import Configurator
from vigcli.errors import ConfigError
from vigcli.latency.table import MAX_DISAGREEMENT, LatencyTable
from vigcli.measure.count import count_block
from vigcli.search.effects import network_points, stage_points
from vigcli.search.score import load_score, predicted_top1_percent
from vigcli.search.size import block_size
from vigcli.units import format_count

Array = NDArray[np.float64]
Population = NDArray[np.intp]  # (candidates, genes), indices into the genes' choices

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
_MAX_COMBINATIONS = 200_000
_CHUNK = 20_000  # candidates that are priced at once: more would not fit the processor's cache
INVISIBLE_MS = 0.005  # published milliseconds have one decimal; nothing below a hundredth of it is evidence
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

    def excess(self, total: Array) -> Array:
        """By how much networks are over, as shares of the limits: (N, columns) -> (N,)."""
        over = np.zeros(len(total))
        for limit, column in zip(self, (PARAMS, MACS, WEIGHT_MB, PEAK_MB), strict=True):
            if limit < math.inf:
                over += np.maximum(total[:, column] / limit - 1, 0)
        return over


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Part:
    """The blocks of one kind in a segment, in all that they can be: arrays over the choices of the genes `axes`.

    Attributes:
        costs: (choices of each axis ..., columns).
        sound: whether such a part can be built.
        trained: whether its depth and width are in the range of trained shapes.
    """

    segment: int
    axes: tuple[int, ...]
    costs: Array
    sound: NDArray[np.bool_]
    trained: NDArray[np.bool_]

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """Whether such a part breaks no rule."""
        return self.sound & self.trained

    @cached_property
    def _rows(self) -> Array:
        """(combinations, columns and whether a rule is broken)."""
        broken = ~self.allowed
        return np.concatenate([self.costs, broken[..., None]], -1).reshape(broken.size, -1)

    @cached_property
    def _strides(self) -> Population:
        sizes = self.sound.shape
        return np.array([math.prod(sizes[i + 1 :]) for i in range(len(sizes))], np.intp)

    def rows(self, population: Population) -> Array:
        """(candidates, columns and whether a rule is broken)."""
        return self._rows.take(population[:, self.axes] @ self._strides, axis=0)

    def restricted(self, kept: Mapping[int, Sequence[int]]) -> Part:
        """The part with some genes at fewer choices: {gene: indices of the choices}."""
        arrays: list[Any] = [self.costs, self.sound, self.trained]
        for position, axis in enumerate(self.axes):
            if axis in kept:
                arrays = [array.take(kept[axis], position) for array in arrays]
        return Part(self.segment, self.axes, *arrays)

    def joined(self, other: Part) -> Part:
        """This part and one whose genes are among its own, as one."""
        missing = tuple(i for i, axis in enumerate(self.axes) if axis not in other.axes)
        costs = np.expand_dims(other.costs, missing)
        sums = self.costs + costs
        sums[..., PEAK_MB] = np.maximum(self.costs[..., PEAK_MB], costs[..., PEAK_MB])
        return Part(
            self.segment,
            self.axes,
            sums,
            self.sound & np.expand_dims(other.sound, missing),
            self.trained & np.expand_dims(other.trained, missing),
        )


class ShapeNumber(NamedTuple):
    """A depth or width ratio of one stage, over the choices of the genes `axes`."""

    axes: tuple[int, ...]
    values: Array


@dataclass(frozen=True)
class Evaluation:
    """What is known of a population: latency in ms, predicted top-1 in percent, and by how much a rule is broken."""

    latency_ms: Array  # the greatest of the tables'
    score: Array
    violation: Array  # 0 where every rule and limit holds, the budget of latency aside


@dataclass(frozen=True)
class Encoding:
    """A space, at one resolution and number of classes, priced by tables.

    Attributes:
        numbers: of each stage, its local depth, global depth and width ratio.
        trained: (stages, numbers, least and greatest) of `SHAPE_NUMBERS` that are in the range of trained shapes; None
            where the space has no such rule, or it is not kept.
        in_hull: of each table, whether networks must be in its fitted range; not where no published one is.
        undoubted: whether no block may have operations that a table was not fitted to; not where published ones have.
    """

    space: SearchSpace
    base: ArchConfig
    tables: tuple[LatencyTable, ...]
    parts: tuple[Part, ...]
    numbers: tuple[tuple[ShapeNumber, ...], ...]
    trained: Array | None
    in_hull: tuple[bool, ...]
    undoubted: bool
    limits: Limits = NO_LIMITS

    @property
    def num_choices(self) -> Population:
        return np.array([len(choices) for choices in self.space.genes.values()])

    def config(self, candidate: Iterable[int]) -> ArchConfig:
        return self.space.config(self.base, [int(i) for i in candidate])

    def evaluate(self, population: Population) -> Evaluation:
        """Price, score and judge every candidate: (candidates, genes) -> three arrays of (candidates,)."""
        parts = [self._evaluated(population[i : i + _CHUNK]) for i in range(0, max(len(population), 1), _CHUNK)]
        return Evaluation(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Evaluation)))

    def price(self, population: Population) -> Array:
        """Milliseconds of every candidate alone, by the first table: (candidates, genes) -> (candidates,)."""
        blocks_ms = np.zeros(len(population))
        for part in self.parts:
            ms = np.ascontiguousarray(part.costs[..., ms_column(0)])
            for i in range(0, len(population), _CHUNK):
                some = slice(i, i + _CHUNK)
                blocks_ms[some] += ms[tuple(population[some, axis] for axis in part.axes)]
        return np.asarray(self.tables[0].network_ms(blocks_ms))

    def totals(self, population: Population) -> Array:
        """The columns of every candidate: (candidates, genes) -> (candidates, columns)."""
        return self._summed(population)[0]

    def shapes(self, population: Population) -> Array:
        """`SHAPE_NUMBERS` of every stage of every candidate: (candidates, stages, numbers)."""
        return self._shapes(population, *self._summed(population))

    def ignoring_shapes(self) -> Encoding:
        """The encoding without the rule that shapes were trained."""
        parts = tuple(replace(part, trained=np.ones_like(part.trained)) for part in self.parts)
        return replace(self, parts=parts, trained=None)

    def _evaluated(self, population: Population) -> Evaluation:
        total, by_stage = self._summed(population)
        violation = total[:, -1] + self.limits.excess(total)
        if self.trained is not None:
            shares = SHAPE_NUMBERS.index("macs_share")
            values = self._shares(total, by_stage)
            low, high = np.moveaxis(self.trained[:, shares:], -1, 0)
            violation += _outside(values, low, high).sum(1)
        if self.undoubted:
            violation += total[:, DOUBTS]
        latency_ms = np.zeros(len(population))
        for i, table in enumerate(self.tables):
            ms = table.network_ms(total[:, ms_column(i)])
            latency_ms = np.maximum(latency_ms, ms)
            if self.in_hull[i]:
                off = np.abs(table.disagreement(ms, total[:, ms_column(i) + 1]))
                violation += _off_hull(table, total) + np.maximum(off - MAX_DISAGREEMENT, 0)
        return Evaluation(latency_ms, score_of(total, self.base), violation)

    def _summed(self, population: Population) -> tuple[Array, Array]:
        """Columns of networks, and MACs and weights of their stages: (N, columns and rules broken), (N, stages, 2)."""
        total = np.zeros((len(population), len(COLUMNS) + 2 * len(self.tables) + 1))
        by_stage = np.zeros((len(population), len(self.numbers), 2))
        peak = np.zeros(len(population))
        for part in self.parts:
            rows = part.rows(population)
            total += rows
            np.maximum(peak, rows[:, PEAK_MB], out=peak)
            if 1 <= part.segment <= len(self.numbers):
                by_stage[:, part.segment - 1] += rows[:, : WEIGHT_MB + 1]
        total[:, PEAK_MB] = peak
        return total, by_stage

    def _shapes(self, population: Population, total: Array, by_stage: Array) -> Array:
        own = [
            [number.values[tuple(population[:, axis] for axis in number.axes)] for number in stage]
            for stage in self.numbers
        ]
        columns = [[np.broadcast_to(values, len(population)) for values in stage] for stage in own]
        return np.concatenate([np.moveaxis(np.array(columns), -1, 0), self._shares(total, by_stage)], -1)

    @staticmethod
    def _shares(total: Array, by_stage: Array) -> Array:
        """The shares of MACs and weights that each stage has: (N, stages, 2)."""
        return by_stage / total[:, None, : WEIGHT_MB + 1]

    def seen(self) -> NDArray[np.bool_]:
        """Which genes price or score can tell the choices of; the others must be decided by something else.

        A gene that moves nothing but the latency, by less than `INVISIBLE_MS`, is not seen.
        """
        seen = np.zeros(len(self.space.genes), bool)
        ms = [ms_column(i) for i in range(len(self.tables))]
        for part in self.parts:
            both = part.allowed[..., None]
            for position, axis in enumerate(part.axes):
                change = np.where(both & both.take([0], position), part.costs - part.costs.take([0], position), 0)
                seen[axis] |= bool((part.allowed != part.allowed.take([0], position)).any())
                seen[axis] |= bool(np.abs(change[..., ms]).max() > INVISIBLE_MS)
                seen[axis] |= bool(
                    change[..., SCORE_PARAMS : POINTS + 1].any() or change[..., MACS : WEIGHT_MB + 1].any()
                )
        return seen

    def keeping_unseen(self) -> Encoding:
        """The encoding with the genes that nothing sees held at the base's value, or at the choice nearest to it.

        Held before the search rather than put back after it, where even a hidden microsecond could pass the budget.
        """
        data, genes = self.base.model_dump(mode="json"), list(self.space.genes)
        unseen = np.flatnonzero(~self.seen()).tolist()
        return self._restricted({gene: [self.space.nearest_choice(data, genes[gene])] for gene in unseen})

    def without_idle_choices(self) -> Encoding:
        """The encoding without the choices that break a rule whatever the other genes are, so that no candidate has
        them: one random candidate in a hundred keeps the shape rules then, instead of one in forty thousand."""
        kept = {}
        for gene, choices in enumerate(self.space.genes.values()):
            useful = np.ones(len(choices), bool)
            for part in self.parts:
                if gene in part.axes:
                    others = tuple(i for i, axis in enumerate(part.axes) if axis != gene)
                    useful &= part.allowed.any(others)
            if useful.any():  # a space that nothing can keep is for the caller to report
                kept[gene] = np.flatnonzero(useful).tolist()
        return self._restricted(kept)

    def _restricted(self, kept: Mapping[int, Sequence[int]]) -> Encoding:
        genes = {
            path: tuple(choices[i] for i in kept[gene]) if gene in kept else choices
            for gene, (path, choices) in enumerate(self.space.genes.items())
        }
        return replace(
            self,
            space=self.space.model_copy(update={"genes": genes}),
            parts=tuple(part.restricted(kept) for part in self.parts),
            numbers=tuple(tuple(_restricted_number(number, kept) for number in stage) for stage in self.numbers),
        )


def _restricted_number(number: ShapeNumber, kept: Mapping[int, Sequence[int]]) -> ShapeNumber:
    values = number.values
    for position, axis in enumerate(number.axes):
        if axis in kept:
            values = values.take(kept[axis], position)
    return ShapeNumber(number.axes, values)


def _outside(values: Array, low: Array, high: Array) -> Array:
    """How far values lie outside their bounds, summed over the last axis; rounding is forgiven."""
    return np.asarray((np.maximum(low - values - 1e-12, 0) + np.maximum(values - high - 1e-12, 0)).sum(-1))


def _off_hull(table: LatencyTable, total: Array) -> Array:
    if table.calibration is None:
        return np.zeros(len(total))
    low, high = np.array(table.calibration.hull.bounds()).T
    return _outside(_hull_features(total) / high, low / high, np.ones(len(high)))


def _hull_features(total: Array) -> Array:
    return np.stack([total[:, ACT_MB], total[:, WEIGHT_MB], total[:, NUM_OPS], total[:, MACS] / 1e9], 1)


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
    return np.concatenate([np.array(_shape_numbers(config)), by_stage / total[: WEIGHT_MB + 1]], 1)


def _shape_numbers(config: ArchConfig) -> list[tuple[float, float, float]]:
    stages = config.stage_shapes()
    widths = [stages[0].width, *(stage.width for stage in stages)]
    return [(s.local_depth, s.global_depth, s.width / before) for s, before in zip(stages, widths, strict=False)]


# ------------------------------------------------------------------------------------------------ encoding


def encode_space(
    space: SearchSpace,
    base: ArchConfig,
    variants: Mapping[str, ArchConfig],
    tables: Sequence[LatencyTable],
    limits: Limits = NO_LIMITS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Encoding:
    """Count and price every combination that a part of the space can take; progress counts parts.

    `variants` are the published networks at the base's resolution and classes: they give the ranges of trained shapes.
    Raises ConfigError for a part that depends on too many genes at once.
    """
    columns = Columns(tables)
    trained = None
    if space.trained_shapes:
        shapes = np.stack([shape_of(config, columns) for config in variants.values()])
        widen = space.trained_shapes.widen
        trained = np.stack([(1 - widen) * shapes.min(0), (1 + widen) * shapes.max(0)], -1)
    totals = [columns.network(config)[None] for config in variants.values()]
    in_hull = tuple(any(not table.outside(*_hull_features(t)[0]) for t in totals) for table in tables)
    parts, numbers = _Encoder(space, base, columns, trained).parts(on_progress)
    undoubted = bool(totals) and not any(total[0, DOUBTS] for total in totals)
    return Encoding(space, base, tuple(tables), parts, numbers, trained, in_hull, undoubted, limits)


class _Encoder:
    """What of a network depends on which genes, and what it is for each of their choices."""

    def __init__(self, space: SearchSpace, base: ArchConfig, columns: Columns, trained: Array | None):
        self.columns, self.trained, self.family = columns, trained, base.family
        self.sizes = [len(choices) for choices in space.genes.values()]
        self._configure = Configurator(space, base)

    def parts(
        self, on_progress: Callable[[int, int], None]
    ) -> tuple[tuple[Part, ...], tuple[tuple[ShapeNumber, ...], ...]]:
        """The parts, those that need no array of their own joined to others of their segment, and the stages'
        numbers."""
        dependencies = self._dependencies()
        parts: dict[int, list[Part]] = {}
        numbers: dict[int, dict[str, ShapeNumber]] = {}
        for done, ((segment, what), axes) in enumerate(dependencies.items()):
            on_progress(done, len(dependencies))
            part, values = self._part(segment, what, axes)
            parts.setdefault(segment, []).append(part)
            if values is not None:
                numbers.setdefault(segment, {})[what] = ShapeNumber(axes, values)
        joined = tuple(part for found in parts.values() for part in _joined(found))
        own = SHAPE_NUMBERS[:-2]  # shares are of the whole network
        return joined, tuple(tuple(numbers[segment][name] for name in own) for segment in sorted(numbers))

    def _rest(self) -> None:
        self._configure(enumerate(self._configure.nearest))

    def _dependencies(self) -> dict[tuple[int, str], tuple[int, ...]]:
        """(segment, kind of block or number) -> the genes it depends on: a gene is moved through all its choices from
        several starting points.

        The starting points (the base, every gene at its first choice, at its last, and mixtures) make sure that a gene
        shows which has no effect while another is zero; the search prices its answer again from the built network.
        """
        generator = np.random.default_rng(0)
        starts = [self._configure.nearest, [0] * len(self.sizes), [size - 1 for size in self.sizes]]
        starts += [generator.integers(self.sizes).tolist() for _ in range(6)]
        found: dict[tuple[int, str], set[int]] = {}
        for start in starts:
            reference = self._configure(enumerate(start))
            if reference is None:
                continue
            before = _contents(reference)
            for what in before:
                found.setdefault(what, set())
            for gene, size in enumerate(self.sizes):
                for choice in range(size):
                    if choice != start[gene] and (moved := self._configure([(gene, choice)])) is not None:
                        after = _contents(moved)
                        for what in before.keys() | after.keys():
                            if before.get(what) != after.get(what):
                                found.setdefault(what, set()).add(gene)
                self._configure([(gene, start[gene])])
        self._rest()
        return {what: tuple(sorted(found[what])) for what in sorted(found)}

    def _part(self, segment: int, what: str, axes: tuple[int, ...]) -> tuple[Part, Array | None]:
        sizes = tuple(self.sizes[axis] for axis in axes)
        if math.prod(sizes) > _MAX_COMBINATIONS:
            raise ConfigError(
                f"the {what} of segment {segment} depends on {len(axes)} genes with {math.prod(sizes):,} combinations.",
                f"Give them fewer choices: {_MAX_COMBINATIONS:,} can be counted.",
            )
        costs = np.zeros((*sizes, len(COLUMNS) + 2 * len(self.columns.tables)))
        sound, trained = np.zeros(sizes, bool), np.ones(sizes, bool)
        values = np.full(sizes, np.nan) if what in SHAPE_NUMBERS else None
        for index in itertools.product(*map(range, sizes)):
            config = self._configure(zip(axes, index, strict=True))
            if config is None:
                continue
            sound[index] = True
            content = _contents(config).get((segment, what), ())
            if values is not None:
                values[index] = content
                trained[index] = self._is_trained(segment, what, content)
            elif what == "points":
                costs[index] = self.columns.points(content)  # type: ignore[arg-type]
            else:
                costs[index] = self.columns.blocks(self.family, content)  # type: ignore[arg-type]
        self._rest()
        return Part(segment, axes, costs, sound, trained), values

    def _is_trained(self, segment: int, what: str, value: Any) -> bool:
        if self.trained is None:
            return True
        low, high = self.trained[segment - 1, SHAPE_NUMBERS.index(what)]
        return bool(low - 1e-9 <= value <= high + 1e-9)


def _contents(config: ArchConfig) -> dict[tuple[int, str], Hashable]:
    """All that a network is, by segment: blocks of each kind, the points and the shape numbers of each stage."""
    found: dict[tuple[int, str], Any] = {}
    for number, blocks in enumerate(config.segments()):
        for spec in blocks:
            found[number, spec.kind] = (*found.get((number, spec.kind), ()), spec.counted())
    for i, numbers in enumerate(_shape_numbers(config)):
        found |= {(i + 1, name): value for name, value in zip(SHAPE_NUMBERS, numbers, strict=False)}
        found[i + 1, "points"] = stage_points(config, i)
    return found


def _joined(parts: Sequence[Part]) -> list[Part]:
    """The parts of a segment, each whose genes are all another's joined to it."""
    found: list[Part] = []
    for part in sorted(parts, key=lambda p: (-len(p.axes), p.axes)):
        for i, known in enumerate(found):
            if set(part.axes) <= set(known.axes):
                found[i] = known.joined(part)
                break
        else:
            found.append(part)
    return found

"""A search space as arrays: what every part of every candidate costs, so that a population is priced by indexing.

A network is a sequence of segments (stem, stages, head), and a segment depends on a few genes only: its own and the
width that enters it. For each segment all combinations of its genes are counted and priced once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vigcli.config.archs import ArchConfig, BlockSpec, StageShape
from vigcli.config.load import parse_as, split_path
from vigcli.config.space import SearchSpace
from vigcli.errors import ConfigError
from vigcli.latency.table import MAX_DISAGREEMENT, LatencyTable
from vigcli.measure.count import count_block, training_trace
from vigcli.search.score import load_score, predicted_top1_percent

Array = NDArray[np.float64]
Population = NDArray[np.intp]  # (candidates, genes), indices into the genes' choices

# What a segment is summed up to. The score is of the network with its ImageNet classifier and both heads.
COLUMNS = (
    "op_ms", "second_ms", "macs", "weight_mb", "act_mb", "num_ops",
    "score_params", "score_macs", "score_depthwise_macs", "score_layers",
)  # fmt: skip
(
    MS, SECOND_MS, MACS, WEIGHT_MB, ACT_MB, NUM_OPS, SCORE_PARAMS, SCORE_MACS, SCORE_DEPTHWISE, SCORE_LAYERS,
) = range(len(COLUMNS))  # fmt: skip
_MAX_COMBINATIONS = 200_000
_CHUNK = 20_000  # candidates that are priced at once: more would not fit the processor's cache
INVISIBLE_MS = 0.005  # published milliseconds have one decimal; nothing below a hundredth of it is evidence


@dataclass(frozen=True)
class Segment:
    """All that one segment can be: `costs[i, j, ...]` over the choices of the genes `axes`."""

    axes: tuple[int, ...]
    costs: Array  # (choices of each axis ..., columns)
    allowed: NDArray[np.bool_]  # (choices of each axis ...)

    def restricted(self, kept: Mapping[int, Sequence[int]]) -> Segment:
        """The segment with some genes at fewer choices: {gene: indices of the choices}."""
        costs, allowed = self.costs, self.allowed
        for position, axis in enumerate(self.axes):
            if axis in kept:
                costs, allowed = costs.take(kept[axis], position), allowed.take(kept[axis], position)
        return Segment(self.axes, costs, allowed)


@dataclass(frozen=True)
class Bounds:
    """Shares of each stage that trained shapes stay in: (stages, low and high)."""

    macs: Array
    weights: Array


@dataclass(frozen=True)
class Evaluation:
    """What is known of a population: latency in ms, predicted top-1 in percent, and by how much a rule is broken."""

    latency_ms: Array
    score: Array
    violation: Array  # 0 where every rule holds


@dataclass(frozen=True)
class Encoding:
    """A space, at one resolution and number of classes, priced by one table."""

    space: SearchSpace
    base: ArchConfig
    table: LatencyTable
    segments: tuple[Segment, ...]
    bounds: Bounds | None
    enforce_hull: bool

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
        """Milliseconds of every candidate alone: (candidates, genes) -> (candidates,)."""
        blocks_ms = np.zeros(len(population))
        for segment in self.segments:
            ms = np.ascontiguousarray(segment.costs[..., MS])
            for i in range(0, len(population), _CHUNK):
                part = slice(i, i + _CHUNK)
                blocks_ms[part] += ms[tuple(population[part, axis] for axis in segment.axes)]
        return np.asarray(self.table.network_ms(blocks_ms))

    def _evaluated(self, population: Population) -> Evaluation:
        index = [tuple(population[:, axis] for axis in segment.axes) for segment in self.segments]
        row = len(population), len(COLUMNS)  # a segment that no gene moves has one row for all
        picked = [np.broadcast_to(s.costs[i], row) for s, i in zip(self.segments, index, strict=True)]
        costs = np.stack(picked, 1)  # (N, segments, columns)
        broken = sum(~s.allowed[i] for s, i in zip(self.segments, index, strict=True))
        total = costs.sum(1)
        ms = self.table.network_ms(total[:, MS])
        violation = np.asarray(broken, float) + self._shares(costs)
        if self.enforce_hull:
            off = np.abs(self.table.disagreement(ms, total[:, SECOND_MS]))
            violation += self._hull(total) + np.maximum(off - MAX_DISAGREEMENT, 0)
        return Evaluation(ms, score_of(total, self.base), violation)

    def _shares(self, costs: Array) -> Array:
        if self.bounds is None:
            return np.zeros(len(costs))
        return sum(
            _outside(costs[:, 1:-1, column] / costs[:, :, column].sum(1, keepdims=True), bounds[:, 0], bounds[:, 1])
            for column, bounds in ((MACS, self.bounds.macs), (WEIGHT_MB, self.bounds.weights))
        )  # type: ignore[return-value]

    def _hull(self, total: Array) -> Array:
        if self.table.calibration is None:
            return np.zeros(len(total))
        values = np.stack([total[:, ACT_MB], total[:, WEIGHT_MB], total[:, NUM_OPS], total[:, MACS] / 1e9], 1)
        low, high = np.array(self.table.calibration.hull.bounds()).T
        return _outside(values / high, low / high, np.ones(len(high)))

    def seen(self) -> NDArray[np.bool_]:
        """Which genes price or score can tell the choices of; the others must be decided by something else.

        A gene that moves nothing but the latency, by less than `INVISIBLE_MS`, is not seen.
        """
        seen = np.zeros(len(self.space.genes), bool)
        for segment in self.segments:
            both = segment.allowed[..., None]
            for position, axis in enumerate(segment.axes):
                change = np.where(both & both.take([0], position), segment.costs - segment.costs.take([0], position), 0)
                seen[axis] |= bool((segment.allowed != segment.allowed.take([0], position)).any())
                seen[axis] |= bool(np.abs(change[..., MS]).max() > INVISIBLE_MS or change[..., NUM_OPS + 1 :].any())
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
            for segment in self.segments:
                if gene in segment.axes:
                    others = tuple(i for i, axis in enumerate(segment.axes) if axis != gene)
                    useful &= segment.allowed.any(others)
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
            segments=tuple(segment.restricted(kept) for segment in self.segments),
        )


def _outside(values: Array, low: Array, high: Array) -> Array:
    """How far a row of values lies outside its bounds, summed; rounding is forgiven."""
    return (np.maximum(low - values - 1e-12, 0) + np.maximum(values - high - 1e-12, 0)).sum(1)


def score_of(total: Array, base: ArchConfig) -> Array:
    """Predicted top-1 of networks from their summed columns: (N, columns) -> (N,)."""
    return predicted_top1_percent(
        total[:, SCORE_PARAMS],
        total[:, SCORE_MACS],
        total[:, SCORE_LAYERS],
        total[:, SCORE_DEPTHWISE] / total[:, SCORE_MACS],
        distilled=getattr(base, "distilled", False),
        offset=load_score().offset(base.family),
    )


def encode_space(
    space: SearchSpace,
    base: ArchConfig,
    variants: Mapping[str, ArchConfig],
    table: LatencyTable,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Encoding:
    """Count and price every combination that a segment of the space can take; progress counts segments.

    `variants` are the published networks at the base's resolution and classes: they give the ranges of trained shapes.
    """
    price = BlockColumns(table)
    columns = {name: price.segments(config) for name, config in variants.items()}
    widen = space.trained_shapes.widen if space.trained_shapes else 0.0
    rules = [_widened(r, widen) for r in _shape_ranges(variants.values())] if space.trained_shapes else None
    segments = _segments(space, base, price, rules, on_progress)
    inside = [not table.outside(*_hull_features(c)) for c in columns.values()]
    bounds = None
    if space.trained_shapes:
        stacked = np.stack(list(columns.values()))[:, 1:-1]  # (variants, stages, columns)
        shares = stacked / np.stack(list(columns.values())).sum(1, keepdims=True)
        bounds = Bounds(
            *(_widened(np.stack([s.min(0), s.max(0)], -1), widen) for s in (shares[..., MACS], shares[..., WEIGHT_MB]))
        )
    return Encoding(space, base, table, segments, bounds, enforce_hull=any(inside))


class BlockColumns:
    """The columns of blocks, each counted and priced once."""

    def __init__(self, table: LatencyTable):
        self.table = table
        self._known: dict[tuple[str, BlockSpec], Array] = {}

    def segments(self, config: ArchConfig) -> Array:
        """What each segment of one network sums up to: (segments, columns)."""
        return np.array([self.total(config, blocks) for blocks in _segments_of(config)])

    def total(self, config: ArchConfig, blocks: Iterable[BlockSpec]) -> Array:
        """What blocks of a network sum up to: (columns,)."""
        return sum((self._block(config.family, spec) for spec in blocks), np.zeros(len(COLUMNS)))

    def _block(self, family: str, spec: BlockSpec) -> Array:
        if (family, spec) not in self._known:
            count = count_block(family, spec)
            options = dict(spec.options) | ({"num_classes": 1000} if "num_classes" in dict(spec.options) else {})
            scored = count_block(family, spec._replace(options=tuple(options.items())))
            runs = training_trace(family, scored.spec) if "num_classes" in options else scored.deployed
            deployed = count.deployed
            price = self.table.block_ms(spec.signature, deployed)
            self._known[family, spec] = np.array([
                price.ms, price.second_ms or 0.0, deployed.macs, deployed.weight_mb, deployed.act_mb,
                deployed.num_ops, scored.params.total, runs.macs, runs.depthwise_macs, runs.path_layers,
            ])  # fmt: skip
        return self._known[family, spec]


def _hull_features(columns: Array) -> tuple[float, float, float, float]:
    total = columns.sum(0)
    return total[ACT_MB], total[WEIGHT_MB], total[NUM_OPS], total[MACS] / 1e9


# ------------------------------------------------------------------------------------------------ trained shapes


def _shape_ranges(variants: Iterable[ArchConfig]) -> list[Array]:
    """The least and greatest depths (local, global) and width ratio of each stage: a (3, 2) array a stage."""
    shapes = np.array([_shape_numbers(config.stage_shapes()) for config in variants])  # (variants, stages, 3)
    return list(np.stack([shapes.min(0), shapes.max(0)], -1))


def _shape_numbers(stages: tuple[StageShape, ...]) -> list[list[float]]:
    widths = [stages[0].width, *(stage.width for stage in stages)]
    return [[s.local_depth, s.global_depth, s.width / before] for s, before in zip(stages, widths, strict=False)]


def _widened(ranges: Array, widen: float) -> Array:
    return ranges * np.array([1 - widen, 1 + widen])


# ------------------------------------------------------------------------------------------------ segments


def _segments(
    space: SearchSpace,
    base: ArchConfig,
    price: BlockColumns,
    rules: list[Array] | None,
    on_progress: Callable[[int, int], None],
) -> tuple[Segment, ...]:
    genes = list(space.genes.items())
    data = base.model_dump(mode="json")
    slots = [_slot(data, path) for path, _ in genes]  # where a gene's value stands, found once
    resting = [choices[space.nearest_choice(data, path)] for path, choices in genes]  # the base may be outside

    def configure(candidate: Iterable[tuple[int, Any]]) -> ArchConfig | None:
        """None where the choices of several genes do not go together, such as a mixer and its reach."""
        for gene, value in candidate:
            container, key = slots[gene]
            container[key] = value
        try:
            return parse_as(type(base), data)
        except ConfigError:
            return None

    segments = []
    dependencies = _dependencies(space, base, resting, configure)
    configure(enumerate(resting))
    for number, axes in enumerate(dependencies):
        on_progress(number, len(dependencies))
        sizes = [len(genes[axis][1]) for axis in axes]
        if np.prod(sizes) > _MAX_COMBINATIONS:
            raise ValueError(f"segment {number} has {np.prod(sizes)} combinations")
        costs, allowed = np.zeros((*sizes, len(COLUMNS))), np.zeros(sizes, bool)
        for combination in itertools.product(*map(range, sizes)):
            config = configure((axis, genes[axis][1][i]) for axis, i in zip(axes, combination, strict=True))
            if config is not None and (rules is None or _keeps_shape(config, number - 1, rules)):
                allowed[combination] = True
                costs[combination] = price.total(config, _segments_of(config)[number])
        segments.append(Segment(axes, costs, allowed))
        configure(enumerate(resting))
    return tuple(segments)


def _keeps_shape(config: ArchConfig, stage: int, rules: list[Array]) -> bool:
    shapes = config.stage_shapes()
    if not 0 <= stage < len(shapes):  # stem and head
        return True
    numbers = np.array(_shape_numbers(shapes)[stage])
    return bool(((rules[stage][:, 0] <= numbers) & (numbers <= rules[stage][:, 1])).all())


def _slot(data: Any, path: str) -> tuple[Any, str | int]:
    *parents, last = split_path(path)
    for part in parents:
        data = data[part]
    return data, last


def _dependencies(space: SearchSpace, base: ArchConfig, resting: list[Any], configure: Any) -> list[tuple[int, ...]]:
    """The genes that each segment depends on: a gene is moved through all its choices from several starting points.

    The starting points (the base, every gene at its first choice, at its last, and mixtures) make sure that a gene
    shows which has no effect while another is zero; the search prices its answer again from the built network.
    """
    genes = list(space.genes.values())
    generator = np.random.default_rng(0)
    starts = [[0] * len(genes), [len(choices) - 1 for choices in genes]]
    starts += [[int(generator.integers(len(choices))) for choices in genes] for _ in range(6)]
    found: list[set[int]] = [set() for _ in base.segments()]
    for values in [resting, *([choices[i] for choices, i in zip(genes, start, strict=True)] for start in starts)]:
        reference = configure(enumerate(values))
        for gene, choices in enumerate(genes if reference is not None else ()):
            for choice in choices:
                moved = configure([(gene, choice)])
                if moved is not None:
                    pairs = zip(_segments_of(moved), _segments_of(reference), strict=True)
                    changed = [number for number, (ours, theirs) in enumerate(pairs) if ours != theirs]
                    for number in changed:
                        found[number].add(gene)
            configure([(gene, values[gene])])
    return [tuple(sorted(axes)) for axes in found]


def _segments_of(config: ArchConfig) -> list[tuple[BlockSpec, ...]]:
    """The segments as they are counted and priced: what matters in training alone moves with every depth."""
    return [tuple(spec.counted() for spec in blocks) for blocks in config.segments()]

"""A search space as arrays: what every part of every candidate costs, so that a population is priced by indexing.

A network is a sequence of segments (stem, stages, head), and the blocks of one kind in a segment are a part. A part
depends on a few genes only, and all combinations of their choices are counted and priced once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigcli.config.archs import ArchConfig
from vigcli.config.space import SearchSpace
from vigcli.latency.table import MAX_DISAGREEMENT, LatencyTable
from vigcli.search.columns import (
    COLUMNS,
    DOUBTS,
    MACS,
    NO_LIMITS,
    PEAK_MB,
    POINTS,
    SCORE_PARAMS,
    SHAPE_NUMBERS,
    WEIGHT_MB,
    Limits,
    hull_features,
    ms_column,
    score_of,
)

Array = NDArray[np.float64]
Population = NDArray[np.intp]  # (candidates, genes), indices into the genes' choices

_CHUNK = 20_000  # candidates that are priced at once: more would not fit the processor's cache
INVISIBLE_MS = 0.005  # published milliseconds have one decimal; nothing below a hundredth of it is evidence


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
    return _outside(hull_features(total) / high, low / high, np.ones(len(high)))

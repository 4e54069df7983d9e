"""A search space counted and priced: every combination that a part of its networks can take."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vigcli.config.archs import ArchConfig
from vigcli.config.space import SearchSpace
from vigcli.config.space_blocks import Configurator
from vigcli.errors import ConfigError
from vigcli.latency.table import LatencyTable
from vigcli.search.columns import (
    COLUMNS,
    DOUBTS,
    NO_LIMITS,
    SHAPE_NUMBERS,
    Columns,
    Limits,
    hull_features,
    shape_numbers,
    shape_of,
)
from vigcli.search.effects import stage_points
from vigcli.search.encoding import Encoding, Part, ShapeNumber

Array = NDArray[np.float64]
_MAX_COMBINATIONS = 200_000


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
    in_hull = tuple(any(not table.outside(*hull_features(t)[0]) for t in totals) for table in tables)
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
    for i, numbers in enumerate(shape_numbers(config)):
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

"""What the blocks of a space depend on, and all that its networks can have, without building every network."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

from vigcli.config.archs import ArchConfig, BlockSpec, arch_config
from vigcli.config.load import parse_as, split_path
from vigcli.config.space import SearchSpace
from vigcli.errors import ConfigError

Key = TypeVar("Key", bound=Hashable)
RANDOM_STARTS = 8


class Configurator:
    """Configurations of a space one after another: genes keep their choices until they are changed."""

    def __init__(self, space: SearchSpace, base: ArchConfig):
        self._choices = list(space.genes.values())
        self._type = type(base)
        self._data = base.model_dump(mode="json")
        self.nearest = [space.nearest_choice(self._data, path) for path in space.genes]  # the base may be outside
        self._slots = [self._slot(path) for path in space.genes]

    def _slot(self, path: str) -> tuple[Any, str | int]:
        """Where a gene's value stands, found once."""
        *parents, last = split_path(path)
        data: Any = self._data
        for part in parents:
            data = data[part]
        return data, last

    def __call__(self, candidate: Iterable[tuple[int, int]]) -> ArchConfig | None:
        """With (gene, choice) changed; None where choices of several genes do not go together, as a mixer and reach."""
        for gene, choice in candidate:
            container, key = self._slots[gene]
            container[key] = self._choices[gene][choice]
        try:
            return parse_as(self._type, self._data)
        except ConfigError:
            return None


def dependencies(
    space: SearchSpace, base: ArchConfig, parts: Callable[[ArchConfig], Mapping[Key, object]]
) -> dict[Key, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Part of a network -> the genes that it depends on, and a candidate that has the part.

    Every gene is moved through its choices from many starting points: the base, candidates in which every choice of
    every gene occurs (with all at their first, second, ... choice), and random ones, so that a gene shows that has no
    effect while another is zero.

    Args:
        parts: what each part of a network is, by whatever names it; a part that a network lacks may be left out, and
            its coming and going is then no change.
    """
    configure = Configurator(space, base)
    sizes = [len(choices) for choices in space.genes.values()]
    deepest = {gene for gene, path in enumerate(space.genes) if path.endswith("depth")}
    draw = random.Random(0).randrange
    starts = [configure.nearest, [0] * len(sizes)]
    starts += [[size - 1 if g in deepest else i % size for g, size in enumerate(sizes)] for i in range(max(sizes))]
    starts += [[draw(size) for size in sizes] for _ in range(RANDOM_STARTS)]
    axes: dict[Key, set[int]] = {}
    having: dict[Key, tuple[int, ...]] = {}
    for start in starts:
        if (reference := configure(enumerate(start))) is None:
            continue
        known = parts(reference)
        for gene, size in enumerate(sizes):
            for choice in range(size):
                if choice == start[gene] or (moved := configure([(gene, choice)])) is None:
                    continue
                for key, found in parts(moved).items():
                    candidate = (*start[:gene], choice, *start[gene + 1 :])
                    having.setdefault(key, candidate)
                    axes.setdefault(key, set())
                    if key in known and known[key] != found:
                        axes[key].add(gene)
            configure([(gene, start[gene])])
        for key in known:
            axes.setdefault(key, set())
            having.setdefault(key, tuple(start))
    return {key: (tuple(sorted(genes)), having[key]) for key, genes in axes.items()}


def space_specs(space: SearchSpace) -> dict[str, BlockSpec]:
    """Signature -> what it takes to build the block, for every block that a network of the space can have.

    The blocks of one kind in one segment depend on a few genes: these take every combination of their choices.
    """
    base = arch_config(space.base)
    configure = Configurator(space, base)
    found: dict[str, BlockSpec] = {}
    for key, (genes, candidate) in dependencies(space, base, _kinds).items():
        configure(enumerate(candidate))
        for combination in itertools.product(*(range(len(list(space.genes.values())[gene])) for gene in genes)):
            config = configure(zip(genes, combination, strict=True))
            for spec in () if config is None else _kinds(config).get(key, ()):
                found.setdefault(spec.signature, spec)
    return dict(sorted(found.items()))


def _kinds(config: ArchConfig) -> dict[tuple[int, str], frozenset[BlockSpec]]:
    """The blocks of each kind in each segment, where it has some."""
    found: dict[tuple[int, str], set[BlockSpec]] = {}
    for number, blocks in enumerate(config.segments()):
        for spec in blocks:
            found.setdefault((number, spec.kind), set()).add(spec.counted())
    return {key: frozenset(specs) for key, specs in found.items()}

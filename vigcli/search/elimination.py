"""Sums over the parts of a network, with genes eliminated one by one: bounds, optima and samples without enumeration.

A part depends on few genes, so the best (or the sum) over a gene needs only the parts that depend on it: dynamic
programming, along the stages where parts share nothing but the width between them (Dechter 1999, bucket elimination).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Population = NDArray[np.intp]  # (candidates, genes), indices into the genes' choices
Term = tuple[tuple[int, ...], Array]  # the genes that it depends on, ascending, and a value for each combination
_MAX_CELLS = 20_000_000  # of a joined term; genes that would need more are bounded each by itself


def elimination_order(scopes: Sequence[Sequence[int]], num_choices: Sequence[int]) -> tuple[int, ...]:
    """The genes in the order in which they are best decided: the reverse of the one that keeps joined terms small."""
    left, remaining, order = [set(scope) for scope in scopes], set(range(len(num_choices))), []

    def cells(gene: int) -> tuple[float, int]:
        joined = set().union(*(scope for scope in left if gene in scope))
        return float(np.prod([num_choices[g] for g in joined], dtype=float)), -gene

    while remaining:
        gene = min(remaining, key=cells)
        joined = set().union(*(scope for scope in left if gene in scope))
        left = [scope for scope in left if gene not in scope] + [joined - {gene}]
        remaining.remove(gene)
        order.append(gene)
    return tuple(reversed(order))


@dataclass(frozen=True)
class Elimination:
    """What the undecided genes add: `levels[d]` are terms over the first d genes of `order`, whose sum says it.

    `joined[d]` is the term, its last axis gene `order[d]`, that decides this gene once those before it are decided.
    """

    order: tuple[int, ...]
    levels: tuple[tuple[Term, ...], ...]
    joined: tuple[Term, ...]

    def __call__(self, prefixes: Population) -> Array:
        """Rows of which the first genes of the order are decided, in that order: (N, decided) -> (N,)."""
        place = {gene: i for i, gene in enumerate(self.order)}
        total = np.zeros(len(prefixes))
        for axes, values in self.levels[prefixes.shape[1]]:
            total += values[tuple(prefixes[:, place[axis]] for axis in axes)]
        return total


def eliminate(
    terms: Sequence[Term], order: Sequence[int], sizes: Sequence[int], reduce: Callable[[Array], Array]
) -> Elimination:
    """Take the genes out, last of the order first, by `reduce` over the last axis: a maximum, a minimum, `log_sum`.

    With a maximum the sum of terms is the greatest that a completion of a prefix can reach: exact, or above it where a
    joined term would be too large and each of its terms is reduced by itself.
    """
    current = [(tuple(axes), values) for axes, values in terms]
    levels, joined = [tuple(current)], []
    for gene in reversed(order):
        touched = [term for term in current if gene in term[0]] or [((gene,), np.zeros(sizes[gene]))]
        current = [term for term in current if gene not in term[0]]
        for group in _joinable(touched):
            axes = (*sorted({axis for term in group for axis in term[0]} - {gene}), gene)
            together = np.asarray(sum(_aligned(term, axes) for term in group))
            current.append((axes[:-1], reduce(together)))
        levels.append(tuple(current))
        joined.append((axes, together))
    return Elimination(tuple(order), tuple(reversed(levels)), tuple(reversed(joined)))


def _joinable(terms: list[Term]) -> list[list[Term]]:
    """One group of all terms, or each by itself where their join would be too large."""
    sizes = {axis: size for axes, values in terms for axis, size in zip(axes, values.shape, strict=True)}
    if np.prod(list(sizes.values()), dtype=float) <= _MAX_CELLS:
        return [terms] if terms else []
    return [[term] for term in terms]


def _aligned(term: Term, axes: tuple[int, ...]) -> Array:
    """The values of a term with one axis for each of `axes`, of length 1 where it does not depend on it."""
    own, values = term
    inside = [axis for axis in axes if axis in own]
    values = values.transpose([own.index(axis) for axis in inside])
    sizes = dict(zip(inside, values.shape, strict=True))
    return values.reshape([sizes.get(axis, 1) for axis in axes])


def log_sum(values: Array) -> Array:
    """log(sum(exp(values))) over the last axis; -inf where all are."""
    top = values.max(-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(values - top).sum(-1)) + top[..., 0])


class Sampler:
    """Draws candidates with probability exp(sum of the terms), as near as the joined terms know it.

    `log_total` is the logarithm of what all candidates sum up to: of their number, where the terms are 0 or -inf.
    """

    def __init__(self, terms: Sequence[Term], order: Sequence[int], sizes: Sequence[int]):
        self.chances = []  # of each gene's choices, cumulated, over the choices of genes decided before
        elimination = eliminate(terms, order, sizes, log_sum)
        self.log_total = float(sum(float(total) for _, total in elimination.levels[0]))
        for axes, logs in elimination.joined:
            top = logs.max(-1, keepdims=True)
            weights = np.where(np.isfinite(top), np.exp(logs - np.where(np.isfinite(top), top, 0)), 1)
            self.chances.append((axes, (weights.cumsum(-1) / weights.sum(-1, keepdims=True))[..., :-1]))

    def __call__(self, count: int, generator: np.random.Generator) -> Population:
        """(count, genes)"""
        rows = np.zeros((count, len(self.chances)), np.intp)
        for axes, chances in self.chances:
            drawn = generator.random((count, 1))
            rows[:, axes[-1]] = (chances[tuple(rows[:, axis] for axis in axes[:-1])] <= drawn).sum(1)
        return rows


def extended(prefixes: Population, choices: int) -> Population:
    """Every prefix with every choice of the next gene."""
    last = np.tile(np.arange(choices), len(prefixes))
    return np.concatenate([np.repeat(prefixes, choices, 0), last[:, None]], 1)


def unordered(prefixes: Population, order: Sequence[int]) -> Population:
    """Full rows in the order of decision, put back in the order of the genes."""
    rows = np.empty_like(prefixes)
    rows[:, list(order)] = prefixes
    return rows

"""The least that a space reaches, found exactly, so that a budget that nothing meets is answered at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from vigcli.search.encoding import COLUMNS, PEAK_MB, Encoding, Population, ms_column
from vigcli.search.evolution import evolve

Array = NDArray[np.float64]
_CHUNK = 100_000


def cheapest(encoding: Encoding, seeds: Population, generator: np.random.Generator) -> tuple[int, ...] | None:
    """The candidate of least latency that keeps every rule and limit, or None when none does.

    A short evolution gives the first best.
    """
    found = evolve(encoding, np.inf, seeds, generator, generations=40)
    best = found.candidates[0] if len(found.candidates) else None
    tables = [(ms_column(i), table.network_ms) for i, table in enumerate(encoding.tables)]
    return _least(encoding, tables, lambda population: encoding.evaluate(population).latency_ms, best)


def least(encoding: Encoding, column: str, first: tuple[int, ...] | None) -> float | None:
    """The least of a column of `COLUMNS` that a candidate of the encoding has; `first` is one that keeps its rules."""
    index = COLUMNS.index(column)

    def value(population: Population) -> Array:
        return encoding.totals(population)[:, index]

    best = _least(encoding, [(index, np.asarray)], value, None if first is None else np.array(first))
    return None if best is None else float(value(np.array([best]))[0])


def _least(
    encoding: Encoding,
    prices: Sequence[tuple[int, Callable[[Array], Array]]],
    value: Callable[[Population], Array],
    best: Population | None,
) -> tuple[int, ...] | None:
    """The candidate of least value that breaks no rule; `prices` are columns, and what makes a value of their sum.

    Branch and bound over partial candidates, gene by gene and many at a time. The bound of a partial candidate joins,
    for every part, the least cost over the genes not yet chosen: it never exceeds the truth, so nothing that is
    dropped can be below the best known.
    """
    best_value = value(np.array([best]))[0] if best is not None else np.inf
    minima = [[_prefix_minima(part.costs[..., c], part.allowed) for part in encoding.parts] for c, _ in prices]
    sizes = encoding.num_choices
    stack: list[Population] = [np.zeros((1, 0), np.intp)]
    while stack:
        prefixes = stack.pop()
        depth = prefixes.shape[1]
        if depth == len(sizes):
            values = np.where(encoding.evaluate(prefixes).violation == 0, value(prefixes), np.inf)
            if values.min(initial=np.inf) < best_value:
                best, best_value = prefixes[values.argmin()], values.min()
            continue
        choices = np.arange(sizes[depth])
        children = np.concatenate([np.repeat(prefixes, len(choices), 0), np.tile(choices, len(prefixes))[:, None]], 1)
        bound = np.full(len(children), -np.inf)
        for (column, total), tables in zip(prices, minima, strict=True):
            bounds = [_bound(children, part.axes, table) for part, table in zip(encoding.parts, tables, strict=True)]
            joined = np.max(bounds, 0) if column == PEAK_MB else np.sum(bounds, 0)
            bound = np.maximum(bound, total(joined))
        children = children[bound < best_value]
        stack += [children[i : i + _CHUNK] for i in range(0, len(children), _CHUNK)]
    return None if best is None else tuple(int(i) for i in best)


def _bound(prefixes: Population, axes: tuple[int, ...], minima: list[Array]) -> Array:
    chosen = [axis for axis in axes if axis < prefixes.shape[1]]
    return np.broadcast_to(minima[len(chosen)][tuple(prefixes[:, axis] for axis in chosen)], len(prefixes))


def _prefix_minima(costs: Array, allowed: NDArray[np.bool_]) -> list[Array]:
    """The least cost of a part given its first n genes, n = 0 ... all; inf where a rule forbids."""
    minima = [np.where(allowed, costs, np.inf)]
    for _ in range(costs.ndim):
        minima.append(minima[-1].min(-1))
    return minima[::-1]

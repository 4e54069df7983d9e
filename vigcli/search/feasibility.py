"""The cheapest network of a space, found exactly, so that a budget that nothing meets is answered at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vigcli.search.encoding import MS, Encoding, Population
from vigcli.search.evolution import evolve

Array = NDArray[np.float64]
_CHUNK = 100_000


def cheapest(encoding: Encoding, seeds: Population, generator: np.random.Generator) -> tuple[int, ...] | None:
    """The candidate of least latency that keeps every rule, or None when none does.

    Branch and bound over partial candidates, gene by gene and many at a time. The bound of a partial candidate adds,
    for every segment, the least cost over the genes not yet chosen: it never exceeds the truth, so nothing that is
    dropped can be cheaper than the best known. A short evolution gives the first best.
    """
    found = evolve(encoding, np.inf, seeds, generator, generations=40)
    best = found.candidates[0] if len(found.candidates) else None
    best_ms = found.latency_ms[0] if best is not None else np.inf
    tables, sizes = _prefix_minima(encoding), encoding.num_choices
    stack: list[Population] = [np.zeros((1, 0), np.intp)]
    while stack:
        prefixes = stack.pop()
        depth = prefixes.shape[1]
        if depth == len(sizes):
            values = encoding.evaluate(prefixes)
            ms = np.where(values.violation == 0, values.latency_ms, np.inf)
            if ms.min(initial=np.inf) < best_ms:
                best, best_ms = prefixes[ms.argmin()], ms.min()
            continue
        choices = np.arange(sizes[depth])
        children = np.concatenate([np.repeat(prefixes, len(choices), 0), np.tile(choices, len(prefixes))[:, None]], 1)
        bound = encoding.table.network_ms(sum(_bound(children, axes, minima) for axes, minima in tables))
        children = children[bound < best_ms]
        stack += [children[i : i + _CHUNK] for i in range(0, len(children), _CHUNK)]
    return None if best is None else tuple(int(i) for i in best)


def _bound(prefixes: Population, axes: tuple[int, ...], minima: list[Array]) -> Array:
    chosen = [axis for axis in axes if axis < prefixes.shape[1]]
    return minima[len(chosen)][tuple(prefixes[:, axis] for axis in chosen)]


def _prefix_minima(encoding: Encoding) -> list[tuple[tuple[int, ...], list[Array]]]:
    """For each segment the least milliseconds given its first n genes, n = 0 ... all; inf where a rule forbids."""
    result = []
    for segment in encoding.segments:
        minima = [np.where(segment.allowed, segment.costs[..., MS], np.inf)]
        for _ in segment.axes:
            minima.append(minima[-1].min(-1))
        result.append((segment.axes, minima[::-1]))
    return result

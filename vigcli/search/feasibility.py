"""The least that a space reaches, found exactly, so that a budget that nothing meets is answered at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vigcli.search.columns import ms_column
from vigcli.search.elimination import Elimination, eliminate, elimination_order, extended, unordered
from vigcli.search.encoding import Encoding, Population

Array = NDArray[np.float64]

_CHUNK = 4_000  # partial candidates that are extended at once: few, as the first whole ones spare most of the others
_SLACK = 1e-9  # relative: the parts of a sum are added in another order than an evaluation adds them


class Reach:
    """How little a partial candidate can still end with, by the rules of its parts: never more than the truth.

    `order` is that in which genes are decided; a prefix holds the choices of its first genes.

    Args:
        column: of `COLUMNS`, that adds up over the parts; default: the latency, the greatest of the tables'.
    """

    def __init__(self, encoding: Encoding, column: int | None = None):
        self.sizes: list[int] = encoding.num_choices.tolist()
        self.order = elimination_order([part.axes for part in encoding.parts], self.sizes)
        tables = [(ms_column(i), table.network_ms) for i, table in enumerate(encoding.tables)]
        self._sums: list[tuple[Elimination, Callable[[Any], Any]]] = [
            (self._least(encoding, index), total)
            for index, total in (tables if column is None else [(column, np.asarray)])
        ]

    def _least(self, encoding: Encoding, column: int) -> Elimination:
        costs = [(part.axes, np.where(part.allowed, part.costs[..., column], np.inf)) for part in encoding.parts]
        return eliminate(costs, self.order, self.sizes, lambda values: values.min(-1))

    def least(self, prefixes: Population) -> Array:
        """(N, decided genes) -> (N,); infinite where the rules of a part cannot be kept."""
        return np.asarray(np.max([total(sums(prefixes)) for sums, total in self._sums], 0) * (1 - _SLACK))

    def below(self, budget_ms: float, most: int) -> Population | None:
        """All candidates (n, genes) that may keep the budget and keep the rules of their parts; None if more than
        `most` partial ones are met."""
        prefixes = np.zeros((1, 0), np.intp)
        for gene in self.order:
            prefixes = extended(prefixes, self.sizes[gene])
            least = self.least(prefixes)
            prefixes = prefixes[np.isfinite(least) & (least <= budget_ms)]
            if len(prefixes) > most:
                return None
        return unordered(prefixes, self.order)


def cheapest(encoding: Encoding) -> tuple[int, ...] | None:
    """The candidate of least latency that keeps every rule and limit, or None when none does."""
    return _cheapest(encoding, Reach(encoding), lambda rows: encoding.evaluate(rows).latency_ms)


def least(encoding: Encoding, column: int) -> float | None:
    """The least sum of a column that a candidate has which keeps every rule and limit; None when none does."""

    def value(rows: Population) -> Array:
        return encoding.totals(rows)[:, column]

    found = _cheapest(encoding, Reach(encoding, column), value)
    return None if found is None else float(value(np.array([found]))[0])


def _cheapest(encoding: Encoding, reach: Reach, value: Callable[[Population], Array]) -> tuple[int, ...] | None:
    """Branch and bound over partial candidates, gene by gene and many at a time, the nearest to the least first.

    The bound of a partial candidate is the least of its completions by the rules of the parts alone, so nothing that
    is dropped can be below the best known; nor can what is dropped keep a limit that its least is beyond.
    """
    best, best_value = None, np.inf
    limited = [(Reach(encoding, column), limit) for column, limit in encoding.limits.of_sums()]
    stack: list[Population] = [np.zeros((1, 0), np.intp)]
    while stack:
        prefixes = stack.pop()
        prefixes = prefixes[reach.least(prefixes) < best_value]
        if not len(prefixes):
            continue
        if prefixes.shape[1] == len(reach.order):
            rows = unordered(prefixes, reach.order)
            values = np.where(encoding.evaluate(rows).violation == 0, value(rows), np.inf)
            if values.min(initial=np.inf) < best_value:
                best, best_value = rows[values.argmin()], values.min()
            continue
        children = extended(prefixes, reach.sizes[reach.order[prefixes.shape[1]]])
        bound = reach.least(children)
        for other, limit in limited:
            bound[other.least(children) > limit] = np.inf
        promising = np.flatnonzero(bound < best_value)
        children = children[promising[np.argsort(-bound[promising], kind="stable")]]
        stack += np.split(children, range(len(children) % _CHUNK, len(children), _CHUNK))
    return None if best is None else tuple(int(i) for i in best)

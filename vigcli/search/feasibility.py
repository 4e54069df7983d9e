"""The cheapest network of a space, found exactly, so that a budget that nothing meets is answered at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vigcli.search.elimination import eliminate, elimination_order, extended, unordered
from vigcli.search.encoding import MS, Encoding, Population

Array = NDArray[np.float64]

_CHUNK = 4_000  # partial candidates that are extended at once: few, as the first whole ones spare most of the others
_SLACK = 1e-9  # relative: the parts of a sum are added in another order than an evaluation adds them


class Reach:
    """How little latency a partial candidate can still end with, by the rules of its parts: never more than the truth.

    `order` is that in which genes are decided; a prefix holds the choices of its first genes.
    """

    def __init__(self, encoding: Encoding):
        self.sizes: list[int] = encoding.num_choices.tolist()
        self.order = elimination_order([part.axes for part in encoding.segments], self.sizes)
        self._network_ms = encoding.table.network_ms
        ms = [(part.axes, np.where(part.allowed, part.costs[..., MS], np.inf)) for part in encoding.segments]
        self._blocks_ms = eliminate(ms, self.order, self.sizes, lambda values: values.min(-1))

    def latency_ms(self, prefixes: Population) -> Array:
        """(N, decided genes) -> (N,); infinite where the rules of a part cannot be kept."""
        return np.asarray(self._network_ms(self._blocks_ms(prefixes))) * (1 - _SLACK)

    def below(self, budget_ms: float, most: int) -> Population | None:
        """All candidates (n, genes) that may keep the budget and keep the rules of their parts; None if more than
        `most` partial ones are met."""
        prefixes = np.zeros((1, 0), np.intp)
        for gene in self.order:
            prefixes = extended(prefixes, self.sizes[gene])
            ms = self.latency_ms(prefixes)
            prefixes = prefixes[np.isfinite(ms) & (ms <= budget_ms)]
            if len(prefixes) > most:
                return None
        return unordered(prefixes, self.order)


def cheapest(encoding: Encoding) -> tuple[int, ...] | None:
    """The candidate of least latency that keeps every rule, or None when none does.

    Branch and bound over partial candidates, gene by gene and many at a time, the nearest to the least first. The
    bound of a partial candidate is the least of its completions by the rules of the parts alone (`Reach`), so nothing
    that is dropped can be cheaper than the best known.
    """
    reach, best, best_ms = Reach(encoding), None, np.inf
    stack: list[Population] = [np.zeros((1, 0), np.intp)]
    while stack:
        prefixes = stack.pop()
        prefixes = prefixes[reach.latency_ms(prefixes) < best_ms]
        if prefixes.shape[1] == len(reach.order):
            rows = unordered(prefixes, reach.order)
            values = encoding.evaluate(rows)
            ms = np.where(values.violation == 0, values.latency_ms, np.inf)
            if ms.min(initial=np.inf) < best_ms:
                best, best_ms = rows[ms.argmin()], ms.min()
            continue
        children = extended(prefixes, reach.sizes[reach.order[prefixes.shape[1]]])
        bound = reach.latency_ms(children)
        promising = np.flatnonzero(bound < best_ms)
        children = children[promising[np.argsort(-bound[promising], kind="stable")]]
        stack += np.split(children, range(len(children) % _CHUNK, len(children), _CHUNK))
    return None if best is None else tuple(int(i) for i in best)

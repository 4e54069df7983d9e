"""Widths for a budget: channels leave where that saves most for the importance lost.

What a network costs is milliseconds of a latency table, MACs or parameters; how important a unit is comes from
`groups`. The price that counts is that of the network itself; those on the way are told by `widths`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from vigcli.compress.groups import Pruner
from vigcli.compress.widths import Array, Block, Kept, Widths
from vigcli.errors import InfeasibleError
from vigcli.latency.table import LatencyTable
from vigcli.measure.profile import Profile, profile
from vigcli.units import format_count

TOLERANCE = 0.02  # by so much of the budget a result may stay below it, where a step is no coarser
MAX_STEPS = 32  # of one group: the greatest widths go in steps of several roundings
_TRIES = 8  # at the budget, where the price on the way is not that of the network


@dataclass(frozen=True)
class Cost:
    """What is to be brought under a budget.

    Attributes:
        of_block: what a block adds.
        text: a cost as a user reads it.
        option: what asks for a cost, given that of the whole network.
        fixed: what belongs to no block.
    """

    of_block: Callable[[Block], float]
    text: Callable[[float], str]
    option: Callable[[float, float], str]
    fixed: float = 0.0

    def of(self, network: Profile) -> float:
        """Of a whole network. Raises NotMeasurableError."""
        return self.fixed + sum(self.of_block(Block(x.signature, x.trace, x.params)) for x in network.blocks)


def latency_cost(table: LatencyTable) -> Cost:
    """Milliseconds on the device of a table."""
    return Cost(
        lambda block: table.block_ms(block.signature, block.trace).ms,
        lambda ms: f"{ms:.4g} ms",
        lambda ms, whole: f"--budget {_rounded_up(ms)}ms",
        float(table.network_ms(0.0)),
    )


MACS = Cost(
    lambda block: block.trace.macs,
    lambda macs: f"{format_count(macs)} MACs",
    lambda macs, whole: f"--macs {_rounded_up(macs / whole)}",
)
PARAMS = Cost(
    lambda block: block.params,
    lambda params: f"{format_count(params)} parameters",
    lambda params, whole: f"--params {_rounded_up(params / whole)}",
)


def _rounded_up(value: float) -> str:
    return f"{math.ceil(1e4 * value) / 1e4:g}"


class Allocation(NamedTuple):
    """The units that stay, and what the network then costs."""

    kept: Kept
    cost: float


def allocate(
    pruner: Pruner, importance: Mapping[str, Tensor], cost: Cost, limit: float, known: Widths | None = None
) -> Allocation:
    """The units of each group to keep, so that the network costs `limit` at the most, and as little less as can be.

    Raises InfeasibleError with the smallest cost where no widths meet the limit, NotMeasurableError for a table that
    does not know the price of pruned blocks.
    """
    known = known or Widths(pruner)
    steps = {group.name: _steps(group.widths) for group in pruner.groups}
    lost = {group.name: len(group.layers) * lost_importance(importance[group.name]) for group in pruner.groups}
    best: Allocation | None = None
    aimed = limit
    for _ in range(_TRIES):
        search = _Search(known, steps, lost, cost)
        search.cut_to(aimed)
        search.fill_to(aimed)
        exact = cost.of(profile(pruner.config(search.kept)))
        if exact <= limit and (best is None or exact > best.cost):
            best = Allocation(search.kept, exact)
        is_told = abs(exact - search.cost) < 1e-6 * limit
        if search.cost > aimed or limit * (1 - TOLERANCE / 4) < exact <= limit or (is_told and aimed <= limit):
            break
        aimed *= limit / exact * (1 - 1e-9)
    if best is None:
        least = min(exact, cost.of(profile(pruner.config({name: widths[-1] for name, widths in steps.items()}))))
        what = f"a budget of {cost.text(limit)} is below what pruning reaches: {cost.text(least)}"
        raise InfeasibleError(f"{what}.", f"The least is {cost.option(least, cost.of(known.profile))}.")
    return best


def lost_importance(scores: Tensor) -> Array:
    """What a layer loses with the least important units of a group: (num_units + 1,), by how many leave.

    The logarithm of the whole over what stays: it adds up where both sides of a layer lose channels, half of a group
    costs as much in each, whatever the scale of its weights, and the last unit is beyond price. It is what the
    scores of LAMP (arXiv:2010.07611) add up to where each unit is a small part of the whole.
    """
    ordered = np.sort(scores.double().cpu().numpy())
    total = max(float(ordered.sum()), 1e-300)
    left = 1 - np.concatenate([[0.0], ordered.cumsum()]) / total
    return -np.log(np.maximum(left, 1e-12))


def _steps(widths: Sequence[int]) -> list[int]:
    """At most `MAX_STEPS` from the greatest of the widths to the smallest."""
    places = np.linspace(len(widths) - 1, 0, min(len(widths), MAX_STEPS + 1)).round().astype(int)
    return [widths[place] for place in places]


class _Search:
    """Widths on their way to a budget."""

    def __init__(self, known: Widths, steps: Mapping[str, list[int]], lost: Mapping[str, Array], cost: Cost):
        self.known, self.lost, self._cost = known, lost, cost
        self.steps = steps
        self.kept = dict(known.full)
        self._prices: dict[tuple[int, tuple[int, ...]], float] = {}
        self._blocks = [self._price(place, self.kept) for place in range(known.num_blocks)]

    @property
    def cost(self) -> float:
        return self._cost.fixed + sum(self._blocks)

    def cut_to(self, limit: float) -> None:
        """Step by step, each where it saves most for what is lost, until the network costs `limit` at the most."""
        queue = [(-rate, name) for name in self.steps if (rate := self._rate(name)) is not None]
        heapq.heapify(queue)
        while queue and self.cost > limit:
            _, name = heapq.heappop(queue)
            rate = self._rate(name)  # what was cut since may have changed it
            if rate is None:
                continue
            if queue and -rate > queue[0][0]:
                heapq.heappush(queue, (-rate, name))
                continue
            self._set(name, self._next(name, 1))
            if (after := self._rate(name)) is not None:
                heapq.heappush(queue, (-after, name))

    def fill_to(self, limit: float) -> None:
        """Give back what still fits under `limit`, the most important first."""
        while True:
            fits = []
            for name in self.steps:
                more = self._next(name, -1)
                if more is not None and self.cost + (extra := self._change(name, more)) <= limit:
                    fits.append((self._lost(name, self.kept[name]) - self._lost(name, more), -extra, name, more))
            if not fits:
                return
            _, _, name, more = max(fits)
            self._set(name, more)

    def _next(self, name: str, step: int) -> int | None:
        place = self.steps[name].index(self.kept[name]) + step
        return self.steps[name][place] if 0 <= place < len(self.steps[name]) else None

    def _rate(self, name: str) -> float | None:
        """What the next cut saves by what it loses."""
        fewer = self._next(name, 1)
        if fewer is None:
            return None
        lost = self._lost(name, fewer) - self._lost(name, self.kept[name])
        return -self._change(name, fewer) / max(lost, 1e-12)

    def _lost(self, name: str, kept: int) -> float:
        return float(self.lost[name][self.known.full[name] - kept])

    def _change(self, name: str, kept: int) -> float:
        """What the network would cost more."""
        changed = {**self.kept, name: kept}
        return sum(self._price(place, changed) - self._blocks[place] for place in self.known.touched[name])

    def _set(self, name: str, kept: int | None) -> None:
        assert kept is not None
        self.kept[name] = kept
        for place in self.known.touched[name]:
            self._blocks[place] = self._price(place, self.kept)

    def _price(self, place: int, kept: Mapping[str, int]) -> float:
        key = place, self.known.key(place, kept)
        if key not in self._prices:
            self._prices[key] = float(self._cost.of_block(self.known.at(place, kept)))
        return self._prices[key]

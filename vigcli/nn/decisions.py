"""Choices that are not continuous in the features: which tokens are neighbours or of one cluster.

Two forms of a network that are equal but for rounding may choose apart at a near tie, and then their logits are apart
as well. To compare them one is made to choose as the other did, and held to have had a near tie (`regret`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Decision(nn.Module):
    """Chooses by itself, unless it is given what to choose.

    Attributes:
        given: decisions to take in turn instead of its own, shared with the others of a network.
        taken: where a run writes down what it chose, shared likewise.
        regret: the most by which a given decision was worse than its own would have been, relative to the greatest of
            the numbers that decide.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given: Iterator[Tensor] | None = None
        self.taken: list[Tensor] | None = None
        self.regret = 0.0

    @property
    def is_followed(self) -> bool:
        """Whether decisions are given or written down, so that their number must not depend on the features."""
        return self.given is not None or self.taken is not None

    def below(self, x: Tensor, limit: Tensor) -> Tensor:
        """x < limit; what a given answer overrules is x's distance from the limit, relative to the limit."""
        own = x < limit
        return self._settled(own, lambda given: ((x - limit) / limit).abs() * (given != own))

    def greatest(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` greatest of every row, greatest first, and their indices."""
        values, own = x.topk(count)
        index = self._settled(own, lambda given: (values - x.gather(-1, given)).abs() / values.max().clamp_min(1e-9))
        return values if index is own else x.gather(-1, index), index

    def least(self, x: Tensor, dim: int) -> Tensor:
        """The index of the least along an axis, which stays with size 1; of the first of several."""
        own = x.argmin(dim, keepdim=True)
        return self._settled(own, lambda given: (x.gather(dim, given) - x.gather(dim, own)) / _size(x))

    def all_least(self, x: Tensor, dim: int) -> Tensor:
        """Which are the least along an axis; where several are equal, all of them."""
        least = x.amin(dim, keepdim=True)

        def lost(given: Tensor) -> Tensor:
            none = torch.where(given.any(dim, keepdim=True), 0.0, torch.inf)
            return (x - least) * given / _size(x) + none

        return self._settled(x <= least, lost)

    def _settled(self, own: Tensor, lost: Callable[[Tensor], Tensor]) -> Tensor:
        if self.given is not None:
            given = next(self.given).to(own.device, own.dtype).reshape(own.shape)
            self.regret = max(self.regret, float(lost(given).max()))
            return given
        if self.taken is not None:
            self.taken.append(own)
        return own


def _size(x: Tensor) -> Tensor:
    return x.abs().max().clamp_min(1e-9)


def decisions_of(model: nn.Module) -> list[Decision]:
    """The decisions of a network, in the order in which they are built."""
    return [module for module in model.modules() if isinstance(module, Decision)]


@contextmanager
def noted_decisions(model: nn.Module) -> Iterator[list[Tensor]]:
    """What a network decides in the block, in the order in which it runs."""
    taken: list[Tensor] = []
    try:
        for decision in decisions_of(model):
            decision.taken = taken
        yield taken
    finally:
        for decision in decisions_of(model):
            decision.taken = None


@contextmanager
def given_decisions(model: nn.Module, decisions: Iterable[Tensor]) -> Iterator[None]:
    """In the block a network decides as it is told, in the order in which it runs; `regret` starts anew."""
    given = iter(decisions)
    try:
        for decision in decisions_of(model):
            decision.given, decision.regret = given, 0.0
        yield
    finally:
        for decision in decisions_of(model):
            decision.given = None


def largest_regret(model: nn.Module) -> float:
    """The worst of the given decisions of the last `given_decisions`."""
    return max((decision.regret for decision in decisions_of(model)), default=0.0)

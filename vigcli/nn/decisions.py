"""Choices that are not continuous in the features: which tokens are neighbours, where distances decide.

Two forms of a network that are equal but for rounding may choose apart at a near tie, and then their logits are apart
as well. To compare them one is made to choose as the other did, and held to have had a near tie (`regret`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Decision(nn.Module):
    """Chooses by itself, unless it is given what to choose.

    Attributes:
        given: decisions to take in turn instead of its own, shared with the others of a network.
        taken: where a run writes down what it chose, shared likewise.
        regret: the most by which a given decision was worse than its own would have been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given: Iterator[Tensor] | None = None
        self.taken: list[Tensor] | None = None
        self.regret = 0.0

    def below(self, x: Tensor, limit: Tensor) -> Tensor:
        """x < limit; what a given answer overrules is x's distance from the limit, relative to the limit."""
        own = x < limit
        if self.given is None:
            return self._noted(own)
        given = next(self.given).to(own.device, torch.bool).reshape(own.shape)
        wrong = ((x - limit) / limit).abs()[given != own]
        self.regret = max(self.regret, *wrong.tolist(), 0.0)
        return given

    def nearest(self, closeness: Tensor, count: int) -> Tensor:
        """The indices of the `count` greatest of every row, greatest first; given ones lose so much closeness."""
        values, own = closeness.topk(count)
        if self.given is None:
            return self._noted(own)
        given = next(self.given).to(own.device, torch.int64).reshape(own.shape)
        self.regret = max(self.regret, float((values - closeness.gather(-1, given)).abs().max()))
        return given

    def _noted(self, own: Tensor) -> Tensor:
        if self.taken is not None:
            self.taken.append(own)
        return own


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

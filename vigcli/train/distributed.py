"""The processes of a run and what they tell each other; who starts them is the command line's matter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from vigcli.errors import VigError

T = TypeVar("T")
_LOST = ("onnection", "Socket", "NCCL", "peer")
_PATIENCE = timedelta(minutes=30)  # for a process that evaluates or writes while the others wait


@dataclass(frozen=True)
class World:
    """One of `size` processes that train the same network together; `rank` 0 is the one that writes and talks."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, in every process. For small objects."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_numbers(self, numbers: list[float]) -> list[list[float]]:
        """Every process's numbers, of which all have equally many; cheap enough for every step."""
        if self.size == 1:
            return [numbers]
        mine = torch.tensor(numbers, dtype=torch.float64)
        all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(all_of_them, mine)
        return [numbers.tolist() for numbers in all_of_them]

    def any(self, flag: bool) -> bool:
        """Whether one of the processes says yes; all of them get the same answer."""
        return any(numbers[0] for numbers in self.gather_numbers([float(flag)]))

    def from_leader(self, value: T) -> T:
        """The leader's value."""
        return self.gather(value if self.leads else None)[0]  # type: ignore[return-value]

    def share_buffers(self, model: nn.Module) -> None:
        """The leader's statistics of batch norm, which every process has of its own pictures, become everyone's."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Turns what the backends say of a process that is no longer there into a VigError."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not any(word in str(error) for word in _LOST):
                raise
            hint = "Look at what it said; with the last state saved, --resume goes on."
            raise VigError("another process of the run has ended.", hint) from error


ALONE = World()


@contextlib.contextmanager
def joined(rank: int, size: int, device: str) -> Iterator[World]:
    """This process as one of `size`, which find each other by MASTER_ADDR and MASTER_PORT of the environment."""
    if size == 1:
        yield ALONE
        return
    backend = "gloo"
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield World(rank, size)
    finally:
        dist.destroy_process_group()

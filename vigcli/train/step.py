"""One optimizer step over all processes and micro-batches, with the gradients of the whole batch.

A part's loss is weighted by its share of the step's pictures, so that uneven parts add up to the mean over the step.
What still differs from one big batch are the statistics of batch norm, which are a part's own (but for SyncBN), and
what drop path and dropout draw.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vigcli.config.recipe import Recipe
from vigcli.train.data import Batch
from vigcli.train.distributed import World
from vigcli.train.evaluate import DivergedError
from vigcli.train.objective import Objective
from vigcli.train.seeds import derived_seed, reseed
from vigcli.train.state import State

_LEAST_SCALE = 1.0  # below, gradients overflow fp16 as they are


class Done(NamedTuple):
    """A step that was taken: its loss, the mean over its pictures; their number and side."""

    loss: float
    num_images: int
    resolution: int


class Stepper:
    """Takes the steps of a run."""

    def __init__(
        self,
        recipe: Recipe,
        state: State,
        network: nn.Module,
        frozen: Sequence[nn.Module],
        scheduler: CosineLRScheduler,
        objective: Objective,
        world: World,
        device: str,
    ):
        """`network` computes with the state's model, perhaps at several resolutions or in several processes."""
        self.recipe, self.state, self.network, self.frozen = recipe, state, network, frozen
        self.scheduler, self.objective, self.world, self.device = scheduler, objective, world, device
        self.format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.forward = torch.compile(network) if recipe.compile else network

    @property
    def lr(self) -> float:
        return self.state.optimizer.param_groups[0]["lr"]

    def training_mode(self) -> None:
        """Training mode but for what is frozen."""
        self.network.train()
        for part in self.frozen:
            part.eval()

    def advance(self, batches: Sequence[Batch], num_images: int) -> Done | list[Batch]:
        """One step on this process's micro-batches, of a step of `num_images` in all processes.

        Gives the micro-batches of this process whose loss is not finite, where a process met one; then nothing has
        changed.
        """
        state = self.state
        self.scheduler.step_update(state.progress.step)
        state.optimizer.zero_grad(set_to_none=True)
        losses = [self._backward(batch, i, len(batches), num_images) for i, batch in enumerate(batches)]
        values = torch.stack(losses).tolist()
        mean = sum(value * len(batch.draws) for value, batch in zip(values, batches, strict=True)) / num_images
        total = sum(mean for (mean,) in self.world.gather_numbers([mean]))
        if not math.isfinite(total):
            return [batch for value, batch in zip(values, batches, strict=True) if not math.isfinite(value)]
        self._update()
        state.progress.step += 1
        return Done(total, num_images, batches[0].x.shape[-1])

    def _backward(self, batch: Batch, micro: int, num_micro: int, num_images: int) -> Tensor:
        """The loss of a micro-batch; its gradients are added to the others'."""
        step, seed = self.state.progress.step, self.recipe.seed
        x = batch.x.to(self.device, memory_format=self.format, non_blocking=True)
        target = batch.target.to(self.device, non_blocking=True)
        share = len(batch.draws) * self.world.size / num_images  # data-parallel gradients are a mean over processes
        reseed(seed, "step", step)  # mixup draws alike in all parts
        torch.manual_seed(derived_seed(seed, "step", step, micro, self.world.rank))  # drop path does not
        with self._no_exchange(micro < num_micro - 1):
            loss = self.objective(self.forward, x, target)
            self.state.scaler.scale(loss * share).backward()
        return loss.detach()

    def _no_exchange(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients once a step, with the last micro-batch."""
        if wanted and isinstance(self.network, DistributedDataParallel):
            return self.network.no_sync()
        return contextlib.nullcontext()

    def _update(self) -> None:
        state, scaler = self.state, self.state.scaler
        if self.recipe.clip_grad_norm is not None:
            scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), self.recipe.clip_grad_norm)
        scaler.step(state.optimizer)
        scaler.update()
        if scaler.is_enabled() and scaler.get_scale() < _LEAST_SCALE:
            raise self.diverged("the gradients overflow fp16")
        if state.ema is not None:
            state.ema.update(state.model)

    def diverged(self, what: str, kept: str = "") -> DivergedError:
        """The error to raise when numbers have left the finite; `kept` says what can be gone back to."""
        return DivergedError(
            f"Training diverged at step {self.state.progress.step} (lr {self.lr:.3g}): {what}.",
            f"Lower optimizer.lr or set clip_grad_norm; {kept or 'no state was saved yet'}.",
        )

"""Training: a recipe in, a checkpoint out; how progress is shown and who asks to stop are the caller's matters.

On one machine's CPU a run that was interrupted ends with the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vigcli.archs.checkpoint import save_checkpoint
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.config.recipe import Recipe
from vigcli.errors import ConfigError, VigError
from vigcli.files import write_json
from vigcli.train.check import check
from vigcli.train.data import (
    Batch,
    Damaged,
    Pictures,
    check_classes,
    eval_batches,
    num_workers,
    open_data,
    train_batches,
)
from vigcli.train.distributed import ALONE, World
from vigcli.train.evaluate import Evaluation, NotANumberError, evaluate, normalized
from vigcli.train.log import JsonLog
from vigcli.train.memory import errors_said, kept_by_the_process
from vigcli.train.network import Form, itself, prepared
from vigcli.train.objective import Objective
from vigcli.train.sampler import Sampler
from vigcli.train.schedule import make_scheduler
from vigcli.train.seeds import restored
from vigcli.train.state import STATE_FILE, EpochRecord, remove_leftovers
from vigcli.train.step import Done, Stepper

CHECKPOINT_FILE, HISTORY_FILE = "checkpoint.safetensors", "history.json"
_KEPT_PIXELS_BYTES = 256_000_000  # a validation split up to this size is decoded once


@dataclass(frozen=True)
class TrainEvent:
    """One step done; with `val_top1_percent`, an epoch evaluated. `epoch` counts from 0, `step` from 1.

    Attributes:
        loss: of the step, or the mean of the epoch.
        resolution: of the step's pictures.
    """

    step: int
    total_steps: int
    epoch: int
    loss: float
    lr: float
    images_per_s: float
    resolution: int
    val_top1_percent: float | None = None


@dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended.

    Attributes:
        finished: False when `should_stop` or `until_epoch` ended it; `resume=True` goes on from there.
        checkpoint: the last one written, or None when no epoch ended.
        evaluation: that of the last epoch that ended, where this call evaluated it.
        damaged: the names of the pictures that were left out.
    """

    finished: bool
    step: int
    history: tuple[EpochRecord, ...]
    checkpoint: Path | None
    evaluation: Evaluation | None = None
    labels: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


def train(
    recipe: Recipe,
    run_dir: Path | str,
    *,
    on_event: Callable[[TrainEvent], None],
    should_stop: Callable[[], bool],
    provenance: Mapping[str, Any],
    on_notice: Callable[[str], None] = lambda text: None,
    data_root: Path | str | None = None,
    device: str = "cpu",
    world: World = ALONE,
    resume: bool = False,
    until_epoch: int | None = None,
    opened: tuple[Pictures, Pictures] | None = None,
    form: Form = itself,
) -> TrainResult:
    """Train the recipe's network, and write state, history and checkpoint into `run_dir` at the end of every epoch.

    The checkpoint is the last epoch's, not the best one on the validation split: a maximum over epochs would flatter
    the network by the luck of one evaluation, and its accuracy would no longer be one of unseen pictures.
    `until_epoch` ends this call after so many epochs of the recipe's; `opened` are the two splits to take; `on_notice`
    is told of damaged pictures; `form` computes in the network's place. Every process of `world` makes this call; the
    leader alone writes.
    """
    data = recipe.data if data_root is None else recipe.data.changed({"root": str(data_root)})
    recipe = recipe.model_copy(update={"data": data})
    pictures, val = opened or (open_data(data, "train"), open_data(data, "val"))
    check_classes(pictures, recipe.num_classes)
    check_classes(val, recipe.num_classes, pictures.labels)
    if len(val) < world.size:
        raise ConfigError(f"{val.name}: holds fewer pictures than there are processes.", "Start fewer processes.")
    run = _Run(recipe, Path(run_dir), pictures, val, device, world, dict(provenance), on_event, on_notice, resume, form)
    with _repeatable(), restored(), errors_said(recipe.batch_size), kept_by_the_process(), world.watched():
        return run.train(should_stop, min(until_epoch or recipe.epochs, recipe.epochs))


class _Stopped(Exception):
    """The caller asked to stop."""


class _Run:
    """One process's part of a run."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        pictures: Pictures,
        val: Pictures,
        device: str,
        world: World,
        provenance: dict[str, Any],
        on_event: Callable[[TrainEvent], None],
        on_notice: Callable[[str], None],
        resume: bool,
        form: Form,
    ):
        self.recipe, self.run_dir, self.pictures, self.world = recipe, run_dir, pictures, world
        self.device, self.provenance, self.on_event, self.form = device, provenance, on_event, form
        self.sampler = Sampler(recipe, len(pictures), recipe.accumulate * world.size)
        check(recipe, self.sampler.total_steps)
        self.workers = num_workers(recipe.data, world.size)
        self.damaged = Damaged(recipe.data.max_corrupt, on_notice)
        self.validation = self._validation(val)
        objective = Objective(recipe, device, pictures.labels)
        self.state, network, frozen = prepared(recipe, pictures.labels, len(pictures), device, world, resume, form)
        scheduler = make_scheduler(recipe, self.state.optimizer, self.sampler)
        self.stepper = Stepper(recipe, self.state, network, frozen, scheduler, objective, world, device)
        self.saved_step: int | None = None
        self.log = JsonLog(run_dir)
        if resume:
            self._restore()

    @property
    def epoch(self) -> int:
        return self.state.progress.epoch

    def _restore(self) -> None:
        self.state.restore(self.run_dir)
        self.damaged.names = list(self.state.progress.damaged)
        self.saved_step = self.state.progress.step
        if self.world.leads:
            remove_leftovers(self.run_dir)
            self.log.cut(self.saved_step)
        self.stepper.scheduler.step_update(max(self.saved_step - 1, 0))  # an epoch may be left to evaluate and record

    # ---------------------------------------------------------------------------------------------------- epochs

    def train(self, should_stop: Callable[[], bool], until_epoch: int) -> TrainResult:
        evaluation = None
        progress = self.state.progress
        batches = train_batches(
            self.recipe, self.pictures, self.sampler, progress.step, until_epoch, world=self.world,
            workers=self.workers, damaged=self.damaged, pin=torch.device(self.device).type == "cuda",
        )  # fmt: skip
        try:
            while self.epoch < until_epoch:
                self._epoch(batches, should_stop)
                evaluation = self._evaluated(should_stop)
                self._end_epoch(evaluation)
        except _Stopped:
            self.save()
        checkpoint = self.run_dir / CHECKPOINT_FILE if progress.history else None
        return TrainResult(
            self.epoch >= self.recipe.epochs, progress.step, tuple(progress.history), checkpoint, evaluation,
            self.pictures.labels, tuple(progress.damaged),
        )  # fmt: skip

    def _epoch(self, batches: Iterator[Batch], should_stop: Callable[[], bool]) -> None:
        """The steps that the epoch still has."""
        progress, every = self.state.progress, self.recipe.save_every_steps
        self.stepper.training_mode()
        end = self.sampler.starts[self.epoch + 1]
        start = time.perf_counter()
        for _ in range(progress.step, end):
            if self.world.any(should_stop()):
                raise _Stopped
            micro = list(islice(batches, self.recipe.accumulate))
            size = self.sampler.size_of(progress.step)
            done = self.stepper.advance(micro, size)
            self._note_damaged()
            if not isinstance(done, Done):
                raise self._diverged_on(done)
            progress.loss_sum += done.loss * size
            progress.images += size
            now = time.perf_counter()
            progress.seconds += now - start
            start = now
            self._tell(done.loss, done.resolution)
            if every is not None and progress.step % every == 0 and progress.step < end:
                self.save()

    def _note_damaged(self) -> None:
        """The damaged pictures of all processes; every process then knows the same."""
        if self.world.any(len(self.damaged.names) > len(self.state.progress.damaged)):
            for names in self.world.gather(self.damaged.names):
                self.damaged.names += [name for name in names if name not in self.damaged.names]
            self.damaged.check()
            self.state.progress.damaged = sorted(self.damaged.names)

    def _evaluated(self, should_stop: Callable[[], bool]) -> Evaluation:
        """The network on the validation pictures, every process on its part of them."""
        self._check_finite()  # the last step's loss may have been, and the weights that it left not
        weights = self.state.weights
        self.world.share_buffers(weights)

        def until_stopped() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in self.validation():
                if should_stop():
                    raise _Stopped
                yield batch

        part: Evaluation | str | None = None
        try:
            part = evaluate(normalized(self.form(weights), self.recipe.preprocessing), until_stopped())
        except NotANumberError:
            part = "the output on the validation pictures is NaN"
        except _Stopped:
            pass
        parts = self.world.gather(part)
        if reason := next((part for part in parts if isinstance(part, str)), None):
            raise self._diverged(reason)
        if None in parts:
            raise _Stopped
        self._note_damaged()
        return _merged([part for part in parts if isinstance(part, Evaluation)])

    def _validation(self, val: Pictures) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
        """The validation batches, anew at every call: from memory where they fit, streamed where they do not."""
        recipe = self.recipe

        def stream() -> Iterator[tuple[Tensor, Tensor]]:
            return eval_batches(
                val, recipe.preprocessing, recipe.resolution, workers=self.workers, world=self.world,
                damaged=self.damaged,
            )  # fmt: skip

        if len(val) * 3 * recipe.resolution**2 > _KEPT_PIXELS_BYTES:
            return stream
        batches: list[tuple[Tensor, Tensor]] = []

        def kept() -> list[tuple[Tensor, Tensor]]:
            batches.extend(() if batches else stream())
            return batches

        return kept

    # ---------------------------------------------------------------------------------------------------- files

    def _tell(self, loss: float, resolution: int, val_top1_percent: float | None = None) -> None:
        progress = self.state.progress
        event = TrainEvent(
            progress.step, self.sampler.total_steps, self.epoch, loss, self.stepper.lr, progress.images_per_s,
            resolution, val_top1_percent,
        )  # fmt: skip
        if val_top1_percent is None:
            names = ("step", "epoch", "loss", "lr", "resolution", "images_per_s")
            self._write_log({name: getattr(event, name) for name in names})
        self.on_event(event)

    def _write_log(self, record: dict[str, Any]) -> None:
        if self.world.leads:
            self.log.write(record)

    def _end_epoch(self, evaluation: Evaluation) -> None:
        """Enter the epoch into the history and write all files, the state last: a run killed here repeats an epoch."""
        progress, loss = self.state.progress, self.state.progress.mean_loss
        record = {
            "epoch": self.epoch,
            "step": progress.step,
            "train_loss": loss,
            "val_top1_percent": evaluation.top1_percent,
            "lr": self.stepper.lr,
            "images_per_s": progress.images_per_s,
        }
        if self.world.leads:
            save_checkpoint(self.run_dir / CHECKPOINT_FILE, self.state.weights, self._meta(evaluation))
        self._write_log(record)
        self._tell(loss, self.recipe.resolution, evaluation.top1_percent)
        progress.history.append(record)
        progress.loss_sum = progress.seconds = 0.0
        progress.images = 0
        if self.world.leads:
            write_json(self.run_dir / HISTORY_FILE, progress.history)
        self.save()

    def _meta(self, evaluation: Evaluation) -> CheckpointMeta:
        data = self.recipe.data
        return CheckpointMeta(
            arch=self.recipe.arch_config(),  # type: ignore[arg-type]
            labels=self.pictures.labels,
            preprocessing=self.recipe.preprocessing,
            dataset=Path(data.root).resolve().name if data.root else data.source,
            metrics={
                "top1_percent": evaluation.top1_percent,
                "num_images": float(evaluation.num_images),
                "epoch": float(self.epoch + 1),
                "epochs": float(self.recipe.epochs),
            },
            provenance=self.provenance,
        )

    def save(self) -> None:
        """Write the state. Raises VigError, and keeps the older file, when a weight is not finite."""
        self._check_finite()
        if self.world.leads:
            self.state.save(self.run_dir)
        self.saved_step = self.state.progress.step

    # ---------------------------------------------------------------------------------------------------- divergence

    def _check_finite(self) -> None:
        if name := self.state.first_not_finite():
            raise self._diverged(f"{name} is not finite")

    def _diverged(self, what: str) -> VigError:
        """Names what can be gone back to."""
        kept = ""
        if self.saved_step is not None:
            kept = f"{self.run_dir / STATE_FILE} is of step {self.saved_step}"
            if self.epoch:
                kept += f", {CHECKPOINT_FILE} there of epoch {self.epoch}"
        return self.stepper.diverged(what, kept)

    def _diverged_on(self, bad: list[Batch]) -> VigError:
        """Names the pictures of the micro-batches whose loss is not finite."""
        mine = [self.pictures.file(draw.picture) for batch in bad for draw in batch.draws]
        names = list(dict.fromkeys(name for names in self.world.gather(mine) for name in names))
        shown = f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if names[3:] else ''}"
        return self._diverged(f"the loss is not finite on {shown}")


def _merged(parts: list[Evaluation]) -> Evaluation:
    """The evaluations of consecutive pictures as one."""
    whole: dict[str, Any] = {}
    for entry in dataclasses.fields(Evaluation):
        values = [getattr(part, entry.name) for part in parts]
        whole[entry.name] = torch.cat(values) if isinstance(values[0], Tensor) else max(values)
    return Evaluation(**whole)


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """cuDNN without algorithms that add in changing order, and without choosing them by the clock."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield

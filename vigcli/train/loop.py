"""Training: a recipe in, a checkpoint out; how progress is shown and who asks to stop are the caller's matters.

All randomness is a function of (seed, epoch, picture) or (seed, step), so the state that a resumed run needs is the
tensors, the step and the history. On one machine it then ends with the same bits as an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from vigcli.archs import build
from vigcli.archs.checkpoint import load_tensors, save_checkpoint, save_tensors
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.config.recipe import Recipe
from vigcli.errors import ConfigError, VigError
from vigcli.files import write_json
from vigcli.train.data import (
    Pictures,
    check_classes,
    derived_seed,
    eval_batches,
    open_data,
    seeded,
    steps_per_epoch,
    train_batches,
)
from vigcli.train.evaluate import DivergedError, Evaluation, NotANumberError, evaluate, normalized
from vigcli.train.objective import Objective
from vigcli.train.schedule import make_optimizer, make_scheduler

STATE_FILE, CHECKPOINT_FILE, HISTORY_FILE = "state.safetensors", "checkpoint.safetensors", "history.json"
_KEPT_PIXELS_BYTES = 256_000_000  # a validation split up to this size is decoded once
_OF_THE_MACHINE = (("data", "root"), ("data", "workers"), ("distillation", "weights"))
_START_ANEW = "Start anew with `vig train`; the run's checkpoint.safetensors can still be used."

EpochRecord = dict[str, Any]
"""One epoch: epoch, step, train_loss, val_top1_percent, lr, images_per_s. Only the last depends on the clock."""


@dataclass(frozen=True)
class TrainEvent:
    """One step done; with `val_top1_percent`, an epoch evaluated. `epoch` counts from 0, `step` from 1."""

    step: int
    total_steps: int
    epoch: int
    loss: float
    lr: float
    images_per_s: float
    val_top1_percent: float | None = None


@dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended.

    Attributes:
        finished: False when `should_stop` or `until_epoch` ended it; `resume=True` goes on from there.
        checkpoint: the last one written, or None when no epoch ended.
        evaluation: that of the last epoch that ended, where this call evaluated it.
    """

    finished: bool
    step: int
    history: tuple[EpochRecord, ...]
    checkpoint: Path | None
    evaluation: Evaluation | None = None


def train(
    recipe: Recipe,
    run_dir: Path | str,
    *,
    on_event: Callable[[TrainEvent], None],
    should_stop: Callable[[], bool],
    provenance: Mapping[str, Any],
    data_root: Path | str | None = None,
    device: str = "cpu",
    resume: bool = False,
    until_epoch: int | None = None,
    opened: tuple[Pictures, Pictures] | None = None,
) -> TrainResult:
    """Train the recipe's network, and write state, history and checkpoint into `run_dir` at the end of every epoch.

    The checkpoint is the last epoch's, not the best one on the validation split: a maximum over epochs would flatter
    the network by the luck of one evaluation, and its accuracy would no longer be one of unseen pictures.
    `until_epoch` ends this call after so many epochs of the recipe's; `opened` are the two splits to take.
    """
    data = recipe.data if data_root is None else recipe.data.changed({"root": str(data_root)})
    recipe = recipe.model_copy(update={"data": data})
    pictures, val = opened or (open_data(data, "train"), open_data(data, "val"))
    check_classes(pictures, recipe.num_classes)
    check_classes(val, recipe.num_classes, pictures.labels)
    run = _Run(recipe, Path(run_dir), pictures.labels, len(pictures), device, dict(provenance))
    if resume:
        run.restore()
    with _repeatable(), _memory_errors(recipe):
        return _epochs(run, pictures, _validation(recipe, val), on_event, should_stop, until_epoch or recipe.epochs)


class _Stopped(Exception):
    """The caller asked to stop."""


def _epochs(
    run: _Run,
    pictures: Pictures,
    validation: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    on_event: Callable[[TrainEvent], None],
    should_stop: Callable[[], bool],
    until_epoch: int,
) -> TrainResult:
    def until_stopped(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            if should_stop():
                raise _Stopped
            yield batch

    evaluation = None
    try:
        while run.epoch < min(until_epoch, run.recipe.epochs):
            start = time.perf_counter()
            for x, target in until_stopped(train_batches(run.recipe, pictures, run.epoch, run.step_of_epoch)):
                loss = run.advance(x, target)
                now = time.perf_counter()
                run.progress.seconds += now - start
                start = now
                on_event(run.event(loss))
            run.check_finite(run.weights.state_dict())
            try:
                evaluation = evaluate(normalized(run.weights, run.recipe.preprocessing), until_stopped(validation()))
            except NotANumberError as error:
                raise run.diverged("the output on the validation pictures is NaN") from error
            event = run.event(run.mean_loss, evaluation.top1_percent)
            run.end_epoch(evaluation)
            on_event(event)
    except _Stopped:
        run.save()
    return run.result(evaluation)


# ---------------------------------------------------------------------------------------------------- one run


@dataclass
class _Progress:
    """What a resumed run must know beside the tensors: loss and time are sums over the epoch's steps so far."""

    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[EpochRecord] = field(default_factory=list)


class _Run:
    """The tensors and the progress of one run, and their files."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        labels: tuple[str, ...],
        num_train: int,
        device: str,
        provenance: dict[str, Any],
    ):
        self.recipe, self.run_dir, self.labels, self.num_train = recipe, run_dir, labels, num_train
        self.device, self.provenance = device, provenance
        self.steps, self.batch_size = steps_per_epoch(recipe, num_train)
        self.arch = recipe.arch_config()
        self.objective = Objective(recipe, device)
        model = build(self.arch, seed=recipe.seed)
        self.model = model.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.ema = ModelEmaV3(self.model, recipe.ema_decay) if recipe.ema_decay is not None else None
        self.optimizer = make_optimizer(recipe, self.model)
        self.scheduler = make_scheduler(recipe, self.optimizer, self.steps)
        self.progress = _Progress()

    @property
    def epoch(self) -> int:
        """An epoch ends with its evaluation, so this is the number of epochs in the history."""
        return len(self.progress.history)

    @property
    def step_of_epoch(self) -> int:
        return self.progress.step - self.epoch * self.steps

    @property
    def weights(self) -> nn.Module:
        """The network that is evaluated and saved."""
        return self.ema.module if self.ema is not None else self.model

    @property
    def mean_loss(self) -> float:
        return self.progress.loss_sum / self.steps

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def advance(self, x: Tensor, target: Tensor) -> float:
        """One optimizer step on normalized pictures (B, 3, R, R) and classes (B,); gives the loss."""
        step, seed = self.progress.step, self.recipe.seed
        self.scheduler.step_update(step)
        x = x.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        target = target.to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        with seeded(seed, "step", step):
            torch.manual_seed(derived_seed(seed, "step", step))  # drop path draws from the device's own state
            loss = self.objective(self.model, x, target)
            value = loss.item()
            if not math.isfinite(value):
                raise self.diverged(f"the loss is {value}")
            loss.backward()
        if self.recipe.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        self.progress.step += 1
        self.progress.loss_sum += value
        return value

    def diverged(self, what: str) -> DivergedError:
        """The error to raise when numbers have left the finite."""
        return DivergedError(
            f"Training diverged at step {self.progress.step} (lr {self.lr:.3g}): {what}.",
            "Lower optimizer.lr or set clip_grad_norm; the last epoch's checkpoint and state are kept.",
        )

    def event(self, loss: float, val_top1_percent: float | None = None) -> TrainEvent:
        total = self.steps * self.recipe.epochs
        return TrainEvent(self.progress.step, total, self.epoch, loss, self.lr, self._images_per_s(), val_top1_percent)

    def _images_per_s(self) -> float:
        """Of this epoch's steps so far, without evaluation."""
        return self.step_of_epoch * self.batch_size / max(self.progress.seconds, 1e-9)

    def end_epoch(self, evaluation: Evaluation) -> None:
        """Enter the epoch into the history and write all files, the state last: a run killed here repeats an epoch."""
        record = {
            "epoch": self.epoch,
            "step": self.progress.step,
            "train_loss": self.mean_loss,
            "val_top1_percent": evaluation.top1_percent,
            "lr": self.lr,
            "images_per_s": self._images_per_s(),
        }
        data = self.recipe.data
        meta = CheckpointMeta(
            arch=self.arch,  # type: ignore[arg-type]
            labels=self.labels,
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
        save_checkpoint(self.run_dir / CHECKPOINT_FILE, self.weights, meta)
        self.progress.history.append(record)
        self.progress.loss_sum = self.progress.seconds = 0.0
        write_json(self.run_dir / HISTORY_FILE, self.progress.history)
        self.save()

    def result(self, evaluation: Evaluation | None) -> TrainResult:
        checkpoint = self.run_dir / CHECKPOINT_FILE if self.progress.history else None
        finished = self.epoch >= self.recipe.epochs
        return TrainResult(finished, self.progress.step, tuple(self.progress.history), checkpoint, evaluation)

    # ------------------------------------------------------------------------------------------------ state

    def save(self) -> None:
        """Write all that `restore` needs. Raises VigError, and keeps the older file, when a weight is not finite."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.module.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        self.check_finite(tensors)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = json.dumps({"format": 1, "progress": vars(self.progress), "fixed": self._fixed()}, allow_nan=False)
        save_tensors(self.run_dir / STATE_FILE, tensors, text)

    def check_finite(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises VigError: a step whose loss was finite may still have left weights that are not."""
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise self.diverged(f"{name} is not finite")

    def _fixed(self) -> dict[str, Any]:
        """What may not change between the parts of a run: all of the recipe but the machine's, and the data."""
        fixed = self.recipe.model_dump(mode="json")
        for section, key in _OF_THE_MACHINE:
            if fixed[section]:
                del fixed[section][key]
        return {"recipe": fixed, "labels": list(self.labels), "num_train": self.num_train}

    def restore(self) -> None:
        """Continue where `save` was called. Raises ConfigError for another recipe, other data or a damaged file."""
        path = self.run_dir / STATE_FILE
        if not path.is_file():
            raise ConfigError(f"{self.run_dir}: holds no {STATE_FILE} to resume.", "Name the folder of a training run.")
        try:
            tensors, text = load_tensors(path)
            state = json.loads(text)
            fixed, progress = state["fixed"], _Progress(**state["progress"])
        except ConfigError as error:
            raise ConfigError(str(error), _START_ANEW) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{path}: is no training state.", _START_ANEW) from error
        if changes := _differences(fixed, self._fixed()):
            raise ConfigError(
                f"{path}: cannot resume, {changes[0]}{f' (and {len(changes) - 1} more)' if changes[1:] else ''}.",
                "Resume with the run's own recipe and data, or start a new run.",
            )
        try:
            self._restore_tensors(tensors)
        except (RuntimeError, KeyError, ValueError) as error:
            raise ConfigError(f"{path}: its tensors do not fit the recipe's network.", _START_ANEW) from error
        self.progress = progress
        self.scheduler.step_update(max(progress.step - 1, 0))  # an epoch may be left to evaluate and record

    def _restore_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(under("model."))
        if self.ema is not None:
            self.ema.module.load_state_dict(under("ema."))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under("optimizer.").items():
            number, key = name.split(".", 1)
            parameter = parameters[int(number)]
            if tensor.shape == parameter.shape:  # the same strides, lest vector and scalar code round differently
                tensor = torch.empty_like(parameter).copy_(tensor)
            state.setdefault(int(number), {})[key] = tensor.detach().clone()
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """`recipe.optimizer.lr was 0.1, is 0.2` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [f"{path.removeprefix('recipe.')} was {_short(old)}, is {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _validation(recipe: Recipe, val: Pictures) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    """The validation batches, anew at every call: from memory where they fit, streamed where they do not."""

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        return eval_batches(val, recipe.preprocessing, recipe.resolution, workers=recipe.data.workers)

    if len(val) * 3 * recipe.resolution**2 > _KEPT_PIXELS_BYTES:
        return stream
    batches = list(stream())
    return lambda: batches


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """cuDNN without algorithms that add in changing order, and without choosing them by the clock."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


@contextlib.contextmanager
def _memory_errors(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise VigError(
            f"The device's memory does not hold a step of {recipe.batch_size} pictures.",
            "Lower batch_size with --set, and optimizer.lr in proportion.",
        ) from error

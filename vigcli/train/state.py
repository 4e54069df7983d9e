"""What a run must keep to go on as if it had not been interrupted, and its file.

All randomness is a function of (seed, epoch, picture) or (seed, step), so that this is the tensors, the step and the
history; no state of a random generator.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from vigcli.archs.checkpoint import load_tensors, save_tensors
from vigcli.config.recipe import Recipe
from vigcli.errors import ConfigError

STATE_FILE = "state.safetensors"
_FORMAT = 2
_OF_THE_MACHINE = (  # may change between the parts of a run
    ("data", "root"), ("data", "workers"), ("data", "max_corrupt"), ("distillation", "weights"), ("save_every_steps",),
    ("weights",),
)  # fmt: skip
_START_ANEW = "Start anew with `vig train`; the run's checkpoint.safetensors can still be used."

EpochRecord = dict[str, Any]
"""One epoch: epoch, step, train_loss, val_top1_percent, lr, images_per_s. Only the last depends on the clock."""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        loss_sum, images, seconds: sums over the steps of the epoch that has begun; the loss is weighted by pictures.
        damaged: the damaged pictures that were met.
    """

    step: int = 0
    loss_sum: float = 0.0
    images: int = 0
    seconds: float = 0.0
    damaged: list[str] = field(default_factory=list)
    history: list[EpochRecord] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """An epoch ends with its evaluation, so this is the number of epochs in the history."""
        return len(self.history)

    @property
    def mean_loss(self) -> float:
        return self.loss_sum / max(self.images, 1)

    @property
    def images_per_s(self) -> float:
        """Of this epoch's steps so far, without evaluation."""
        return self.images / max(self.seconds, 1e-9)


@dataclass
class State:
    """A run between two steps.

    Attributes:
        fixed: what may not change between the parts of a run.
        scaler: of the loss in fp16; it does nothing in other precisions.
    """

    fixed: dict[str, Any]
    model: nn.Module
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)

    @property
    def weights(self) -> nn.Module:
        """The network that is evaluated and saved."""
        return self.ema.module if self.ema is not None else self.model

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.module.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        return tensors

    def first_not_finite(self) -> str | None:
        """A tensor with a value that is no finite number, where there is one."""
        for name, tensor in self.tensors().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                return name
        return None

    def save(self, folder: Path) -> None:
        """Write the file, whole or not at all. Raises VigError where the disk refuses."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        text = {
            "format": _FORMAT, "progress": vars(self.progress), "scaler": self.scaler.state_dict(), "fixed": self.fixed
        }  # fmt: skip
        save_tensors(folder / STATE_FILE, tensors, json.dumps(text, allow_nan=False))

    def restore(self, folder: Path) -> None:
        """Continue where `save` was called. Raises ConfigError for another recipe, other data or a damaged file."""
        path = folder / STATE_FILE
        if not path.is_file():
            raise ConfigError(f"{folder}: holds no {STATE_FILE} to resume.", "Name the folder of a training run.")
        try:
            tensors, text = load_tensors(path)
            state = json.loads(text)
            fixed, scaler, progress = state["fixed"], state["scaler"], Progress(**state["progress"])
        except ConfigError as error:
            raise ConfigError(str(error), _START_ANEW) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{path}: is no training state.", _START_ANEW) from error
        if changes := _differences(fixed, self.fixed):
            raise ConfigError(
                f"{path}: cannot resume, {changes[0]}{f' (and {len(changes) - 1} more)' if changes[1:] else ''}.",
                "Resume with the run's own recipe and data, or start a new run.",
            )
        try:
            self._restore(tensors)
            self.scaler.load_state_dict(scaler)
        except (RuntimeError, KeyError, ValueError) as error:
            raise ConfigError(f"{path}: its tensors do not fit the recipe's network.", _START_ANEW) from error
        self.progress = progress

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
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


def fixed_of(recipe: Recipe, labels: tuple[str, ...], num_train: int) -> dict[str, Any]:
    """What may not change between the parts of a run: all of the recipe but the machine's, and the data."""
    fixed = recipe.model_dump(mode="json")
    for *sections, key in _OF_THE_MACHINE:
        section = fixed
        for name in sections:
            section = section[name] or {}
        section.pop(key, None)
    return {"recipe": fixed, "labels": list(labels), "num_train": num_train}


def remove_leftovers(folder: Path) -> None:
    """What a process left that was killed while it wrote."""
    for path in folder.glob(".vig-*"):
        shutil.rmtree(path, ignore_errors=True)


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """`recipe.optimizer.lr was 0.1, is 0.2` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [f"{path.removeprefix('recipe.')} was {_short(old)}, is {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

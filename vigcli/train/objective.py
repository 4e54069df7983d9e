"""The training loss: mixup, label smoothing and distillation as a recipe says; steps are the loop's matter."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from vigcli.archs import build
from vigcli.archs.foreign import load_into
from vigcli.config.recipe import Distillation, Recipe
from vigcli.errors import ConfigError, UnavailableError


class Objective:
    """The training loss of a batch: mixup, label smoothing and distillation as the recipe says."""

    def __init__(self, recipe: Recipe, device: str):
        augment = recipe.augment
        self.smoothing, self.mixup = recipe.label_smoothing, None
        if augment.mixup or augment.cutmix:
            self.mixup = Mixup(
                augment.mixup,
                augment.cutmix,
                switch_prob=augment.mixup_switch,
                label_smoothing=recipe.label_smoothing,
                num_classes=recipe.num_classes,
            )
            self.smoothing = 0.0  # it is in the mixed targets
        self.distillation = recipe.distillation
        self.teacher = load_teacher(recipe.distillation, recipe, device) if recipe.distillation else None
        self.autocast = (torch.device(device).type, torch.bfloat16, recipe.precision == "bf16")

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Loss of a network in training mode on normalized pictures (B, 3, R, R), changed in place, and classes (B,).

        Two heads without a teacher both learn the labels; with one (DeiT, arXiv:2012.12877, Eq. 3) the second learns
        the class that the teacher sees in the same mixed picture.
        """
        if self.mixup is not None:
            x, target = self.mixup(x, target)  # (B,) -> (B, num_classes)
        with torch.autocast(*self.autocast):
            output = model(x)
            answer = self._teacher_answer(x)
        heads = [head.float() for head in (output if isinstance(output, tuple) else (output,))]
        if answer is None or self.distillation is None:
            losses = [F.cross_entropy(head, target, label_smoothing=self.smoothing) for head in heads]
            return torch.stack(losses).mean()
        if len(heads) != 2:
            raise ConfigError("distillation: the network has one head.", "Set arch.distilled, or distillation to null.")
        alpha = self.distillation.alpha
        base = F.cross_entropy(heads[0], target, label_smoothing=self.smoothing)
        return (1 - alpha) * base + alpha * F.cross_entropy(heads[1], answer)

    @torch.no_grad()
    def _teacher_answer(self, x: Tensor) -> Tensor | None:
        return self.teacher(x).argmax(1) if self.teacher is not None else None


def load_teacher(distillation: Distillation, recipe: Recipe, device: str) -> nn.Module:
    """The teacher with its weights, frozen. Raises UnavailableError without a weights file: nothing is fetched."""
    if distillation.weights is None:
        raise UnavailableError(
            f"distillation.weights: the teacher {distillation.teacher} needs its weights.",
            "Pass --teacher-weights FILE (safetensors or .pth), or --set distillation=null to train without a teacher.",
        )
    path = Path(distillation.weights)
    if not path.is_file():
        raise UnavailableError(f"{path}: no such file of teacher weights.", "Check --teacher-weights.")
    teacher = build(distillation.teacher, {"num_classes": recipe.num_classes, "resolution": recipe.resolution})
    load_into(teacher, path, f"{distillation.teacher} with {recipe.num_classes} classes")
    teacher = teacher.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return teacher.eval().requires_grad_(False)

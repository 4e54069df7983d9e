"""The training loss: mixup, label smoothing and distillation as a recipe says; steps are the loop's matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor

from vigcli.config.recipe import Recipe
from vigcli.config.recipe_parts import Distillation
from vigcli.train.teacher import load_teacher

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Objective:
    """The training loss of a batch: mixup, label smoothing and distillation as the recipe says."""

    def __init__(self, recipe: Recipe, device: str, labels: Sequence[str] = ()):
        """`labels` are the classes of the pictures, to which the teacher's are held."""
        augment = recipe.augment
        self.smoothing, self.mixup = recipe.label_smoothing, None
        if augment.mixes:
            self.mixup = Mixup(
                augment.mixup,
                augment.cutmix,
                switch_prob=augment.mixup_switch,
                label_smoothing=recipe.label_smoothing,
                num_classes=recipe.num_classes,
            )
            self.smoothing = 0.0  # it is in the mixed targets
        self.distillation = recipe.distillation
        self.teacher = load_teacher(recipe, labels, device) if recipe.distillation else None
        precision = AUTOCAST.get(recipe.precision)
        self.autocast = (torch.device(device).type, precision or torch.bfloat16, precision is not None)

    def __call__(self, model: Callable[[Tensor], Any], x: Tensor, target: Tensor) -> Tensor:
        """Loss of a network in training mode on normalized pictures (B, 3, R, R), changed in place, and classes (B,).

        Two heads without a teacher both learn the labels. With one the last head learns the teacher's answer to the
        same mixed picture and the first the labels (DeiT, arXiv:2012.12877, Section 4); a network with a single head
        learns both with it.
        """
        if self.mixup is not None:
            x, target = self.mixup(x, target)  # (B,) -> (B, num_classes)
        with torch.autocast(*self.autocast):
            output = model(x)
            answer = self.teacher(x) if self.teacher is not None else None
        heads = [head.float() for head in (output if isinstance(output, tuple) else (output,))]
        if answer is None or self.distillation is None:
            losses = [F.cross_entropy(head, target, label_smoothing=self.smoothing) for head in heads]
            return torch.stack(losses).mean()
        alpha = self.distillation.alpha
        base = F.cross_entropy(heads[0], target, label_smoothing=self.smoothing)
        return (1 - alpha) * base + alpha * distance(heads[-1], answer.float(), self.distillation)


def distance(logits: Tensor, answer: Tensor, distillation: Distillation) -> Tensor:
    """How far a student's logits (B, N) are from the teacher's.

    Hard: the cross entropy with the class that the teacher sees (DeiT, Eq. 3). Soft: t^2 KL(teacher, student) of the
    probabilities at temperature t (arXiv:1503.02531, Section 2; DeiT, Eq. 2), the mean over pictures.
    """
    if distillation.kind == "hard":
        return F.cross_entropy(logits, answer.argmax(1))
    t = distillation.temperature
    theirs, ours = F.log_softmax(answer / t, 1), F.log_softmax(logits / t, 1)
    return t * t * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)

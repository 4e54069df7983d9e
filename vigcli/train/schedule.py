"""What a recipe's optimizer and learning rate are at every step, and so what a run would do without running it."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from vigcli.config.recipe import Recipe
from vigcli.train.data import steps_per_epoch


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """timm leaves biases, norms and other vectors out of weight decay."""
    options = recipe.optimizer
    more: dict[str, Any] = {"eps": options.eps} if options.name == "adamw" else {}
    return create_optimizer_v2(
        model, options.name, lr=options.lr, weight_decay=options.weight_decay, momentum=options.momentum, **more
    )


def make_scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int) -> CosineLRScheduler:
    """The learning rate as a function of the step: warm-up, a whole half-cosine, cool-down at `min_lr`."""
    schedule = recipe.schedule
    warmup, cooldown = schedule.warmup(steps), round(schedule.cooldown_epochs * steps)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(2, recipe.epochs * steps - warmup - cooldown),
        lr_min=schedule.min_lr,
        warmup_t=warmup,
        warmup_lr_init=schedule.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )


def plan(recipe: Recipe, num_train: int) -> dict[str, Any]:
    """What a run would do, without running it: counts of steps and pictures, the learning rate where it turns."""
    steps, size = steps_per_epoch(recipe, num_train)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.optimizer.lr)
    scheduler = make_scheduler(recipe, optimizer, steps)
    total = recipe.epochs * steps
    start, peak, end = (scheduler._get_lr(step)[0] for step in (0, scheduler.warmup_t, total - 1))
    return {
        "steps_per_epoch": steps,
        "images_per_step": size,
        "total_steps": total,
        "total_images": total * size,
        "warmup_steps": scheduler.warmup_t,
        "lr_start": start,
        "lr_peak": peak,
        "lr_end": end,
    }

"""What a recipe's optimizer and learning rate are at every step, and so what a run would do without running it."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from vigcli.config.recipe import Recipe
from vigcli.train.sampler import Sampler


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """timm leaves biases, norms and other vectors out of weight decay, and what is frozen out altogether."""
    options = recipe.optimizer
    more: dict[str, Any]
    if options.name == "adamw":
        name, more = "adamw", {"eps": options.eps, "betas": options.betas}
    else:
        name, more = ("sgd" if options.nesterov else "momentum"), {"momentum": options.momentum}
    more["fused"] = True  # one kernel for all weights: 2 % of a step of a small network on a CPU
    return create_optimizer_v2(model, name, lr=options.lr, weight_decay=options.weight_decay, **more)


def make_scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, sampler: Sampler) -> CosineLRScheduler:
    """The learning rate as a function of the step: warm-up, a whole half-cosine (or none), cool-down at `min_lr`."""
    schedule, steps = recipe.schedule, sampler.steps_per_epoch
    warmup, cooldown = schedule.warmup(steps), round(schedule.cooldown_epochs * steps)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(2, sampler.total_steps - warmup - cooldown),
        lr_min=schedule.min_lr if schedule.name == "cosine" else recipe.optimizer.lr,
        warmup_t=warmup,
        warmup_lr_init=schedule.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )


def plan(recipe: Recipe, num_train: int) -> dict[str, Any]:
    """What a run would do, without running it: counts of steps and pictures, the learning rate where it turns."""
    sampler = Sampler(recipe, num_train, recipe.accumulate)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.optimizer.lr)
    scheduler = make_scheduler(recipe, optimizer, sampler)
    total = sampler.total_steps
    start, peak, end = (scheduler._get_lr(step)[0] for step in (0, scheduler.warmup_t, total - 1))
    sizes = [str(size) for _, size in sorted(sampler.sizes.items())]
    return {
        "steps_per_epoch": round(sampler.steps_per_epoch),
        "images_per_step": int(sizes[0]) if len(sizes) == 1 else " or ".join(sizes),
        "total_steps": total,
        "total_images": sampler.total_images,
        "warmup_steps": scheduler.warmup_t,
        "lr_start": start,
        "lr_peak": peak,
        "lr_end": end,
    }

"""The built-in recipes at a glance; their values are the matter of `recipe`, their headers that of `recipe_file`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from vigcli.config.archs import variant_name
from vigcli.config.recipe import Recipe, load_recipe
from vigcli.config.recipe_file import read_header
from vigcli.paths import builtin_folder, builtin_names


class Glance(NamedTuple):
    """One recipe in words.

    Attributes:
        title: the first line of its file.
        top1: accuracy in percent that its header says to expect, with what it is: `79.8 published`.
    """

    name: str
    title: str
    network: str
    resolution: str
    epochs: str
    batch_size: str
    lr: str
    augmentation: str
    teacher: str
    top1: str


def glances() -> Iterator[Glance]:
    """Every built-in recipe, by name."""
    for name in builtin_names("recipe"):
        path = builtin_folder("recipe") / f"{name}.yaml"
        header, recipe = read_header(path), load_recipe(path)
        yield Glance(
            name, header.title, _network(recipe), _resolution(recipe), str(recipe.epochs), str(recipe.batch_size),
            _lr(recipe), _augmentation(recipe), recipe.distillation.teacher if recipe.distillation else "",
            _top1(header.notes.get("Expected", "")),
        )  # fmt: skip


def _network(recipe: Recipe) -> str:
    return recipe.arch if isinstance(recipe.arch, str) else variant_name(recipe.arch) or recipe.arch.family


def _resolution(recipe: Recipe) -> str:
    drawn = recipe.multiscale
    return f"{recipe.resolution} ({min(drawn)}-{max(drawn)})" if drawn else str(recipe.resolution)


def _lr(recipe: Recipe) -> str:
    optimizer, schedule = recipe.optimizer, recipe.schedule
    end = f" to {schedule.min_lr:g}" if schedule.name == "cosine" else ", constant"
    length, unit = (schedule.warmup_steps, "steps") if schedule.warmup_steps else (schedule.warmup_epochs, "epochs")
    warmup = f"; warm-up {length:,g} {unit.removesuffix('s') if length == 1 else unit}" if length else ""
    return f"{optimizer.name} {optimizer.lr:g}{end}{warmup}"


def _augmentation(recipe: Recipe) -> str:
    augment = recipe.augment
    parts = ["crop, flip"] if augment.horizontal_flip else ["crop"]
    for word, value in (
        ("", augment.rand_augment), ("erase", augment.erase), ("mixup", augment.mixup), ("cutmix", augment.cutmix),
        ("smoothing", recipe.label_smoothing),
    ):  # fmt: skip
        if value:
            parts.append(f"{word} {value}".strip())
    return ", ".join(parts + ([f"{augment.repeats} repeats"] if augment.repeats > 1 else []))


def _top1(expected: str) -> str:
    found = re.search(r"([\d.]+) % top-1.*?\b(published|measured)\b", expected)
    return f"{found[1]} {found[2]}" if found and not expected.startswith("not ") else ""

"""The teacher of a distillation: whose network, with which weights, on pictures as it was taught to expect them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vigcli.archs import build, resolved
from vigcli.archs.checkpoint import read_meta
from vigcli.config.archs import ArchConfig, TimmConfig
from vigcli.config.recipe import PREPROCESSING, Preprocessing, Recipe
from vigcli.config.recipe_parts import CHECKPOINT_SUFFIX, Distillation
from vigcli.errors import ConfigError, UnavailableError
from vigcli.nn.heads import mean_of_heads
from vigcli.train.scales import Scales, at_resolutions
from vigcli.train.start import start_from


class Teacher(nn.Module):
    """Normalized pictures (B, 3, r, r) of a recipe -> the teacher's logits (B, num_classes)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, seen: Preprocessing, expected: Preprocessing):
        """`seen` is how the pictures were normalized, `expected` how the teacher's were."""
        super().__init__()
        self.network = network
        scale = [a / b for a, b in zip(seen.std, expected.std, strict=True)]
        shift = [(a - b) / c for a, b, c in zip(seen.mean, expected.mean, expected.std, strict=True)]
        self.is_other = (seen.mean, seen.std) != (expected.mean, expected.std)
        self.orders = seen.channels, expected.channels
        self.register_buffer("scale", torch.tensor(scale)[:, None, None])
        self.register_buffer("shift", torch.tensor(shift)[:, None, None])

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        seen, expected = self.orders
        if self.is_other:
            x = (x.flip(1) if seen == "BGR" else x) * self.scale + self.shift
            seen = "RGB"
        return mean_of_heads(self.network(x.flip(1) if seen != expected else x))


def load_teacher(recipe: Recipe, labels: Sequence[str], device: str) -> Teacher:
    """The recipe's teacher, frozen, at the resolutions of the recipe.

    Raises UnavailableError without a file of its weights (nothing is fetched), ConfigError for one of other classes
    than `labels`, and for a resolution that it cannot take.
    """
    assert recipe.distillation is not None
    path, arch, expected = _named(recipe.distillation, recipe, labels)
    try:
        config = arch.changed({"num_classes": recipe.num_classes, "resolution": recipe.resolution})
        network = build(config)
        others = at_resolutions(config.changed({"resolution": r}) for r in recipe.other_resolutions)
    except ConfigError as error:
        raise ConfigError(f"distillation.teacher: {error}", error.hint) from error
    try:
        drawn = start_from(network, config, path)
    except ConfigError as error:
        raise _unfit(path, recipe, str(error)) from error
    if drawn:
        raise _unfit(path, recipe, "it has other classes")
    teacher = Teacher(Scales(network, others) if others else network, recipe.preprocessing, expected)
    teacher = teacher.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return teacher.eval().requires_grad_(False)


def _named(distillation: Distillation, recipe: Recipe, labels: Sequence[str]) -> tuple[Path, ArchConfig, Preprocessing]:
    """The file of the teacher's weights, its network, and the normalization that it expects."""
    name = distillation.teacher
    if name.endswith(CHECKPOINT_SUFFIX):
        path = Path(name)
        if not path.is_file():
            raise UnavailableError(f"{path}: no such checkpoint of a teacher.", "Check distillation.teacher.")
        meta = read_meta(path)
        if meta.arch.num_classes != recipe.num_classes or (labels and meta.labels and meta.labels != (*labels,)):
            what = f"{path}: this teacher's {meta.arch.num_classes} classes are not the {recipe.num_classes} to learn."
            hint = f"Fine-tune it on these pictures first: a recipe of its network with weights: {path}."
            raise ConfigError(what, hint)
        return path, meta.arch, meta.preprocessing
    if distillation.weights is None:
        raise UnavailableError(
            f"distillation.weights: the teacher {name} needs its weights.",
            "Pass --teacher-weights FILE (safetensors or .pth), or --set distillation=null to train without a teacher.",
        )
    path = Path(distillation.weights)
    if not path.is_file():
        raise UnavailableError(f"{path}: no such file of teacher weights.", "Check --teacher-weights.")
    config = resolved(name)
    return path, config, PREPROCESSING[config.family] if config.family in PREPROCESSING else _of_timm(config)


def _of_timm(config: ArchConfig) -> Preprocessing:
    import timm

    assert isinstance(config, TimmConfig)
    known = timm.get_pretrained_cfg(config.name)
    return Preprocessing() if known is None else Preprocessing.parse({"mean": known.mean, "std": known.std})


def _unfit(path: Path, recipe: Recipe, reason: str) -> ConfigError:
    assert recipe.distillation is not None
    name = recipe.distillation.teacher
    reason = " ".join(reason.removeprefix(f"{path}: ").rstrip(".").split())[:160]
    return ConfigError(
        f"{path}: does not hold weights of {name} with {recipe.num_classes} classes ({reason}).",
        "Give weights of this network; a teacher of other classes is fine-tuned on these pictures first.",
    )

"""Training recipes: what `vig train` reads, and what `vig search` writes for the network that it found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from vigcli.config.archs import AnyArch, ArchConfig, ArchName, arch_config
from vigcli.config.load import Strict, apply_settings, parse_as, parse_settings
from vigcli.config.recipe_file import read_layers
from vigcli.config.recipe_parts import Augment, Data, Distillation, ModulePath, Optimizer, Positive, Schedule
from vigcli.errors import ConfigError

__all__ = [
    "PREPROCESSING", "Augment", "Channels", "Data", "Distillation", "Optimizer", "Preprocessing", "Recipe", "Schedule",
    "load_recipe",
]  # fmt: skip

Channels = Literal["RGB", "BGR"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Preprocessing(Strict):
    """From a picture to the network's input in evaluation: resize, centre crop, normalize, put channels in order.

    Attributes:
        crop_ratio: side of the centre crop / side of the resized picture.
        mean, std: of red, green and blue, for pixels in [0, 1].
        channels: the order in which the network's first layer wants them.
    """

    crop_ratio: Annotated[float, Field(ge=0.1, le=1)] = 0.9
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[Positive, Positive, Positive] = IMAGENET_STD
    channels: Channels = "RGB"

    def short_side(self, resolution: int) -> int:
        """Pixels of the shorter side of a resized picture, of which the centre is cropped; rounded as timm does."""
        return math.floor(resolution / self.crop_ratio)


_SLD = Preprocessing()  # ImageNet mean and deviation, crop 0.9, bicubic
_CVNETS = Preprocessing(crop_ratio=256 / 288, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # pixels in [0, 1] as they are
_HUAWEI = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # Pyramid ViG-B alone was evaluated with crop 0.95
PREPROCESSING = {  # what the published weights of a family were trained to expect, by the authors' evaluation code
    "mobilevig": _SLD,
    "mobilevigv2": _SLD,
    "greedyvig": _SLD,
    "vig": _HUAWEI,
    "pvig": _HUAWEI,
    "clustervig": _SLD,
    "mobilevit": _CVNETS,
    "mobilevitv2": _CVNETS,
    "mobilevitv3": _CVNETS,
}


def _arch_form(value: object) -> str:
    return "config" if isinstance(value, dict | ArchConfig) else "name"


# Told apart before it is validated, so that a complaint is about the form that was meant.
NameOrArch = Annotated[Annotated[ArchName, Tag("name")] | Annotated[AnyArch, Tag("config")], Discriminator(_arch_form)]


Resolution = Annotated[int, Field(ge=32, le=1024)]


class Recipe(Strict):
    """All that decides a training run, apart from the machine.

    Attributes:
        arch: a network's name or whole configuration.
        weights: what training starts from: a checkpoint of ours or the authors' weights, the classifier drawn anew
            where the classes differ; null draws all weights.
        freeze: parts of the network that keep their weights: `stem`, `stages[0]`.
        resolution, num_classes: of training, evaluation and the exported package; the architecture's unless given.
        multiscale: resolutions of which every step draws one (MobileViT's sampler, arXiv:2110.02178, Section 3.2), with
            as many pixels as batch_size pictures at `resolution` have; none trains at `resolution` alone.
        batch_size: pictures per optimizer step, over all processes and micro-batches.
        accumulate: micro-batches per optimizer step.
        ema_decay: of the weights' exponential moving average, which is what is evaluated and saved; null for none.
        sync_batch_norm: statistics of batch norm over all processes.
        precision: `bf16` and `fp16` run the network's arithmetic under autocast, fp16 with a scaled loss.
        channels_last, compile: how torch lays out pictures, and whether it compiles the network; both for speed.
        save_every_steps: the state is also saved so often inside an epoch; null at the ends of epochs alone.
    """

    arch: NameOrArch
    weights: str | None = None
    freeze: tuple[ModulePath, ...] = ()
    resolution: Resolution
    multiscale: Annotated[tuple[Resolution, ...], Field(max_length=32)] = ()
    num_classes: Annotated[int, Field(ge=2, le=65536)]
    data: Data = Data()
    preprocessing: Preprocessing = Preprocessing()
    epochs: Annotated[int, Field(ge=1, le=10000)]
    batch_size: Annotated[int, Field(ge=1, le=65536)]
    accumulate: Annotated[int, Field(ge=1, le=1024)] = 1
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    augment: Augment = Augment()
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    clip_grad_norm: Positive | None = None
    distillation: Distillation | None = None
    sync_batch_norm: bool = False
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    save_every_steps: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @classmethod
    def parse(cls, data: Any) -> Recipe:
        """Validate plain data; resolution and classes are the architecture's where they are left out."""
        return super().parse(_with_sizes(data) if isinstance(data, dict) else data)

    @classmethod
    def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:
        """The schema of a recipe file: what a base may bring need not stand in it."""
        schema = super().model_json_schema(*args, **options)
        base = {
            "type": "string",
            "description": "Another recipe, beside this one or built in, whose values hold first.",
        }
        schema["properties"] = {"base": base} | schema["properties"]
        needed = [name for name in schema.pop("required") if name not in ("resolution", "num_classes")]
        for section in ("Optimizer", "Distillation"):
            del schema["$defs"][section]["required"]
        return schema | {"anyOf": [{"required": ["base"]}, {"required": needed}]}

    @model_validator(mode="after")
    def _sound(self) -> Recipe:
        if not isinstance(self.arch, str):
            for name in ("resolution", "num_classes"):
                if getattr(self.arch, name) != getattr(self, name):
                    what = f"arch.{name} is {getattr(self.arch, name)}, but {name} is {getattr(self, name)}"
                    raise ValueError(f"{what}\nWrite the same for both.")
        self._check_steps()
        self._check_network()
        return self

    def _check_steps(self) -> None:
        schedule, size = self.schedule, self.batch_size // self.accumulate
        if (schedule.warmup_epochs or 0) + schedule.cooldown_epochs >= self.epochs:
            raise ValueError("warm-up and cool-down leave no epoch to train\nShorten them, or train for more epochs.")
        if schedule.name == "cosine" and schedule.min_lr > self.optimizer.lr:
            what = f"schedule.min_lr = {schedule.min_lr:g} is above optimizer.lr = {self.optimizer.lr:g}"
            raise ValueError(f"{what}\nLower schedule.min_lr too.")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate = {self.accumulate} does not divide batch_size = {self.batch_size}\n"
                             "Take a divisor.")  # fmt: skip
        if self.accumulate > 1 and size % (2 if self.augment.mixes else 1):
            raise ValueError(f"micro-batches of {size} are odd, but mixup pairs pictures\nLower accumulate.")
        if self.distillation is not None and self.preprocessing.channels != "RGB":
            raise ValueError("distillation: its teacher takes RGB\nLeave it out, or set preprocessing.channels to RGB.")

    def _check_network(self) -> None:
        """At its resolution, and at those that steps may draw. Raises ValueError."""
        try:
            self.arch_config()
        except ConfigError as error:
            raise ValueError(f"{error}\n{error.hint}") from None
        if len(set(self.multiscale)) != len(self.multiscale) or len(self.multiscale) == 1:
            raise ValueError("multiscale must hold different resolutions\nWrite two or more, or [] for none.")
        for resolution in self.multiscale:
            try:
                self.arch_config(resolution)
            except ConfigError as error:
                raise ValueError(f"multiscale: {resolution} px: {error}\nLeave out {resolution}.") from None

    def with_network(self, config: ArchConfig) -> Recipe:
        """The recipe with another network, for which weights, frozen parts and resolutions to draw were not meant."""
        changes = {"arch": config, "resolution": config.resolution, "num_classes": config.num_classes}
        return self.model_copy(update={**changes, "weights": None, "freeze": (), "multiscale": ()})

    @property
    def other_resolutions(self) -> tuple[int, ...]:
        """Those that steps may draw, but for the recipe's own."""
        return tuple(resolution for resolution in self.multiscale if resolution != self.resolution)

    def arch_config(self, resolution: int | None = None) -> ArchConfig:
        """The network's configuration at the recipe's classes and resolution, or at one of `multiscale`.

        There MobileViT resizes a feature map that its patches do not divide, as the authors' code does. Raises
        ConfigError.
        """
        arch = arch_config(self.arch) if isinstance(self.arch, str) else self.arch
        changes = {"resolution": resolution or self.resolution, "num_classes": self.num_classes}
        if resolution is not None and "resample" in type(arch).model_fields:
            changes["resample"] = True
        return arch.changed(changes)


def _with_sizes(data: dict[str, Any]) -> dict[str, Any]:
    """Resolution and classes of the architecture filled in; what is wrong with it is complained of later."""
    arch = data.get("arch")
    if isinstance(arch, str):
        try:
            arch = arch_config(arch).model_dump()
        except ConfigError:
            arch = None
    known = arch if isinstance(arch, dict) else {}
    return {"resolution": known.get("resolution", 224), "num_classes": known.get("num_classes", 1000)} | data


def load_recipe(path: Path | str, settings: tuple[str, ...] = ()) -> Recipe:
    """A recipe file, with those that it builds on, as a validated recipe whose network is sound. Raises ConfigError.

    Settings of `arch.` go to the configuration that the recipe's network has, also where the file only names it.
    """
    inside = [setting for setting in settings if setting.startswith("arch.")]
    layers = read_layers(path)
    outside = [setting for setting in settings if setting not in inside]
    recipe = parse_settings(Recipe, layers.data, outside, str(path), layers.places)
    if not inside:
        return recipe
    data = recipe.model_dump(mode="json") | {"arch": recipe.arch_config().model_dump(mode="json")}
    apply_settings(data, inside)
    return parse_as(Recipe, data, "--set")

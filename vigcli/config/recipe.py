"""Training recipes: what `vig train` reads, and what `vig search` writes for the network that it found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from vigcli.config.archs import AnyArch, ArchConfig, ArchName, arch_config
from vigcli.config.load import Strict, apply_settings, load, parse_as
from vigcli.errors import ConfigError

Ratio = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Channels = Literal["RGB", "BGR"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Preprocessing(Strict):
    """From a picture to the network's input in evaluation: resize, centre crop, normalize, put channels in order.

    Attributes:
        crop_ratio: side of the centre crop / side of the resized picture.
        mean, std: of red, green and blue, for pixels in [0, 1].
        channels: the order in which the network's first layer wants them.
    """

    crop_ratio: Annotated[float, Field(gt=0, le=1)] = 0.9
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[Positive, Positive, Positive] = IMAGENET_STD
    channels: Channels = "RGB"


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


class Data(Strict):
    """Where the pictures are.

    Attributes:
        source: `emoji10` (embedded in the package) or `folder` (train/CLASS/*.jpg and val/CLASS/*.jpg, as ImageNet).
        root: the folder; `--data` on the command line replaces it.
        workers: processes that decode; 0 decodes in the main process.
    """

    source: Literal["emoji10", "folder"] = "folder"
    root: str | None = None
    workers: Annotated[int, Field(ge=0, le=64)] = 8


class Optimizer(Strict):
    """AdamW or SGD of timm. `lr` holds at the recipe's batch size; it is not rescaled behind your back."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Positive
    weight_decay: NonNegative = 0.05
    eps: Positive = 1e-8
    momentum: Ratio = 0.9


class Schedule(Strict):
    """Cosine from `lr` to `min_lr` after a linear warm-up from `warmup_lr`, advanced every step."""

    warmup_epochs: NonNegative = 20
    cooldown_epochs: NonNegative = 0
    warmup_lr: NonNegative = 1e-6
    min_lr: NonNegative = 1e-5


class Augment(Strict):
    """Augmentation by timm.

    Attributes:
        scale: range of the random crop's share of the picture's area.
        rand_augment: timm's RandAugment string, or null.
        mixup, cutmix: their alphas; 0 leaves one out.
        repeats: how often a picture stands in an epoch's sampling (repeated augmentation); 1 is none.
    """

    scale: tuple[Ratio, Ratio] = (0.08, 1.0)
    horizontal_flip: Ratio = 0.5
    rand_augment: Annotated[str, Field(pattern=r"^rand(-[a-z]+[0-9.]*)+$")] | None = None
    color_jitter: Ratio = 0.0
    erase: Ratio = 0.0
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    mixup_switch: Ratio = 0.5
    repeats: Annotated[int, Field(ge=1, le=8)] = 1

    @model_validator(mode="after")
    def _sound(self) -> Augment:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} is no range\nWrite the smaller share first, above zero.")
        return self


class Distillation(Strict):
    """Hard distillation (DeiT, arXiv:2012.12877): the second head learns the teacher's answer.

    Attributes:
        teacher: `timm:NAME`.
        weights: the teacher's safetensors or weights-only .pth; `--teacher-weights` replaces it. Nothing is fetched.
        alpha: weight of the teacher's part of the loss.
    """

    teacher: Annotated[str, Field(pattern=r"^timm:[\w.]+$")]
    weights: str | None = None
    alpha: Ratio = 0.5


def _arch_form(value: object) -> str:
    return "config" if isinstance(value, dict | ArchConfig) else "name"


# Told apart before it is validated, so that a complaint is about the form that was meant.
NameOrArch = Annotated[Annotated[ArchName, Tag("name")] | Annotated[AnyArch, Tag("config")], Discriminator(_arch_form)]


class Recipe(Strict):
    """All that decides a training run, apart from the machine.

    Attributes:
        arch: a network's name or whole configuration.
        resolution, num_classes: of training, evaluation and the exported package; the architecture's unless given.
        batch_size: pictures per optimizer step, over all processes.
        ema_decay: of the weights' exponential moving average, which is what is evaluated and saved; null for none.
        precision: `bf16` runs the network's arithmetic under autocast.
    """

    arch: NameOrArch
    resolution: Annotated[int, Field(ge=32, le=1024)]
    num_classes: Annotated[int, Field(ge=2, le=65536)]
    data: Data = Data()
    preprocessing: Preprocessing = Preprocessing()
    epochs: Annotated[int, Field(ge=1, le=10000)]
    batch_size: Annotated[int, Field(ge=1, le=65536)]
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    augment: Augment = Augment()
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    clip_grad_norm: Positive | None = None
    distillation: Distillation | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @classmethod
    def parse(cls, data: Any) -> Recipe:
        """Validate plain data; resolution and classes are the architecture's where they are left out."""
        return super().parse(_with_sizes(data) if isinstance(data, dict) else data)

    @model_validator(mode="after")
    def _sound(self) -> Recipe:
        if not isinstance(self.arch, str):
            for name in ("resolution", "num_classes"):
                if getattr(self.arch, name) != getattr(self, name):
                    what = f"arch.{name} is {getattr(self.arch, name)}, but {name} is {getattr(self, name)}"
                    raise ValueError(f"{what}\nWrite the same for both.")
        if self.schedule.warmup_epochs + self.schedule.cooldown_epochs >= self.epochs:
            raise ValueError("warm-up and cool-down leave no epoch to train\nShorten them, or train for more epochs.")
        if self.distillation is not None and self.preprocessing.channels != "RGB":
            raise ValueError("distillation: its teacher takes RGB\nLeave it out, or set preprocessing.channels to RGB.")
        try:
            self.arch_config()
        except ConfigError as error:
            raise ValueError(f"{error}\n{error.hint}") from None
        return self

    def arch_config(self) -> ArchConfig:
        """The network's configuration at the recipe's resolution and classes. Raises ConfigError."""
        arch = arch_config(self.arch) if isinstance(self.arch, str) else self.arch
        return arch.changed({"resolution": self.resolution, "num_classes": self.num_classes})


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
    """A recipe file as a validated recipe whose network is sound. Raises ConfigError.

    Settings of `arch.` go to the configuration that the recipe's network has, also where the file only names it.
    """
    inside = [setting for setting in settings if setting.startswith("arch.")]
    recipe = load(Recipe, path, [setting for setting in settings if setting not in inside])
    if not inside:
        return recipe
    data = recipe.model_dump(mode="json") | {"arch": recipe.arch_config().model_dump(mode="json")}
    apply_settings(data, inside)
    return parse_as(Recipe, data, "--set")

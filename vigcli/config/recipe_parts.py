"""The sections of a training recipe; what they must be together is `vigcli.config.recipe`'s matter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from vigcli.config.archs import arch_config
from vigcli.config.load import Strict, split_path
from vigcli.errors import ConfigError, UsageError

Ratio = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
CHECKPOINT_SUFFIX = ".safetensors"


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
    """AdamW or SGD of timm. `lr` holds at the recipe's batch size; it is not rescaled behind your back.

    Attributes:
        betas, eps: of AdamW.
        momentum, nesterov: of SGD.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Positive
    weight_decay: NonNegative = 0.05
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-8
    momentum: Ratio = 0.9
    nesterov: bool = True

    @model_validator(mode="after")
    def _sound(self) -> Optimizer:
        for name in ("momentum", "nesterov") if self.name == "adamw" else ("betas", "eps"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is nothing to {self.name}\nLeave it out, or choose the other optimizer.")
        if self.name == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("Nesterov's rule needs a momentum\nSet nesterov: false, or a momentum above zero.")
        return self


class Schedule(Strict):
    """From `warmup_lr` linearly to `lr`, then along a half-cosine to `min_lr` or constant; advanced every step.

    Attributes:
        warmup_epochs, warmup_steps: the length of the warm-up, as one of the two; the other is null.
        cooldown_epochs: at `min_lr` after the cosine.
    """

    name: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: NonNegative | None = 20
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    cooldown_epochs: NonNegative = 0
    warmup_lr: NonNegative = 1e-6
    min_lr: NonNegative = 1e-5

    @model_validator(mode="after")
    def _sound(self) -> Schedule:
        if (self.warmup_epochs is None) == (self.warmup_steps is None):
            given = "neither" if self.warmup_steps is None else "both"
            raise ValueError(f"warm-up is given in {given} of epochs and steps\nSet one, and the other to null.")
        if self.name == "constant" and self.cooldown_epochs:
            raise ValueError("a constant rate has no cool-down\nSet cooldown_epochs to 0, or name to cosine.")
        return self

    def warmup(self, steps_per_epoch: int) -> int:
        """Its length in steps."""
        return round((self.warmup_epochs or 0) * steps_per_epoch) if self.warmup_steps is None else self.warmup_steps

    def shortened(self, part: float) -> Schedule:
        """For a run of so much of the epochs."""
        lengths = {name: getattr(self, name) for name in ("warmup_epochs", "warmup_steps", "cooldown_epochs")}
        kind = {"warmup_steps": round}
        return self.changed({k: kind.get(k, float)(part * v) for k, v in lengths.items() if v is not None})


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

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed in pairs."""
        return bool(self.mixup or self.cutmix)


def _teacher(name: str) -> str:
    if name.endswith(CHECKPOINT_SUFFIX):
        return name
    try:
        arch_config(name)
    except ConfigError:
        hint = f"Write timm:NAME, a name of `vig ls archs`, or a checkpoint's path ending in {CHECKPOINT_SUFFIX}."
        raise ValueError(f"'{name}' is no network that could teach\n{hint}") from None
    return name


class Distillation(Strict):
    """A teacher whose answers the network learns beside the labels: `alpha` is the weight of that part of the loss.

    `hard` (DeiT, arXiv:2012.12877, Eq. 3): the class that the teacher sees. A network with two heads learns it with the
    second; one with a single head learns both with it, which is DeiT's Table 3 without distillation token. `soft`
    (arXiv:1503.02531; DeiT's Eq. 2): the teacher's probabilities at a temperature, their divergence times its square.

    Attributes:
        teacher: `timm:NAME`, one of our networks by name (with the authors' weights), or a checkpoint of ours.
        weights: of a teacher that is named: safetensors or weights-only .pth; `--teacher-weights` replaces it. Nothing
            is fetched.
        temperature: of `soft`.
    """

    teacher: Annotated[str, AfterValidator(_teacher)]
    weights: str | None = None
    kind: Literal["hard", "soft"] = "hard"
    alpha: Ratio = 0.5
    temperature: Positive = 1.0

    @model_validator(mode="after")
    def _sound(self) -> Distillation:
        if self.kind == "hard" and self.temperature != 1:
            raise ValueError("hard distillation has no temperature\nLeave it out, or set kind: soft.")
        if self.weights is not None and self.teacher.endswith(CHECKPOINT_SUFFIX):
            raise ValueError("a checkpoint brings its own weights\nLeave weights out, or name the network as teacher.")
        return self


def _module_path(path: str) -> str:
    try:
        split_path(path)
    except UsageError as error:
        raise ValueError(f"{str(error).rstrip('.')}\nWrite it like stem or stages[0].") from None
    return path


ModulePath = Annotated[str, AfterValidator(_module_path)]
"""A part of a network: `stem`, `stages[0]`, `stages[1][2]`."""


def module_name(path: str) -> str:
    """What torch calls the part: `stages.0` for `stages[0]`."""
    return ".".join(map(str, split_path(path)))

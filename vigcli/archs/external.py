"""Networks of the timm library, built without weights; which of them is measured or searched is the caller's matter."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vigcli.config.recipe import Preprocessing
from vigcli.errors import ConfigError, did_you_mean


def build_timm(
    name: str,
    num_classes: int = 1000,
    resolution: int | None = None,
    in_chans: int = 3,
    device: str | torch.device | None = None,
) -> nn.Module:
    """The timm network `name` in evaluation mode with unfused attention and random weights.

    Args:
        resolution: image side in pixels, for the networks that fix their grid when they are built; timm's own if None.
        device: "meta" makes the network without allocating its weights.
    """
    _check(name)
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans}
    if resolution is not None:
        options["img_size"] = resolution
    model = _create(name, options, torch.device(device or "cpu"))
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            vars(module)["fused_attn"] = False
    return model.eval()


def native_resolution(name: str) -> int:
    """The side in pixels of the images that timm runs the network at. Raises ConfigError for an unknown name."""
    import timm

    _check(name)
    known = timm.get_pretrained_cfg(name)
    return known.input_size[-1] if known is not None else 224


def native_preprocessing(name: str) -> Preprocessing:
    """How timm prepares pictures for the weights that it publishes under this name.

    Raises ConfigError for an unknown name, and for the few networks whose pictures are squashed or framed.
    """
    import timm

    _check(name)
    known = timm.get_pretrained_cfg(name)
    if known is None:
        return Preprocessing()
    if known.crop_mode != "center" or known.crop_pct > 1:
        raise ConfigError(f"timm:{name} takes no centre crop of a picture.", "Only centre crops are made here.")
    return Preprocessing.parse(
        {"crop_ratio": known.crop_pct, "interpolation": known.interpolation, "mean": known.mean, "std": known.std}
    )


def _check(name: str) -> None:
    import timm

    if not timm.is_model(name) or "." in name:  # what follows a dot names weights
        hint = did_you_mean(name.partition(".")[0], timm.list_models())
        raise ConfigError(f"timm has no network '{name}'.", hint or "`timm.list_models()` names them.")


def reparameterize(model: nn.Module) -> nn.Module:
    """A copy in inference form: parallel branches, distillation heads and batch norms merged where timm knows how."""
    from timm.utils.model import reparameterize_model

    with torch.device(next(model.parameters()).device):  # timm makes the merged layers on the default device
        return reparameterize_model(copy.deepcopy(model).eval())


class TimmFeatures(nn.Module):
    """A timm network without its head: images -> the last feature map (B, C, H, W) of each stride from 4 on, finest
    first.

    Attributes:
        strides, widths, names: of the feature maps, as `Features` has them.
    """

    def __init__(self, network: Any, name: str):
        super().__init__()
        maps = getattr(network, "feature_info", None)
        if not maps or not hasattr(network, "forward_intermediates"):
            raise ConfigError(f"timm:{name} gives no feature maps.", "Leave --features out.")
        strides = [of_map["reduction"] for of_map in maps]
        taken = [i for i, stride in enumerate(strides) if stride >= 4 and stride not in strides[i + 1 :]]
        self.network: Any = network
        self.indices = taken
        self.strides = tuple(strides[i] for i in taken)
        self.widths = tuple(maps[i]["num_chs"] for i in taken)
        self.names = tuple(f"stride{stride}" for stride in self.strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.network.forward_intermediates(x, indices=self.indices, output_fmt="NCHW", intermediates_only=True)


def _create(name: str, options: dict[str, Any], device: torch.device) -> nn.Module:
    """Create on the device, or create on the CPU and move where an initialisation reads its own values."""
    try:
        with torch.device(device):
            return _create_here(name, options)
    except (NotImplementedError, RuntimeError):
        return _create_here(name, options).to(device)


def _create_here(name: str, options: dict[str, Any]) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=False, **options)
    except TypeError:  # fully convolutional networks take no image size
        return timm.create_model(name, pretrained=False, **{k: v for k, v in options.items() if k != "img_size"})

"""The deployed form of a network: what is timed, quantized and exported, equal to the trained form in evaluation."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Foldable(nn.Module):
    """A module that has a simpler equal in evaluation mode."""

    def fold(self, keep_norm: bool) -> nn.Module:
        """The equal module, after this one's own parts were folded; may change and return itself.

        With `keep_norm` only branches are merged (heads, positional encoding): batch norm and layer scale stay.
        """
        raise NotImplementedError


@torch.no_grad()
def deploy(model: ModuleT, keep_norm: bool = False) -> ModuleT:
    """A copy of `model` in evaluation mode with every `Foldable` folded, innermost first.

    The arithmetic is in float64, so that the logits of a float32 network move by rounding only. `keep_norm` gives the
    form in which papers count parameters at inference: one head, positional encoding merged, batch norms still there.
    """
    model = copy.deepcopy(model).eval()

    def walk(module: nn.Module) -> None:
        for name, child in module.named_children():
            walk(child)
            if isinstance(child, Foldable):
                setattr(module, name, child.fold(keep_norm))

    walk(model)
    return model


@torch.no_grad()
def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution equal to `norm(conv(x))` in evaluation mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if norm.running_var.is_meta:  # no values, and a block is counted in half the time without arithmetic on them
        return scale_output(conv, norm.running_var)
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    return scale_output(conv, scale, shift)


@torch.no_grad()
def scale_output(conv: nn.Conv2d, scale: torch.Tensor, shift: torch.Tensor | None = None) -> nn.Conv2d:
    """A convolution equal to `conv(x) * scale + shift`, with scale and shift of shape (C,)."""
    folded = copy.deepcopy(conv)
    if folded.bias is None:
        folded.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
    if conv.weight.is_meta:
        return folded
    bias = torch.zeros_like(scale, dtype=torch.float64) if conv.bias is None else conv.bias.double()
    bias = bias * scale.double() + (0 if shift is None else shift)
    folded.weight.copy_(conv.weight.double() * scale.double()[:, None, None, None])
    folded.bias.copy_(bias)
    return folded


@torch.no_grad()
def scale_input(conv: nn.Conv2d, scale: torch.Tensor, shift: torch.Tensor) -> None:
    """Make a 1x1 convolution with bias equal to `conv(x * scale + shift)`, with scale and shift of shape (C,)."""
    assert conv.kernel_size == (1, 1)
    assert conv.bias is not None
    weight = conv.weight.double()
    conv.bias.copy_(conv.bias.double() + weight[:, :, 0, 0] @ shift.double())
    conv.weight.copy_(weight * scale.double()[:, None, None])

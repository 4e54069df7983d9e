"""The deployed form of a network: what is timed, quantized and exported, equal to the trained form in evaluation."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

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


def deploy(model: ModuleT, keep_norm: bool = False) -> ModuleT:
    """A copy of `model` in evaluation mode with every `Foldable` folded, innermost first.

    The arithmetic is in float64, so that the logits of a float32 network move by rounding only. `keep_norm` gives the
    form in which papers count parameters at inference: one head, positional encoding merged, batch norms still there.
    """
    with torch.no_grad():
        return _folded(copy.deepcopy(model).eval(), keep_norm)


def deploy_attached(model: ModuleT) -> ModuleT:
    """The deployed form whose weights are computed from those of `model`, so that its gradients reach these.

    It holds as long as the weights do: after a step it is made anew. Statistics of batch norm are numbers.
    """
    own = {id(tensor): tensor.clone() for tensor in (*model.parameters(), *model.buffers())}
    return _folded(copy.deepcopy(model, own).eval(), keep_norm=False)


def _folded(model: ModuleT, keep_norm: bool) -> ModuleT:
    for parent in reversed(list(model.modules())):  # what is inside comes later
        for name, child in parent.named_children():
            if isinstance(child, Foldable):
                setattr(parent, name, child.fold(keep_norm))
    return model


def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution equal to `norm(conv(x))` in evaluation mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if norm.running_var.is_meta:  # no values, and a block is counted in half the time without arithmetic on them
        return scale_output(conv, norm.running_var)
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    return scale_output(conv, scale, shift)


def scale_output(conv: nn.Conv2d, scale: torch.Tensor, shift: torch.Tensor | None = None) -> nn.Conv2d:
    """A convolution equal to `conv(x) * scale + shift`, with scale and shift of shape (C,)."""
    if conv.weight.is_meta:
        return with_weights(conv, conv.weight, conv.weight.new_zeros(conv.out_channels))
    bias = torch.zeros_like(scale, dtype=torch.float64) if conv.bias is None else conv.bias.double()
    weight = conv.weight.double() * scale.double()[:, None, None, None]
    return with_weights(conv, weight, bias * scale.double() + (0 if shift is None else shift))


def scale_input(conv: nn.Conv2d, scale: torch.Tensor, shift: torch.Tensor) -> nn.Conv2d:
    """A convolution equal to `conv(x * scale + shift)`, of a 1x1 one with bias, with scale and shift of shape (C,)."""
    assert conv.kernel_size == (1, 1)
    assert conv.bias is not None
    weight = conv.weight.double()
    bias = conv.bias.double() + weight[:, :, 0, 0] @ shift.double()
    return with_weights(conv, weight * scale.double()[:, None, None], bias)


LayerT = TypeVar("LayerT", nn.Conv2d, nn.Linear)


def with_weights(layer: LayerT, weight: torch.Tensor, bias: torch.Tensor | None) -> LayerT:
    """The same layer with other weights, in the precision of its own. Their gradients go where they come from."""
    other: Any = copy.copy(layer)
    given = {"weight": weight, "bias": bias}
    cast = {name: None if tensor is None else tensor.to(layer.weight.dtype) for name, tensor in given.items()}
    other._parameters = {
        name: tensor if tensor is None or not tensor.is_leaf else nn.Parameter(tensor.detach())
        for name, tensor in cast.items()
    }
    return other

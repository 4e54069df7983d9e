"""Layers made narrower in place, as pruning leaves them: `shrink` gives a network the shapes of one that was pruned."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from vigcli.errors import ConfigError

FOLLOWERS = ("bias", "running_mean", "running_var")  # of a layer: as long as its weight makes them


def shrink(network: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Cut weights of a network to the first channels, in place, and let their layers have those sizes.

    Args:
        shapes: by the names of the tensors in the state dict, of layers the `weight` alone; a 0 leaves a size as it is.

    Raises ConfigError for a tensor that there is not, or that cannot have the shape.
    """
    for name, shape in shapes.items():
        place, _, key = name.rpartition(".")
        try:
            layer = network.get_submodule(place)
            _cut(layer, key, shape)
        except (AttributeError, KeyError, ValueError):
            sizes = " x ".join(str(size) if size else "-" for size in shape)
            raise ConfigError(f"pruned: the network has no {name} to be cut to {sizes}.", _HINT) from None
        if key == "weight":
            _fit(layer)


_HINT = "`pruned` belongs to the other fields of the configuration: set none of them that changes a width."


def _cut(layer: nn.Module, key: str, shape: tuple[int, ...]) -> None:
    """Raises KeyError where there is no such tensor, ValueError where it is smaller."""
    parameter = layer._parameters.get(key)
    tensor = layer._buffers[key] if parameter is None else parameter
    if tensor is None or len(shape) != tensor.dim() or any(a > b for a, b in zip(shape, tensor.shape, strict=True)):
        raise ValueError
    small = tensor.detach()[tuple(slice(size or None) for size in shape)].clone()
    if parameter is None:
        layer._buffers[key] = small
    else:
        layer._parameters[key] = nn.Parameter(small, parameter.requires_grad)


def _fit(layer: nn.Module) -> None:
    """Let the sizes that a layer of torch keeps, and its other tensors, be those that its weight makes."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    width = len(weight)
    if isinstance(layer, _ConvNd):
        inner = weight.shape[1]
        if isinstance(layer, _ConvTransposeNd):
            width, inner = inner, width
        if layer.groups == layer.in_channels == layer.out_channels:  # depthwise: a group for every channel
            layer.groups = width
        layer.in_channels, layer.out_channels = inner * layer.groups, width
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, _NormBase):
        layer.num_features = width
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = width
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = width
    for key in FOLLOWERS:
        if isinstance(follower := getattr(layer, key, None), Tensor) and len(follower) > width:
            _cut(layer, key, (width,))

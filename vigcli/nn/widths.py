"""Layers made narrower in place, as pruning leaves them: `shrink` gives a network the shapes of one that was pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from vigcli.errors import ConfigError


def shrink(network: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Cut tensors of a network to the first channels, in place, and let its layers have those sizes.

    Args:
        shapes: by the names of the tensors in the state dict; a 0 leaves a size as it is.

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
    for place in dict.fromkeys(name.rpartition(".")[0] for name in shapes):
        _fit(network.get_submodule(place))


_HINT = "`pruned` belongs to the other fields of the configuration: set none of them that changes a width."


def _cut(layer: nn.Module, key: str, shape: tuple[int, ...]) -> None:
    parameter = layer._parameters.get(key)
    tensor = layer._buffers[key] if parameter is None else parameter
    if (
        tensor is None
        or len(shape) != tensor.dim()
        or any(new > old for new, old in zip(shape, tensor.shape, strict=True))
    ):
        raise ValueError
    small = tensor.detach()[tuple(slice(size or None) for size in shape)].clone()
    if parameter is None:
        layer._buffers[key] = small
    else:
        layer._parameters[key] = nn.Parameter(small, parameter.requires_grad)


def _fit(layer: nn.Module) -> None:
    """Let the sizes that a layer of torch keeps be those of its tensors."""
    if isinstance(layer, _ConvNd):
        out, inner = layer.weight.shape[:2]
        if layer.groups == layer.in_channels == layer.out_channels:  # depthwise: a group for every channel
            layer.groups = out
        layer.in_channels, layer.out_channels = inner * layer.groups, out
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _NormBase):
        layer.num_features = _length(layer, ("weight", "running_mean"))
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = len(layer.weight)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(layer.weight)


def _length(layer: nn.Module, names: Iterable[str]) -> int:
    return next(len(tensor) for name in names if isinstance(tensor := getattr(layer, name), Tensor))

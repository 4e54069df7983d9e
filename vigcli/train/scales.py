"""One set of weights at several resolutions, for the multi-scale sampler.

A network fixes its grids when it is built, so there is one for every resolution; they share parameters and buffers.
What is learned for every token of a grid is learned at the recipe's resolution, and interpolated for the others.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vigcli.archs import build
from vigcli.config.archs import ArchConfig


class Scales(nn.Module):
    """(B, 3, r, r) at one of the resolutions -> what the network gives."""

    def __init__(self, network: nn.Module, others: dict[int, nn.Module]):
        """`others` by their resolution, prepared as `network` is; their weights are replaced by its own."""
        super().__init__()
        self.network = network
        self.others = nn.ModuleDict({str(resolution): other for resolution, other in others.items()})
        self.interpolated = {resolution: _share(network, other) for resolution, other in self.others.items()}

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        resolution = str(x.shape[-1])
        if resolution not in self.others:
            return self.network(x)
        other = self.others[resolution]
        tables = {
            name: resized(self.network.get_parameter(name), size)
            for name, size in self.interpolated[resolution].items()
        }
        return torch.func.functional_call(other, tables, (x,)) if tables else other(x)


def at_resolutions(configs: Iterable[ArchConfig]) -> dict[int, nn.Module]:
    """The networks by their resolution, to share another's weights."""
    return {config.resolution: build(config) for config in configs}


def _share(network: nn.Module, other: nn.Module) -> dict[str, tuple[int, int]]:
    """Give `other` the tensors of `network`; of those that its grid makes larger or smaller, name and (H, W).

    What is frozen and of another shape is computed from the grid, and stays its own.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for place, module in other.named_modules():
        model = network.get_submodule(place)
        for name, buffer in model._buffers.items():
            module._buffers[name] = buffer
        for name, parameter in model._parameters.items():
            own = module._parameters[name]
            if parameter is None or own is None:
                continue
            if parameter.shape == own.shape:
                module._parameters[name] = parameter
            elif parameter.requires_grad:
                del module._parameters[name]  # or it would be a parameter that is never trained
                module.register_buffer(name, torch.empty_like(own), persistent=False)
                sizes[f"{place}.{name}"] = (own.shape[-2], own.shape[-1])
    return sizes


def resized(table: Tensor, size: tuple[int, int]) -> Tensor:
    """A table of positions ([1,] C, H, W) for another grid, bicubic as DeiT's and timm's are."""
    shape = *table.shape[:-2], *size
    batched = table.reshape(1, -1, *table.shape[-2:])
    return F.interpolate(batched, size, mode="bicubic", align_corners=False).reshape(shape)

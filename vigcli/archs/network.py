"""The one shape of our networks: stem, stages, head, each a sequence of the blocks that the configuration lists."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vigcli.config.archs import ArchConfig, BlockSpec
from vigcli.errors import ConfigError
from vigcli.registry import FAMILIES, resolve


class Network(nn.Module):
    """(B, in_chans, R, R) -> (B, num_classes) logits; in training with two heads, a pair of them."""

    def __init__(self, config: ArchConfig):
        super().__init__()
        self.config = config
        stem, *stages, head = config.segments()
        self.stem = block_module(config.family, stem[0])
        self.stages = nn.Sequential(
            *(nn.Sequential(*(block_module(config.family, spec) for spec in stage)) for stage in stages)
        )
        self.head = block_module(config.family, head[0])
        if not next(self.parameters()).is_meta:  # drawing takes its time there too
            self.apply(resolve(FAMILIES[config.family].initialize))

    def forward(self, x: Tensor) -> Tensor:
        check_images(self.config, x)
        return self.head(self.stages(self.stem(x)))


class Features(nn.Module):
    """A network without its head: (B, in_chans, R, R) -> the feature maps at strides 4 and more, finest first.

    An isotropic family gives one map, at its own stride. For detection and segmentation heads. Weights have the names
    that they have in the whole network.

    Attributes:
        strides, widths, names: of the feature maps; `stride8` is the name of one.
    """

    def __init__(self, network: Network):
        super().__init__()
        self.config = network.config
        self.stem = network.stem
        self.stages = network.stages
        shapes = network.config.stage_shapes()
        self._given = [shape.stride >= 4 for shape in shapes]
        self.strides = tuple(shape.stride for shape in shapes if shape.stride >= 4)
        self.widths = tuple(shape.width for shape in shapes if shape.stride >= 4)
        self.names = tuple(f"stride{stride}" for stride in self.strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        check_images(self.config, x)
        x = self.stem(x)
        maps = []
        for stage, given in zip(self.stages, self._given, strict=True):
            x = stage(x)
            if given:
                maps.append(x)
        return maps


def check_images(config: ArchConfig, x: Tensor) -> None:
    """Raise ConfigError for images of another size: a network fixes its grids when it is built."""
    wanted = (config.in_chans, config.resolution, config.resolution)
    if not torch.jit.is_tracing() and tuple(x.shape[1:]) != wanted:
        sizes = " x ".join(map(str, x.shape[1:]))
        raise ConfigError(
            f"the images are {sizes}, the network was built for {' x '.join(map(str, wanted))}.",
            f'Build it for them: overrides={{"resolution": {x.shape[-1]}}}.',
        )


def block_module(family: str, spec: BlockSpec) -> nn.Module:
    """The module of one block."""
    blocks: dict[str, Any] = resolve(FAMILIES[family].blocks)
    return blocks[spec.kind](spec.in_shape, **dict(spec.options), **dict(spec.training))

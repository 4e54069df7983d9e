"""The channels of a network that may be removed, by groups, and the smaller network without some of them.

How many of each group are kept is decided by others. Names are paths: those of the blocks as `vig profile` has them.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vigcli.archs import build
from vigcli.compress.channels import Axis, Place, coupled_channels, entries
from vigcli.compress.importance import CRITERIA, Batches
from vigcli.config.archs import ArchConfig, TimmConfig
from vigcli.errors import ConfigError
from vigcli.nn.attention import MultiHeadAttention
from vigcli.nn.cluster import GroupedLinear

ROUND_TO = 8  # channels: a step of the Neural Engine


@dataclass(frozen=True)
class Group:
    """Units of which any may be removed, with all of their places in the network.

    Attributes:
        name: of the layer that makes the channels.
        num_units: what is removed one at a time: a channel, or all channels of a head.
        round_to: widths below `num_units` are multiples of it.
        layers: every layer that loses channels.
    """

    name: str
    num_units: int
    round_to: int
    layers: tuple[str, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """What may be kept, from the least to all."""
        return (*range(self.round_to, self.num_units, self.round_to), self.num_units)


class Pruner:
    """Prunes a network; the network itself stays as it is.

    Attributes:
        groups: in the order of the network. What the classifier gives, and images, are in none.
    """

    groups: tuple[Group, ...]

    def __init__(self, model: nn.Module, config: ArchConfig):
        """Raises ConfigError naming the module that Torch-Pruning cannot handle."""
        self._model, self._config = model, config
        self._what = f"timm:{config.name}" if isinstance(config, TimmConfig) else config.family
        traced = build(config, device="meta").eval()
        image_shape = config.in_chans, config.resolution, config.resolution
        units = coupled_channels(traced, image_shape, self._what)
        self._sections: dict[str, int] = {}
        self._starts: dict[str, int] = {}
        self._owners: dict[Axis, Tensor] = {}
        self._lost: dict[str, Counter[Axis]] = {}  # entries that each axis loses with a unit of a group
        self._shapes = {name: tuple(tensor.shape) for name, tensor in traced.state_dict().items()}
        self._num_units = 0
        layers = dict(traced.named_modules())
        self.groups = tuple(self._group(name, found, layers) for name, found in _named(units).items())

    def _group(self, name: str, channels: list[list[Place]], layers: Mapping[str, nn.Module]) -> Group:
        head_width = _head_width(channels[0][0], layers)
        units = [sum(channels[i : i + head_width], []) for i in range(0, len(channels), head_width)]
        self._starts[name] = self._num_units
        lost: Counter[Axis] = Counter()
        for number, unit in enumerate(units, self._num_units):
            for axis, index in (entry for place in unit for entry in entries(layers, place)):
                size = self._shapes[axis.tensor][axis.dim] * axis.groups
                self._owners.setdefault(axis, torch.full((size,), -1))[index] = number
                lost[axis] += 1
        self._num_units += len(units)
        self._lost[name] = Counter({axis: count // len(units) for axis, count in lost.items()})
        sections = self._sections[name] = _num_sections(units, layers)
        round_to = math.lcm(ROUND_TO if head_width == 1 else 1, sections)
        return Group(name, len(units), round_to, tuple(dict.fromkeys(p.layer for unit in units for p in unit)))

    def importance(self, criterion: str, batches: Batches | None = None) -> dict[str, Tensor]:
        """What every unit is worth, by group: (num_units,); every weight of a group takes part."""
        judge = CRITERIA[criterion]
        if judge.needs_batches and batches is None:
            raise ConfigError(f"{criterion} looks at gradients, which need images.", "Give data, or take magnitude.")
        found = judge.importance(self._model, self._owners, self._num_units, batches)
        by_group = {g.name: found[self._starts[g.name] :][: g.num_units] for g in self.groups}
        if judge.needs_batches:
            return by_group
        return {name: values / values.mean().clamp_min(1e-30) for name, values in by_group.items()}

    def config(self, kept: Mapping[str, int]) -> ArchConfig:
        """The configuration of the network that keeps so many units of each group; of those not named all."""
        shapes = {name: list(shape) for name, shape in self._config.pruned.items()}
        for axis, size in self._sizes(kept).items():
            shape = shapes.setdefault(axis.tensor, [0] * len(self._shapes[axis.tensor]))
            shape[axis.dim] = size
        pruned = {name: tuple(shape) for name, shape in sorted(shapes.items())}
        return self._config.model_copy(update={"pruned": pruned})

    def _sizes(self, kept: Mapping[str, int]) -> dict[Axis, int]:
        sizes: dict[Axis, int] = {}
        groups = {group.name: group for group in self.groups}
        for name, count in kept.items():
            less = groups[name].num_units - count
            if less < 0 or count < 1 or count % self._sections[name]:
                raise ValueError(f"{name} cannot keep {count} of {groups[name].num_units}")
            for axis, entries_each in self._lost[name].items() if less else ():
                whole = self._shapes[axis.tensor][axis.dim]
                sizes[axis] = sizes.get(axis, whole) - less * entries_each // axis.groups
        return sizes

    @torch.no_grad()
    def pruned(self, kept: Mapping[str, int], importance: Mapping[str, Tensor]) -> tuple[nn.Module, ArchConfig]:
        """The network that keeps the most important units, so many of each group, and its configuration."""
        config = self.config(kept)
        stays = torch.ones(self._num_units + 1, dtype=torch.bool)  # the last is for entries of no unit
        for name, count in kept.items():
            worth = importance[name].cpu().unflatten(0, (self._sections[name], -1))
            best = worth.topk(count // len(worth), 1).indices
            first = self._starts[name]
            stays[first : first + worth.numel()] = torch.zeros(worth.shape).bool().scatter(1, best, True).flatten()
        tensors = dict(self._model.state_dict())
        for axis, owners in self._owners.items():
            tensors[axis.tensor] = _without(tensors[axis.tensor], axis, stays[owners])
        network = build(config)
        network.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
        for name, parameter in self._model.named_parameters():
            network.get_parameter(name).requires_grad_(parameter.requires_grad)
        return network.train(self._model.training), config


def _without(tensor: Tensor, axis: Axis, stays: Tensor) -> Tensor:
    """The entries of an axis that stay, of which every group of a convolution has as many."""
    chosen = stays.to(tensor.device).nonzero().flatten()
    if axis.groups == 1:
        return tensor.index_select(axis.dim, chosen)
    within = (chosen % tensor.shape[axis.dim]).chunk(axis.groups)
    return torch.cat([part.index_select(1, own) for part, own in zip(tensor.chunk(axis.groups), within, strict=True)])


def _named(units: list[list[Place]]) -> dict[str, list[list[Place]]]:
    """Units by the name of their group: those with the same layers on the same sides, as often."""
    found = defaultdict(list)
    for unit in units:
        found[tuple(sorted(Counter((place.layer, place.side) for place in unit).items()))].append(unit)
    named: dict[str, list[list[Place]]] = {}
    for group in found.values():
        path = block_path(group[0][0].layer)
        named[next(name for name in (path, *(f"{path}:{i}" for i in range(2, 1000))) if name not in named)] = group
    return named


def _head_width(first: Place, layers: Mapping[str, nn.Module]) -> int:
    """Of channels that multi-head attention makes, how many belong to a head; 1 of others."""
    owner, _, name = first.layer.rpartition(".")
    attention = layers.get(owner)
    return attention.head_width if isinstance(attention, MultiHeadAttention) and name == "qkv" else 1


def _num_sections(units: list[list[Place]], layers: Mapping[str, nn.Module]) -> int:
    """Into how many equal parts units fall, of which each must keep as many: by the groups of convolutions and norms."""
    sections = [[_section(layers.get(place.layer), place) for place in unit] for unit in units]
    borders = [i for i in range(1, len(units)) if sections[i] != sections[i - 1]]
    return len(units) // math.gcd(len(units), *borders)


def _section(layer: nn.Module | None, place: Place) -> int:
    """The group of channels that a place is in."""
    if isinstance(layer, GroupedLinear):
        return place.index // layer.heads[0].weight.shape[int(place.side == "in")]
    if isinstance(layer, nn.modules.conv._ConvNd) and place.side != "both":  # depthwise is no such grouping
        return place.index * layer.groups // (layer.in_channels if place.side == "in" else layer.out_channels)
    if isinstance(layer, nn.GroupNorm):
        return place.index * layer.num_groups // layer.num_channels
    return 0


def block_path(layer: str) -> str:
    """`stages.1.2.branch.0.conv` as `stages[1].blocks[2].branch.0`, as blocks are called elsewhere."""
    parts = layer.removesuffix(".conv").split(".")
    if len(parts) >= 3 and parts[0] == "stages" and parts[1].isdigit() and parts[2].isdigit():
        return ".".join([f"stages[{parts[1]}].blocks[{parts[2]}]", *parts[3:]])
    return ".".join(parts)

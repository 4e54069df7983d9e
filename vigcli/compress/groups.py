"""The channels of a network that may be removed, by groups, and the smaller network without some of them.

How many of each group are kept is decided by others.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from vigcli.archs import build
from vigcli.compress.channels import HINT, Axis, Place, coupled_channels, entries_of, width_of_group
from vigcli.compress.exchange import check_channels, check_runs
from vigcli.compress.importance import CRITERIA, Batches
from vigcli.config.archs import ArchConfig, TimmConfig
from vigcli.errors import ConfigError
from vigcli.nn.attention import MultiHeadAttention
from vigcli.nn.cluster import GroupedLinear
from vigcli.nn.widths import FOLLOWERS

ROUND_TO = 8  # channels: a step of the Neural Engine


@dataclass(frozen=True)
class Group:
    """Units of which any may be removed, with all of their places in the network.

    Attributes:
        name: the path of the layer that makes the channels, in its block as `vig profile` calls it.
        num_units: what is removed one at a time: a channel, or all channels of a head.
        round_to: widths below `num_units` are multiples of it.
        layers: every layer that loses channels.
        first: the number of its first unit among those of all groups.
        sections: equal parts, of which each keeps as many: convolutions in groups have such.
        entries: of every axis, those that belong to its units.
    """

    name: str
    num_units: int
    round_to: int
    layers: tuple[str, ...]
    first: int = field(repr=False)
    sections: int = field(repr=False)
    entries: Mapping[Axis, int] = field(repr=False)

    @property
    def widths(self) -> tuple[int, ...]:
        """What may be kept, from the least to all."""
        return (*range(self.round_to, self.num_units, self.round_to), self.num_units)


class Pruner:
    """Prunes a network; the network itself stays as it is.

    Attributes:
        groups: in the order of the network, those that can be narrower. What the classifier gives is in none.
    """

    groups: tuple[Group, ...]

    def __init__(self, model: nn.Module, config: ArchConfig):
        """Raises ConfigError naming the module that Torch-Pruning cannot handle, UnavailableError without it."""
        self._model, self._config = model, config
        traced = build(config, device="meta").eval()
        self._layers = dict(traced.named_modules())
        self._shapes = {name: tuple(tensor.shape) for name, tensor in traced.state_dict().items()}
        self._owners: dict[Axis, Tensor] = {}  # the unit of every entry of an axis, -1 where it is of none
        self._num_units = 0
        try:
            units = coupled_channels(traced, (config.in_chans, config.resolution, config.resolution))
            groups = [self._group(name, channels) for name, channels in _named(units).items()]
            self.groups = tuple(group for group in groups if len(group.widths) > 1)
            if isinstance(config, TimmConfig):  # of ours the tests know
                check_runs(self.config({group.name: group.widths[0] for group in self.groups}))
                check_channels(config, self.groups, self._owners)
        except ConfigError as error:
            name = f"timm:{config.name}" if isinstance(config, TimmConfig) else config.family
            raise ConfigError(f"{name}: {error}", error.hint) from error

    def _group(self, name: str, channels: Sequence[list[Place]]) -> Group:
        width = _head_width(channels[0][0], self._layers)
        units = [[*chain(*channels[i : i + width])] for i in range(0, len(channels), width)]
        found: dict[Axis, list[tuple[int, int]]] = defaultdict(list)
        for number, unit in enumerate(units, self._num_units):
            for axis, index in (entry for place in unit for entry in entries_of(self._layers, place)):
                found[axis].append((index, number))
        for axis, pairs in found.items():
            indices, numbers = torch.tensor(pairs).T
            size = self._shapes[axis.tensor][axis.dim] * axis.groups
            if indices.max() >= size:
                raise ConfigError(f"Torch-Pruning takes {axis.tensor} for one of more channels.", HINT)
            self._owners.setdefault(axis, torch.full((size,), -1))[indices] = numbers
        sections = _num_sections(units, self._layers)
        group = Group(
            name,
            len(units),
            math.lcm(ROUND_TO if width == 1 else 1, sections),
            tuple(dict.fromkeys(place.layer for unit in units for place in unit)),
            self._num_units,
            sections,
            {axis: len(pairs) for axis, pairs in found.items()},
        )
        self._num_units += len(units)
        return group

    def importance(self, criterion: str, batches: Batches | None = None) -> dict[str, Tensor]:
        """What every unit is worth, by group: (num_units,); every weight of a group takes part.

        Raises ConfigError for a criterion that needs batches and has none.
        """
        judge = CRITERIA[criterion]
        if judge.needs_batches and batches is None:
            raise ConfigError(f"{criterion} looks at gradients, which need images.", "Give data, or take magnitude.")
        found = judge.importance(self._model, self._owners, self._num_units, batches)
        by_group = {group.name: found[group.first : group.first + group.num_units] for group in self.groups}
        if judge.needs_batches:
            return by_group
        return {name: values / values.mean().clamp_min(1e-30) for name, values in by_group.items()}

    def config(self, kept: Mapping[str, int]) -> ArchConfig:
        """The configuration of the network that keeps so many units of each group, all of those not named."""
        shapes = {name: list(shape) for name, shape in self._config.pruned.items()}
        for axis, size in self._sizes(kept).items():
            layer, _, key = axis.tensor.rpartition(".")
            if key in FOLLOWERS and f"{layer}.weight" in self._shapes:
                continue
            shapes.setdefault(axis.tensor, [0] * len(self._shapes[axis.tensor]))[axis.dim] = size
        pruned = {name: tuple(shape) for name, shape in sorted(shapes.items())}
        return self._config.model_copy(update={"pruned": pruned})

    def _sizes(self, kept: Mapping[str, int]) -> dict[Axis, int]:
        """The axes that become shorter."""
        by_name, sizes = {group.name: group for group in self.groups}, dict[Axis, int]()
        for name, count in kept.items():
            whole = by_name[name].num_units
            if not 0 < count <= whole or count % by_name[name].sections:
                raise ValueError(f"{name} cannot keep {count} of {whole}")
            for axis, entries in by_name[name].entries.items() if count < whole else ():
                lost = entries // axis.groups * (whole - count) // whole
                sizes[axis] = sizes.get(axis, self._shapes[axis.tensor][axis.dim]) - lost
        return sizes

    @torch.no_grad()
    def pruned(self, kept: Mapping[str, int], importance: Mapping[str, Tensor]) -> tuple[nn.Module, ArchConfig]:
        """The network that keeps the most important units, so many of each group, and its configuration."""
        config = self.config(kept)
        stays = torch.ones(self._num_units + 1, dtype=torch.bool)  # the last is for entries of no unit
        for group in (group for group in self.groups if group.name in kept):
            worth = importance[group.name].cpu().unflatten(0, (group.sections, -1))
            best = worth.topk(kept[group.name] // group.sections, 1).indices
            chosen = torch.zeros(worth.shape, dtype=torch.bool).scatter(1, best, True)
            stays[group.first : group.first + group.num_units] = chosen.flatten()
        tensors = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        for axis, owners in self._owners.items():
            tensors[axis.tensor] = _without(tensors[axis.tensor], axis, stays[owners])
        network = build(config).to(next(self._model.parameters()).device)
        network.load_state_dict(tensors, assign=True)
        for name, parameter in self._model.named_parameters():
            network.get_parameter(name).requires_grad_(parameter.requires_grad)
        return network.train(self._model.training), config


def _without(tensor: Tensor, axis: Axis, stays: Tensor) -> Tensor:
    """The entries of an axis that stay, of which every group of a convolution has as many."""
    chosen = stays.to(tensor.device).nonzero().flatten()
    if axis.groups == 1:
        return tensor.index_select(axis.dim, chosen)
    within = (chosen % tensor.shape[1]).chunk(axis.groups)
    return torch.cat([part.index_select(1, own) for part, own in zip(tensor.chunk(axis.groups), within, strict=True)])


# ---------------------------------------------------------------------------------------------------- groups


def _named(units: list[list[Place]]) -> dict[str, list[list[Place]]]:
    """Units by the name of their group: those with the same layers on the same sides, as often."""
    found = defaultdict(list)
    for unit in units:
        found[tuple(sorted(Counter((place.layer, place.side) for place in unit).items()))].append(unit)
    named: dict[str, list[list[Place]]] = {}
    for group in found.values():
        path = block_path(group[0][0].layer)
        count = sum(name.partition(":")[0] == path for name in named)
        named[f"{path}:{count + 1}" if count else path] = group
    return named


def block_path(layer: str) -> str:
    """`stages.1.2.branch.0.conv` as `stages[1].blocks[2].branch.0`."""
    match layer.removesuffix(".conv").split("."):
        case ["stages", stage, block, *rest] if stage.isdigit() and block.isdigit():
            return ".".join([f"stages[{stage}].blocks[{block}]", *rest])
        case parts:
            return ".".join(parts)


def _head_width(first: Place, layers: Mapping[str, nn.Module]) -> int:
    """Of channels that multi-head attention makes, how many are a head's; 1 of others."""
    owner, _, name = first.layer.rpartition(".")
    attention = layers.get(owner)
    return attention.head_width if isinstance(attention, MultiHeadAttention) and name == "qkv" else 1


def _num_sections(units: list[list[Place]], layers: Mapping[str, nn.Module]) -> int:
    sections = [[_section(layers.get(place.layer), place) for place in unit] for unit in units]
    borders = [i for i in range(1, len(units)) if sections[i] != sections[i - 1]]
    return len(units) // math.gcd(len(units), *borders)


def _section(layer: nn.Module | None, place: Place) -> int:
    """The group of a convolution or norm that a place is in."""
    if isinstance(layer, GroupedLinear):
        return place.channel // width_of_group(layer, place.side)
    if isinstance(layer, _ConvNd) and place.side != "both":  # the groups of a depthwise one leave with their channels
        return place.channel * layer.groups // (layer.in_channels if place.side == "in" else layer.out_channels)
    if isinstance(layer, nn.GroupNorm):
        return place.channel * layer.num_groups // layer.num_channels
    return 0

"""Which channels of a network can only be removed together, from Torch-Pruning's dependency graph.

A unit is a connected component of that graph: all places, in all layers, that a channel goes through. What units are
worth and which of them are removed is the matter of `importance.py` and `groups.py`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from vigcli.compress.forms import interleaved, traceable
from vigcli.errors import ConfigError, UnavailableError
from vigcli.nn.cluster import GroupedLinear

HINT = "Torch-Pruning cannot prune this network: take another."


class Place(NamedTuple):
    """One channel on one side of a layer, or of a bare parameter along its `dim`."""

    layer: str
    side: str  # `out`, `in`, or `both` where channels leave as they enter
    channel: int
    dim: int = 0


def coupled_channels(model: nn.Module, image_shape: tuple[int, int, int]) -> list[list[Place]]:
    """The places of every unit of a network, in the order of the first of its layers and channels.

    Units whose channels are not made by a layer (images) or not read by one (logits) are left out. `model` is traced
    as it is, best without values on the device "meta".
    Raises ConfigError for a layer that Torch-Pruning cannot prune, UnavailableError where it is not installed.
    """
    graph = _graph(model, image_shape)
    sides = _sides(graph)
    orders = {f"{graph._module2name[layer]}": order.tolist() for layer, order in interleaved(model).items()}
    units: dict[Any, list[Place]] = defaultdict(list)
    for (node, handler, index), root in _components(graph).items():
        if (place := sides.get((node, handler))) is not None:
            order = orders.get(place.layer) if place.side == "in" else None
            units[root].append(place._replace(channel=index if order is None else order[index]))
    rank = {name: i for i, (name, _) in enumerate((*model.named_modules(), *model.named_parameters()))}
    kept = [sorted(unit, key=lambda p: (rank[p.layer], p.side == "in", p.channel)) for unit in units.values()]
    complete = (unit for unit in kept if {"in", "out"} <= {place.side for place in unit})
    return sorted(complete, key=lambda unit: (rank[unit[0].layer], unit[0].channel))


def _graph(model: nn.Module, image_shape: tuple[int, int, int]) -> Any:
    try:
        import torch_pruning
        from torch_pruning.dependency.index_mapping import update_index_mapping
    except ImportError as error:
        raise UnavailableError("pruning needs torch-pruning.", "pip install 'vig[compress]'") from error
    graph = torch_pruning.DependencyGraph()
    images = torch.empty(1, *image_shape, device=next(model.parameters()).device)
    options = {
        "unwrapped_parameters": list(_bare_parameters(model)),
        "customized_pruners": {GroupedLinear: _grouped_linear(torch_pruning)},
        "verbose": False,
    }
    model.requires_grad_(True)
    with traceable(model), torch.enable_grad():
        try:
            graph.build_dependency(model, images, **options)
            for node in graph.module2node.values():
                node.enable_index_mapping = True  # which a parameter of three axes, wherever it is added, switches off
            update_index_mapping(graph)
        except Exception as error:  # it meets networks that its makers never saw
            raise ConfigError(f"Torch-Pruning fails at it ({type(error).__name__}: {error}).", HINT) from error
    for node in graph.module2node.values():
        if isinstance(node.module, nn.MultiheadAttention | nn.RNNBase):
            raise ConfigError(f"{graph._module2name[node.module]} is a {type(node.module).__name__}.", HINT)
    _correct_reshapes(graph)
    return graph


def _correct_reshapes(graph: Any) -> None:
    """A reshape keeps channels, unless it joins them with what is beside them: (B, C, H, W) -> (B, C H W).

    Torch-Pruning infers it from widths elsewhere, and takes other reshapes for such ones.
    """
    from torch_pruning import ops
    from torch_pruning.dependency.index_mapping import _FlattenIndexMapping

    links = [link for node in graph.module2node.values() for link in node.dependencies]
    for link in links:
        if isinstance(link.index_mapping[0], _FlattenIndexMapping):
            link.index_mapping[0] = None
    for link in links:
        for reshape, other, reverse in ((link.source, link.target, True), (link.target, link.source, False)):
            if (
                reshape.type == ops.OPTYPE.RESHAPE
                and other in reshape.inputs
                and (stride := _joined(reshape.grad_fn)) > 1
            ):
                link.index_mapping[0] = _FlattenIndexMapping(stride, reverse)


def _joined(reshape: Any) -> int:
    """How many entries flattening a feature map makes of a channel; 1 of any other reshape."""
    before, number = reshape.next_functions[0]
    shape, flat = before._input_metadata[number].shape, reshape._input_metadata[0].shape
    return math.prod(shape[2:]) if len(shape) == 4 and flat[1:] == (math.prod(shape[1:]),) else 1


def _bare_parameters(model: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Parameters of our own modules that no layer holds, with their axis of channels."""
    layers = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU)
    for module in model.modules():
        if isinstance(module, layers) or not type(module).__module__.startswith("vigcli"):
            continue
        for parameter in module.parameters(recurse=False):
            axis = max(parameter.dim() - 3, 0)  # (C,), (C, H, W) or (1, C, H, W)
            if parameter.shape[axis] > 1:
                yield parameter, axis


def _grouped_linear(torch_pruning: Any) -> Any:
    """Tells Torch-Pruning the channels of a `GroupedLinear`, which keeps its weights apart."""

    class GroupedLinearPruner(torch_pruning.BasePruningFunc):
        def prune_out_channels(self, layer: nn.Module, idxs: Any) -> nn.Module:
            raise NotImplementedError

        def prune_in_channels(self, layer: nn.Module, idxs: Any) -> nn.Module:
            raise NotImplementedError

        def get_out_channels(self, layer: GroupedLinear) -> int:
            return sum(head.out_features for head in layer.heads)

        def get_in_channels(self, layer: GroupedLinear) -> int:
            return sum(head.in_features for head in layer.heads)

    return GroupedLinearPruner()


def _sides(graph: Any) -> dict[Any, Place]:
    """By node and pruning function: the layers whose tensors lose channels, and on which side; at index 0."""
    sides: dict[Any, Place] = {}
    for node, pruner in _layers(graph):
        if isinstance(node.module, nn.Parameter):
            name = graph._param_to_name[node.module]
            sides[node, pruner.prune_out_channels] = Place(name, "both", 0, node.pruning_dim % node.module.dim())
        elif pruner.prune_out_channels == pruner.prune_in_channels:
            sides[node, pruner.prune_out_channels] = Place(graph._module2name[node.module], "both", 0)
        else:
            sides[node, pruner.prune_out_channels] = Place(graph._module2name[node.module], "out", 0)
            sides[node, pruner.prune_in_channels] = Place(graph._module2name[node.module], "in", 0)
    return sides


def _layers(graph: Any) -> Iterator[tuple[Any, Any]]:
    """The nodes that have tensors, and what Torch-Pruning prunes each by."""
    for node in graph.module2node.values():
        named = isinstance(node.module, nn.Parameter) or node.module in graph._module2name
        if named and (isinstance(node.module, nn.Parameter) or node.module.state_dict()):
            yield node, graph.get_pruner_of_module(node.module)


def _components(graph: Any) -> dict[Any, Any]:
    """Every channel (node, pruning function, index) with one that stands for all that are coupled with it."""
    from torch_pruning._helpers import _HybridIndex

    parent: dict[Any, Any] = {}

    def find(x: Any) -> Any:
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    def new(node: Any, handler: Any, indices: Iterable[int]) -> list[int]:
        added = [i for i in dict.fromkeys(indices) if (node, handler, i) not in parent]
        parent.update({(node, handler, i): (node, handler, i) for i in added})
        return added

    waiting = [(*side, new(*side, range(count))) for side, count in _widths(graph)]
    while waiting:
        node, handler, indices = waiting.pop()
        for link in node.dependencies if indices else ():
            if not link.is_triggered_by(handler):
                continue
            mapped = [_HybridIndex(idx=i, root_idx=i) for i in indices]
            for mapping in link.index_mapping:
                mapped = mapping(mapped) if mapping is not None else mapped
            added = new(link.target, link.handler, (x.idx for x in mapped))
            waiting.append((link.target, link.handler, added))
            for x in mapped:
                one, other = find((node, handler, x.root_idx)), find((link.target, link.handler, x.idx))
                parent[other] = one
    return {x: find(x) for x in parent}


def _widths(graph: Any) -> Iterator[tuple[tuple[Any, Any], int]]:
    """The channels of every layer on either side."""
    for node, pruner in _layers(graph):
        yield (node, pruner.prune_out_channels), graph.get_out_channels(node) or 0
        yield (node, pruner.prune_in_channels), graph.get_in_channels(node) or 0


# ---------------------------------------------------------------------------------------------------- tensors


class Axis(NamedTuple):
    """An axis of a tensor whose entries are channels; `groups` above 1 are those of a convolution, whose weight has
    the input channels of one group alone."""

    tensor: str
    dim: int
    groups: int = 1


def width_of_group(layer: GroupedLinear, side: str) -> int:
    """Channels of one of its linear layers, which are all alike."""
    heads: Any = layer.heads
    return heads[0].in_features if side == "in" else heads[0].out_features


def entries_of(layers: Mapping[str, Any], place: Place) -> Iterator[tuple[Axis, int]]:
    """Where a channel is in the tensors of its layer, one of the `layers` by name: the axes, and the entry of each."""
    layer = layers.get(place.layer)
    if layer is None:  # a bare parameter
        yield Axis(place.layer, place.dim), place.channel
        return
    reads = place.side == "in"
    if isinstance(layer, GroupedLinear):
        width = width_of_group(layer, place.side)
        part = f"{place.layer}.heads.{place.channel // width}"
        yield from entries_of(layers, Place(part, place.side, place.channel % width))
        return
    is_transposed = isinstance(layer, _ConvTransposeNd)
    groups = layer.groups if reads and isinstance(layer, _ConvNd) else 1
    yield Axis(f"{place.layer}.weight", int(reads != is_transposed), groups), place.channel
    for other in () if reads else ("bias", "running_mean", "running_var"):
        if isinstance(getattr(layer, other, None), Tensor):
            yield Axis(f"{place.layer}.{other}", 0), place.channel

"""Whether channels were told apart rightly: a network whose channels change places, in all their places, is the same.

What a dependency graph leaves out, adds, or takes for another channel shows in the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vigcli.archs import build
from vigcli.compress.channels import HINT, Axis
from vigcli.config.archs import ArchConfig
from vigcli.errors import ConfigError
from vigcli.nn.decisions import given_decisions, noted_decisions

if TYPE_CHECKING:
    from vigcli.compress.groups import Group

TOLERANCE = 1e-6  # of logits in float64; they are within 1e-14 where channels are right


def check_channels(config: ArchConfig, groups: Sequence[Group], owners: Mapping[Axis, Tensor]) -> None:
    """Raise ConfigError naming the first layer whose channels are not those that they were taken for."""
    if exchange_error(config, groups, owners) < TOLERANCE:
        return
    wrong = next(group for group in groups if not exchange_error(config, [group], owners) < TOLERANCE)
    raise ConfigError(f"Torch-Pruning does not see where the channels of {wrong.name} go.", HINT)


@torch.no_grad()
def exchange_error(config: ArchConfig, groups: Sequence[Group], owners: Mapping[Axis, Tensor]) -> float:
    """How far logits move, relative to the largest, when units of the groups change places within their sections."""
    model = _with_distinct_weights(config)
    generator = torch.Generator().manual_seed(0)
    rank = torch.arange(max(int(units.max()) for units in owners.values()) + 2)  # the last is for entries of no unit
    for group in groups:
        numbers = rank[group.first : group.first + group.num_units].view(group.sections, -1)
        for section in numbers:
            section.copy_(section[torch.randperm(len(section), generator=generator)])
    tensors = dict(model.state_dict())
    for axis, units in owners.items():
        units = units.remainder(len(rank))
        source = torch.empty_like(units)
        source[units.argsort(stable=True)] = rank[units].argsort(stable=True)
        tensors[axis.tensor] = _reordered(tensors[axis.tensor], axis, source)
    images = torch.randn(1, config.in_chans, config.resolution, config.resolution, generator=generator).double()
    other = build(config).double().eval()
    other.load_state_dict(tensors)
    with noted_decisions(model) as decisions:
        expected = model(images)
    with given_decisions(other, decisions):
        return float((other(images) - expected).abs().max() / expected.abs().max())


def _with_distinct_weights(config: ArchConfig) -> nn.Module:
    """In float64 and about as drawn, but no two channels alike: new norms and layer scales all are."""
    model = build(config).double().eval()
    generator = torch.Generator().manual_seed(1)
    for tensor in (*model.parameters(), *(x for x in model.buffers() if x.is_floating_point())):
        if tensor.requires_grad or not isinstance(tensor, nn.Parameter):
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.mul_(1 + 0.2 * noise).add_(0.02 * noise.flip(0))
    return model


def _reordered(tensor: Tensor, axis: Axis, source: Tensor) -> Tensor:
    if axis.groups == 1:
        return tensor.index_select(axis.dim, source)
    within = (source % tensor.shape[1]).chunk(axis.groups)
    return torch.cat([part.index_select(1, own) for part, own in zip(tensor.chunk(axis.groups), within, strict=True)])


def check_runs(config: ArchConfig) -> None:
    """Raise ConfigError naming the module that does not run with fewer channels."""
    network = build(config, device="meta").eval()
    running: list[str] = []

    def enter(name: str) -> None:
        running.append(name)

    for name, module in network.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: enter(name))
        module.register_forward_hook(lambda *_: running.pop() and None)
    try:
        with torch.no_grad():
            network(torch.empty(1, config.in_chans, config.resolution, config.resolution, device="meta"))
    except (RuntimeError, ValueError, LookupError, AssertionError) as error:
        raise ConfigError(f"{running[-1]} does not run with fewer channels.", HINT) from error

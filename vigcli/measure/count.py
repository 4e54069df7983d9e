"""Parameter counts in the forms that matter, without allocating a weight."""

from __future__ import annotations

import contextlib
import functools
import io
from typing import NamedTuple

import torch
from torch import nn

from vigcli.archs import build, build_block, inference_form
from vigcli.archs.network import entering_chans
from vigcli.config.archs import ArchConfig, BlockSpec, TimmConfig
from vigcli.latency.trace import OpTrace
from vigcli.measure.memory import peak_bytes
from vigcli.measure.trace import op_trace, record, trace
from vigcli.nn.deploy import deploy


class ParamCounts(NamedTuple):
    """Parameters: in training, those that learn, at inference as papers count (one head, norms kept), and deployed."""

    total: int
    trainable: int
    inference: int
    deployed: int


def num_params(model: nn.Module) -> int:
    """Parameters of a module, buffers left out."""
    return sum(parameter.numel() for parameter in model.parameters())


def num_trainable(model: nn.Module) -> int:
    """Parameters that a training may change: those that are not frozen."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_params(config: ArchConfig) -> ParamCounts:
    """The counts of a network: the sums over its blocks."""
    if isinstance(config, TimmConfig):
        model = build(config, device="meta")
        deployed = num_params(inference_form(config, model))
        return ParamCounts(num_params(model), num_trainable(model), deployed, deployed)
    blocks = [count_block(config.family, spec).params for spec in config.blocks()]
    return ParamCounts(*map(sum, zip(*blocks, strict=True)))


def thop_macs(config: ArchConfig) -> int:
    """MACs by thop on the training form, for comparison: it adds batch norm and misses functional matmul."""
    import thop

    model = build(config, device="meta")
    shape = (1, config.in_chans, config.resolution, config.resolution)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a line for each module type
        macs, _ = thop.profile(model.eval(), (torch.empty(shape, device="meta"),), verbose=False)
    return int(macs)


class BlockCount(NamedTuple):
    """One block by itself: its parameters, what its deployed form runs, and the activations that are then in memory."""

    spec: BlockSpec
    params: ParamCounts
    deployed: OpTrace
    peak_bytes: int


def count_block(family: str, spec: BlockSpec) -> BlockCount:
    """Count and trace one block, on the meta device."""
    return _count_block(family, spec.counted())


@functools.lru_cache(maxsize=4096)
def _count_block(family: str, spec: BlockSpec) -> BlockCount:
    block = nn.Sequential(build_block(family, spec, "meta"))  # in a container, so that it can be replaced
    deployed = deploy(block)
    inference = num_params(deploy(block, keep_norm=True))
    params = ParamCounts(num_params(block), num_trainable(block), inference, num_params(deployed))
    calls = record(deployed, _entering(block, spec))
    return BlockCount(spec, params, op_trace(calls), peak_bytes(calls))


def training_trace(family: str, spec: BlockSpec) -> OpTrace:
    """What a block runs with both heads, as scores count it."""
    return _training_trace(family, spec.counted())


@functools.lru_cache(maxsize=4096)
def _training_trace(family: str, spec: BlockSpec) -> OpTrace:
    block = build_block(family, spec, "meta")
    return trace(block, _entering(block, spec))


def _entering(block: nn.Module, spec: BlockSpec) -> tuple[int, ...]:
    """(C, H, W) that enters a block: with fewer channels than `in_shape` says where those before it are pruned."""
    return (entering_chans(block), *spec.in_shape[1:]) if spec.pruned else spec.in_shape


class BuiltCount(NamedTuple):
    """A network built whole, with its weights: parameters in training and deployed, MACs of the deployed form."""

    total: int
    deployed: int
    macs: int


def count_built(config: ArchConfig) -> BuiltCount:
    """Count a network that was really built, as a check on what is summed over blocks without building it."""
    model = build(config)
    network = inference_form(config, model)
    runs = trace(network, (config.in_chans, config.resolution, config.resolution))
    return BuiltCount(num_params(model), num_params(network), runs.macs)

"""What a run trains: the network with its start, copies for other resolutions and processes, average and optimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vigcli.archs import build
from vigcli.config.recipe import Recipe
from vigcli.errors import UnavailableError
from vigcli.train.check import frozen_parts
from vigcli.train.distributed import World
from vigcli.train.scales import Scales, at_resolutions
from vigcli.train.schedule import make_optimizer
from vigcli.train.start import start_from
from vigcli.train.state import State, fixed_of

Form = Callable[[nn.Module], nn.Module]
"""A network -> what computes in its place with its weights, in training and in evaluation."""


def itself(network: nn.Module) -> nn.Module:
    """The form of a network that computes as it is."""
    return network


def prepared(
    recipe: Recipe,
    labels: tuple[str, ...],
    num_train: int,
    device: str,
    world: World,
    resume: bool,
    form: Form = itself,
) -> tuple[State, nn.Module, list[nn.Module]]:
    """What is trained: its state, the module that computes with it in all processes, and the frozen parts of that.

    With `resume` the state is about to be restored, and the weights that the run started from are not asked for again.
    """
    config = recipe.arch_config()

    def placed(model: nn.Module) -> nn.Module:
        memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        return model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]

    def synchronized(model: nn.Module) -> nn.Module:
        return convert_sync_batchnorm(model) if recipe.sync_batch_norm and world.size > 1 else model

    if recipe.sync_batch_norm and world.size > 1 and torch.device(device).type != "cuda":
        raise UnavailableError("sync_batch_norm: torch's SyncBatchNorm works on CUDA alone.", "Set it to false.")
    model = build(config, seed=recipe.seed)
    if recipe.weights is not None and not resume:
        start_from(model, config, recipe.weights, labels)
    model = placed(model).train()
    ema = ModelEmaV3(model, recipe.ema_decay) if recipe.ema_decay is not None else None
    model = synchronized(model)
    others = {
        resolution: synchronized(placed(other))
        for resolution, other in at_resolutions(map(recipe.arch_config, recipe.other_resolutions)).items()
    }
    network = Scales(model, others) if others else form(model)
    frozen = [part for each in (model, *others.values()) for part in frozen_parts(recipe, each)]
    for part in frozen:
        part.requires_grad_(False)
    if world.size > 1:
        network = DistributedDataParallel(network)
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=recipe.precision == "fp16")
    fixed = fixed_of(recipe, labels, num_train)
    return State(fixed, model, ema, make_optimizer(recipe, model), scaler), network, frozen

"""What channels are worth: criteria that give every unit of every group a number, of all weights that it has.

Higher is worth more. `taylor` and `hessian` estimate what the loss loses, and compare units of any groups. The others
look at weights alone, whose sizes differ from layer to layer: they are ratios to the mean of their group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigcli.compress.channels import Axis
from vigcli.nn.heads import mean_of_heads

Batches = Iterable[tuple[Tensor, Tensor]]
"""Prepared images (B, 3, R, R) and what `cross_entropy` takes as targets, on the network's device."""
Owners = Mapping[Axis, Tensor]
"""By axis: the number of the unit that every entry belongs to, -1 for none."""


def _magnitude(model: nn.Module, owners: Owners, num_units: int, batches: Batches | None) -> Tensor:
    return totals({name: p.detach().abs() for name, p in model.named_parameters()}, owners, num_units)


def _group_norm(model: nn.Module, owners: Owners, num_units: int, batches: Batches | None) -> Tensor:
    return totals({name: p.detach().square() for name, p in model.named_parameters()}, owners, num_units).sqrt()


def _bn_scale(model: nn.Module, owners: Owners, num_units: int, batches: Batches | None) -> Tensor:
    norms = nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm
    layers = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, norms)}
    factors = {name: p.detach().abs() for name, p in model.named_parameters() if name in layers}
    passed = totals({name: torch.ones_like(factor) for name, factor in factors.items()}, owners, num_units)
    scales = totals(factors, owners, num_units)
    return torch.where(passed > 0, scales, _magnitude(model, owners, num_units, None))


def _of_gradients(
    score: Callable[[Tensor, Tensor], Tensor], finish: Callable[[Tensor], Tensor]
) -> Callable[..., Tensor]:
    def importance(model: nn.Module, owners: Owners, num_units: int, batches: Batches | None) -> Tensor:
        assert batches is not None
        found, count, was_training = torch.zeros(num_units), 0, model.training
        model.eval()  # or batch norm would count the pictures
        for images, targets in batches:
            model.zero_grad(set_to_none=True)
            F.cross_entropy(mean_of_heads(model(images)), targets).backward()
            scores = {n: score(p.detach(), p.grad) for n, p in model.named_parameters() if p.grad is not None}
            found, count = found + finish(totals(scores, owners, num_units)), count + 1
        model.train(was_training).zero_grad(set_to_none=True)
        return found / max(count, 1)

    return importance


class Criterion(NamedTuple):
    """A way to judge channels."""

    what: str
    importance: Callable[..., Tensor]  # (model, owners, num_units, batches) -> (num_units,)
    needs_batches: bool = False


CRITERIA = {
    "magnitude": Criterion("the sum of the weights' sizes", _magnitude),
    "bn_scale": Criterion(
        "the factors of the norms that the channels pass (of weights, where there are none)", _bn_scale
    ),
    "taylor": Criterion(
        "first-order change of the loss without the channels (arXiv:1906.10771)",
        _of_gradients(torch.mul, torch.abs),
        True,
    ),
    "hessian": Criterion(
        "second-order change of the loss, with the squares of the batches' gradients for the Hessian's diagonal",
        _of_gradients(lambda weight, grad: (weight * grad).square() / 2, lambda x: x),
        True,
    ),
    "group_norm": Criterion("the root of the sum of the weights' squares (arXiv:2301.12900)", _group_norm),
}


def totals(scores: Mapping[str, Tensor], owners: Owners, num_units: int) -> Tensor:
    """The sums of scores, of the shapes of their tensors, over the weights of every unit: (num_units,)."""
    found = torch.zeros(num_units + 1)  # the last is of what belongs to no unit
    for axis, units in owners.items():
        if axis.tensor in scores:
            found.index_add_(0, units.remainder(num_units + 1), _of_entries(scores[axis.tensor], axis).float().cpu())
    return found[:-1]


def _of_entries(score: Tensor, axis: Axis) -> Tensor:
    """The sum of every entry of an axis."""
    if axis.groups > 1:  # (out, in / groups, ...) -> (groups, in / groups)
        return score.unflatten(0, (axis.groups, -1)).transpose(1, 2).flatten(2).sum(2).flatten()
    return score.transpose(0, axis.dim).flatten(1).sum(1) if score.dim() > 1 else score

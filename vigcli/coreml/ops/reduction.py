"""From many numbers to few: reductions, sums along an axis, sorting, the largest k, and the class label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vigcli.coreml.ops.registry import op


def _product(x: Tensor, axes: list[int], keep_dims: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keep_dims)
    return x


REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keep),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "reduce_log_sum_exp": torch.logsumexp,  # the greatest taken out first, as the documentation asks
    "reduce_mean": torch.mean,
    "reduce_prod": _product,
    "reduce_sum": torch.sum,
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keep),
}
REDUCTIONS_EXACT: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "reduce_max": torch.amax,
    "reduce_min": torch.amin,
}


def _reduction(name: str, function: Callable[[Tensor, list[int], bool], Tensor], exact: bool) -> None:
    @op(name, exact=exact)
    def run(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
        result = function(x, list(range(x.dim())) if axes is None else axes, keep_dims)
        return result if x.is_floating_point() else result.to(x.dtype)  # torch would widen whole numbers


for _exact, _table in ((False, REDUCTIONS), (True, REDUCTIONS_EXACT)):
    for _name, _function in _table.items():
        _reduction(_name, _function, _exact)


@op("reduce_argmax", exact=True)
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Of equals the first, as torch's and numpy's; the documentation does not say."""
    return x.argmax(axis, keep_dims).int()


@op("reduce_argmin", exact=True)
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return x.argmin(axis, keep_dims).int()


@op("cumsum")
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """exclusive: without the number itself. reverse: from the last to the first."""
    y = x.flip(axis) if reverse else x
    y = y.cumsum(axis).to(x.dtype) - y if exclusive else y.cumsum(axis).to(x.dtype)
    return y.flip(axis) if reverse else y


@op("argsort", exact=True)
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """Equals stay in order; the documentation does not say."""
    return torch.sort(x, dim=axis, descending=not ascending, stable=True).indices.int()


@op("topk", exact=True)
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:
    """Of equals the first; the documentation does not say, and torch.topk leaves it open. -1 takes all."""
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    count = x.shape[axis] if k == -1 else k
    chosen = values.narrow(axis, 0, count), indices.narrow(axis, 0, count).int()
    return chosen if return_indices else chosen[:1]


@op("classify")
def classify(probabilities: Tensor, classes: Any) -> tuple[Any, dict[Any, float]]:
    """Of equals the first; the labels are texts, or whole numbers."""
    labels = [label.item() if isinstance(label, Tensor) else label for label in classes]
    scores = dict(zip(labels, probabilities.flatten().tolist(), strict=True))
    return max(scores, key=scores.__getitem__), scores

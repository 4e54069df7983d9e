"""From many numbers to few: reductions, the largest k, and the class label."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vigcli.coreml.ops.registry import op


def reduced_axes(x: Tensor, axes: list[int] | None) -> list[int]:
    return list(range(x.dim())) if axes is None else axes


@op("reduce_mean")
def reduce_mean(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return x.mean(reduced_axes(x, axes), keep_dims)


@op("reduce_sum")
def reduce_sum(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return x.sum(reduced_axes(x, axes), keep_dims)


@op("reduce_max")
def reduce_max(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return x.amax(reduced_axes(x, axes), keep_dims)


@op("reduce_min")
def reduce_min(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return x.amin(reduced_axes(x, axes), keep_dims)


@op("reduce_sum_square")
def reduce_sum_square(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return x.square().sum(reduced_axes(x, axes), keep_dims)


@op("reduce_l2_norm")
def reduce_l2_norm(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return reduce_sum_square(x, axes, keep_dims).sqrt()


@op("reduce_argmax")
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return x.argmax(axis, keep_dims).int()


@op("reduce_argmin")
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return x.argmin(axis, keep_dims).int()


@op("topk")
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:
    # A stable sort decides ties by position; torch.topk leaves them open.
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    chosen = values.narrow(axis, 0, k), indices.narrow(axis, 0, k).int()
    return chosen if return_indices else chosen[:1]


@op("classify")
def classify(probabilities: Tensor, classes: Any) -> tuple[Any, dict[Any, float]]:
    labels = classes.tolist() if isinstance(classes, Tensor) else classes
    scores = dict(zip(labels, probabilities.flatten().tolist(), strict=True))
    return max(scores, key=scores.__getitem__), scores

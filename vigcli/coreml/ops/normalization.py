"""Normalization by stored or by measured statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vigcli.coreml.ops.registry import op


@op("batch_norm")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, training=False, eps=epsilon)


@op("instance_norm")
def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=gamma, bias=beta, eps=epsilon)


@op("layer_norm")
def layer_norm(
    x: Tensor,
    axes: list[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """The variance is that of all elements (divided by their number), and epsilon stands under the root."""
    normalized = sorted(axis % x.dim() for axis in axes) if axes is not None else list(range(x.dim()))
    sizes = [x.shape[axis] for axis in normalized]
    if normalized == list(range(x.dim() - len(sizes), x.dim())):
        return F.layer_norm(x, sizes, gamma, beta, epsilon)
    variance, mean = torch.var_mean(x, normalized, correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + epsilon)
    broadcast = [size if axis in normalized else 1 for axis, size in enumerate(x.shape)]
    if gamma is not None:
        y = y * gamma.reshape(broadcast)
    return y if beta is None else y + beta.reshape(broadcast)


@op("l2_norm")
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Over the last three dimensions together; epsilon is added to the sum of squares."""
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


@op("local_response_norm")
def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """torch's: of an even size one channel more lies before than behind. The documentation does not say."""
    return F.local_response_norm(x, size, alpha, beta, k)

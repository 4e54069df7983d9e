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
    normalized = sorted(axis % x.dim() for axis in axes) if axes is not None else list(range(x.dim()))
    variance, mean = torch.var_mean(x, normalized, correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + epsilon)
    broadcast = [size if axis in normalized else 1 for axis, size in enumerate(x.shape)]
    if gamma is not None:
        y = y * gamma.reshape(broadcast)
    return y if beta is None else y + beta.reshape(broadcast)

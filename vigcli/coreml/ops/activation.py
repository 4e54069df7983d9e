"""Activation functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vigcli.coreml.ops.registry import op


def by_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """One number a channel, ready to broadcast against (B, C, ...)."""
    return parameter.reshape(-1, *[1] * (x.dim() - 2))


@op("relu", exact=True)
def relu(x: Tensor) -> Tensor:
    return F.relu(x)


@op("relu6", exact=True)
def relu6(x: Tensor) -> Tensor:
    return F.relu6(x)


@op("leaky_relu")
def leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@op("thresholded_relu", exact=True)
def thresholded_relu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where x >= alpha, with the equality that the documentation has and torch's threshold has not."""
    return torch.where(x >= alpha, x, 0.0)


@op("clamped_relu")
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.where(x >= 0, x, alpha * x).clamp(max=beta)


@op("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return F.prelu(x, alpha)


@op("elu")
def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@op("linear_activation")
def linear_activation(x: Tensor, alpha: float, beta: float = 0.0) -> Tensor:
    return alpha * x + beta


@op("sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@op("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return (x * alpha + beta).clamp(0, 1)


@op("silu")
def silu(x: Tensor) -> Tensor:
    return F.silu(x)


@op("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """The formulas of the documentation. What a device computes for EXACT is not known: an approximation is likely."""
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"unknown gelu mode '{mode}'")


@op("tanh")
def tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


@op("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    return alpha * torch.tanh(beta * x)


@op("softplus")
def softplus(x: Tensor) -> Tensor:
    return F.softplus(x)


@op("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return by_channel(alpha, x) * F.softplus(by_channel(beta, x) * x)


@op("softsign")
def softsign(x: Tensor) -> Tensor:
    return F.softsign(x)


@op("softmax")
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)

"""Convolution, pooling and matrix products: what slides over an image or mixes its channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vigcli.coreml.ops.registry import affordable, op


def spatial_padding(x: Tensor, pad_type: str, pad: list[int], kernel: list[int], step: list[int]) -> list[int]:
    """(before, after) of every spatial dimension, the first dimension first; `step` is the stride.

    `same` makes ceil(size / stride) windows and, of an odd number of zeros, puts one more behind; `same_lower` before
    (coremltools' `aggregated_pad`, which follows TensorFlow).
    """
    if pad_type == "valid":
        return [0] * (2 * len(kernel))
    if pad_type == "custom":
        if len(pad) != 2 * len(kernel):
            raise ValueError(f"{len(pad)} numbers of padding where {2 * len(kernel)} are due")
        return pad
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"unknown padding '{pad_type}'")
    padding = []
    for size, extent, stride in zip(x.shape[2:], kernel, step, strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        less, more = total // 2, total - total // 2
        padding += [less, more] if pad_type == "same" else [more, less]
    return padding


def padded_sizes(x: Tensor, padding: list[int]) -> list[int]:
    return [size + sum(padding[2 * i : 2 * i + 2]) for i, size in enumerate(x.shape[2:])]


def pad_spatially(x: Tensor, padding: list[int], value: float = 0.0) -> Tensor:
    affordable(*x.shape[:2], *padded_sizes(x, padding))
    return F.pad(x, torch_order(padding), value=value) if any(padding) else x


def torch_order(padding: list[int]) -> list[int]:
    """torch names the last dimension first."""
    return [side for i in range(len(padding) - 2, -1, -2) for side in padding[i : i + 2]]


def as_symmetric(padding: list[int]) -> list[int] | None:
    """One number a dimension, which torch can apply inside its kernels; None for uneven padding."""
    before, after = padding[0::2], padding[1::2]
    return before if before == after else None


@op("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    rank = x.dim() - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    extent = [(size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], dilations, strict=True)]
    padding = spatial_padding(x, pad_type, pad or [0] * (2 * rank), extent, strides)
    windows = [size // stride + 1 for size, stride in zip(padded_sizes(x, padding), strides, strict=True)]
    affordable(x.shape[0], weight.shape[0], *windows)
    inside = as_symmetric(padding)
    if inside is None:
        x, inside = pad_spatially(x, padding), [0] * rank
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
    return convolve(x, weight, bias, strides, inside, dilations, groups)


@op("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: list[int] | None = None,
    output_shape: list[int] | None = None,
    pad_type: str = "valid",
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Padding takes away from the whole result; a larger `output_shape`, which stands for torch's output padding, adds
    places behind that no input reaches. What `same` takes away is nowhere written down."""
    rank = x.dim() - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    if pad_type not in ("valid", "custom"):
        raise ValueError(f"padding '{pad_type}' of a transposed convolution is not supported")
    padding = pad if pad and pad_type == "custom" else [0] * (2 * rank)
    spans = zip(x.shape[2:], weight.shape[2:], strides, dilations, strict=True)
    whole = [(n - 1) * stride + (k - 1) * dilation + 1 for n, k, stride, dilation in spans]
    due = output_shape[2:] if output_shape else [n - sum(padding[2 * i : 2 * i + 2]) for i, n in enumerate(whole)]
    for sizes in (whole, due):
        affordable(x.shape[0], weight.shape[1] * groups, *sizes)
    convolve = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[rank]
    y = convolve(x, weight, None, strides, 0, 0, groups, dilations)
    sides = [side for i, n in enumerate(whole) for side in (-padding[2 * i], due[i] + padding[2 * i] - n)]
    y = F.pad(y, torch_order(sides))
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


def pool(
    functions: Mapping[int, Callable[..., Tensor]],
    x: Tensor,
    kernel: list[int],
    strides: list[int] | None,
    pad_type: str,
    pad: list[int] | None,
    ceil_mode: bool,
    value: float,
    **options: Any,
) -> Tensor:
    """Padding that torch can apply inside its kernels is left to it: with `ceil_mode`, which is defined as torch's, its
    last window may not start in the padding behind."""
    strides = strides or [1] * len(kernel)
    padding = spatial_padding(x, pad_type, pad or [0] * (2 * len(kernel)), kernel, strides)
    inside = as_symmetric(padding)
    if inside is None or any(2 * side > size for side, size in zip(inside, kernel, strict=True)):
        if ceil_mode:
            raise ValueError("ceil_mode with uneven or wide padding is not supported")
        x, inside = pad_spatially(x, padding, value), [0] * len(kernel)
    return functions[len(kernel)](x, kernel, strides, inside, ceil_mode=ceil_mode, **options)


@op("max_pool", exact=True)
def max_pool(
    x: Tensor,
    kernel_sizes: list[int],
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    functions = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
    return pool(functions, x, kernel_sizes, strides, pad_type, pad, ceil_mode, -math.inf)


@op("avg_pool")
def avg_pool(
    x: Tensor,
    kernel_sizes: list[int],
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Padding counts unless it is excluded; places beyond it, which `ceil_mode` reaches, never do (so torch)."""
    functions = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
    how = (kernel_sizes, strides, pad_type, pad, ceil_mode, 0.0)
    mean = pool(functions, x, *how)
    if not exclude_padding_from_average:
        return mean
    return mean / pool(functions, torch.ones_like(x[:1, :1]), *how)


@op("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    affordable(*x.shape[:-1], weight.shape[0])
    return F.linear(x, weight, bias)


@op("matmul")
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    x, y = x.mT if transpose_x else x, y.mT if transpose_y else y
    affordable(
        *torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]), *x.shape[-2:-1], *(y.shape[-1:] if y.dim() > 1 else ())
    )
    return torch.matmul(x, y)


@op("einsum")
def einsum(values: list[Tensor], equation: str) -> Tensor:
    """Two operands, every letter named; where their sizes of a letter differ one of them is 1."""
    operands, arrow, result = equation.replace(" ", "").partition("->")
    names = operands.split(",")
    if not arrow or len(values) != 2 or [len(name) for name in names] != [value.dim() for value in values]:
        raise ValueError(f"'{equation}' does not fit its operands")
    sizes: dict[str, int] = {}
    for name, value in zip(names, values, strict=True):
        for letter, size in zip(name, value.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    affordable(*(sizes[letter] for letter in result))
    return torch.einsum(equation, *values)


@op("scaled_dot_product_attention")
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(E) + mask) V, of which the documentation says that it is torch's."""
    affordable(*torch.broadcast_shapes(query.shape[:-2], key.shape[:-2]), query.shape[-2], key.shape[-2])
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)

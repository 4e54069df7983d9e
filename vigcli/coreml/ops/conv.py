"""Convolution, pooling, matrix products and resizing: what slides over an image or mixes its channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vigcli.coreml.ops.registry import op


def spatial_padding(x: Tensor, pad_type: str, pad: list[int], kernel: list[int], step: list[int]) -> list[int]:
    """(before, after) of every spatial dimension, the first dimension first; `step` is the stride."""
    if pad_type == "valid":
        return [0] * (2 * len(kernel))
    if pad_type == "custom":
        return pad
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"unknown padding '{pad_type}'")
    padding = []
    for size, extent, stride in zip(x.shape[2:], kernel, step, strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        less, more = total // 2, total - total // 2
        padding += [less, more] if pad_type == "same" else [more, less]
    return padding


def pad_spatially(x: Tensor, padding: list[int], value: float = 0.0) -> Tensor:
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
    inside = as_symmetric(padding)
    if inside is None:
        x, inside = pad_spatially(x, padding), [0] * rank
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
    return convolve(x, weight, bias, strides, inside, dilations, groups)


@op("max_pool")
def max_pool(
    x: Tensor,
    kernel_sizes: list[int],
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    strides = strides or [1] * len(kernel_sizes)
    padding = spatial_padding(x, pad_type, pad or [0] * (2 * len(kernel_sizes)), kernel_sizes, strides)
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(kernel_sizes)]
    return pool(pad_spatially(x, padding, float("-inf")), kernel_sizes, strides, ceil_mode=ceil_mode)


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
    strides = strides or [1] * len(kernel_sizes)
    padding = spatial_padding(x, pad_type, pad or [0] * (2 * len(kernel_sizes)), kernel_sizes, strides)
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel_sizes)]
    mean = pool(pad_spatially(x, padding), kernel_sizes, strides, ceil_mode=ceil_mode)
    if exclude_padding_from_average and any(padding):
        inside = pad_spatially(torch.ones_like(x[:1, :1]), padding)
        mean = mean / pool(inside, kernel_sizes, strides, ceil_mode=ceil_mode)
    return mean


@op("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


@op("matmul")
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    return torch.matmul(x.mT if transpose_x else x, y.mT if transpose_y else y)


@op("scaled_dot_product_attention")
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)


@op("upsample_nearest_neighbor")
def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    height, width = round(x.shape[2] * scale_factor_height), round(x.shape[3] * scale_factor_width)
    return F.interpolate(x, (height, width), mode="nearest")


@op("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    if half_pixel_centers is not None and half_pixel_centers == align_corners:
        raise ValueError("this grid of bilinear upsampling is not supported")
    height, width = round(x.shape[2] * scale_factor_height), round(x.shape[3] * scale_factor_width)
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=align_corners)


@op("resize_bilinear")
def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    modes = {"STRICT_ALIGN_CORNERS": True, "ALIGN_CORNERS": True, "UNALIGN_CORNERS": False}
    if sampling_mode not in modes:
        raise ValueError(f"sampling mode '{sampling_mode}' is not supported")
    size = (target_size_height, target_size_width)
    return F.interpolate(x, size, mode="bilinear", align_corners=modes[sampling_mode])

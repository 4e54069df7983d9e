"""Resizing of the last two dimensions on the grids of points that the documentation of `resize_bilinear` spells out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vigcli.coreml.ops.registry import affordable, op


def grid(size_in: int, size_out: int, mode: str) -> Tensor:
    """Where each of size_out points lies among size_in, not yet kept within them."""
    i = torch.arange(size_out, dtype=torch.float64)
    if mode == "DEFAULT":
        return i * (size_in / size_out)  # their spacing (Xin - Xin / Xout) / (Xout - 1) is this
    if mode == "UNALIGN_CORNERS":
        return (i + 0.5) * (size_in / size_out) - 0.5
    if mode == "OFFSET_CORNERS":
        return (i + 0.5) * (max(1, size_in - 1) / size_out)
    if mode == "ALIGN_CORNERS" and size_out == 1:
        return i + (size_in - 1) / 2
    if mode in ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS"):
        return i * ((size_in - 1) / max(size_out - 1, 1))
    raise ValueError(f"unknown sampling mode '{mode}'")


def interpolation(size_in: int, size_out: int, mode: str) -> Tensor:
    """(size_out, size_in): the share of each number in each point."""
    points = grid(size_in, size_out, mode).clamp(0, size_in - 1)
    left = points.floor().long()
    share = points - left
    matrix = torch.zeros(size_out, size_in, dtype=torch.float64)
    rows = torch.arange(size_out)
    matrix[rows, left] += 1 - share
    matrix[rows, (left + 1).clamp(max=size_in - 1)] += share
    return matrix.float()


def bilinear(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    affordable(*x.shape[:-2], height, max(width, x.shape[-1]))
    affordable(height, x.shape[-2])
    affordable(width, x.shape[-1])
    rows, columns = interpolation(x.shape[-2], height, mode), interpolation(x.shape[-1], width, mode)
    return rows @ x @ columns.mT


def nearest(x: Tensor, height: int, width: int) -> Tensor:
    """The point at floor(i Xin / Xout), as torch's; the documentation names no grid, and front ends convert torch's."""
    affordable(*x.shape[:-2], height, max(width, x.shape[-1]))
    rows, columns = torch.arange(height) * x.shape[-2] // height, torch.arange(width) * x.shape[-1] // width
    return x.index_select(-2, rows).index_select(-1, columns)


def scaled(size: int, factor: float) -> int:
    """floor(size x factor) in float32, as coremltools infers the shape."""
    return int(np.floor(np.float32(factor) * np.float32(size)))


@op("upsample_nearest_neighbor", exact=True)
def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    return nearest(x, scaled(x.shape[-2], scale_factor_height), scaled(x.shape[-1], scale_factor_width))


@op("resize_nearest_neighbor", exact=True)
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    return nearest(x, target_size_height, target_size_width)


@op("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """The spacing follows from the sizes, not from the factors; with neither flag the grid is TensorFlow's."""
    half_pixel = not align_corners if half_pixel_centers is None else half_pixel_centers
    if half_pixel and align_corners:
        raise ValueError("aligned corners with half-pixel centers are not supported")
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half_pixel else "DEFAULT"
    return bilinear(x, scaled(x.shape[-2], scale_factor_height), scaled(x.shape[-1], scale_factor_width), mode)


@op("resize_bilinear")
def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    return bilinear(x, target_size_height, target_size_width, sampling_mode)


@op("resize")
def resize(
    x: Tensor,
    shape: list[int],
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """The last `resized_dims` sizes of `shape` hold; 0 keeps what x has."""
    if resized_dims != 2 or not 2 <= len(shape) <= x.dim():
        raise ValueError("only the last two dimensions can be resized")
    height, width = (new or old for new, old in zip(shape[-2:], x.shape[-2:], strict=True))
    if interpolation_mode == "LINEAR":
        return bilinear(x, height, width, sampling_mode)
    if interpolation_mode != "NEAREST_NEIGHBOR" or sampling_mode != "DEFAULT":
        raise ValueError(f"{interpolation_mode} on the grid {sampling_mode} is not supported")
    return nearest(x, height, width)


@op("crop", exact=True)
def crop(x: Tensor, crop_height: list[int], crop_width: list[int]) -> Tensor:
    """(before, after) of either dimension."""
    (top, bottom), (left, right) = crop_height, crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]

"""Compressed weights (`constexpr_*`, evaluated once at load) and quantized activations (W8A8)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vigcli.coreml.ops.const import unpack_bits
from vigcli.coreml.ops.registry import affordable, op

INTEGER_RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


def along_axis(parameter: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A scale or zero point, one number or one per slice of an axis, ready to broadcast against x."""
    if parameter.dim() == 0 or axis is None:
        return parameter.float()
    shape = [1] * x.dim()
    shape[axis] = -1
    return parameter.float().reshape(shape)


@op("quantize")
def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """clip(round(x / scale) + zero point); halves are rounded to even, as numpy's in coremltools' value inference."""
    if output_dtype not in INTEGER_RANGES:
        raise ValueError(f"quantization to {output_dtype} is not supported")
    x = torch.round(input / along_axis(scale, input, axis))
    if zero_point is not None:
        x = x + along_axis(zero_point, input, axis)
    return x.clamp(*INTEGER_RANGES[output_dtype]).int()


@op("dequantize")
def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    x = input.float()
    if zero_point is not None:
        x = x - along_axis(zero_point, input, axis)
    return x * along_axis(scale, input, axis)


@op("constexpr_affine_dequantize")
def constexpr_affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    return dequantize(quantized_data, scale, zero_point, axis)


@op("constexpr_cast")
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    if output_dtype != "fp32":
        raise ValueError(f"a cast to {output_dtype} is not supported")
    return source_val


@op("constexpr_blockwise_shift_scale")
def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    shift = 0 if offset is None else repeat_blocks(offset.float(), data)
    return (data.float() - shift) * repeat_blocks(scale, data)


def repeat_blocks(parameter: Tensor, data: Tensor) -> Tensor:
    """One number per block -> one number per element."""
    for axis, (blocks, size) in enumerate(zip(parameter.shape, data.shape, strict=True)):
        if size % blocks:
            raise ValueError(f"{size} elements do not divide into {blocks} blocks")
        parameter = parameter.repeat_interleave(size // blocks, axis)
    return parameter


@op("constexpr_lut_to_dense")
def constexpr_lut_to_dense(
    indices: Tensor, lut: Tensor, shape: list[int] | None = None, vector_axis: int | None = None
) -> Tensor:
    """iOS 16 packs the indices into bytes and names the shape; iOS 18 has typed indices and a table per block."""
    if shape is None:
        return look_up(indices, lut, vector_axis)
    return lut[unpack(indices, int(math.log2(lut.numel())), shape)]


def unpack(packed: Tensor, num_bits: int, shape: list[int]) -> Tensor:
    numbers = unpack_bits(packed.numpy().astype(np.uint8), num_bits, math.prod(shape))
    return torch.from_numpy(numbers).reshape(shape)


def look_up(indices: Tensor, lut: Tensor, vector_axis: int | None) -> Tensor:
    """lut: one table of (num_palettes, vector_size) for every block of the indices."""
    affordable(*indices.shape, lut.shape[-1])
    block = [
        (torch.arange(size) * blocks // size).reshape([-1 if axis == i else 1 for i in range(indices.dim())])
        for axis, (size, blocks) in enumerate(zip(indices.shape, lut.shape[:-2], strict=True))
    ]
    values = lut[(*block, indices.long())]  # (*indices, vector_size)
    if lut.shape[-1] == 1:
        return values.squeeze(-1)
    if vector_axis is None:
        raise ValueError("a table of vectors needs vector_axis")
    axis = vector_axis % indices.dim()
    return values.movedim(-1, axis + 1).flatten(axis, axis + 1)


@op("constexpr_sparse_to_dense")
def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: list[int] | None = None) -> Tensor:
    if shape is not None:
        mask = unpack(mask, 1, shape)
    return scatter_into(mask, nonzero_data)


def scatter_into(mask: Tensor, nonzero_data: Tensor) -> Tensor:
    mask = mask.bool()
    if int(mask.sum()) != nonzero_data.numel():
        raise ValueError(f"the mask has {int(mask.sum())} places for {nonzero_data.numel()} numbers")
    dense = nonzero_data.new_zeros(mask.shape)
    dense[mask] = nonzero_data.flatten()
    return dense


@op("constexpr_lut_to_sparse")
def constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: int | None = None
) -> tuple[Tensor, Tensor]:
    dense = look_up(scatter_into(indices_mask, indices_nonzero_data), lut, vector_axis)
    mask = indices_mask.bool()
    if lut.shape[-1] > 1:
        mask = mask.repeat_interleave(lut.shape[-1], vector_axis)
    return mask.int(), dense[mask]


@op("constexpr_sparse_blockwise_shift_scale")
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    dense = constexpr_blockwise_shift_scale(scatter_into(data_mask, nonzero_data), scale, offset)
    return data_mask, dense[data_mask.bool()]

"""Compressed weights of a package against the checkpoint's: is each what its compression makes of it?

Nothing of what coremltools or `vigcli.compress` computed is taken for granted: whole numbers are those of code of our
own, and a palette has to be one by what palettes are, the means of the weights that are nearest to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor

from vigcli.config.compression import LEAST_WEIGHTS, Compression

LAYERS = ("conv", "conv_transpose", "linear", "matmul")  # whose weights are compressed
STEPS = 127  # of a weight's scale, on either side of 0
LEAST_HALF = 2.0**-24
MEAN_SHARE = 0.05  # of the distance between two values of a palette, that one may lie beside the mean of its weights


def is_compressed(constant: Any, kind: str, result: str, compression: Compression) -> TypeGuard[Tensor]:
    """Whether a constant of an operation of that kind with that result is one that the compression is for."""
    if kind not in LAYERS or not isinstance(constant, Tensor) or constant.ndim < 2 or not constant.is_floating_point():
        return False
    if result in compression.kept:
        return False
    is_large = constant.numel() > LEAST_WEIGHTS  # zeros and palettes are for these
    return compression.weight_bits == 8 or (is_large and (compression.has_palettes or compression.sparsity_ratio > 0))


def as_compressed(weight: Tensor, stored: Tensor, axis: int, compression: Compression) -> Tensor:
    """What the compression makes of a checkpoint's weight. Of the package's no more is taken than which values its
    palettes have, and which one it chose of two that are as near.

    Args:
        axis: of the output channels.
    """
    half = weight.half().float()
    if is_sparse(weight, compression):
        end = cutoff(half, compression.sparsity_ratio)
        half = torch.where((half.abs() < end) | ((half.abs() == end) & (stored == 0)), 0.0, half)
    if compression.weight_bits == 8:
        return fake_quantized(half, axis)
    if not compression.has_palettes:
        return half
    made = half.clone().movedim(axis, 0)
    for place, values in palettes(stored, axis, compression):
        group = made[place]
        found = values[torch.bucketize(group, (values[1:] + values[:-1]) / 2)] if len(values) else group
        made[place] = torch.where(group == 0, 0.0, found) if compression.sparsity_ratio else found
    made = made.movedim(0, axis)
    as_near = (stored - half).abs() <= (made - half).abs() + _fp16_rounding(made) + _fp16_rounding(stored)
    return torch.where(as_near, stored, made)


def wrongly_compressed(weight: Tensor, stored: Tensor, axis: int, compression: Compression) -> str:
    """What is wrong with a weight of a package; nothing where it is what the compression makes of the checkpoint's."""
    if weight.shape != stored.shape:
        return f"is {tuple(stored.shape)}, not {tuple(weight.shape)}"
    half = weight.half().float()
    may_be_zero = torch.zeros_like(half, dtype=torch.bool)
    if is_sparse(weight, compression):
        end = cutoff(half, compression.sparsity_ratio)
        if bool((stored[half.abs() < end] != 0).any()):
            return f"is not zero where it is among the smallest {100 * compression.sparsity_ratio:g} %"
        may_be_zero = half.abs() <= end
    if compression.has_palettes and (why := _palettes_wrong(half, stored, axis, compression)):
        return why
    due = as_compressed(weight, stored, axis, compression)
    allowed = _fp16_rounding(due) + (due - half).abs()
    if compression.weight_bits == 8:
        allowed = half_a_step(half, axis)
    away = torch.where(may_be_zero & (stored == 0), 0.0, (stored - half).abs())
    if bool((away <= 1.001 * allowed).all()):
        return ""
    worst = float((away / half.abs().amax().clamp_min(1e-30)).max())
    return f"differs from the checkpoint's by {worst:.1e} of the largest, more than {compression.text} make of it"


def is_sparse(weight: Tensor, compression: Compression) -> bool:
    return compression.sparsity_ratio > 0 and weight.numel() > LEAST_WEIGHTS


def cutoff(weight: Tensor, ratio: float) -> float:
    """The magnitude of the greatest of the smallest weights, of which there are so many."""
    return float(weight.abs().flatten().kthvalue(max(1, int(ratio * weight.numel()))).values)


# ------------------------------------------------------------------------------------------------ whole numbers


def fake_quantized(weight: Tensor, axis: int) -> Tensor:
    """Rounded to -127 ... 127 steps, of which each place along the axis has its own; in fp16, so that no weight near
    half-way between two integers goes to the other."""
    others = [i for i in range(weight.ndim) if i != axis % weight.ndim]
    half = weight.half()
    step = 2 * half.abs().amax(others, keepdim=True) / (2 * STEPS)
    integers = torch.where(step > 0, half / step, 0.0).round()
    return integers.float() * step.float()


def half_a_step(weight: Tensor, axis: int) -> Tensor:
    """The most by which eight bits move a weight, for each output channel; the scale was rounded to fp16 too."""
    others = [i for i in range(weight.ndim) if i != axis % weight.ndim]
    largest = weight.abs().amax(others, keepdim=True)
    step = largest / STEPS
    return 1.05 * (step / 2 + STEPS * _fp16_rounding(step) + _fp16_rounding(largest))


# ------------------------------------------------------------------------------------------------ palettes


def palettes(stored: Tensor, axis: int, compression: Compression) -> Iterator[tuple[slice, Tensor]]:
    """The channels of every group, and the ordered values of its weights; of a sparse weight those that are not 0."""
    channels = stored.shape[axis]
    size = compression.group_of(channels)
    for start in range(0, channels, size):
        place = slice(start, start + size)
        values = stored.movedim(axis, 0)[place].unique()
        yield place, values[values != 0] if compression.sparsity_ratio else values


def _palettes_wrong(half: Tensor, stored: Tensor, axis: int, compression: Compression) -> str:
    channels, kept = half.movedim(axis, 0), stored.movedim(axis, 0)
    for place, values in palettes(stored, axis, compression):
        if len(values) > 2**compression.weight_bits:
            return f"has {len(values)} values where a palette of {compression.weight_bits} bits has fewer"
        weights, own = channels[place].double(), kept[place]
        used = own != 0 if compression.sparsity_ratio else torch.ones_like(own, dtype=torch.bool)
        numbers = torch.bucketize(own[used], values)
        count = torch.zeros(len(values), dtype=torch.float64)
        count.index_add_(0, numbers, torch.ones(len(numbers), dtype=torch.float64))
        means = torch.zeros_like(count).index_add_(0, numbers, weights[used]) / count
        gaps = values.double().diff().abs() if len(values) > 1 else torch.ones(1)
        gap = torch.maximum(torch.cat([gaps[:1], gaps]), torch.cat([gaps, gaps[-1:]]))
        if bool(((means - values).abs() > MEAN_SHARE * gap + _fp16_rounding(values)).any()):
            return "has a palette whose values are not the means of the checkpoint's weights"
    return ""


def _fp16_rounding(value: Tensor) -> Tensor:
    """The most by which rounding to fp16 moves a value; coremltools keeps what would be zero at fp16's least number."""
    return (value.abs() * 2.0**-11).clamp(min=LEAST_HALF)

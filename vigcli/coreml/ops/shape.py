"""Moving numbers without changing them: reshape, slice, join, gather, pad."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vigcli.coreml.ops.conv import torch_order
from vigcli.coreml.ops.registry import op


@op("reshape")
def reshape(x: Tensor, shape: list[int]) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


@op("transpose")
def transpose(x: Tensor, perm: list[int]) -> Tensor:
    return x.permute(perm)


@op("squeeze")
def squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(axes)


@op("expand_dims")
def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@op("concat")
def concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    if interleave:  # the first of every value, then the second of every value
        axis %= values[0].dim()
        return torch.stack(values, axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, axis)


@op("stack")
def stack(values: list[Tensor], axis: int) -> Tensor:
    return torch.stack(values, axis)


@op("split")
def split(
    x: Tensor, num_splits: int | None = None, split_sizes: list[int] | None = None, axis: int = 0
) -> tuple[Tensor, ...]:
    if split_sizes is None:
        if not num_splits or x.shape[axis] % num_splits:
            raise ValueError(f"{x.shape[axis]} channels do not split into {num_splits}")
        split_sizes = [x.shape[axis] // num_splits] * num_splits
    return x.split(split_sizes, axis)


@op("tile")
def tile(x: Tensor, reps: list[int]) -> Tensor:
    return x.repeat(reps)


@op("slice_by_index")
def slice_by_index(
    x: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """A mask that is set stands for 'from the first' (begin), 'to the last' (end), 'this one only' (squeeze)."""
    unset = [False] * x.dim()
    begin_mask, end_mask, squeeze_mask = begin_mask or unset, end_mask or unset, squeeze_mask or unset
    stride = stride or [1] * x.dim()
    if min(stride) < 1:
        raise ValueError("a negative stride is not supported")
    index: list[int | slice] = []
    for axis in range(x.dim()):
        first = None if begin_mask[axis] else begin[axis]
        last = None if end_mask[axis] else end[axis]
        index.append(begin[axis] if squeeze_mask[axis] else slice(first, last, stride[axis]))
    return x[tuple(index)]


@op("slice_by_size")
def slice_by_size(x: Tensor, begin: list[int], size: list[int]) -> Tensor:
    return x[tuple(slice(b, None if s == -1 else b + s) for b, s in zip(begin, size, strict=True))]


@op("gather")
def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    axis %= x.dim()
    if batch_dims:
        rows = [gather(x[i], indices[i], axis - 1, batch_dims - 1) for i in range(x.shape[0])]
        return torch.stack(rows)
    flat = _counted_from_the_start(indices, x.shape[axis]).flatten()
    return x.index_select(axis, flat).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@op("gather_along_axis")
def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    return x.gather(axis, _counted_from_the_start(indices, x.shape[axis]))


def _counted_from_the_start(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices).long()


@op("pad")
def pad(x: Tensor, pad: list[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    if mode == "constant":
        return F.pad(x, torch_order(pad), value=constant_val)
    if mode not in ("reflect", "replicate"):
        raise ValueError(f"unknown padding mode '{mode}'")
    # torch pads so only the trailing dimensions, and only that many.
    while len(pad) > 2 and pad[:2] == [0, 0]:
        pad = pad[2:]
    return F.pad(x, torch_order(pad), mode=mode)


@op("pixel_shuffle")
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return F.pixel_shuffle(x, upscale_factor)

"""Moving numbers without changing them: reshape, slice, join, gather, pad; and tensors made of nothing but a shape."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vigcli.coreml.ops.conv import torch_order
from vigcli.coreml.ops.registry import affordable, op

ZERO, ONE = torch.tensor(0.0), torch.tensor(1.0)


@op("reshape", exact=True)
def reshape(x: Tensor, shape: list[int]) -> Tensor:
    """0 keeps the size of x at that place."""
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


@op("transpose", exact=True)
def transpose(x: Tensor, perm: list[int]) -> Tensor:
    return x.permute(perm)


@op("squeeze", exact=True)
def squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """An axis that has more than one element stays, as in torch."""
    return x.squeeze() if axes is None else x.squeeze(axes)


@op("expand_dims", exact=True)
def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@op("concat", exact=True)
def concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    affordable(sum(value.numel() for value in values))
    if interleave:  # the first of every value, then the second of every value
        axis %= values[0].dim()
        return torch.stack(values, axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, axis)


@op("stack", exact=True)
def stack(values: list[Tensor], axis: int) -> Tensor:
    affordable(sum(value.numel() for value in values))
    return torch.stack(values, axis)


@op("split", exact=True)
def split(
    x: Tensor, num_splits: int | None = None, split_sizes: list[int] | None = None, axis: int = 0
) -> tuple[Tensor, ...]:
    if split_sizes is None:
        if not num_splits or x.shape[axis] % num_splits:
            raise ValueError(f"{x.shape[axis]} channels do not split into {num_splits}")
        split_sizes = [x.shape[axis] // num_splits] * num_splits
    return x.split(split_sizes, axis)


@op("tile", exact=True)
def tile(x: Tensor, reps: list[int]) -> Tensor:
    if len(reps) != x.dim() or min(reps) < 1:
        raise ValueError(f"{reps} repetitions of {x.dim()} dimensions")
    affordable(x.numel(), *reps)
    return x.repeat(reps)


@op("slice_by_index", exact=True)
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
    index: list[int | slice] = []
    for axis in range(x.dim()):
        first = None if begin_mask[axis] else begin[axis]
        last = None if end_mask[axis] else end[axis]
        if stride[axis] < 0:  # backwards, which torch's slices do not go
            places = range(x.shape[axis])[first : last : stride[axis]]
            x, first, last = x.index_select(axis, torch.tensor(places, dtype=torch.long)), None, None
        index.append(begin[axis] if squeeze_mask[axis] else slice(first, last, max(stride[axis], 1)))
    return x[tuple(index)]


@op("slice_by_size", exact=True)
def slice_by_size(x: Tensor, begin: list[int], size: list[int]) -> Tensor:
    """A size of -1 takes all from there on; a negative place counts from the end."""
    starts = [first % count if count else 0 for first, count in zip(begin, x.shape, strict=True)]
    return x[tuple(slice(b, None if s == -1 else b + s) for b, s in zip(starts, size, strict=True))]


@op("gather", exact=True)
def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """Negative places count from the end."""
    axis %= x.dim()
    affordable(indices.numel(), *x.shape[:axis], *x.shape[axis + 1 :])
    if batch_dims:
        rows = [gather(x[i], indices[i], axis - 1, batch_dims - 1) for i in range(x.shape[0])]
        return torch.stack(rows)
    flat = _counted_from_the_start(indices, x.shape[axis]).flatten()
    return x.index_select(axis, flat).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@op("gather_along_axis", exact=True)
def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    return x.gather(axis, _counted_from_the_start(indices, x.shape[axis]))


@op("gather_nd", exact=True)
def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """The last dimension of `indices` holds places, each along one of the first dimensions of x."""
    if batch_dims:
        return torch.stack([gather_nd(x[i], indices[i], batch_dims - 1) for i in range(x.shape[0])])
    count = indices.shape[-1]
    affordable(*indices.shape[:-1], *x.shape[count:])
    return x[tuple(_counted_from_the_start(indices[..., i], x.shape[i]) for i in range(count))]


def _counted_from_the_start(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices).long()


@op("pad", exact=True)
def pad(x: Tensor, pad: list[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """`reflect` leaves the edge out, as in torch and numpy."""
    sizes = [*x.shape[: x.dim() - len(pad) // 2]]
    affordable(*sizes, *(n + sum(pad[2 * i : 2 * i + 2]) for i, n in enumerate(x.shape[len(sizes) :])))
    if mode == "constant":
        return F.pad(x, torch_order(pad), value=constant_val)
    if mode not in ("reflect", "replicate"):
        raise ValueError(f"unknown padding mode '{mode}'")
    # torch pads so only the trailing dimensions, and only that many.
    while len(pad) > 2 and pad[:2] == [0, 0]:
        pad = pad[2:]
    rank = len(pad) // 2
    y = F.pad(x.reshape(1, -1, *x.shape[-rank:]), torch_order(pad), mode=mode)
    return y.reshape(*x.shape[:-rank], *y.shape[2:])


@op("pixel_shuffle", exact=True)
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return F.pixel_shuffle(x, upscale_factor)


@op("pixel_unshuffle", exact=True)
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    return F.pixel_unshuffle(x, downscale_factor)


@op("depth_to_space", exact=True)
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """The channels are (row, column, channel), as in TensorFlow, whose operation becomes this one; `pixel_shuffle` has
    (channel, row, column)."""
    batch, channels, height, width = x.shape
    y = x.reshape(batch, block_size, block_size, -1, height, width).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(batch, channels // block_size**2, height * block_size, width * block_size)


@op("space_to_depth", exact=True)
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """The reverse of `depth_to_space`."""
    batch, channels, height, width = x.shape
    y = x.reshape(batch, channels, height // block_size, block_size, width // block_size, block_size)
    return y.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // block_size, width // block_size)


@op("reverse", exact=True)
def reverse(x: Tensor, axes: list[int] | None = None) -> Tensor:
    return x.flip(list(range(x.dim())) if axes is None else axes)


@op("flatten2d", exact=True)
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@op("band_part", exact=True)
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Zeros but for so many diagonals below and above the middle one; all of them for -1."""
    x = x if upper < 0 else x.tril(upper)
    return x if lower < 0 else x.triu(-lower)


@op("sliding_windows", exact=True)
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    affordable(x.numel(), size)
    return x.unfold(axis, size, stride).movedim(-1, axis % x.dim() + 1)


@op("shape", exact=True)
def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


@op("fill", exact=True)
def fill(shape: list[int], value: Tensor = ZERO) -> Tensor:
    affordable(*shape)
    return value.expand(shape).clone()


@op("fill_like", exact=True)
def fill_like(ref_tensor: Tensor, value: Tensor = ZERO) -> Tensor:
    return value.expand(ref_tensor.shape).clone()


@op("one_hot", exact=True)
def one_hot(
    indices: Tensor, one_hot_vector_size: int, axis: int = -1, on_value: Tensor = ONE, off_value: Tensor = ZERO
) -> Tensor:
    """A place that is none of the vector's leaves it all off, as in TensorFlow."""
    affordable(indices.numel(), one_hot_vector_size)
    chosen = indices.unsqueeze(-1) == torch.arange(one_hot_vector_size)
    return torch.where(chosen, on_value, off_value).movedim(-1, axis)


@op("range_1d")
def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """From start to end, which is left out."""
    affordable(math.ceil((end.item() - start.item()) / step.item()))
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)

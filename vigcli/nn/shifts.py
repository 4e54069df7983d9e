"""Cyclic shifts of a feature map, and the static graphs that are lists of them; `graph.py` and `dynamic.py` use both.

A shift is made of slices and a concat: `torch.roll` would become a gather, which leaves the Neural Engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Links = Callable[[int, int], list[int]]
"""A static graph: reach and size of an axis -> the shifts that bring the neighbours to a token, wrapping around at the
border as in the authors' code."""


def mgc_links(reach: int, size: int) -> list[int]:
    """The shifts of MGC along an axis of `size` tokens: two, at distance L (MobileViGv2 Section 4.1)."""
    return [reach % size, -reach % size]


def svga_links(reach: int, size: int) -> list[int]:
    """The shifts of SVGA along an axis of `size` tokens: K, 2K, ... below the size (MobileViG Algorithm 1)."""
    return list(range(reach, size, reach))


def shift(x: Tensor, by: int, dim: int, size: int) -> Tensor:
    """`torch.roll(x, by, dim)` for 0 < by < size, as slices and a concat; `size` is a number, not read off `x`."""
    return torch.cat([x.narrow(dim, size - by, by), x.narrow(dim, 0, size - by)], dim)


def shifts(x: Tensor, by: Sequence[int], dim: int, size: int) -> list[Tensor]:
    """`torch.roll(x, n, dim)` for each n, as slices of x beside itself: an operation each and one for all."""
    twice = torch.cat([x, x], dim)
    return [twice.narrow(dim, size - n, size) for n in by]

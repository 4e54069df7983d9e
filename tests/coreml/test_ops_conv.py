"""Convolutions, pooling and products: through a package against torch, and over their options."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mil import IOS16, IOS18, Case, close, folded, numbers, ours, run_cases, sized, tensor
from mil import unary as case
from torch import Tensor

pytest.importorskip("coremltools", exc_type=ImportError)
X, Y = tensor(1, 4, 6, 5), tensor(1, 4, 6, 5, seed=1)
POSITIVE = X.abs() + 0.1
WEIGHT, BIAS = numbers(6, 2, 3, 3), numbers(6)
W, B = torch.from_numpy(WEIGHT), torch.from_numpy(BIAS)
ROWS, MATRIX = tensor(1, 3, 8), numbers(6, 8)
UP = numbers(4, 3, 3, 2)
HALF_MASK = numbers(6, 6) > 0


def unary(op: str, expected: Any, x: Tensor = X, target: str = "iOS15", **parameters: Any) -> Case:
    return case(op, expected, x, target, **parameters)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Any = 0.0) -> Tensor:
    return F.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + mask, -1) @ v


CASES = [
    unary(
        "conv",
        lambda x: F.conv2d(x, W, B, stride=2, padding=(2, 1), dilation=(2, 1), groups=2),
        weight=WEIGHT,
        bias=BIAS,
        strides=[2, 2],
        pad_type="custom",
        pad=[2, 2, 1, 1],
        dilations=[2, 1],
        groups=2,
    ),
    unary(
        "conv",
        lambda x: F.conv2d(F.pad(x, (0, 1, 2, 0)), W, groups=2),
        weight=WEIGHT,
        pad_type="custom",
        pad=[2, 0, 0, 1],
        groups=2,
    ),
    # SAME: 6 -> 3 needs one row (below); 5 -> 3 needs two columns (one on either side).
    *(
        unary(
            "conv",
            lambda x, rows=rows: F.conv2d(F.pad(x, (1, 1, *rows)), W, stride=2, groups=2),
            target=IOS16,
            weight=WEIGHT,
            strides=[2, 2],
            pad_type=pad_type,
            groups=2,
        )
        for pad_type, rows in (("same", (0, 1)), ("same_lower", (1, 0)))
    ),
    unary(
        "conv", lambda x: F.conv1d(x, W[:, :, 0, :1]), x=tensor(1, 2, 7), weight=WEIGHT[:, :, 0, :1], pad_type="valid"
    ),
    unary(
        "conv_transpose",
        lambda x: F.conv_transpose2d(x, torch.from_numpy(UP), B[:3], (2, 3), (1, 0)),
        weight=UP,
        bias=BIAS[:3],
        strides=[2, 3],
        pad_type="custom",
        pad=[1, 1, 0, 0],
    ),
    unary(
        "conv_transpose",
        lambda x: F.conv_transpose2d(x, torch.from_numpy(UP), B[:3], 2, 1, output_padding=1),
        weight=UP,
        bias=BIAS[:3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        output_shape=[1, 3, 12, 9],
    ),
    unary(
        "max_pool",
        lambda x: F.max_pool2d(x, 3, 2, 1),
        x=-POSITIVE,
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
    ),
    unary(
        "max_pool",
        lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
        kernel_sizes=[2, 2],
        strides=[2, 2],
        pad_type="valid",
        ceil_mode=True,
    ),
    *(
        unary(
            "avg_pool",
            lambda x, inside=inside: F.avg_pool2d(x, 3, 2, 1, count_include_pad=not inside),
            kernel_sizes=[3, 3],
            strides=[2, 2],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            exclude_padding_from_average=inside,
        )
        for inside in (True, False)
    ),
    unary("linear", lambda x: F.linear(x, torch.from_numpy(MATRIX), B), x=ROWS, weight=MATRIX, bias=BIAS),
    Case("matmul", lambda mb, x, y: mb.matmul(x=x, y=y, transpose_x=True), lambda x, y: x.mT @ y, (X, Y)),
    Case("matmul", lambda mb, x, y: mb.matmul(x=x, y=y, transpose_y=True), lambda x, y: x @ y.mT, (X, Y)),
    Case(
        "einsum",
        lambda mb, x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
        lambda x, y: torch.einsum("nchw,nwhu->nchu", x, y),
        (X, tensor(1, 5, 6, 2)),
    ),
    Case(
        "scaled_dot_product_attention",
        lambda mb, q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v),
        attention,
        (X, Y, POSITIVE),
        IOS18,
    ),
    *(
        Case(
            "scaled_dot_product_attention",
            lambda mb, q, k, v, mask=mask: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=mask),
            lambda q, k, v, added=added: attention(q, k, v, added),
            (X, Y, POSITIVE),
            IOS18,
        )
        for mask, added in (
            (numbers(6, 6), torch.from_numpy(numbers(6, 6))),
            (HALF_MASK, torch.where(torch.from_numpy(HALF_MASK), 0.0, -math.inf)),
        )
    ),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    return run_cases(CASES, tmp_path_factory.mktemp("conv"))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(c) for c in CASES])
def test_agrees_with_torch_through_a_package(number: int, results: list[Tensor]) -> None:
    close(results[number], CASES[number].expected(*CASES[number].inputs), atol=1e-5)


# ------------------------------------------------------------------------------------------------ over their options


SIZES = [(7, 8), (8, 7), (5, 5)]
KERNELS = [(1, 1), (3, 3), (2, 3), (7, 7)]
STRIDES = [(1, 1), (2, 2), (1, 3)]
DILATIONS = [(1, 1), (2, 1)]


@pytest.mark.parametrize("pad_type", ["valid", "same", "same_lower", "custom"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions(groups: int, pad_type: str) -> None:
    """Against torch on what is padded by hand; the size against what coremltools infers."""
    for size, kernel, stride, dilation in itertools.product(SIZES, KERNELS, STRIDES, DILATIONS):
        x, weight = tensor(2, 4, *size), tensor(8, 4 // groups, *kernel, seed=3)
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        if any(n + (6 if pad_type == "custom" else 0) < e for n, e in zip(size, extent, strict=True)):
            continue
        custom = [3, 3, 4, 3] if pad_type == "custom" else [0, 0, 0, 0]
        options = {"strides": stride, "dilations": dilation, "pad_type": pad_type, "pad": custom, "groups": groups}
        result = ours(
            "conv",
            x=x.numpy(),
            weight=weight.numpy(),
            **options,
        )
        top, bottom, left, right = by_hand(size, extent, stride, pad_type, custom)
        padded = F.pad(x, (left, right, top, bottom))
        close(result, F.conv2d(padded, weight, None, stride, 0, dilation, groups), atol=1e-4)
        assert tuple(result.shape) == sized("conv", x=x, weight=weight.numpy(), **options)


def by_hand(size: Any, extent: Any, stride: Any, pad_type: str, custom: list[int]) -> list[int]:
    """TensorFlow's rule: ceil(n / s) windows, the odd zero behind or before."""
    if pad_type in ("valid", "custom"):
        return custom
    sides = []
    for n, e, s in zip(size, extent, stride, strict=True):
        total = max(e - s, 0) if n % s == 0 else max(e - n % s, 0)
        sides += [total // 2, total - total // 2] if pad_type == "same" else [total - total // 2, total // 2]
    return sides


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_of_every_rank(rank: int) -> None:
    x, weight, bias = tensor(2, 4, *[6] * rank), tensor(6, 2, *[3] * rank, seed=1), tensor(6, seed=2)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    result = ours(
        "conv",
        x=x.numpy(),
        weight=weight.numpy(),
        bias=bias.numpy(),
        pad_type="custom",
        groups=2,
        pad=np.ones(2 * rank),
    )
    close(result, convolve(x, weight, bias, padding=1, groups=2), atol=1e-5)
    up = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    weight = tensor(4, 3, *[3] * rank, seed=1)
    strides = np.full(rank, 2)
    result = ours("conv_transpose", x=x.numpy(), weight=weight.numpy(), groups=2, strides=strides)
    close(result, up(x, weight, stride=2, groups=2), atol=1e-5)


@pytest.mark.parametrize(
    ("stride", "pad", "dilation", "extra"), [(1, 0, 1, 0), (2, 1, 1, 1), (3, 2, 2, 2), (2, 0, 1, 1)]
)
def test_transposed_convolutions(stride: int, pad: int, dilation: int, extra: int) -> None:
    x, weight, bias = tensor(1, 4, 5, 6), tensor(4, 3, 3, 3, seed=1), tensor(3, seed=2)
    due = F.conv_transpose2d(x, weight, bias, stride, pad, extra, 1, dilation)
    result = ours(
        "conv_transpose", x=x.numpy(), weight=weight.numpy(), bias=bias, pad_type="custom",
        strides=[stride] * 2, dilations=[dilation] * 2, pad=[pad] * 4, output_shape=list(due.shape),
    )  # fmt: skip
    close(result, due, atol=1e-5)
    with pytest.raises(ValueError, match="'same' of a transposed convolution is not supported"):
        ours("conv_transpose", x=x.numpy(), weight=weight.numpy(), pad_type="same")


POOLS = {"max_pool": F.max_pool2d, "avg_pool": F.avg_pool2d}


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("op", POOLS)
def test_pooling(op: str, ceil_mode: bool) -> None:
    """Against torch, whose `ceil_mode` it is by definition; the size against what coremltools infers."""
    kernels, strides, pads = [(2, 2), (3, 3), (3, 2)], [(1, 1), (2, 2), (3, 2)], [(0, 0), (1, 1), (1, 0)]
    for size, kernel, stride, pad, exclude in itertools.product(SIZES, kernels, strides, pads, (False, True)):
        x = tensor(2, 3, *size) - 5  # padding of zeros would win in a maximum
        options: dict[str, Any] = {
            "kernel_sizes": kernel,
            "strides": stride,
            "ceil_mode": ceil_mode,
        }
        options |= {"pad_type": "custom", "pad": np.array([pad[0], pad[0], pad[1], pad[1]])}
        more = {"count_include_pad": not exclude} if op == "avg_pool" else {}
        options |= {"exclude_padding_from_average": exclude} if op == "avg_pool" else {}
        result = ours(op, x=x.numpy(), **options)
        close(result, POOLS[op](x, kernel, stride, pad, ceil_mode=ceil_mode, **more))
        inferred = sized(op, x=x, **options)
        # With no padding at all coremltools keeps windows that lie outside, which torch drops.
        assert tuple(result.shape) == inferred or (ceil_mode and pad == (0, 0))


@pytest.mark.parametrize("pad_type", ["same", "same_lower", "custom", "valid"])
@pytest.mark.parametrize("op", POOLS)
def test_pooling_with_uneven_padding(op: str, pad_type: str) -> None:
    for size, kernel, stride, exclude in itertools.product(SIZES, [(2, 2), (3, 3), (5, 4)], STRIDES, (False, True)):
        x, custom = tensor(2, 3, *size) - 5, [2, 1, 0, 3] if pad_type == "custom" else [0, 0, 0, 0]
        options: dict[str, Any] = {
            "kernel_sizes": kernel,
            "strides": stride,
            "pad_type": pad_type,
            "pad": custom,
        }
        options |= {"exclude_padding_from_average": exclude} if op == "avg_pool" else {}
        result = ours(op, x=x.numpy(), **options)
        top, bottom, left, right = by_hand(size, kernel, stride, pad_type, custom)
        if op == "max_pool":
            expected = F.max_pool2d(F.pad(x, (left, right, top, bottom), value=-math.inf), kernel, stride)
        else:
            expected = F.avg_pool2d(F.pad(x, (left, right, top, bottom)), kernel, stride)
            if exclude:
                expected = expected / F.avg_pool2d(
                    F.pad(torch.ones_like(x), (left, right, top, bottom)), kernel, stride
                )
        close(result, expected, rtol=1e-4)
        assert tuple(result.shape) == sized(op, x=x, **options)


def test_pooling_of_other_ranks() -> None:
    for rank, average, largest in ((1, F.avg_pool1d, F.max_pool1d), (3, F.avg_pool3d, F.max_pool3d)):
        x = tensor(1, 2, *[7] * rank)
        options = {
            "kernel_sizes": np.full(rank, 3),
            "strides": np.full(rank, 2),
            "pad_type": "custom",
            "pad": np.ones(2 * rank),
        }
        close(ours("avg_pool", x=x.numpy(), **options), average(x, 3, 2, 1))
        close(ours("max_pool", x=x.numpy(), **options), largest(x, 3, 2, 1))
    with pytest.raises(ValueError, match="ceil_mode with uneven or wide padding"):
        ours(
            "avg_pool",
            x=X.numpy(),
            kernel_sizes=[3, 3],
            pad_type="same_lower",
            strides=[2, 2],
            ceil_mode=True,
        )
    with pytest.raises(ValueError, match="unknown padding 'full'"):
        ours("max_pool", x=X.numpy(), kernel_sizes=[3, 3], pad_type="full")


@pytest.mark.parametrize("transposed", itertools.product((False, True), repeat=2))
@pytest.mark.parametrize("batch", [((), ()), ((2,), (2,)), ((2,), ()), ((1, 3), (2, 1)), ((), (2, 3))], ids=str)
def test_products_are_folded_alike(batch: Any, transposed: Any) -> None:
    x, y = (
        numbers(*batch[0], *((4, 3) if not transposed[0] else (3, 4))),
        numbers(*batch[1], *((3, 5) if not transposed[1] else (5, 3))),
    )
    options = {"transpose_x": transposed[0], "transpose_y": transposed[1]}
    close(ours("matmul", x=x, y=y, **options), folded("matmul", x=x, y=y, **options), atol=1e-5)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8)], ids=str)
def test_linear_is_folded_alike(shape: Any) -> None:
    for bias in ({}, {"bias": BIAS}):
        close(
            ours("linear", x=numbers(*shape), weight=MATRIX, **bias),
            folded("linear", x=numbers(*shape), weight=MATRIX, **bias),
            atol=1e-5,
        )


def test_einsum_broadcasts_and_is_checked() -> None:
    x, y = numbers(2, 4, 1, 5), numbers(1, 5, 3, 6)
    close(
        ours("einsum", values=(x, y), equation="nchw,nwhu->nchu"),
        np.einsum("nchw,nwhu->nchu", np.repeat(x, 3, 2), np.repeat(y, 2, 0)),
        atol=1e-5,
    )
    for equation in ("nchw,nwhu", "nch,nwhu->nchu", "nchw->nchw"):
        with pytest.raises((ValueError, RuntimeError)):
            ours("einsum", values=(x, y) if "," in equation else (x, x, x), equation=equation)


# ------------------------------------------------------------------------------------------------ size

FAR, LONG = 2**20, 2**15
COLUMN, POINT = np.zeros((LONG, 1)), np.zeros((1, 1, 1, 1))


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("conv", {"x": numbers(1, 1, 2, 2), "weight": POINT, "pad_type": "custom", "pad": [FAR] * 4}),
        ("conv_transpose", {"x": numbers(1, 1, 9, 9), "weight": POINT, "strides": [FAR, FAR]}),
        ("avg_pool", {"x": numbers(1, 1, 2, 2), "kernel_sizes": [1, 1], "pad_type": "custom", "pad": [FAR] * 4}),
        ("linear", {"x": COLUMN, "weight": COLUMN}),
        ("matmul", {"x": COLUMN, "y": COLUMN, "transpose_y": True}),
        ("einsum", {"values": (COLUMN[:, None], COLUMN.T[None]), "equation": "chw,whr->chr"}),
        ("scaled_dot_product_attention", {"query": COLUMN, "key": COLUMN, "value": COLUMN}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_results_too_large_are_refused_before_they_take_memory(op: str, inputs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="too large"):
        ours(op, **inputs)

"""Every operation of the interpreter against torch, through a program of that one operation on disk."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vigcli.coreml.apple import coremltools
from vigcli.coreml.interpreter import Program
from vigcli.coreml.ops import OPS

pytest.importorskip("coremltools", exc_type=ImportError)
IOS15, IOS16, IOS17, IOS18 = "iOS15", "iOS16", "iOS17", "iOS18"


@dataclass
class Case:
    op: str
    build: Callable[..., Any]  # (mb, *inputs) -> result
    expected: Callable[..., Tensor]  # (*inputs) -> the same in torch
    inputs: tuple[Tensor, ...]
    target: str = IOS15

    def __str__(self) -> str:
        return self.op


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def numbers(*shape: int, seed: int = 7) -> np.ndarray:
    return tensor(*shape, seed=seed).numpy()


X = tensor(1, 4, 6, 5)
Y = tensor(1, 4, 6, 5, seed=1)
POSITIVE = X.abs() + 0.1
WEIGHT, BIAS = numbers(6, 2, 3, 3), numbers(6)
W, B = torch.from_numpy(WEIGHT), torch.from_numpy(BIAS)
ROWS = tensor(1, 3, 8)
INDICES = torch.tensor([[2, 0], [1, 1]], dtype=torch.int32)
BYTES = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
HALVES = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
MASK = np.array([[1, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 1]], np.uint8)
FOUR_BIT = np.arange(12, dtype=np.uint8).reshape(3, 4)


def unary(op: str, expected: Callable[..., Tensor], x: Tensor = X, **parameters: Any) -> Case:
    return Case(op, lambda mb, x: getattr(mb, op)(x=x, **parameters), expected, (x,))


def binary(op: str, expected: Callable[..., Tensor], x: Tensor = X, y: Tensor = Y) -> Case:
    return Case(op, lambda mb, x, y: getattr(mb, op)(x=x, y=y), expected, (x, y))


def compare(op: str, expected: Callable[..., Tensor]) -> Case:
    """Truth values are no output of a program, so they are cast."""
    half_equal = torch.where(Y > 0, X, Y)
    return Case(
        op,
        lambda mb, x, y: mb.cast(x=getattr(mb, op)(x=x, y=y), dtype="fp32"),
        lambda x, y: expected(x, y).float(),
        (X, half_equal),
    )


def weight(op: str, target: str, build: Callable[..., Any], expected: Any) -> Case:
    """A compressed weight shows through a sum, which keeps it in the program."""
    dense = torch.as_tensor(np.asarray(expected, np.float32))
    return Case(op, lambda mb, x: mb.add(x=x, y=build(mb)), lambda x: x + dense, (tensor(*dense.shape),), target)


def uint(bits: int, values: np.ndarray) -> np.ndarray:
    from coremltools.converters.mil.mil.types import type_mapping

    return values.astype(type_mapping.string_to_nptype(f"uint{bits}"))


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Lowest bit first, number after number: written out with Python's big integers."""
    whole = sum(int(v) << (bits * i) for i, v in enumerate(values.flatten()))
    return np.frombuffer(whole.to_bytes(math.ceil(values.size * bits / 8), "little"), np.uint8)


CASES = [
    # elementwise
    binary("add", torch.add),
    binary("sub", torch.sub),
    binary("mul", torch.mul),
    binary("real_div", torch.div, y=POSITIVE),
    binary("pow", torch.pow, x=POSITIVE),
    binary("maximum", torch.maximum),
    binary("minimum", torch.minimum),
    compare("equal", torch.eq),
    compare("not_equal", torch.ne),
    compare("greater", torch.gt),
    compare("greater_equal", torch.ge),
    compare("less", torch.lt),
    compare("less_equal", torch.le),
    Case(
        "select",
        lambda mb, x, y: mb.select(cond=mb.greater(x=x, y=0.0), a=x, b=y),
        lambda x, y: torch.where(x > 0, x, y),
        (X, Y),
    ),
    Case("cast", lambda mb, x: mb.cast(x=x, dtype="int32"), lambda x: x.trunc().int(), (X * 3,)),
    Case("cast", lambda mb, x: mb.cast(x=mb.cast(x=x, dtype="bool"), dtype="fp32"), lambda x: (x != 0) * 1.0, (X,)),
    unary("identity", lambda x: x),
    unary("clip", lambda x: x.clamp(-0.5, 0.7), alpha=-0.5, beta=0.7),
    unary("abs", torch.abs),
    unary("exp", torch.exp),
    unary("log", lambda x: torch.log(x + 0.01), x=POSITIVE, epsilon=0.01),
    unary("erf", torch.erf),
    unary("sqrt", torch.sqrt, x=POSITIVE),
    unary("rsqrt", lambda x: 1 / (x + 0.1).sqrt(), x=POSITIVE, epsilon=0.1),
    unary("square", torch.square),
    unary("inverse", lambda x: 1 / (x + 0.1), x=POSITIVE, epsilon=0.1),
    # activation
    unary("relu", F.relu),
    unary("relu6", F.relu6, x=X * 6),
    unary("leaky_relu", lambda x: F.leaky_relu(x, 0.2), alpha=0.2),
    unary("thresholded_relu", lambda x: F.threshold(x, 0.3, 0), alpha=0.3),
    unary("prelu", lambda x: F.prelu(x, B[:4]), alpha=BIAS[:4]),
    unary("sigmoid", torch.sigmoid),
    unary("sigmoid_hard", F.hardsigmoid, x=X * 4, alpha=1 / 6, beta=0.5),
    unary("silu", F.silu),
    unary("gelu", F.gelu, mode="EXACT"),
    unary("gelu", lambda x: F.gelu(x, approximate="tanh"), mode="TANH_APPROXIMATION"),
    unary("gelu", lambda x: x / (1 + (-1.702 * x).exp()), mode="SIGMOID_APPROXIMATION"),
    unary("tanh", torch.tanh),
    unary("softplus", F.softplus),
    unary("softmax", lambda x: F.softmax(x, 1), axis=1),
    # convolution, pooling, products, resizing
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
    unary(
        "conv",
        lambda x: F.conv2d(F.pad(x, (1, 1, 0, 1)), W, stride=2, groups=2),
        weight=WEIGHT,
        strides=[2, 2],
        pad_type="same",
        groups=2,
    ),
    unary(
        "conv",
        lambda x: F.conv1d(x, W[:, :, 0, :1], padding=0),
        x=tensor(1, 2, 7),
        weight=WEIGHT[:, :, 0, :1],
        pad_type="valid",
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
    unary(
        "linear",
        lambda x: F.linear(x, W[:, :, :2, :2].reshape(6, 8), B),
        x=ROWS,
        weight=WEIGHT[:, :, :2, :2].reshape(6, 8),
        bias=BIAS,
    ),
    Case(
        "matmul",
        lambda mb, x, y: mb.matmul(x=x, y=y, transpose_x=True),
        lambda x, y: x.transpose(-1, -2) @ y,
        (X, Y),
    ),
    Case("matmul", lambda mb, x, y: mb.matmul(x=x, y=y, transpose_y=True), lambda x, y: x @ y.mT, (X, Y)),
    Case(
        "scaled_dot_product_attention",
        lambda mb, q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v),
        lambda q, k, v: F.softmax(q @ k.mT / math.sqrt(5), -1) @ v,
        (X, Y, POSITIVE),
        IOS18,
    ),
    unary(
        "upsample_nearest_neighbor",
        lambda x: x.repeat_interleave(2, 2).repeat_interleave(3, 3),
        scale_factor_height=2,
        scale_factor_width=3,
    ),
    *(
        unary(
            "upsample_bilinear",
            lambda x, align=align: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=align),
            scale_factor_height=2.0,
            scale_factor_width=2.0,
            align_corners=align,
        )
        for align in (True, False)
    ),
    *(
        unary(
            "resize_bilinear",
            lambda x, align=align: F.interpolate(x, (9, 4), mode="bilinear", align_corners=align),
            target_size_height=9,
            target_size_width=4,
            sampling_mode="STRICT_ALIGN_CORNERS" if align else "UNALIGN_CORNERS",
        )
        for align in (True, False)
    ),
    # normalization
    unary(
        "batch_norm",
        lambda x: F.batch_norm(x, B[:4], B[:4].abs(), B[2:], B[1:5], eps=1e-3),
        mean=BIAS[:4],
        variance=np.abs(BIAS[:4]),
        gamma=BIAS[2:],
        beta=BIAS[1:5],
        epsilon=1e-3,
    ),
    unary("instance_norm", lambda x: F.group_norm(x, 4, eps=1e-3), epsilon=1e-3),
    unary(
        "layer_norm",
        lambda x: F.layer_norm(x, (8,), torch.arange(8.0), torch.ones(8), 1e-3),
        x=ROWS,
        axes=[-1],
        gamma=np.arange(8, dtype=np.float32),
        beta=np.ones(8, np.float32),
        epsilon=1e-3,
    ),
    # reduction
    unary("reduce_mean", lambda x: x.mean((2, 3), keepdim=True), axes=[2, 3], keep_dims=True),
    unary("reduce_sum", lambda x: x.sum((1, 3)), axes=[1, -1], keep_dims=False),
    unary("reduce_max", lambda x: x.amax(1), axes=[1], keep_dims=False),
    unary("reduce_min", lambda x: x.amin(1), axes=[1], keep_dims=False),
    unary("reduce_sum_square", lambda x: (x * x).sum(1), axes=[1], keep_dims=False),
    unary("reduce_l2_norm", lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True), axes=[1], keep_dims=True),
    unary("reduce_argmax", lambda x: x.argmax(1).int(), axis=1, keep_dims=False),
    unary("reduce_argmin", lambda x: x.argmin(3, True).int(), axis=3, keep_dims=True),
    Case("topk", lambda mb, x: mb.topk(x=x, k=3, axis=-1)[0], lambda x: x.topk(3).values, (X,)),
    Case("topk", lambda mb, x: mb.topk(x=x, k=2, axis=1)[1], lambda x: x.topk(2, 1).indices.int(), (X,)),
    Case(
        "topk",
        lambda mb, x: mb.topk(x=x, k=2, axis=1, ascending=True)[0],
        lambda x: x.topk(2, 1, largest=False).values,
        (X,),
    ),
    # shape
    unary("reshape", lambda x: x.reshape(1, 8, 15), shape=[1, 8, -1]),
    unary("transpose", lambda x: x.permute(0, 2, 3, 1), perm=[0, 2, 3, 1]),
    unary("squeeze", lambda x: x[0, :, :, 0], x=tensor(1, 3, 4, 1), axes=[0, 3]),
    unary("expand_dims", lambda x: x[:, None, :, None], x=tensor(3, 4), axes=[1, -1]),
    Case("concat", lambda mb, x, y: mb.concat(values=[x, y, x], axis=1), lambda x, y: torch.cat([x, y, x], 1), (X, Y)),
    Case(
        "concat",
        lambda mb, x, y: mb.concat(values=[x, y], axis=1, interleave=True),
        lambda x, y: torch.stack([part[:, i] for i in range(x.shape[1]) for part in (x, y)], 1),
        (X, Y),
    ),
    Case("stack", lambda mb, x, y: mb.stack(values=[x, y], axis=2), lambda x, y: torch.stack([x, y], 2), (X, Y)),
    Case("split", lambda mb, x: mb.split(x=x, num_splits=2, axis=1)[1], lambda x: x[:, 2:], (X,)),
    Case("split", lambda mb, x: mb.split(x=x, split_sizes=[1, 3], axis=1)[1], lambda x: x[:, 1:], (X,)),
    unary("tile", lambda x: torch.cat([x, x], 2), reps=[1, 1, 2, 1]),
    unary(
        "slice_by_index",
        lambda x: x[:, 1:3, ::2, -2:],
        begin=[0, 1, 0, -2],
        end=[1, 3, 6, 0],
        stride=[1, 1, 2, 1],
        begin_mask=[True, False, False, False],
        end_mask=[True, False, False, True],
    ),
    unary(
        "slice_by_index",
        lambda x: x[:, 2],
        begin=[0, 2, 0, 0],
        end=[1, 3, 6, 5],
        squeeze_mask=[False, True, False, False],
    ),
    unary("slice_by_size", lambda x: x[:, 1:3, 2:], begin=[0, 1, 2, 0], size=[1, 2, -1, 5]),
    Case("gather", lambda mb, x, i: mb.gather(x=x, indices=i, axis=1), lambda x, i: x[:, i.long()], (X, INDICES)),
    Case(
        "gather",
        lambda mb, x, i: mb.gather(x=x, indices=i, axis=1, batch_dims=1),
        lambda x, i: torch.stack([row[index.long()] for row, index in zip(x, i, strict=True)]),
        (tensor(2, 3, 5), INDICES),
        IOS16,
    ),
    Case(
        "gather_along_axis",
        lambda mb, x, i: mb.gather_along_axis(x=x, indices=i, axis=1),
        lambda x, i: torch.gather(x, 1, i.long()),
        (tensor(2, 3), INDICES),
    ),
    unary("pad", lambda x: F.pad(x, (1, 2, 0, 3), value=0.5), pad=[0, 0, 0, 0, 0, 3, 1, 2], constant_val=0.5),
    unary("pad", lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"), pad=[2, 1, 1, 2], mode="reflect"),
    unary("pad", lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate"), pad=[2, 1, 1, 2], mode="replicate"),
    unary("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), upscale_factor=2),
    # quantization
    Case(
        "quantize",
        lambda mb, x: mb.cast(
            x=mb.quantize(input=x, scale=np.float32(0.02), zero_point=np.int8(5), output_dtype="int8"), dtype="fp32"
        ),
        lambda x: ((x / 0.02).round() + 5).clamp(-128, 127),
        (X,),
        IOS17,
    ),
    Case(
        "dequantize",
        lambda mb, x: mb.dequantize(
            input=mb.quantize(input=x, scale=np.float32(0.1), output_dtype="uint8"),
            scale=np.float32([0.1, 0.2, 0.3, 0.4]),
            zero_point=np.uint8([0, 1, 2, 3]),
            axis=1,
        ),
        lambda x: (
            ((x / 0.1).round().clamp(0, 255) - torch.arange(4.0).reshape(4, 1, 1))
            * torch.tensor([0.1, 0.2, 0.3, 0.4]).reshape(4, 1, 1)
        ),
        (X,),
        IOS17,
    ),
    weight(
        "constexpr_affine_dequantize",
        IOS16,
        lambda mb: mb.constexpr_affine_dequantize(
            quantized_data=BYTES, zero_point=np.int8([1, 2, 3]), scale=np.float32([0.1, 0.2, 0.3]), axis=0
        ),
        (BYTES - np.array([[1], [2], [3]])) * np.array([[0.1], [0.2], [0.3]]),
    ),
    weight(
        "constexpr_cast",
        IOS16,
        lambda mb: mb.constexpr_cast(source_val=HALVES.astype(np.float16), output_dtype="fp32"),
        HALVES.astype(np.float16),
    ),
    weight(
        "constexpr_lut_to_dense",
        IOS16,
        lambda mb: mb.constexpr_lut_to_dense(
            indices=packed(FOUR_BIT, 4), lut=np.arange(16, dtype=np.float32) ** 2, shape=np.uint32([3, 4])
        ),
        FOUR_BIT.astype(np.float32) ** 2,
    ),
    weight(
        "constexpr_lut_to_dense",
        IOS16,
        lambda mb: mb.constexpr_lut_to_dense(
            indices=packed(FOUR_BIT * 5, 6), lut=np.arange(64, dtype=np.float32), shape=np.uint32([3, 4])
        ),
        FOUR_BIT * 5,
    ),
    weight(  # a table of its own for either pair of columns
        "constexpr_lut_to_dense",
        IOS18,
        lambda mb: mb.constexpr_lut_to_dense(
            indices=uint(2, FOUR_BIT % 4), lut=np.arange(8, dtype=np.float32).reshape(1, 2, 4, 1)
        ),
        FOUR_BIT % 4 + np.array([0, 0, 4, 4]),
    ),
    weight(  # pairs along the rows: (3, 4) indices make (6, 4) numbers
        "constexpr_lut_to_dense",
        IOS18,
        lambda mb: mb.constexpr_lut_to_dense(
            indices=uint(2, FOUR_BIT % 4),
            lut=np.stack([np.arange(4), -np.arange(4)], 1).astype(np.float32).reshape(1, 1, 4, 2),
            vector_axis=0,
        ),
        np.stack([FOUR_BIT % 4, -(FOUR_BIT.astype(int) % 4)], 1).reshape(6, 4),
    ),
    weight(
        "constexpr_sparse_to_dense",
        IOS16,
        lambda mb: mb.constexpr_sparse_to_dense(
            nonzero_data=HALVES[MASK == 1], mask=packed(MASK, 1), shape=np.uint32([3, 4])
        ),
        HALVES * MASK,
    ),
    weight(
        "constexpr_sparse_to_dense",
        IOS18,
        lambda mb: mb.constexpr_sparse_to_dense(nonzero_data=HALVES[MASK == 1], mask=uint(1, MASK)),
        HALVES * MASK,
    ),
    weight(
        "constexpr_blockwise_shift_scale",
        IOS18,
        lambda mb: mb.constexpr_blockwise_shift_scale(
            data=uint(4, FOUR_BIT),
            scale=np.float32([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]),
            offset=uint(4, np.array([[1, 2], [3, 4], [5, 6]])),
        ),
        (FOUR_BIT.astype(int) - np.repeat([[1, 2], [3, 4], [5, 6]], 2, 1))
        * np.repeat([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], 2, 1),
    ),
    weight(
        "constexpr_lut_to_sparse",
        IOS18,
        lambda mb: mb.constexpr_sparse_to_dense(
            **dict(
                zip(
                    ("mask", "nonzero_data"),
                    mb.constexpr_lut_to_sparse(
                        indices_mask=uint(1, MASK),
                        indices_nonzero_data=uint(2, FOUR_BIT[MASK == 1] % 4),
                        lut=np.float32([1, 3, 5, 7]).reshape(1, 1, 4, 1),
                    ),
                    strict=True,
                )
            )
        ),
        (FOUR_BIT % 4 * 2 + 1) * MASK,
    ),
    weight(
        "constexpr_sparse_blockwise_shift_scale",
        IOS18,
        lambda mb: mb.constexpr_sparse_to_dense(
            **dict(
                zip(
                    ("mask", "nonzero_data"),
                    mb.constexpr_sparse_blockwise_shift_scale(
                        data_mask=uint(1, MASK),
                        nonzero_data=BYTES[MASK == 1],
                        scale=np.float32([[0.1], [0.2], [0.3]]),
                        offset=np.int8([[1], [2], [3]]),
                    ),
                    strict=True,
                )
            )
        ),
        (BYTES - np.array([[1], [2], [3]])) * np.array([[0.1], [0.2], [0.3]]) * MASK,
    ),
]


@pytest.fixture(autouse=True, scope="module")
def fast_conversion() -> Iterator[None]:
    """Every conversion ends with a garbage collection, which takes half a second while all of torch is looked at."""
    coremltools()
    gc.freeze()
    yield
    gc.unfreeze()


def save(case: Case, path: Path) -> None:
    """A package of that operation alone, as the builder wrote it: no pass may replace it by another."""
    ct = coremltools()
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import types

    target = getattr(ct.target, case.target)
    kinds = {torch.float32: types.fp32, torch.int32: types.int32}
    specs = [mb.TensorSpec(tuple(x.shape), kinds[x.dtype]) for x in case.inputs]
    names = "xyz"[: len(specs)]
    arguments = ", ".join(names)
    build = eval(f"lambda {arguments}: build(mb, {arguments})", {"build": case.build, "mb": mb})
    program = mb.program(input_specs=specs, opset_version=target)(build)
    ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
    ).save(str(path))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operation_agrees_with_torch(case: Case, tmp_path: Path) -> None:
    save(case, tmp_path / "one.mlpackage")
    program = Program.load(tmp_path / "one.mlpackage")
    assert case.op in program.op_counts
    (result,) = program.run(dict(zip("xyz", case.inputs, strict=False))).values()
    expected = case.expected(*case.inputs)
    assert result.dtype == expected.dtype
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_every_operation_has_a_case() -> None:
    assert {case.op for case in CASES} | {"classify"} == OPS.keys()  # classify: test_interpreter

"""Compressed weights and quantized activations: through a package, and against coremltools' own expansion of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mil import IOS16, IOS17, IOS18, Case, close, folded, numbers, ours, run_cases, tensor
from torch import Tensor

pytest.importorskip("coremltools", exc_type=ImportError)
X = tensor(1, 4, 6, 5)
BYTES = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
HALVES = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
MASK = np.array([[1, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 1]], np.uint8)
FOUR_BIT = np.arange(12, dtype=np.uint8).reshape(3, 4)


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


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    return run_cases(CASES, tmp_path_factory.mktemp("quantization"))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(c) for c in CASES])
def test_agrees_with_torch_through_a_package(number: int, results: list[Tensor]) -> None:
    close(results[number], CASES[number].expected(*CASES[number].inputs))


# ------------------------------------------------------------------------------------------------ activations

RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("zero_point", [None, 0, 3])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_quantizing_is_folded_alike(axis: int | None, zero_point: int | None, dtype: str) -> None:
    """Per tensor and per slice, with zero points; halves, and numbers beyond the range."""
    kind = np.dtype(dtype).type
    x = np.concatenate([numbers(2, 3, 4) * 20000, np.arange(-12, 12, dtype=np.float32).reshape(2, 3, 4) / 2 * 0.5], 1)
    size = None if axis is None else x.shape[axis]
    scale = np.float32(0.5) if size is None else np.float32(0.5) * np.float32(2) ** np.arange(size, dtype=np.float32)
    given: dict[str, Any] = {"scale": scale, "output_dtype": dtype} | ({} if axis is None else {"axis": axis})
    if zero_point is not None:
        given["zero_point"] = kind(zero_point) if size is None else np.arange(size).astype(dtype) + kind(zero_point)
    seen, due = ours("quantize", input=x, **given), folded("quantize", input=x, **given)
    close(seen, due)
    assert RANGES[dtype] == (int(seen.min()), int(seen.max()))
    del given["output_dtype"]
    back = ours("dequantize", input=due, **given)
    shape = [-1 if axis is not None and i == axis % 3 else 1 for i in range(3)]
    zero = np.asarray(given.get("zero_point", 0), np.float32)
    expected = (np.float32(due) - (zero if axis is None else zero.reshape(shape if zero.ndim else []))) * (
        scale if axis is None else scale.reshape(shape)
    )
    close(back, expected)


def test_halves_are_rounded_to_even() -> None:
    x = np.float32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert ours("quantize", input=x, scale=np.float32(1), output_dtype="int8").tolist() == [-2, -2, 0, 0, 2, 2]
    with pytest.raises(ValueError, match="quantization to int4 is not supported"):
        ours("quantize", input=x, scale=np.float32(1), output_dtype="int4")


# ------------------------------------------------------------------------------------------------ weights


def expanded(op: str, target: str, **inputs: Any) -> np.ndarray:
    """What coremltools makes of a compressed weight, which it keeps folded up unless it is asked."""
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import Function

    from vigcli.coreml.apple import coremltools

    with Function({}, opset_version=getattr(coremltools().target, target)):
        result = getattr(mb, op)(**inputs)
    operation = (result[0] if isinstance(result, tuple | list) else result).op
    value = operation.materialized_val_inference()
    return np.asarray(value[1] if isinstance(value, tuple | list) else value)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", RANGES)
def test_affine_weights(dtype: str, axis: int) -> None:
    data = np.random.default_rng(0).integers(*RANGES[dtype], (4, 3, 2, 2), endpoint=True).astype(dtype)
    for size in ((), (data.shape[axis],)):
        scale = np.float32(np.abs(numbers(*size)) + 0.1)
        zero = np.asarray(np.random.default_rng(1).integers(0, 9, size), dtype)
        given = {
            "quantized_data": data,
            "scale": scale,
            "zero_point": zero if size else zero[()],
            "axis": np.int32(axis),
        }
        close(ours("constexpr_affine_dequantize", **given), expanded("constexpr_affine_dequantize", IOS16, **given))


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_palettes_packed_into_bytes(bits: int) -> None:
    shape = (3, 5, 1, 7)
    indices = np.random.default_rng(0).integers(0, 2**bits, shape).astype(np.uint8)
    given = {"indices": packed(indices, bits), "lut": numbers(2**bits), "shape": np.uint32(shape)}
    close(ours("constexpr_lut_to_dense", **given), given["lut"][indices])
    close(ours("constexpr_lut_to_dense", **given), expanded("constexpr_lut_to_dense", IOS16, **given))


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_sparse_weights_packed_into_bytes(density: float) -> None:
    shape = (3, 5, 1, 7)
    mask = (np.random.default_rng(0).random(shape) < density).astype(np.uint8)
    given = {"nonzero_data": numbers(int(mask.sum())), "mask": packed(mask, 1), "shape": np.uint32(shape)}
    dense = np.zeros(shape, np.float32)
    dense[mask == 1] = given["nonzero_data"]
    close(ours("constexpr_sparse_to_dense", **given), dense)


@pytest.mark.parametrize("blocks", [(1, 1, 1), (4, 1, 1), (2, 3, 1), (4, 6, 2)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("int4", -8, 7), ("uint4", 0, 15), ("int8", -128, 127), ("uint8", 0, 255)]
)
def test_weights_in_blocks(dtype: str, low: int, high: int, blocks: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    data, offset = (as_type(rng.integers(low, high, shape, endpoint=True), dtype) for shape in ((4, 6, 2), blocks))
    given = {"data": data, "scale": np.abs(numbers(*blocks)) + np.float32(0.1)}
    for more in ({}, {"offset": offset}, {"offset": np.abs(numbers(*blocks, seed=5))}):
        seen = ours("constexpr_blockwise_shift_scale", **{**given, **more})
        close(seen, expanded("constexpr_blockwise_shift_scale", IOS18, **given, **more), atol=1e-4)


def as_type(values: np.ndarray, dtype: str) -> np.ndarray:
    from coremltools.converters.mil.mil.types import type_mapping

    return values.astype(type_mapping.string_to_nptype(dtype))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("groups", [(1, 1), (2, 1), (1, 3), (4, 6)], ids=str)
@pytest.mark.parametrize(("vector", "axis"), [(1, None), (2, 0), (3, 1)])
def test_palettes_of_groups_and_vectors(bits: int, groups: tuple[int, int], vector: int, axis: int | None) -> None:
    indices = uint(bits, np.random.default_rng(0).integers(0, 2**bits, (4, 6)))
    given: dict[str, Any] = {"indices": indices, "lut": numbers(*groups, 2**bits, vector)}
    given |= {} if axis is None else {"vector_axis": np.int32(axis)}
    close(ours("constexpr_lut_to_dense", **given), expanded("constexpr_lut_to_dense", IOS18, **given))


@pytest.mark.parametrize("groups", [(1, 1), (2, 1), (4, 6)], ids=str)
def test_sparse_palettes_and_sparse_blocks(groups: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (4, 6))
    count = int(mask.sum())
    palette = {
        "indices_mask": uint(1, mask),
        "indices_nonzero_data": uint(2, rng.integers(0, 4, count)),
        "lut": numbers(*groups, 4, 1),
    }
    seen_mask, seen = ours("constexpr_lut_to_sparse", **palette)
    close(seen_mask, mask)
    close(seen, expanded("constexpr_lut_to_sparse", IOS18, **palette))
    blocks = {
        "data_mask": uint(1, mask), "nonzero_data": rng.integers(-128, 127, count).astype(np.int8),
        "scale": np.abs(numbers(*groups)), "offset": rng.integers(-9, 9, groups).astype(np.int8),
    }  # fmt: skip
    seen_mask, seen = ours("constexpr_sparse_blockwise_shift_scale", **blocks)
    close(seen_mask, mask)
    close(seen, expanded("constexpr_sparse_blockwise_shift_scale", IOS18, **blocks), atol=1e-4)


def test_vectors_in_a_sparse_palette_widen_the_mask() -> None:
    mask, lut = np.array([[1, 0], [1, 1]]), np.float32([[1, 2], [3, 4]]).reshape(1, 1, 2, 2)
    given = {
        "indices_mask": uint(1, mask),
        "indices_nonzero_data": uint(1, np.array([0, 1, 1])),
        "lut": lut,
        "vector_axis": np.int32(0),
    }
    seen_mask, seen = ours("constexpr_lut_to_sparse", **given)
    close(seen_mask, np.int32([[1, 0], [1, 0], [1, 1], [1, 1]]))
    close(seen, np.float32([1, 2, 3, 3, 4, 4]))


BYTE, ZEROS, LONG = np.uint8([1]), np.zeros((2**10, 2**10), np.int32), np.zeros((1, 1, 2, 2**10), np.float32)


@pytest.mark.parametrize(
    ("op", "inputs", "match"),
    [
        ("constexpr_lut_to_dense", {"indices": BYTE, "lut": numbers(16), "shape": [3]}, "do not hold"),
        ("constexpr_lut_to_dense", {"indices": ZEROS[:2, :2], "lut": numbers(1, 1, 4, 2)}, "needs vector_axis"),
        ("constexpr_lut_to_dense", {"indices": ZEROS, "lut": LONG, "vector_axis": 0}, "too large"),
        ("constexpr_sparse_to_dense", {"nonzero_data": numbers(3), "mask": [[1, 0], [1, 0]]}, "2 places for 3 numbers"),
        ("constexpr_blockwise_shift_scale", {"data": ZEROS[:4, :4], "scale": numbers(3, 1)}, "do not divide"),
        ("constexpr_cast", {"source_val": numbers(3), "output_dtype": "fp16"}, "is not supported"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(op: str, inputs: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ours(op, **inputs)

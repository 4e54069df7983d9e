"""Arithmetic, comparisons, casts and activations: through a package against torch, and against coremltools' folding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mil import IOS17, Case, close, folded, numbers, ours, run_cases, tensor
from mil import unary as case
from torch import Tensor

from vigcli.coreml.ops import OPS
from vigcli.coreml.ops.const import LARGEST
from vigcli.coreml.ops.elementwise import BINARY, BINARY_EXACT, UNARY, UNARY_EXACT

pytest.importorskip("coremltools", exc_type=ImportError)
X, Y = tensor(1, 4, 6, 5), tensor(1, 4, 6, 5, seed=1)
HALF_EQUAL = torch.where(Y > 0, X, Y)
POSITIVE = X.abs() + 0.1
INSIDE = X.tanh() * 0.9
VECTOR = numbers(4)
V = torch.from_numpy(VECTOR).reshape(4, 1, 1)


def unary(op: str, expected: Any, x: Tensor = X, **parameters: Any) -> Case:
    return case(op, expected, x, **parameters)


def binary(op: str, expected: Any, x: Tensor = X, y: Tensor = Y) -> Case:
    return Case(op, lambda mb, x, y: getattr(mb, op)(x=x, y=y), expected, (x, y))


def compare(op: str, expected: Any) -> Case:
    return Case(
        op,
        lambda mb, x, y: mb.cast(x=getattr(mb, op)(x=x, y=y), dtype="fp32"),
        lambda x, y: expected(x, y).float(),
        (X, HALF_EQUAL),
    )


def logical(op: str, expected: Any) -> Case:
    return Case(
        op,
        lambda mb, x, y: mb.cast(x=getattr(mb, op)(x=mb.greater(x=x, y=0.0), y=mb.greater(x=y, y=0.0)), dtype="fp32"),
        lambda x, y: expected(x > 0, y > 0).float(),
        (X, Y),
    )


CASES = [
    binary("add", torch.add),
    binary("sub", torch.sub),
    binary("mul", torch.mul),
    binary("real_div", torch.div, y=POSITIVE),
    binary("floor_div", lambda x, y: (x / y).floor(), x=3 * X, y=POSITIVE),
    binary("mod", lambda x, y: x - (x / y).trunc() * y, x=3 * X, y=POSITIVE),
    binary("pow", torch.pow, x=POSITIVE),
    binary("maximum", torch.maximum),
    binary("minimum", torch.minimum),
    compare("equal", torch.eq),
    compare("not_equal", torch.ne),
    compare("greater", torch.gt),
    compare("greater_equal", torch.ge),
    compare("less", torch.lt),
    compare("less_equal", torch.le),
    logical("logical_and", torch.logical_and),
    logical("logical_or", torch.logical_or),
    logical("logical_xor", torch.logical_xor),
    Case(
        "logical_not",
        lambda mb, x: mb.cast(x=mb.logical_not(x=mb.greater(x=x, y=0.0)), dtype="fp32"),
        lambda x: (x <= 0).float(),
        (X,),
    ),
    Case(
        "select",
        lambda mb, x, y: mb.select(cond=mb.greater(x=x, y=0.0), a=x, b=y),
        lambda x, y: torch.where(x > 0, x, y),
        (X, Y),
    ),
    Case("cast", lambda mb, x: mb.cast(x=x, dtype="int32"), lambda x: x.trunc().int(), (X * 3,)),
    Case("cast", lambda mb, x: mb.cast(x=mb.cast(x=x, dtype="bool"), dtype="fp32"), lambda x: (x != 0) * 1.0, (X,)),
    *(
        Case(
            "cast",
            lambda mb, x, d=d: mb.cast(x=mb.cast(x=x, dtype=d), dtype="int32"),
            lambda x: x.int(),
            (POSITIVE * 20,),
            IOS17,
        )
        for d in ("int8", "uint8", "int16", "uint16")
    ),
    unary("identity", lambda x: x),
    unary("clip", lambda x: x.clamp(-0.5, 0.7), alpha=-0.5, beta=0.7),
    unary("threshold", lambda x: x.clamp(min=0.2), alpha=0.2),
    unary("log", lambda x: torch.log(x + 0.01), x=POSITIVE, epsilon=0.01),
    unary("rsqrt", lambda x: 1 / (x + 0.1).sqrt(), x=POSITIVE, epsilon=0.1),
    unary("inverse", lambda x: 1 / (x + 0.1), x=POSITIVE, epsilon=0.1),
    unary("abs", torch.abs),
    unary("acos", torch.acos, x=INSIDE),
    unary("asin", torch.asin, x=INSIDE),
    unary("atan", torch.atan),
    unary("atanh", torch.atanh, x=INSIDE),
    unary("ceil", torch.ceil),
    unary("cos", torch.cos),
    unary("cosh", torch.cosh),
    unary("erf", torch.erf),
    unary("exp", torch.exp),
    unary("exp2", lambda x: 2**x),
    unary("floor", torch.floor),
    unary("round", torch.round, x=torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49])),
    unary("sign", torch.sign),
    unary("sin", torch.sin),
    unary("sinh", torch.sinh),
    unary("sqrt", torch.sqrt, x=POSITIVE),
    unary("square", torch.square),
    unary("tan", torch.tan),
    # activations
    unary("relu", F.relu),
    unary("relu6", F.relu6, x=X * 6),
    unary("leaky_relu", lambda x: F.leaky_relu(x, 0.2), alpha=0.2),
    unary("thresholded_relu", lambda x: F.threshold(x, 0.3, 0), alpha=0.3),
    unary("thresholded_relu", lambda x: x * (x >= 1), x=torch.tensor([0.5, 1.0, 1.5]), alpha=1.0),
    unary("clamped_relu", lambda x: torch.where(x >= 0, x, 0.2 * x).clamp(max=0.7), alpha=0.2, beta=0.7),
    unary("prelu", lambda x: F.prelu(x, V.flatten()), alpha=VECTOR),
    unary("elu", lambda x: F.elu(x, 0.3), alpha=0.3),
    unary("linear_activation", lambda x: 0.5 * x - 2, alpha=0.5, beta=-2.0),
    unary("sigmoid", torch.sigmoid),
    unary("sigmoid_hard", F.hardsigmoid, x=X * 4, alpha=1 / 6, beta=0.5),
    unary("silu", F.silu),
    unary("gelu", F.gelu, mode="EXACT"),
    unary("gelu", lambda x: F.gelu(x, approximate="tanh"), mode="TANH_APPROXIMATION"),
    unary("gelu", lambda x: x / (1 + (-1.702 * x).exp()), mode="SIGMOID_APPROXIMATION"),
    unary("tanh", torch.tanh),
    unary("scaled_tanh", lambda x: 1.7 * (0.6 * x).tanh(), alpha=1.7, beta=0.6),
    unary("softplus", lambda x: (1 + x.exp()).log()),
    unary("softplus_parametric", lambda x: V * (1 + (2 * V * x).exp()).log(), alpha=VECTOR, beta=2 * VECTOR),
    unary("softsign", lambda x: x / (1 + x.abs())),
    *(unary("softmax", lambda x, a=a: x.exp() / x.exp().sum(a, True), axis=a) for a in (1, 2, -1)),
]  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    return run_cases(CASES, tmp_path_factory.mktemp("elementwise"))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(c) for c in CASES])
def test_agrees_with_torch_through_a_package(number: int, results: list[Tensor]) -> None:
    close(results[number], CASES[number].expected(*CASES[number].inputs))


# ------------------------------------------------------------------------------------------------ folding

SHAPES = [((), ()), ((3,), (3,)), ((2, 3), (3,)), ((2, 1, 3), (1, 4, 1)), ((1, 4, 2, 3), (1, 4, 1, 1)), ((4,), ())]
FRACTIONS = ("acos", "asin", "atanh", "sqrt", "log", "rsqrt", "inverse")


def values(shape: tuple[int, ...], kind: str, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(scale=3, size=shape)
    if kind == "bool":
        return np.asarray(drawn > 0)
    return np.asarray(drawn.round() if kind == "int32" else drawn, kind)


@pytest.mark.parametrize("kind", ["float32", "int32"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("op", sorted({*BINARY, *BINARY_EXACT} - {"logical_and", "logical_or", "logical_xor"}))
def test_pairs_are_folded_alike(op: str, shapes: Any, kind: str) -> None:
    """By shapes that are broadcast either way, and by fractions and whole numbers."""
    x, y = values(shapes[0], kind, 0), values(shapes[1], kind, 1)
    if op in ("real_div", "floor_div", "mod", "pow"):
        y = np.abs(y) + 1
        x = np.abs(x) if op in ("pow", "mod") else x  # the sign of a remainder: see below
    if op == "real_div" and kind == "int32":
        with pytest.raises(ValueError, match="a division of integers is not supported"):
            ours(op, x=x, y=y.astype(kind))
        return
    close(ours(op, x=x, y=y.astype(kind)), folded(op, x=x, y=y.astype(kind)))


def test_the_sign_of_a_remainder_is_that_of_the_number() -> None:
    """As a compiled model was seen to do, and unlike coremltools' folding."""
    x, y = np.float32([-7, 7, -7, 7]), np.float32([2, 2, -2, -2])
    assert ours("mod", x=x, y=y).tolist() == [-1, 1, -1, 1]
    assert folded("mod", x=x, y=y).tolist() == [1, 1, -1, -1]


@pytest.mark.parametrize("op", ["logical_and", "logical_or", "logical_xor"])
@pytest.mark.parametrize("shapes", SHAPES[1:], ids=str)
def test_truth_values_are_folded_alike(op: str, shapes: Any) -> None:
    x, y = values(shapes[0], "bool", 0), values(shapes[1], "bool", 1)
    close(ours(op, x=x, y=y), folded(op, x=x, y=y))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 2, 3, 4), (1, 2, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("op", sorted({*UNARY, *UNARY_EXACT, "log", "rsqrt", "inverse"} - {"logical_not"}))
def test_single_numbers_are_folded_alike(op: str, shape: tuple[int, ...]) -> None:
    x = values(shape, "float32", 2)
    x = np.float32(np.tanh(x) if op in ("acos", "asin", "atanh") else np.abs(x) if op in FRACTIONS else x)
    close(ours(op, x=x), folded(op, x=x), atol=1e-5)


@pytest.mark.parametrize("op", ["abs", "sign", "square"])
def test_whole_numbers_stay_whole(op: str) -> None:
    x = values((2, 3), "int32", 3)
    close(ours(op, x=x), folded(op, x=x))


ACTIVATIONS: dict[str, dict[str, Any]] = {
    "relu": {},
    "relu6": {},
    "leaky_relu": {"alpha": np.float32(0.3)},
    "thresholded_relu": {"alpha": np.float32(0.3)},
    "clamped_relu": {"alpha": np.float32(0.3), "beta": np.float32(1.5)},
    "elu": {"alpha": np.float32(0.7)},
    "linear_activation": {"alpha": np.float32(0.7), "beta": np.float32(-1)},
    "sigmoid": {},
    "sigmoid_hard": {"alpha": np.float32(0.3), "beta": np.float32(0.4)},
    "tanh": {},
    "scaled_tanh": {"alpha": np.float32(0.3), "beta": np.float32(0.4)},
    "softplus": {},
    "softsign": {},
    "prelu": {"alpha": np.float32([0.1, 0.1, 0.1])},  # of rank 3 it takes one number for all
    "softplus_parametric": {"alpha": np.float32([0.1, 0.2, 0.3]), "beta": np.float32([0.4, 0.5, 0.6])},
    "clip": {"alpha": np.float32(-0.3), "beta": np.float32(0.4)},
    "threshold": {"alpha": np.float32(-0.3)},
}


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("op", ACTIVATIONS)
def test_activations_are_folded_alike(op: str, shape: tuple[int, ...]) -> None:
    x = values(shape, "float32", 4)
    close(ours(op, x=x, **ACTIVATIONS[op]), folded(op, x=x, **ACTIVATIONS[op]))


@pytest.mark.parametrize("mode", ["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"])
def test_gelu_is_folded_alike(mode: str) -> None:
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    close(ours("gelu", x=x, mode=mode), folded("gelu", x=x, mode=mode))
    with pytest.raises(ValueError, match="unknown gelu mode"):
        ours("gelu", x=x, mode="OTHER")


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_softmax_is_folded_alike(axis: int) -> None:
    x = values((2, 3, 4), "float32", 5) * 30
    close(ours("softmax", x=x, axis=np.int32(axis)), folded("softmax", x=x, axis=np.int32(axis)))


CASTS = ["bool", "int8", "uint8", "int16", "uint16", "int32", "fp16", "fp32"]


@pytest.mark.parametrize("dtype", CASTS)
@pytest.mark.parametrize("kind", ["float32", "int32", "bool"])
def test_casts_are_folded_alike(kind: str, dtype: str) -> None:
    x = np.float32([-2.875, -1.5, -0.5, 0, 0.5, 1.5, 2.875, 127])
    x = np.abs(x) if dtype.startswith("u") else x
    theirs = folded("cast", x=x.astype(kind), dtype=dtype)
    close(ours("cast", x=x.astype(kind), dtype=dtype), theirs)


def test_a_cast_to_fewer_bits_wraps_round_as_numpy_does() -> None:
    x = np.int32([-129, -1, 128, 255, 256, 32768, 65536 + 7])
    for dtype in ("int8", "uint8", "int16", "uint16"):
        close(ours("cast", x=x, dtype=dtype), x.astype(dtype).astype(np.int32))
    with pytest.raises(ValueError, match="a cast to int64 is not supported"):
        ours("cast", x=x, dtype="int64")


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_select_takes_either(shapes: Any) -> None:
    a, b = values(shapes[0], "float32", 6), values(shapes[1], "float32", 7)
    for cond in (values(shapes[0], "bool", 8), np.bool_(True), np.bool_(False)):
        close(ours("select", cond=cond, a=a, b=b), np.asarray(np.where(cond, a, b)))


# ------------------------------------------------------------------------------------------------ rounding and size


@pytest.mark.parametrize(
    "op", sorted(name for name in {*UNARY, *BINARY, *UNARY_EXACT, *BINARY_EXACT} if OPS[name].exact)
)
def test_what_is_exact_needs_no_rounding(op: str) -> None:
    x, y = (np.float32(values((1000,), "float32", seed).astype(np.float16) * 10) for seed in (9, 10))
    x, y = (a.astype(np.float16).astype(np.float32) for a in (x, y))
    pair = {"x": x} if op in UNARY_EXACT else {"x": x, "y": y}
    if op.startswith("logical"):
        pair = {name: value > 0 for name, value in pair.items()}
    result = ours(op, **pair)
    assert torch.equal(result.half().to(result.dtype), result)


@pytest.mark.parametrize("op", sorted({*BINARY, *BINARY_EXACT}))
def test_pairs_too_large_are_refused_before_they_take_memory(op: str) -> None:
    size = int(LARGEST**0.5) * 4
    x = torch.ones(1).expand(size)
    with pytest.raises(ValueError, match="too large"):
        OPS[op].function(x=x.reshape(-1, 1), y=x)

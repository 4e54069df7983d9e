"""Arithmetic, comparisons and casts, element by element."""

from __future__ import annotations

import torch
from torch import Tensor

from vigcli.coreml.ops.registry import op

# Every integer type is held in int32: the programs use the small ones for indices only, within their range.
CAST_TYPES = {
    "fp16": torch.float32,
    "fp32": torch.float32,
    "int16": torch.int32,
    "uint16": torch.int32,
    "int32": torch.int32,
    "bool": torch.bool,
}


@op("add")
def add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


@op("sub")
def sub(x: Tensor, y: Tensor) -> Tensor:
    return x - y


@op("mul")
def mul(x: Tensor, y: Tensor) -> Tensor:
    return x * y


@op("real_div")
def real_div(x: Tensor, y: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise ValueError("a division of integers is not supported")
    return x / y


@op("pow")
def power(x: Tensor, y: Tensor) -> Tensor:
    return x**y


@op("maximum")
def maximum(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x, y)


@op("minimum")
def minimum(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(x, y)


@op("equal")
def equal(x: Tensor, y: Tensor) -> Tensor:
    return x == y


@op("not_equal")
def not_equal(x: Tensor, y: Tensor) -> Tensor:
    return x != y


@op("greater")
def greater(x: Tensor, y: Tensor) -> Tensor:
    return x > y


@op("greater_equal")
def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    return x >= y


@op("less")
def less(x: Tensor, y: Tensor) -> Tensor:
    return x < y


@op("less_equal")
def less_equal(x: Tensor, y: Tensor) -> Tensor:
    return x <= y


@op("select")
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond.bool(), a, b)


@op("cast")
def cast(x: Tensor, dtype: str) -> Tensor:
    if dtype not in CAST_TYPES:
        raise ValueError(f"a cast to {dtype} is not supported")
    return x.to(CAST_TYPES[dtype])


@op("identity")
def identity(x: Tensor) -> Tensor:
    return x


@op("clip")
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x.clamp(alpha, beta)


@op("abs")
def absolute(x: Tensor) -> Tensor:
    return x.abs()


@op("exp")
def exp(x: Tensor) -> Tensor:
    return torch.exp(x)


@op("log")
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return torch.log(x + epsilon)


@op("erf")
def erf(x: Tensor) -> Tensor:
    return torch.erf(x)


@op("sqrt")
def sqrt(x: Tensor) -> Tensor:
    return torch.sqrt(x)


@op("rsqrt")
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return torch.rsqrt(x + epsilon)


@op("square")
def square(x: Tensor) -> Tensor:
    return x * x


@op("inverse")
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return 1 / (x + epsilon)

"""Arithmetic, comparisons and casts, element by element."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vigcli.coreml.ops.registry import affordable, op

FLOATS = ("fp16", "fp32")
# Every integer type is held in int32; a cast to a smaller one wraps round, as numpy's does in coremltools.
INTEGERS = {
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.uint16,
    "int32": torch.int32,
}


def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """Towards minus infinity, whole numbers too: so the documentation says, and so a compiled model was seen to do
    (github.com/kasper0406/stablehlo-coreml/pull/70)."""
    return torch.div(x, y, rounding_mode="floor")


def real_div(x: Tensor, y: Tensor) -> Tensor:
    """Not of whole numbers: the result is declared whole, coremltools itself folds it to fractions, and its front ends
    always cast before."""
    if not x.is_floating_point():
        raise ValueError("a division of integers is not supported")
    return x / y


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
}
# Of numbers in fp16 their results are in fp16 too.
UNARY_EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "floor": torch.floor,
    "identity": lambda x: x,
    "logical_not": torch.logical_not,
    "round": torch.round,  # halves to even, as numpy's in coremltools' value inference
    "sign": torch.sign,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "real_div": real_div,
    "floor_div": floor_div,
    # The sign of x: so a compiled model was seen to do (the same place), though coremltools folds by Python's rule.
    "mod": torch.fmod,
    "pow": torch.pow,
}
BINARY_EXACT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}


def broadcast(*operands: Tensor) -> None:
    """Refuse operands whose common shape is too large."""
    first = operands[0].shape
    if any(operand.shape != first for operand in operands):
        affordable(*torch.broadcast_shapes(*(operand.shape for operand in operands)))


def _unary(name: str, function: Callable[[Tensor], Tensor], exact: bool) -> None:
    @op(name, exact=exact)
    def run(x: Tensor) -> Tensor:
        return function(x)


def _binary(name: str, function: Callable[[Tensor, Tensor], Tensor], exact: bool) -> None:
    @op(name, exact=exact)
    def run(x: Tensor, y: Tensor) -> Tensor:
        broadcast(x, y)
        return function(x, y)


for _exact, _table in ((False, UNARY), (True, UNARY_EXACT)):
    for _name, _function in _table.items():
        _unary(_name, _function, _exact)
for _exact, _pairs in ((False, BINARY), (True, BINARY_EXACT)):
    for _name, _pair in _pairs.items():
        _binary(_name, _pair, _exact)


@op("select", exact=True)
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    broadcast(cond, a, b)
    return torch.where(cond.bool(), a, b)


@op("cast")
def cast(x: Tensor, dtype: str) -> Tensor:
    """From fractions towards zero, as numpy's in coremltools' value inference."""
    if dtype in FLOATS:
        return x.float()
    if dtype == "bool":
        return x.bool()
    if dtype not in INTEGERS:
        raise ValueError(f"a cast to {dtype} is not supported")
    return x.to(torch.int32 if dtype == "int32" else torch.int64).to(INTEGERS[dtype]).int()


@op("clip", exact=True)
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x.clamp(alpha, beta)


@op("log")
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """An epsilon that a package keeps in fp16 is zero there, and here."""
    return torch.log(x + epsilon)


@op("rsqrt")
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """The epsilon stands under the root."""
    return torch.rsqrt(x + epsilon)


@op("inverse")
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return 1 / (x + epsilon)


@op("threshold", exact=True)
def threshold(x: Tensor, alpha: float) -> Tensor:
    return x.clamp(min=alpha)

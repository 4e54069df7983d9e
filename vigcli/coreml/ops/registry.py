"""The table of operations, and how an argument reaches one: as a tensor, or as the plain Python value it stands for."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from torch import Tensor

from vigcli.coreml.ops.const import LARGEST

Function = Callable[..., Any]

OPS: dict[str, Op] = {}


def affordable(*sizes: int) -> None:
    """Refuse a result of a shape that no network of images has, before it takes the memory."""
    if min(sizes, default=0) < 0:
        raise ValueError(f"its result of {' x '.join(map(str, sizes))} has a negative size")
    if math.prod(sizes) > LARGEST:
        raise ValueError(f"its result of {' x '.join(map(str, sizes))} is too large")


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        parameters: the annotation of each.
        defaults: of those that are optional.
        exact: whether the numbers of its results are numbers of its inputs, their magnitudes or whole numbers: of fp16
            inputs there is nothing to round then.
    """

    name: str
    function: Function
    parameters: dict[str, Any]
    defaults: dict[str, Any]
    exact: bool = False

    def convert(self, parameter: str, values: list[Any]) -> Any:
        """The values bound to a parameter, as its annotation asks for them."""
        annotation = self.parameters[parameter]
        return values if annotation == list[Tensor] else _as(annotation, values[0])

    def check_count(self, parameter: str, count: int) -> None:
        """Raises ValueError for a parameter that takes one value and is given another number of them."""
        if count != 1 and (self.parameters[parameter] != list[Tensor] or not count):
            raise ValueError(f"'{parameter}' takes one value, not {count}")


def op(name: str, *, exact: bool = False) -> Callable[[Function], Function]:
    """Register a function under the name of an operation: `@op("conv")`."""

    def register(function: Function) -> Function:
        hints = get_type_hints(function)
        signature = inspect.signature(function).parameters
        defaults = {p.name: p.default for p in signature.values() if p.default is not inspect.Parameter.empty}
        OPS[name] = Op(name, function, {p: _without_none(hints[p]) for p in signature}, defaults, exact)
        return function

    return register


def _without_none(annotation: Any) -> Any:
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return kinds[0] if isinstance(annotation, UnionType) and len(kinds) == 1 else annotation


def _as(annotation: Any, value: Any) -> Any:
    if annotation is Any or not isinstance(value, Tensor):
        return value
    if annotation in (int, float, bool):
        return annotation(value.item())
    if get_origin(annotation) is list:
        return [get_args(annotation)[0](number) for number in value.flatten().tolist()]
    return value

"""Operations one by one: as a program on disk that the interpreter runs, and as coremltools itself would fold them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vigcli.coreml.apple import coremltools
from vigcli.coreml.interpreter import Program
from vigcli.coreml.ops import OPS

IOS15, IOS16, IOS17, IOS18 = "iOS15", "iOS16", "iOS17", "iOS18"


@dataclass
class Case:
    """An operation as a package has it, against torch or numpy.

    Attributes:
        build: (the builder of programs, *inputs) -> the result; truth values and small integers are no outputs of a
            program, and are cast.
        expected: (*inputs) -> the same in torch.
    """

    op: str
    build: Callable[..., Any]
    expected: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    target: str = IOS15

    def __str__(self) -> str:
        return self.op


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def numbers(*shape: int, seed: int = 7) -> np.ndarray:
    return tensor(*shape, seed=seed).numpy()


def unary(op: str, expected: Callable[..., Tensor], x: Tensor, target: str = IOS15, **parameters: Any) -> Case:
    return Case(op, lambda mb, x: getattr(mb, op)(x=x, **parameters), expected, (x,), target)


def run_cases(cases: Sequence[Case], folder: Path) -> list[Tensor]:
    """The result of every case: those of one target are one program, in which each has inputs and an output of its own,
    written as the builder wrote it, since no pass may replace an operation by another."""
    results: dict[int, Tensor] = {}
    gc.freeze()  # every conversion ends with a garbage collection, which takes half a second while torch is looked at
    for target in sorted({case.target for case in cases}):
        mine = [(i, case) for i, case in enumerate(cases) if case.target == target]
        path = folder / f"{target}.mlpackage"
        names = save([case for _, case in mine], path, target)
        program = Program.load(path)
        assert {case.op for _, case in mine} <= program.op_counts.keys()
        inputs = {f"x_{i}_{j}": x for i, (_, case) in enumerate(mine) for j, x in enumerate(case.inputs)}
        outputs = program.run(inputs)
        results |= {i: outputs[name] for (i, _), name in zip(mine, names, strict=True)}
    gc.unfreeze()
    return [results[i] for i in range(len(cases))]


def save(cases: Sequence[Case], path: Path, target: str) -> list[str]:
    """Write the program of these cases, and give the names of their outputs."""
    ct = coremltools()
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import Function, types
    from coremltools.converters.mil.mil import Program as MilProgram

    opset = getattr(ct.target, target)
    kinds = {torch.float32: types.fp32, torch.int32: types.int32}
    placeholders = {
        f"x_{i}_{j}": mb.placeholder(tuple(x.shape), kinds[x.dtype])
        for i, case in enumerate(cases)
        for j, x in enumerate(case.inputs)
    }
    program = MilProgram()
    with Function(placeholders, opset_version=opset) as function:
        built = []
        for i, case in enumerate(cases):
            inputs = [function.inputs[f"x_{i}_{j}"] for j in range(len(case.inputs))]
            built.append(mb.identity(x=case.build(mb, *inputs), name=f"y_{i}"))
        function.set_outputs(built)
        program.add_function("main", function)
    ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=opset,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    ).save(str(path))
    return [value.name for value in built]


def folded(op: str, target: str = IOS17, **inputs: Any) -> Any:
    """What coremltools makes of an operation on constants, by the rule it gives for folding them: numpy's."""
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import Function

    with Function({}, opset_version=getattr(coremltools().target, target)):
        result = getattr(mb, op)(**inputs)
    values = [var.val for var in result] if isinstance(result, tuple | list) else result.val
    assert values is not None, f"{op} is not folded"
    return values


def sized(op: str, target: str = IOS17, **inputs: Any) -> tuple[int, ...]:
    """The shape that coremltools infers."""
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import Function, types

    x = inputs.pop("x")
    with Function({"x": mb.placeholder(x.shape, types.fp32)}, opset_version=getattr(coremltools().target, target)) as f:
        return tuple(int(n) for n in getattr(mb, op)(x=f.inputs["x"], **inputs).shape)


def ours(op: str, **inputs: Any) -> Any:
    """The interpreter's function on the same arguments as `folded`, which reach it as a loader would pass them."""
    found, arguments = OPS[op], dict(OPS[op].defaults)
    for name, value in inputs.items():
        values = value if found.parameters[name] == list[Tensor] else (value,)
        arguments[name] = found.convert(name, [as_tensor(v) for v in values])
    return found.function(**arguments)


def as_tensor(value: Any) -> Any:
    """As the loader would have it: floats in 32 bits, whole numbers in 32 bits."""
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    return torch.from_numpy(array if array.dtype.kind == "b" else array.astype(np.int32))


def close(ours: Any, theirs: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Equal up to rounding, in shape and in whether they are whole numbers."""
    theirs = as_tensor(theirs) if not isinstance(theirs, Tensor) else theirs
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol, equal_nan=True)

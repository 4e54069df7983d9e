"""Two programs side by side, what their precision adds left out: is one the other, operation by operation?

Nothing is run here. What a program computes is left to `vigcli.coreml.noise`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vigcli.config.compression import Compression
from vigcli.config.package import PackageMeta
from vigcli.coreml.compressed import LEAST_HALF, is_compressed, wrongly_compressed
from vigcli.coreml.interpreter import Program, Step

SAME_WEIGHT = 1e-6  # of the largest in its tensor: two conversions to fp32 may round apart
QUANTIZATION = ("quantize", "dequantize")
_LAST_AXIS = {"matmul": "transpose_y"}  # a matmul's weight has its outputs last, unless it is transposed

Place = tuple[int, int]  # which operation, and which of its results; (-1, n) is an input


@dataclass(frozen=True)
class Divergence:
    """The first thing in which a package is not its twin.

    Attributes:
        op_type, name: the operation by its kind and its first result; of what is no operation, what it is.
    """

    op_type: str
    name: str
    why: str


class Graph:
    """A program without casts between precisions and without quantization.

    Attributes:
        steps: the operations that are left, in order.
        place: where each input and result of the program comes from, seen through what was left out.
    """

    def __init__(self, program: Program):
        self.program = program
        self.steps: list[Step] = []
        self.place: dict[str, Place] = {feature.name: (-1, i) for i, feature in enumerate(program.inputs)}
        dtypes = {feature.name: feature.type.dtype for feature in program.inputs if feature.type}
        for step in program.steps:
            dtypes.update({info.name: info.type.dtype for info in step.outputs if info.type})
            if of_precision(step, dtypes):
                self.place[step.outputs[0].name] = self.place[step.outputs[0].inputs[0]]
                continue
            self.place.update({info.name: (len(self.steps), i) for i, info in enumerate(step.outputs)})
            self.steps.append(step)

    def sources(self, step: Step) -> dict[str, list[Any]]:
        """Where a step's variable operands come from; a constant among them stands for itself."""
        return {
            parameter: [self.place[name] if name in self.place else self.program.constants[name] for name in names]
            for parameter, names in step.variables.items()
        }

    def name(self, place: Place) -> str:
        """The input or result at a place."""
        number, which = place
        return self.program.inputs[which].name if number < 0 else self.steps[number].outputs[which].name

    def scores(self) -> list[Place]:
        """The outputs before a softmax: logits, or feature maps."""
        names = [output.name for output in self.program.outputs if output.name in self.place]
        places = [self.place[name] for name in names]
        for step in self.steps:
            if step.op.name == "classify":
                places = [self.place[step.variables["probabilities"][0]]]
        found = []
        for place in places:
            step = self.steps[place[0]]
            found.append(self.place[step.variables["x"][0]] if step.op.name == "softmax" else place)
        return found


def of_precision(step: Step, dtypes: dict[str, str]) -> bool:
    """Whether a step changes how numbers are kept and not what they are."""
    if step.op.name != "cast":
        return step.op.name in QUANTIZATION
    source, result = step.outputs[0].inputs[0], step.outputs[0].name
    return _kind(dtypes[source]) == _kind(dtypes[result])


def _kind(dtype: str) -> str:
    """A dtype whatever its precision; nothing of what is none."""
    found = re.fullmatch(r"u?(fp|int)(8|16|32|64)", dtype)
    return found[1] if found else ""


# ------------------------------------------------------------------------------------------------ comparison


def compare_graphs(twin: Graph, shipped: Graph, meta: PackageMeta) -> Divergence | None:
    """The first operation whose kind, wiring, precision or constants are not those of the fp32 twin."""
    for ours, theirs in zip(twin.steps, shipped.steps, strict=False):
        name = theirs.outputs[0].name
        precision = "fp32" if name in meta.fp32_results else meta.precision
        if ours.op.name != theirs.op.name:
            what = f"the checkpoint's network has {ours.op.name} '{ours.outputs[0].name}' here"
            return Divergence(theirs.op.name, name, what)
        why = (
            _wired_apart(twin, ours, shipped, theirs, precision)
            or _wrong_precision(ours, theirs, meta)
            or _constants_apart(ours, theirs, precision, meta.compression)
        )
        if why:
            return Divergence(theirs.op.name, name, why)
    if len(twin.steps) != len(shipped.steps):
        longer = max(twin, shipped, key=lambda graph: len(graph.steps))
        step = longer.steps[min(len(twin.steps), len(shipped.steps))]
        whose = "checkpoint's" if longer is twin else "package's"
        return Divergence(step.op.name, step.outputs[0].name, f"only the {whose} graph has it")
    return None


def alike(twin: Graph, shipped: Graph) -> int:
    """The number of operations at the beginning that are of the same kinds, so that their values can be compared."""
    for i, (ours, theirs) in enumerate(zip(twin.steps, shipped.steps, strict=False)):
        if ours.op.name != theirs.op.name or len(ours.outputs) != len(theirs.outputs):
            return i
    return min(len(twin.steps), len(shipped.steps))


def _wired_apart(twin: Graph, ours: Step, shipped: Graph, theirs: Step, precision: str) -> str:
    first, second = twin.sources(ours), shipped.sources(theirs)
    for parameter in sorted(first.keys() | second.keys()):
        if _apart(first.get(parameter), second.get(parameter), precision):
            return f"its {parameter} comes from another operation than in the checkpoint's network"
    return ""


def _wrong_precision(ours: Step, theirs: Step, meta: PackageMeta) -> str:
    for first, second in zip(ours.outputs, theirs.outputs, strict=True):
        if first.type is None or second.type is None:
            continue
        if first.type.shape != second.type.shape:
            return f"its result is {second.type.shape}, not {first.type.shape}"
        if not first.type.dtype.startswith("fp"):
            continue
        due = "fp32" if meta.precision == "fp32" or second.name in meta.fp32_results else "fp16"
        if second.type.dtype != due:
            return f"its result is {second.type.dtype}, where the package says {due}"
    return ""


def _constants_apart(ours: Step, theirs: Step, precision: str, compression: Compression | None) -> str:
    axis, kind, result = output_axis(ours), theirs.op.name, theirs.outputs[0].name
    for parameter in sorted(ours.constants.keys() | theirs.constants.keys()):
        first, second = ours.constants.get(parameter), theirs.constants.get(parameter)
        why = _apart(first, second, precision)
        if why and compression and isinstance(second, Tensor) and is_compressed(first, kind, result, compression):
            why = wrongly_compressed(first, second, axis, compression)
        if why:
            return f"its {parameter} {why}"
    return ""


# ------------------------------------------------------------------------------------------------ constants


def _apart(ours: Any, theirs: Any, precision: str) -> str:
    """What tells two constants apart, precision aside."""
    if isinstance(ours, float) and isinstance(theirs, float):
        return _apart(torch.tensor(ours), torch.tensor(theirs), precision) and f"is {theirs:g}, not {ours:g}"
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return _tensors_apart(ours, theirs, precision)
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        same = not any(_apart(*pair, precision) for pair in zip(ours, theirs, strict=True))
    else:
        same = ours == theirs or _kind(str(ours)) == _kind(str(theirs)) != ""  # dtypes
    return "" if same else f"is {_short(theirs)}, not {_short(ours)}"


def _tensors_apart(ours: Tensor, theirs: Tensor, precision: str) -> str:
    if ours.shape != theirs.shape:
        return f"is {tuple(theirs.shape)}, not {tuple(ours.shape)}"
    if not ours.is_floating_point():
        return "" if torch.equal(ours, theirs) else "differs"
    if same_single(ours, theirs) or (precision != "fp32" and same_half(ours, theirs)):
        return ""
    worst = float((ours - theirs).abs().max() / ours.abs().max())
    return f"differs from the checkpoint's by {worst:.1e} of the largest, more than rounding to {precision}"


def same_single(ours: Tensor, theirs: Tensor) -> bool:
    """Equal in fp32, but for what two conversions may round apart."""
    return float((ours - theirs).abs().max()) <= SAME_WEIGHT * float(ours.abs().max()) if ours.numel() else True


def same_half(ours: Tensor, theirs: Tensor) -> bool:
    """Equal after rounding to fp16; but coremltools keeps what would round to zero at fp16's least number."""
    rounded = ours.half().float()
    return bool(((rounded == theirs) | ((ours.abs() < LEAST_HALF) & (theirs.abs() <= LEAST_HALF))).all())


def output_axis(step: Step) -> int:
    """The axis of a step's weight that has a scale for each place in a symmetric quantization: its output channels."""
    transposed = _LAST_AXIS.get(step.op.name)
    return 0 if transposed is None else -2 if step.constants.get(transposed) else -1


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."

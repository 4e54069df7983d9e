"""A package's compression, simulated in fp32 on its twin: what the package's numbers have to be.

The twin's graph is run with weights compressed here, from the checkpoint's, and with activations quantized where the
package quantizes, by its scales. Three things need saying.

Scales. coremltools moves the scale of one operand of a sum into the quantization around the sum
(`distributive_quantized_binary_op_scale_normalization`): inside, values are right up to a factor. So the factor f of
every result is followed through the graph. Integers of x stand for multiples of s_q / f_x in the checkpoint's own
units, and their dequantization has the factor f_y = s_d f_x / s_q. A sum wants operands of one factor and keeps it, as
a relu does; every other operation wants the factor 1. A scale that is wrong makes a factor that is wrong, and that is a
divergence by itself, however many decibels it costs. (A scale that is wrong wherever it stands is another choice of
range, and no contradiction: what it costs is the signal-to-noise ratio against fp32.)

Roundings. To which integer a value is rounded is a choice, and fp16 turns near ties. One integer turned moves later
ones to the other side: after twenty layers two sound computations are as far apart as int8 is from fp32. So the
simulation is given the package's integers, as a checkpoint is given its twin's neighbours (`vigcli.nn.decisions`), and
how far an integer lies from the value that it stands for, beyond half a step, is held to `MAX_REGRET`. What is
computed from quantized operands until the next quantization is the simulation's own.

Weights. They are compressed from the checkpoint's, by code of our own (`vigcli.coreml.compressed`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vigcli.config.compression import Compression
from vigcli.coreml.compressed import as_compressed, is_compressed
from vigcli.coreml.graphs import Divergence, Graph, output_axis, same_half
from vigcli.coreml.interpreter import OpInfo, Step
from vigcli.coreml.ops.quantization import INTEGER_RANGES
from vigcli.coreml.walk import Walk

MAX_REGRET = 0.375  # of a step, beyond the half by which rounding may move a value: six fp16 roundings of 127 steps, or
# three of 255. Integers cut off instead of rounded reach 0.5.
NUM_ROUNDINGS = 4  # of scales to fp16 that a factor may have gone through
SUMS, SCALED = ("add", "sub"), ("relu",)


class Scales:
    """The scales of a package, followed through its graph.

    Attributes:
        steps: what an integer stands for in the checkpoint's units, and the integer that stands for 0, by the name of
            the integers.
        factors: of every result, what the package's value is of the checkpoint's network's.
        limits: the least and the greatest integer, by the name of the integers.
        sources: what is quantized, dequantized or cast, by the name of the result.
        divergence: the first operation at which the scales contradict each other.
    """

    def __init__(self, graph: Graph):
        self.steps: dict[str, tuple[float, int]] = {}
        self.limits: dict[str, tuple[int, int]] = {}
        self.factors: dict[str, float] = {feature.name: 1.0 for feature in graph.program.inputs}
        self.sources: dict[str, str] = {}
        self.divergence: Divergence | None = None
        self._tolerance: dict[str, float] = {}  # of a factor, relative
        plain = {id(step) for step in graph.steps}
        for step in graph.program.steps:
            if id(step) in plain:
                factor = self._common_factor(step)
                self.factors.update({info.name: factor for info in step.outputs})
            else:
                self._follow(step)

    def _follow(self, step: Step) -> None:
        """What quantizes, dequantizes or casts."""
        name, x = step.outputs[0].name, step.outputs[0].inputs[0]
        self.sources[name] = x
        if step.op.name == "cast":
            self.factors[name], self._tolerance[name] = self.factors[x], self._tolerance.get(x, 0.0)
            return
        scale, zero_point = _number(step, "scale"), int(_number(step, "zero_point"))
        if step.op.name == "quantize":
            self.steps[name] = scale / self.factors[x], zero_point
            dtype = str(step.constants.get("output_dtype"))
            self.limits[name] = INTEGER_RANGES.get(dtype, INTEGER_RANGES["int8"])  # another does not run
            self._tolerance[name] = _rounding(scale)
            return
        if x not in self.steps:
            self.factors[name] = 1.0
            return self._diverge(step.outputs[0], f"'{x}', which it reads, was not quantized")
        due, zero_point_due = self.steps[x]
        self.factors[name] = scale / due
        self._tolerance[name] = NUM_ROUNDINGS * max(_rounding(scale), self._tolerance[x])
        if zero_point != zero_point_due:
            self._diverge(step.outputs[0], f"its zero point is {zero_point}, of the quantization {zero_point_due}")

    def _common_factor(self, step: Step) -> float:
        """The factor of what an operation computes."""
        operands = {name: self.factors[name] for name in step.outputs[0].inputs if name in self.factors}
        keeps = step.op.name in SCALED or (step.op.name in SUMS and len(step.outputs[0].inputs) == 2)
        first = next(iter(operands), "")
        due = operands.get(first, 1.0)
        allowed = self._tolerance.get(first, 0.0)
        if not keeps or abs(due - 1) <= allowed:
            due, allowed = 1.0, 0.0
        for name, factor in operands.items():
            if abs(factor / due - 1) > allowed + self._tolerance.get(name, 0.0):
                what = f"its operand '{name}' is scaled by {factor:.4g} where {due:.4g} is due: a scale is wrong"
                self._diverge(step.outputs[0], what)
        return due

    def _diverge(self, info: OpInfo, why: str) -> None:
        self.divergence = self.divergence or Divergence(info.op_type, info.name, why)


def _number(step: Step, parameter: str) -> float:
    value = step.constants.get(parameter)
    return 0.0 if value is None else float(value)


def _rounding(scale: float) -> float:
    """The most by which rounding to fp16 moves a scale, relative."""
    return max(2.0**-11, 2.0**-25 / abs(scale)) if scale else 0.0


# ------------------------------------------------------------------------------------------------ weights


def compressed_weights(twin: Graph, shipped: Graph, compression: Compression | None) -> dict[tuple[int, str], Tensor]:
    """The weights that the package keeps compressed, made from the twin's: by operation and parameter."""
    found: dict[tuple[int, str], Tensor] = {}
    if compression is None:
        return found
    for i, (ours, theirs) in enumerate(zip(twin.steps, shipped.steps, strict=False)):
        for parameter, weight in ours.constants.items():
            stored = theirs.constants.get(parameter)
            if not is_compressed(weight, theirs.op.name, theirs.outputs[0].name, compression):
                continue
            if isinstance(stored, Tensor) and stored.shape == weight.shape and not same_half(weight, stored):
                found[i, parameter] = as_compressed(weight, stored, output_axis(ours), compression)
    return found


# ------------------------------------------------------------------------------------------------ activations


@dataclass
class Rounding:
    """Of the integers of a package.

    Attributes:
        num, num_turned: all, and those that the simulation would have chosen otherwise.
        regret: the most by which one lies from the value that it stands for, beyond half a step, in steps.
        where: the quantization in which that is.
    """

    num: int = 0
    num_turned: int = 0
    regret: float = 0.0
    where: OpInfo | None = None

    def add(self, distance: Tensor, where: OpInfo) -> None:
        """Count integers that lie so many steps from the values that they stand for."""
        self.num += distance.numel()
        self.num_turned += int((distance > 0.5).sum())
        regret = float(distance.max()) - 0.5
        if not regret <= self.regret:  # what is not a number is not less
            self.regret, self.where = regret, where


class Simulation(Walk):
    """One run of the simulation, in step with the package, whose integers it is given."""

    def __init__(
        self,
        twin: Graph,
        shipped: Graph,
        scales: Scales,
        weights: dict[tuple[int, str], Tensor],
        rounding: Rounding,
        pixels: Tensor,
    ):
        super().__init__(twin, pixels)
        self.shipped, self.scales, self.weights, self.rounding = shipped, scales, weights, rounding
        self._integers: dict[str, Tensor] = {}
        self._number = -1

    def note(self, info: OpInfo, integers: Tensor) -> None:
        """Take over a quantization of the package."""
        step, zero_point = self.scales.steps[info.name]
        own = self._value(self.scales.sources[info.name]) / step + zero_point
        self.rounding.add((own.clamp(*self.scales.limits[info.name]) - integers).abs(), info)
        self._integers[info.name] = integers.to(torch.int16)

    def evaluate(self, step: Step) -> tuple[Any, ...]:
        if id(step) not in self._plain:
            return super().evaluate(step)
        self._number += 1
        theirs = self.shipped.steps[self._number]
        arguments = {
            parameter: step.op.convert(parameter, [self._operand(*pair) for pair in zip(names, others, strict=True)])
            for (parameter, names), others in zip(step.variables.items(), theirs.variables.values(), strict=True)
        }
        weights = {name: weight for (i, name), weight in self.weights.items() if i == self._number}
        results = step.op.function(**{**step.constants, **weights, **arguments})
        return results if isinstance(results, tuple) else (results,)

    def _operand(self, ours: str, theirs: str) -> Any:
        return self._value(theirs) if theirs in self.scales.sources else self.values[ours]

    def _value(self, name: str) -> Tensor:
        """A value of the package in the checkpoint's units, as the simulation has it."""
        source = self.scales.sources.get(name)
        if source is None:
            value: Tensor = self.values[self.graph.name(self.shipped.place[name])]
            return value
        if source not in self._integers:
            return self._value(source)
        step, zero_point = self.scales.steps[source]
        return (self._integers[source].float() - zero_point) * step

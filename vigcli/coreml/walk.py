"""A twin run one operation at a time, so that it can keep step with the package that it is compared with.

Its precision is fp32: nothing is rounded, and nothing of `vigcli.coreml.interpreter.Program.run` is needed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vigcli.coreml.graphs import Graph
from vigcli.coreml.interpreter import Step


class Walk:
    """One run of a twin.

    Args:
        pixels: (B, 3, R, R) RGB in 0 ... 255, as many as the package takes at once.
    """

    def __init__(self, graph: Graph, pixels: Tensor):
        (feature,) = graph.program.inputs
        given = pixels.flip(1) if feature.color == "BGR" else pixels
        self.graph = graph
        self.values: dict[str, Any] = {**graph.program.constants, feature.name: given}
        self._pending = iter(graph.program.steps)
        self._plain = {id(step) for step in graph.steps}

    def advance(self) -> list[Any]:
        """The results of the next operation that is no matter of precision."""
        for step in self._pending:
            results = self.evaluate(step)
            self.values.update({info.name: result for info, result in zip(step.outputs, results, strict=True)})
            for name in step.last_uses:
                del self.values[name]
            if id(step) in self._plain:
                return list(results)
        raise StopIteration("the twin has no more operations")

    def evaluate(self, step: Step) -> tuple[Any, ...]:
        """What a step gives; a run that computes otherwise overrides this."""
        return step(self.values)

    def settle(self, step: Step, number: int, value: Tensor) -> None:
        """Put a value in the place of the one that was computed."""
        name = step.outputs[number].name
        if name in self.values:
            self.values[name] = value

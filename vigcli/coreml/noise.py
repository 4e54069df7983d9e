"""Values of a package against those of its twin, operation by operation and picture by picture.

The package runs in the interpreter, and with every operation of it the same operation of the twin, so that neither's
values are kept. Which tokens a dynamic graph links, and what is a cluster, is a choice that rounding may turn: the
package is given the twin's. What a compressed package is held to is the simulation of its compression
(`vigcli.coreml.simulate`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vigcli.config.compression import Compression
from vigcli.coreml.graphs import Graph, Place, alike
from vigcli.coreml.interpreter import OpInfo
from vigcli.coreml.simulate import Rounding, Scales, Simulation, compressed_weights
from vigcli.coreml.walk import Walk

LARGEST_DB = 150.0


class Ratio(NamedTuple):
    """Signal and noise, as sums of squares."""

    signal: float
    noise: float

    @classmethod
    def of(cls, value: Tensor, reference: Tensor) -> Ratio:
        """Of a value against what it should be. Values that are not finite are nothing but noise."""
        signal, noise = (float(torch.linalg.vector_norm(x)) ** 2 for x in (reference, value - reference))
        return cls(signal, noise if math.isfinite(noise) else math.inf)

    def plus(self, other: Ratio) -> Ratio:
        return Ratio(self.signal + other.signal, self.noise + other.noise)

    @property
    def db(self) -> float:
        """Signal-to-noise ratio, between -150 and 150 dB; -150 where numbers left the range of fp16."""
        if not math.isfinite(self.noise):
            return -LARGEST_DB
        if self.noise <= 1e-15 * self.signal or not self.noise:
            return LARGEST_DB
        return max(-LARGEST_DB, 10 * math.log10(max(self.signal, 1e-300) / self.noise))


NOTHING = Ratio(0.0, 0.0)


@dataclass
class OpNoise:
    """One result of the package: against what it is held to, and against the fp32 twin."""

    info: OpInfo
    held: Ratio
    fp32: Ratio

    def add(self, held: Ratio, fp32: Ratio) -> None:
        self.held, self.fp32 = self.held.plus(held), self.fp32.plus(fp32)


@dataclass(frozen=True)
class InputNoise:
    """The scores of one picture.

    Attributes:
        db: against what they are held to, the least of several outputs; fp32_db: against the fp32 twin.
        relative_error: the largest error against the fp32 twin, relative to its largest score.
        margin_ratio: by how much the twin's first class leads, relative to the range of its scores; None of features.
        same_class: whether the package's first class is the twin's; None of features.
    """

    db: float
    fp32_db: float
    relative_error: float
    margin_ratio: float | None
    same_class: bool | None


class Noise:
    """Signal and noise of every operation and every picture of a package.

    Args:
        compression: of a package that is held to the simulation of it; None of another.
        classes: whether the scores are those of classes.

    Attributes:
        ops: by the names of their results, in order; choices are not among them.
        inputs: in the order in which they were run.
        twin_scores, decisions: the twin's outputs before a softmax, and what it chose, on the last pictures.
        num_decided, num_changed: choices, and those that the package would have made otherwise.
        scales: of a compressed package.
        rounding: of the integers of 8-bit activations.
    """

    def __init__(self, twin: Graph, shipped: Graph, compression: Compression | None = None, classes: bool = True):
        self.twin, self.shipped, self.classes = twin, shipped, classes
        self.scales = Scales(shipped) if compression else None
        self.num_alike = alike(twin, shipped)
        self.weights = compressed_weights(twin, shipped, compression)
        self.score_places = twin.scores(), shipped.scores()
        self.ops: dict[str, OpNoise] = {}
        self.inputs: list[InputNoise] = []
        self.twin_scores: list[Tensor] = []
        self.decisions: list[Tensor] = []
        self.num_decided = self.num_changed = 0
        self.rounding = Rounding()

    def add(self, pixels: Tensor, count: int) -> None:
        """Run pictures (B, 3, R, R), as many as the package takes at once, of which the first `count` are told of.

        Raises ConfigError where the package does not run; what is asked of the twin is there all the same.
        """
        run = _Run(self, pixels)
        try:
            self.shipped.program.run({self.shipped.program.inputs[0].name: pixels}, tap=run.compare)
        finally:
            run.finish()
            self.twin_scores, self.decisions = [run.ours[place] for place in self.score_places[0]], run.decisions
        if run.has_scores:
            self.inputs += [self._of_picture(run, i, len(pixels)) for i in range(count)]

    def _of_picture(self, run: _Run, i: int, size: int) -> InputNoise:
        """The scores of the i-th of so many pictures."""
        held, fp32, errors = [], [], []
        for place, shipped_place in zip(*self.score_places, strict=True):
            value, reference, due = (
                x.reshape(size, -1)[i] for x in (run.theirs[shipped_place], run.ours[place], run.due[place])
            )
            held.append(Ratio.of(value, due).db)
            fp32.append(Ratio.of(value, reference).db)
            errors.append(relative_error(value, reference))
        margin, same = leads(value, reference) if self.classes else (None, None)
        return InputNoise(min(held), min(fp32), max(errors), margin, same)

    @property
    def changed_percent(self) -> float | None:
        """Of the choices of neighbours that the package was spared, by what it would have made of its own values."""
        return 100 * self.num_changed / self.num_decided if self.num_decided else None

    @property
    def held_db(self) -> float:
        """The least ratio to what the package is held to: of the scores, and of every operation where the simulation is
        given the package's integers, behind which the scores may lie at once."""
        ops = self.ops.values() if self.scales and self.scales.steps else ()
        return min([one.db for one in self.inputs] + [op.held.db for op in ops])

    def below(self, floor: float) -> OpNoise | None:
        """The first operation whose numbers leave the range of fp16, else the first whose noise passes the floor."""
        noisy = [op for op in self.ops.values() if op.held.db < floor]
        return next((op for op in noisy if not math.isfinite(op.held.noise)), noisy[0] if noisy else None)


def relative_error(value: Tensor, reference: Tensor) -> float:
    """The largest error relative to the largest value that is due; infinite where a value is not finite."""
    error = float((value - reference).abs().max() / reference.abs().max().clamp_min(1e-30))
    return error if math.isfinite(error) else math.inf


def leads(value: Tensor, reference: Tensor) -> tuple[float, bool]:
    """By how much the first class of what is due leads, relative to the range of its scores; whether it is the first
    class of a value as well."""
    (first, second), (best, _) = reference.topk(2)
    return float((first - second) / (first - reference.min()).clamp_min(1e-30)), bool(value.argmax() == best)


class _Run:
    """Both programs, once.

    Attributes:
        ours, due, theirs: the scores of the twin, those that the package is held to, and its own.
    """

    def __init__(self, noise: Noise, pixels: Tensor):
        self.noise, self.walk = noise, Walk(noise.twin, pixels)
        self.simulation = (
            Simulation(noise.twin, noise.shipped, noise.scales, noise.weights, noise.rounding, pixels)
            if noise.scales
            else None
        )
        self.ours: dict[Place, Tensor] = {}
        self.due: dict[Place, Tensor] = {}
        self.theirs: dict[Place, Tensor] = {}
        self.decisions: list[Tensor] = []
        self._done = 0
        self._results: list[Any] = []
        self._simulated: list[Any] = []

    def compare(self, info: OpInfo, value: Tensor) -> Tensor | None:
        """The tap of the package."""
        noise, place = self.noise, self.noise.shipped.place[info.name]
        if noise.shipped.name(place) != info.name:  # a matter of precision
            if self.simulation and info.op_type == "quantize" and place[0] < noise.num_alike:
                self.simulation.note(info, value)
            return None
        if noise.scales:
            value = value / noise.scales.factors[info.name]
        if place in noise.score_places[1]:
            self.theirs[place] = value
        if place[0] >= noise.num_alike:
            return None
        while self._done <= place[0]:
            self._advance()
        return self._compared(info, value, self._results[place[1]], self._simulated[place[1]])

    def _compared(self, info: OpInfo, value: Tensor, reference: Tensor, due: Tensor) -> Tensor | None:
        noise = self.noise
        if is_decision(info.op_type, reference):
            noise.num_decided += value.numel()
            noise.num_changed += int((value != reference).sum())
            return reference
        if reference.is_floating_point() and reference.shape == value.shape:
            held = Ratio.of(value, due)
            fp32 = Ratio.of(value, reference) if self.simulation else held
            noise.ops.setdefault(info.name, OpNoise(info, NOTHING, NOTHING)).add(held, fp32)
        return None

    def _advance(self) -> None:
        """One operation of the twin, and of the simulation."""
        step = self.noise.twin.steps[self._done]
        self._results = self.walk.advance()
        chosen = [is_decision(step.op.name, result) for result in self._results]
        self.decisions += [result for result, is_chosen in zip(self._results, chosen, strict=True) if is_chosen]
        self._simulated = self._results
        if self.simulation and self._done < self.noise.num_alike:
            self._simulated = self.simulation.advance()
            for i, result in enumerate(self._results):
                if chosen[i]:
                    self.simulation.settle(step, i, result)
        for i, result in enumerate(self._results):
            if (self._done, i) in self.noise.score_places[0]:
                self.ours[self._done, i], self.due[self._done, i] = result, self._simulated[i]
        self._done += 1

    @property
    def has_scores(self) -> bool:
        """Whether the package gave as many scores as the twin; the comparison of graphs says where it did not."""
        places, shipped_places = self.noise.score_places
        return [self.ours[place].numel() for place in places] == [
            self.theirs[place].numel() if place in self.theirs else 0 for place in shipped_places
        ]

    def finish(self) -> None:
        """Run what is left of the twin."""
        while self._done < len(self.noise.twin.steps):
            self._advance()


def is_decision(op_type: str, value: Any) -> bool:
    """Whether a result is what a `vigcli.nn.decisions.Decision` says: a mask or numbers of tokens or clusters."""
    chooses = op_type in ("topk", "reduce_argmin", "less", "less_equal")
    return chooses and isinstance(value, Tensor) and not value.is_floating_point()

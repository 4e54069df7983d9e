"""Is a package what its checkpoint says? In two stages, because fp16 rounding can hide a wrong graph.

First an fp32 twin of the checkpoint is converted and must give the checkpoint's logits within 1e-5: the conversion is
right. Then the shipped package is held to the twin operation by operation: the same graph, the same weights after
rounding, and values within a budget of noise. Both run in torch, not in Apple's runtime.

Which tokens a dynamic graph links, and what is a cluster, is a choice, and rounding may turn a near tie. So checkpoint
and package are run with the twin's choices; that the checkpoint's own would have been no better, within 1e-5, and how
many the package would have chosen apart, is told beside.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vigcli.archs.checkpoint import Checkpoint
from vigcli.coreml.convert import Deployable, PackageMeta, export, meta_of
from vigcli.coreml.interpreter import OpInfo, Program, Step
from vigcli.errors import ConfigError
from vigcli.nn.decisions import given_decisions, largest_regret

TWIN_TOLERANCE = 1e-5  # of the largest logit
SAME_WEIGHT = 1e-6  # of the largest in its tensor: two conversions to fp32 may round apart
MIN_SNR_DB = {"fp32": 90.0, "fp16": 35.0}
MIN_INPUTS = 32
CAVEAT = "Run by vig's interpreter in torch; not Apple's runtime, with which it has never been compared."
OVERFLOW = "its numbers leave the range of fp16, which ends at 65504"
_PRECISION_OPS = ("cast", "quantize", "dequantize")  # what a change of precision adds to a graph


@dataclass(frozen=True)
class Divergence:
    """The first operation in which a package is not its twin."""

    op_type: str
    name: str
    why: str


@dataclass(frozen=True)
class VerifyReport:
    """What was found.

    Attributes:
        twin_error: max |logits of the fp32 twin - logits of the checkpoint| / max |logits of the checkpoint|.
        snr_db: of the package's probabilities-to-be (logits) against the twin's.
        min_snr_db: what the package is held to; None where only the graph and the weights are held (int8).
        worst: (operation, its signal-to-noise ratio in dB).
        changed_percent: of the choices of neighbours, rank by rank, and of clusters, those that the package makes
            apart; None without.
        divergence: the first thing that is wrong, or None.
    """

    meta: PackageMeta
    num_inputs: int
    num_ops: int
    op_counts: dict[str, int]
    twin_error: float
    snr_db: float
    min_snr_db: float | None
    worst: tuple[str, float]
    changed_percent: float | None
    divergence: Divergence | None

    @property
    def passed(self) -> bool:
        return self.divergence is None


def verify(
    package: Path | str,
    checkpoint: Checkpoint,
    pixels: Tensor,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> VerifyReport:
    """Hold a package to the checkpoint that it was made from.

    Args:
        pixels: (N, 3, R, R) RGB in 0 ... 255, at least 32 of them.

    Raises ConfigError for a package that is not ours or too few inputs. What differs is told by the report.
    """
    if len(pixels) < MIN_INPUTS:
        raise ConfigError(f"{len(pixels)} inputs are too few to verify with.", f"Give at least {MIN_INPUTS}.")
    shipped = Program.load(package)
    meta = meta_of(shipped)
    with tempfile.TemporaryDirectory(prefix="vig-twin-") as folder:
        on_progress("converting the fp32 twin", 0, 1)
        path = Path(folder) / "twin.mlpackage"
        export(checkpoint, meta.checkpoint_sha256, path, "fp32")
        twin = Program.load(path)
    noise = _Noise(twin, shipped, up_to_a_factor=meta.precision == "int8")
    other_graph = compare_graphs(twin, shipped, meta)
    largest = difference = regret = 0.0
    model = Deployable(copy.deepcopy(checkpoint.model), checkpoint.meta.preprocessing).double().eval()
    for i in range(len(pixels)):
        on_progress("running", i, len(pixels))
        image = pixels[i : i + 1].float()
        try:
            noise.add(image)
        except ConfigError:  # it does not run, and the operation to name is the one that is not the twin's
            if other_graph is None:
                raise
        with torch.no_grad(), given_decisions(model, noise.decisions):
            reference = model.logits(image.double())[0]
        regret = max(regret, largest_regret(model))
        largest = max(largest, float(reference.abs().max()))
        difference = max(difference, float((noise.twin_logits.reshape(-1) - reference).abs().max()))
    twin_error = difference / largest if largest else difference
    floor = MIN_SNR_DB.get(meta.precision)
    divergence = _twin_divergence(twin_error, regret) or other_graph or noise.below(floor)
    return VerifyReport(
        meta, len(pixels), len(noise.infos), dict(shipped.op_counts), twin_error, noise.final_db(), floor,
        noise.worst(), noise.changed_percent(), divergence,
    )  # fmt: skip


def _twin_divergence(error: float, regret: float) -> Divergence | None:
    if error > TWIN_TOLERANCE:
        return Divergence(
            "conversion", "logits", f"the fp32 twin is {error:.1e} of the largest logit off the checkpoint"
        )
    if regret > TWIN_TOLERANCE:
        return Divergence("conversion", "choices", f"the fp32 twin's are {regret:.1e} worse than the checkpoint's")
    return None


# ------------------------------------------------------------------------------------------------ graphs


def _plain_steps(program: Program) -> list[Step]:
    return [step for step in program.steps if step.op.name not in _PRECISION_OPS]


def compare_graphs(twin: Program, shipped: Program, meta: PackageMeta) -> Divergence | None:
    """The first operation whose kind, wiring or constants are not the twin's, precision aside."""
    ours, theirs = _plain_steps(twin), _plain_steps(shipped)
    sources = _wiring(twin), _wiring(shipped)
    for step, other in zip(ours, theirs, strict=False):
        name = other.outputs[0].name
        if step.op.name != other.op.name:
            return Divergence(other.op.name, name, f"the checkpoint's network has {step.op.name} here")
        if sources[0][step.outputs[0].name] != sources[1][name]:
            return Divergence(other.op.name, name, "its inputs come from other operations than in the checkpoint")
        for parameter in sorted(step.constants.keys() | other.constants.keys()):
            why = _constant_differs(step.constants.get(parameter), other.constants.get(parameter), meta.precision)
            if why:
                return Divergence(other.op.name, name, f"its {parameter} {why}")
    if len(ours) != len(theirs):
        extra = (ours if len(ours) > len(theirs) else theirs)[min(len(ours), len(theirs))]
        return Divergence(extra.op.name, extra.outputs[0].name, "one of the two graphs ends before this operation")
    return None


def _wiring(program: Program) -> dict[str, tuple[int, ...]]:
    """For every result the positions of the operations that it is computed from, looking through casts."""
    position = {feature.name: -1 for feature in program.inputs}
    wiring = {}
    count = 0
    for step in program.steps:
        sources = tuple(position[name] for name in step.outputs[0].inputs if name in position)
        if step.op.name in _PRECISION_OPS:
            position.update({info.name: sources[0] for info in step.outputs})
            continue
        for info in step.outputs:
            position[info.name] = count
            wiring[info.name] = sources
        count += 1
    return wiring


def _constant_differs(ours: Any, theirs: Any, precision: str) -> str:
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return "" if _same(ours, theirs) else f"is {_short(theirs)}, not {_short(ours)}"
    if ours.shape != theirs.shape:
        return f"is {tuple(theirs.shape)}, not {tuple(ours.shape)}"
    if not ours.is_floating_point() or torch.equal(ours, theirs):
        return "" if torch.equal(ours, theirs) else "differs"
    worst = float((ours - theirs).abs().max() / ours.abs().max())
    same = worst <= SAME_WEIGHT if precision == "fp32" else _same_half(ours, theirs)
    if same:
        return ""
    if precision == "int8" and ours.ndim >= 2:  # symmetric, a scale for each output channel
        largest = ours.abs().flatten(1).amax(1)
        step = largest / 127
        bound = step / 2 + 127 * _fp16_rounding(step) + _fp16_rounding(largest)  # scale and weight were fp16 before
        if bool(((ours - theirs).abs().flatten(1).amax(1) <= 1.05 * bound).all()):
            return ""
    return f"differs from the checkpoint's by {worst:.1e} of the largest, more than rounding to {precision}"


def _same_half(ours: Tensor, theirs: Tensor) -> bool:
    """Equal after rounding to fp16; but coremltools keeps what would round to zero at fp16's least number."""
    least = 2.0**-24
    moved = (ours.half().float() - theirs.half().float()).abs()
    return bool(((moved == 0) | ((ours.abs() < least) & (theirs.abs() <= least))).all())


def _fp16_rounding(value: Tensor) -> Tensor:
    """The most by which rounding to fp16 moves a value."""
    return (value * 2.0**-11).clamp(min=2.0**-25)


def _same(ours: Any, theirs: Any) -> bool:
    """Plain parameters: dtypes named by precision are the same, numbers may have been rounded to fp16."""
    if isinstance(ours, str) and isinstance(theirs, str):
        return ours == theirs or {ours, theirs} <= {"fp16", "fp32"}
    if isinstance(ours, list | tuple | float | int) and isinstance(theirs, list | tuple | float | int):
        first, second = np.asarray(ours), np.asarray(theirs)
        if first.dtype.kind in "fiub" and second.dtype.kind in "fiub":
            return first.shape == second.shape and bool(np.allclose(first, second, rtol=1e-3, atol=1e-7))
    return bool(ours == theirs)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


# ------------------------------------------------------------------------------------------------ values


class _Noise:
    """Signal and noise of every operation, added up over inputs.

    In an int8 package coremltools moves the scale of a residual sum into the quantization around it, so inside such a
    package values are compared up to a factor; the logits never are.
    """

    def __init__(self, twin: Program, shipped: Program, up_to_a_factor: bool):
        self.twin, self.shipped, self.up_to_a_factor = twin, shipped, up_to_a_factor
        self.infos: list[OpInfo] = []
        self._sums: dict[str, list[float]] = {}  # of r * r, r * v, v * v: r the twin's values, v the package's
        self.twin_logits = torch.zeros(0)
        self.decisions: list[Tensor] = []  # of the twin, on the last image
        self._num_decided = self._num_changed = 0

    def add(self, image: Tensor) -> None:
        """Run one image (1, 3, R, R) through both."""
        values: list[Tensor] = []

        def keep(info: OpInfo, value: Tensor) -> None:
            if info.op_type not in _PRECISION_OPS:
                values.append(value if _is_decision(info, value) else value.double())

        self.twin.run({self.twin.inputs[0].name: image}, tap=keep)
        self.twin_logits = values[-2]  # before the softmax
        self.decisions = [value for value in values if not value.is_floating_point()]
        self.infos = []
        pending = iter(values)

        def compare(info: OpInfo, value: Tensor) -> Tensor | None:
            reference = None if info.op_type in _PRECISION_OPS else next(pending, None)
            if (
                reference is None
                or reference.shape != value.shape
                or reference.is_floating_point() == _is_decision(info, value)
            ):
                return None  # another precision, or another graph, which is told apart from noise
            self.infos.append(info)
            if not reference.is_floating_point():
                self._num_decided += value.numel()
                self._num_changed += int((value != reference).sum())
                return reference
            v = value.double()
            sums = self._sums.setdefault(info.name, [0.0, 0.0, 0.0])
            for i, product in enumerate((reference * reference, reference * v, v * v)):
                sums[i] += float(product.sum())
            return None

        self.shipped.run({self.shipped.inputs[0].name: image}, tap=compare)

    def changed_percent(self) -> float | None:
        """Of the choices of neighbours that the package was spared, by what it would have made of its own values."""
        return 100 * self._num_changed / self._num_decided if self._num_decided else None

    def db(self, name: str, factor: bool = False) -> float:
        """Signal-to-noise ratio of one operation, up to a factor or not; 150 dB at the most, -150 after overflow."""
        rr, rv, vv = self._sums[name]
        signal = rv * rv / rr if factor and rr else rr
        noise = vv - signal if factor else vv - 2 * rv + rr
        if not math.isfinite(noise):
            return -150.0
        return 150.0 if noise <= 1e-15 * signal else float(10 * np.log10(max(signal, 1e-300) / noise))

    def final_db(self) -> float:
        """Of the logits: the last operation but the softmax."""
        return self.db(self.infos[-2].name) if len(self.infos) > 1 else 0.0

    def worst(self) -> tuple[str, float]:
        """The operation of the least ratio, and the ratio."""
        ratios = {info.name: self.db(info.name, self.up_to_a_factor) for info in self._of_values()}
        name = min(ratios, key=lambda name: ratios[name])
        return name, ratios[name]

    def below(self, floor: float | None) -> Divergence | None:
        """The first operation whose noise passes the floor, if that of the logits does."""
        if floor is None or self.final_db() >= floor:
            return None
        for info in self._of_values():
            if not all(map(math.isfinite, self._sums[info.name])):
                return Divergence(info.op_type, info.name, OVERFLOW)
        info = next(info for info in self._of_values() if self.db(info.name) < floor)
        return Divergence(info.op_type, info.name, f"{self.db(info.name):.1f} dB against the twin, below {floor:g} dB")

    def _of_values(self) -> list[OpInfo]:
        """The operations whose results are no choices."""
        return [info for info in self.infos if info.name in self._sums]


def _is_decision(info: OpInfo, value: Tensor) -> bool:
    """Whether a result is what a `vigcli.nn.decisions.Decision` says: a mask or numbers of tokens or clusters."""
    return info.op_type in ("topk", "reduce_argmin", "less", "less_equal") and not value.is_floating_point()

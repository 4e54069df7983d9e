"""Is a package what its checkpoint says? In stages, because no single number could tell.

An fp32 twin of the checkpoint is converted with the package's own options, and must give the checkpoint's logits within
1e-5: the conversion is right. The shipped package must be read alike by two readers of its files, and is held to the
twin: what it says of itself, its graph, attributes and weights operation by operation, the scales of its quantization,
and at last its values, within a budget of noise. No stage could do without the others: rounding hides a small fault
from the values, and what the graph comparison does not know of, only values show. All run in torch, not in Apple's
runtime.

Which tokens a dynamic graph links, and what is a cluster, is a choice, and rounding may turn a near tie. So checkpoint
and package are run with the twin's choices; that the checkpoint's own would have been no better, within 1e-5, and how
many the package would have chosen apart, is told beside.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vigcli.archs.checkpoint import Checkpoint
from vigcli.config.package import PackageMeta
from vigcli.coreml.convert import export, meta_of
from vigcli.coreml.description import compare_descriptions
from vigcli.coreml.exact import TOLERANCE, Exact
from vigcli.coreml.graphs import Divergence, Graph, compare_graphs
from vigcli.coreml.interpreter import Program
from vigcli.coreml.noise import InputNoise, Noise, OpNoise
from vigcli.coreml.simulate import MAX_REGRET, Rounding
from vigcli.coreml.witness import compare_readings
from vigcli.errors import ConfigError

MIN_SNR_DB = {"fp32": 90.0, "fp16": 35.0, "mixed": 35.0, "int8": 35.0}  # compressed: against the simulation
MARGIN_RATIO = 0.02  # of the range of the scores, above which the first class may not change
MIN_INPUTS = 16
TWIN_INPUTS = 8  # of them through the checkpoint, in double precision
CAVEAT = "Run by vig's interpreter in torch; not Apple's runtime, with which it has never been compared."
OVERFLOW = "its numbers leave the range of fp16, which ends at 65504"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class VerifyReport:
    """What was found.

    Attributes:
        stages: what each found first, or None, in order: reading, twin, description, graph, scales, values.
        twin_error: the largest error of the fp32 twin, relative to the largest logit of the checkpoint.
        ops: every result, with its noise.
        inputs: every picture, with the noise of its scores.
        min_db: what values are held to.
        num_ops: of the package, what its precision adds included.
        changed_percent: of the choices of neighbours, rank by rank, and of clusters, those that the package makes
            apart; None without.
        rounding: of an int8 package's integers.
    """

    meta: PackageMeta
    stages: dict[str, Divergence | None]
    twin_error: float
    ops: list[OpNoise]
    inputs: list[InputNoise]
    min_db: float
    num_ops: int
    op_counts: dict[str, int]
    changed_percent: float | None
    rounding: Rounding | None

    @property
    def divergence(self) -> Divergence | None:
        """The first of the first stage that found one."""
        return next((found for found in self.stages.values() if found), None)

    @property
    def passed(self) -> bool:
        return self.divergence is None

    @property
    def snr_db(self) -> float | None:
        """The least of all pictures, against what they are held to; None where the package does not run."""
        return min((one.db for one in self.inputs), default=None)

    @property
    def fp32_snr_db(self) -> float | None:
        """The same against the fp32 twin."""
        return min((one.fp32_db for one in self.inputs), default=None)

    @property
    def num_other_class(self) -> int:
        """Pictures whose first class is not the twin's, however little that leads."""
        return sum(one.same_class is False for one in self.inputs)

    @property
    def worst(self) -> OpNoise | None:
        """The operation of the least ratio."""
        return min(self.ops, key=lambda op: op.held.db, default=None)


def verify(
    program: Program,
    checkpoint: Checkpoint,
    pixels: Tensor,
    on_progress: Progress = lambda what, done, total: None,
) -> VerifyReport:
    """Hold a package to the checkpoint that it was made from.

    Args:
        pixels: (N, 3, R, R) RGB in 0 ... 255, at least `MIN_INPUTS` of them.

    Raises ConfigError for a package that is not ours, and for too few pictures or such of another size than the
    checkpoint's. What differs is told by the report.
    """
    if len(pixels) < MIN_INPUTS:
        raise ConfigError(f"{len(pixels)} inputs are too few to verify with.", f"Give at least {MIN_INPUTS}.")
    if (size := checkpoint.meta.arch.resolution) != pixels.shape[-1]:
        raise ConfigError(f"the pictures are {pixels.shape[-1]} px, the checkpoint's network takes {size} px.")
    on_progress("converting the fp32 twin", 0, 1)
    return hold(program, twin_of(checkpoint, meta_of(program)), checkpoint, pixels, on_progress)


def hold(
    program: Program,
    twin: Program,
    checkpoint: Checkpoint,
    pixels: Tensor,
    on_progress: Progress = lambda what, done, total: None,
) -> VerifyReport:
    """`verify` of a package that is loaded, with its twin."""
    meta = meta_of(program)
    ours, theirs = Graph(twin), Graph(program)
    noise = Noise(ours, theirs, meta.compression, classes=meta.output != "features")
    exact = Exact(checkpoint, meta.output)
    apart = compare_readings(program.path)
    stages = dict.fromkeys(("reading", "twin", "description", "graph", "scales", "values"), None)
    stages |= {
        "reading": Divergence("package", program.path.name, f"two readers see it apart: {apart}") if apart else None,
        "description": compare_descriptions(twin, program, checkpoint.meta, meta),
        "graph": compare_graphs(ours, theirs, meta),
        "scales": noise.scales.divergence if noise.scales else None,
    }
    if twin.inputs[0].shape == program.inputs[0].shape:  # else the description says so
        broken = _run(noise, exact, pixels, meta, on_progress)
        stages["twin"] = _twin_divergence(exact)
        stages["values"] = broken or values_divergence(noise, meta)
    rounding = noise.rounding if meta.precision == "int8" else None
    return VerifyReport(
        meta, stages, exact.error, list(noise.ops.values()), noise.inputs, MIN_SNR_DB[meta.precision],
        program.num_ops, dict(program.op_counts), noise.changed_percent, rounding,
    )  # fmt: skip


def _run(noise: Noise, exact: Exact, pixels: Tensor, meta: PackageMeta, on_progress: Progress) -> Divergence | None:
    """Run package, twin and, of the first pictures, checkpoint; the error of a package that does not run."""
    for i in range(0, len(pixels), meta.batch):
        on_progress("running", i, len(pixels))
        group, count = _filled(pixels[i : i + meta.batch], meta.batch)
        broken = None
        try:
            noise.add(group, count)
        except ConfigError as error:
            broken = Divergence("package", noise.shipped.program.path.name, str(error))
        if i < TWIN_INPUTS:
            exact.compare(group, noise.twin_scores, noise.decisions)
        elif broken:
            break
    return broken


def twin_of(checkpoint: Checkpoint, meta: PackageMeta) -> Program:
    """The fp32 package that a checkpoint makes with the options of another package."""
    with tempfile.TemporaryDirectory(prefix="vig-twin-") as folder:
        return export(
            checkpoint, meta.checkpoint_sha256, Path(folder) / "twin.mlpackage", "fp32", meta.minimum_ios,
            input=meta.input, output=meta.output, batch=meta.batch,
        )  # fmt: skip


def _filled(pixels: Tensor, size: int) -> tuple[Tensor, int]:
    """Pictures for one run, the last one repeated where they are too few, and how many they are."""
    missing = size - len(pixels)
    filled = torch.cat([pixels, pixels[-1:].expand(missing, *pixels.shape[1:])]) if missing else pixels
    return filled.float(), len(pixels)


def _twin_divergence(exact: Exact) -> Divergence | None:
    if exact.error > TOLERANCE:
        what = f"the fp32 twin is {exact.error:.1e} of the largest logit off the checkpoint"
        return Divergence("conversion", "logits", what)
    if exact.regret > TOLERANCE:
        what = f"the fp32 twin's are {exact.regret:.1e} worse than the checkpoint's"
        return Divergence("conversion", "choices", what)
    return None


# ------------------------------------------------------------------------------------------------ values


def values_divergence(noise: Noise, meta: PackageMeta) -> Divergence | None:
    """The first operation, else the first picture, whose values are not what they have to be."""
    precision, floor, turned = meta.precision, MIN_SNR_DB[meta.precision], noise.rounding
    noisy = [i for i, one in enumerate(noise.inputs) if one.db < floor]
    op = noise.below(floor)
    if op and (noisy or precision == "int8"):  # an int8 package's operations are held to what they are given
        what = f"{op.held.db:.1f} dB, below {floor:g} dB" if math.isfinite(op.held.noise) else OVERFLOW
        return Divergence(op.info.op_type, op.info.name, what)
    if precision == "int8" and turned.where and not turned.regret <= MAX_REGRET:
        far, most = 0.5 + turned.regret, 0.5 + MAX_REGRET
        what = f"an integer is {far:.2g} steps from the value that it stands for, more than {most:g}"
        return Divergence(turned.where.op_type, turned.where.name, what)
    if not noise.inputs:
        return Divergence("scores", "all", "are not as many as the checkpoint's network gives")
    if noisy:
        return Divergence("scores", f"picture {noisy[0]}", f"{noise.inputs[noisy[0]].db:.1f} dB, below {floor:g} dB")
    for i, one in enumerate(noise.inputs):
        if not meta.compression and one.same_class is False and (one.margin_ratio or 0) > MARGIN_RATIO:
            what = f"another first class, where the twin's leads by {100 * (one.margin_ratio or 0):.1f} % of the range"
            return Divergence("scores", f"picture {i}", what)
    return None

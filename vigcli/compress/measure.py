"""What a compressed package cost, found by running that very package beside the network and its fp16 package."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path

from vigcli.archs.checkpoint import Checkpoint
from vigcli.compress.quantize import Progress, Source, silent
from vigcli.coreml.convert import meta_of
from vigcli.coreml.graphs import Graph
from vigcli.coreml.interpreter import Program
from vigcli.coreml.noise import Noise, OpNoise
from vigcli.coreml.op_blocks import op_blocks
from vigcli.coreml.runtime import Runner, open_runner
from vigcli.coreml.verify import twin_of
from vigcli.files import bytes_on_disk
from vigcli.registry import FAMILIES
from vigcli.train.data import Pictures, eval_batches
from vigcli.train.evaluate import Evaluation, Predict, agreement_percent, evaluate, normalized
from vigcli.train.intervals import Difference, paired_difference

NOISE_IMAGES = 32  # of those that are measured on: run operation by operation


@dataclass(frozen=True)
class Baseline:
    """The network in fp32 and its fp16 package on the pictures, the same for every compression of it.

    Attributes:
        size_bytes: of the fp16 package.
        twin: the fp32 package, which layers are held against.
    """

    fp32: Evaluation
    fp16: Evaluation
    size_bytes: int
    twin: Program = field(repr=False)

    @property
    def agreement_percent(self) -> float:
        """Of the fp16 package with the fp32 network."""
        return agreement_percent(self.fp32, self.fp16)


@dataclass(frozen=True)
class LayerNoise:
    """One operation of the package.

    Attributes:
        block: of the network that it belongs to.
        snr_db: its result against fp32.
        simulated_db: against the same compression of the same weights, simulated; what is missing there is nobody's
            choice.
    """

    name: str
    op_type: str
    block: str
    snr_db: float
    simulated_db: float


@dataclass(frozen=True)
class Cost:
    """A compressed package, measured.

    Attributes:
        snr_db: of the scores before the softmax against fp32, of the middle one of `NOISE_IMAGES` pictures.
        simulated_db: against the simulation of the compression, at the least (`Noise.held_db`).
        layers: in the order in which they run.
        ran_by: in words.
    """

    base: Baseline
    package: Evaluation
    size_bytes: int
    snr_db: float
    simulated_db: float
    layers: tuple[LayerNoise, ...]
    ran_by: str

    @property
    def agreement_percent(self) -> float:
        """With the fp32 network."""
        return agreement_percent(self.base.fp32, self.package)

    @property
    def difference(self) -> Difference:
        """Top-1 of the package minus that of the fp32 network."""
        return paired_difference(self.package.right, self.base.fp32.right)

    @property
    def times_smaller(self) -> float:
        """Than the fp16 package."""
        return self.base.size_bytes / self.size_bytes

    @property
    def worst_layers(self) -> list[LayerNoise]:
        return sorted(self.layers, key=lambda layer: layer.snr_db)


def baseline(checkpoint: Checkpoint, source: Source, pictures: Pictures, on_progress: Progress = silent) -> Baseline:
    """Run the network and its fp16 package over all pictures."""
    meta = source.meta
    fp32 = _evaluated("fp32", normalized(checkpoint.model, meta.preprocessing), source, pictures, on_progress)
    runner = open_runner(source.path)
    fp16 = _evaluated("fp16", runner, source, pictures, on_progress, runner.batch_size)
    on_progress("converting the fp32 twin", 0, 1)
    return Baseline(fp32, fp16, bytes_on_disk(source.path), twin_of(checkpoint, meta))


def cost(
    package: Path,
    source: Source,
    base: Baseline,
    pictures: Pictures,
    twin: Program | None = None,
    on_progress: Progress = silent,
) -> Cost:
    """Run a compressed package over the pictures that its baseline was found on.

    Args:
        source: the fp16 package of the same weights.
        twin: the fp32 package of the same weights, where they are not the baseline's, which did not learn in the
            package's place.
    """
    runner: Runner = open_runner(package)
    evaluation = _evaluated("package", runner, source, pictures, on_progress, runner.batch_size)
    noise = _noise(Program.load(package), base.twin, pictures, on_progress)
    held = noise if twin is None else _noise(Program.load(package), twin, pictures, on_progress)
    blocks = list(source.meta.arch.named_blocks()) if source.meta.arch.family in FAMILIES else []
    places = op_blocks(source.program, blocks)
    return Cost(
        base,
        evaluation,
        bytes_on_disk(package),
        statistics.median(one.fp32_db for one in noise.inputs),
        held.held_db,
        tuple(_layer(op, held.ops[name], places.get(name, "")) for name, op in noise.ops.items()),
        runner.ran_by,
    )


def _evaluated(
    what: str, predict: Predict, source: Source, pictures: Pictures, on_progress: Progress, batch_size: int = 64
) -> Evaluation:
    meta = source.meta
    batches = eval_batches(pictures, meta.preprocessing, meta.arch.resolution, batch_size=batch_size)
    return evaluate(predict, batches, lambda done: on_progress(f"{what}: images", done, len(pictures)))


def _noise(program: Program, twin: Program, pictures: Pictures, on_progress: Progress) -> Noise:
    """The package operation by operation, on some of the pictures."""
    meta = meta_of(program)
    noise = Noise(Graph(twin), Graph(program), meta.compression)
    batches = eval_batches(pictures, meta.preprocessing, meta.arch.resolution, batch_size=1, limit=NOISE_IMAGES)
    for i, (pixels, _) in enumerate(batches):
        on_progress("layer by layer: images", i, min(NOISE_IMAGES, len(pictures)))
        noise.add(pixels.float(), 1)
    return noise


def _layer(op: OpNoise, held: OpNoise, block: str) -> LayerNoise:
    return LayerNoise(op.info.name, op.info.op_type, block, round(op.fp32.db, 2), round(held.held.db, 2))

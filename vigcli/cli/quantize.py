"""`vig quantize`: a smaller package, and what it cost."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vigcli.cli.options import (
    Integer,
    dry_run_option,
    json_option,
    output_option,
    recipe_set_option,
    table_option,
)
from vigcli.cli.output import Progress, emit_json, fields, figure, progress, say
from vigcli.cli.quantize_train import qat_recipe_of, settled, trained
from vigcli.cli.resuming import kept_options
from vigcli.errors import InfeasibleError, UsageError

if TYPE_CHECKING:
    from vigcli.archs.checkpoint import Checkpoint
    from vigcli.compress.measure import Cost
    from vigcli.config.compression import Compression
    from vigcli.config.package import MinimumIos, PackageMeta
    from vigcli.config.recipe import Data, Recipe
    from vigcli.train.data import Pictures

GROUP_CHANNELS = 16  # that share a palette where iOS has palettes of groups


class Asked(NamedTuple):
    """What the options say."""

    int8: bool
    weights_only: bool
    bits: str | None
    sparsity: float | None
    calibrate: Any
    target: str | None
    qat: bool
    max_drop: float | None
    checkpoint_name: str | None
    data_root: str | None
    images: int
    recipe_name: str | None
    settings: Sequence[str]
    device: str
    table_name: str


class Job(NamedTuple):
    """What is compressed, how, and on which pictures.

    Attributes:
        recipe: what --qat trains by.
    """

    path: Path
    checkpoint: Checkpoint
    checkpoint_sha256: str
    compression: Compression
    minimum_ios: MinimumIos
    data: Data
    num_calibration_images: int
    val: Pictures
    recipe: Recipe | None
    max_drop: float | None

    @property
    def shipped(self) -> Compression:
        """The compression of the package: with --qat, by the ranges of its training."""
        return self.compression if self.recipe is None else self.compression.as_trained()

    def record(self) -> dict[str, Any]:
        from vigcli.config.package import network_name

        return {
            "checkpoint": str(self.path),
            "checkpoint_sha256": self.checkpoint_sha256,
            "data": self.data.source if self.data.root is None else str(Path(self.data.root).resolve()),
            "network": network_name(self.checkpoint.meta),
            "compression": self.compression.model_dump(mode="json"),
            "minimum_ios": self.minimum_ios,
            "num_calibration_images": self.num_calibration_images if self.compression.calibration else 0,
            "num_images": len(self.val),
        }


class Made(NamedTuple):
    """A compressed package, written and measured.

    Attributes:
        first_layers: results of operations that stay in fp16 in every compression of the network.
        seconds: that it took to make, without the measurement; None where a training went on that was stopped.
    """

    package: Path
    meta: PackageMeta
    cost: Cost
    first_layers: tuple[str, ...]
    seconds: float | None


def compression_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what becomes of numbers."""
    for option in reversed((
        click.option("--int8", is_flag=True, help="Weights and activations in eight bits (W8A8)."),
        click.option("--weights-only", is_flag=True, help="Weights alone in eight bits; activations stay in fp16."),
        click.option("--bits", type=click.Choice(("4", "6")),
                     help="Weights of palettes, of 16 or 64 values; from --target ios18 on one for every "
                          f"{GROUP_CHANNELS} channels. With --int8 the activations in eight bits."),
        click.option("--sparsity", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="RATIO",
                     help="The share of the large weights, the smallest, to be zero and not stored: 0.5. Together with "
                          "the others it needs iOS 18."),
        click.option("--calibrate", type=click.Choice(("percentile", "error", "minmax")),
                     help="Ranges of 8-bit activations: 99.99 % of the numbers (default), the least squared error, "
                          "or all."),
        click.option("--qat", is_flag=True, help="Train the weights in the int8 package's place, with its ranges."),
        click.option("--max-drop", type=click.FloatRange(0, 100), metavar="POINTS",
                     help="Keep the operations in fp16 that hurt most, until top-1 drops no more than so many points."),
        click.option("--target", type=click.Choice(("ios16", "ios17", "ios18"), case_sensitive=False),
                     help="The least iOS that runs the package; default: the first that can."),
    )):  # fmt: skip
        command = option(command)
    return command


def compression_of(asked: Asked) -> Compression:
    """The compression that the options describe. Raises UsageError."""
    from vigcli.config.compression import Compression

    if not (asked.int8 or asked.weights_only or asked.bits or asked.sparsity):
        raise UsageError("what to quantize to is not said.", "Write --int8, --weights-only, --bits or --sparsity.")
    if asked.int8 and asked.weights_only:
        what = "--int8 is of weights and activations, --weights-only of weights alone."
        raise UsageError(what, "Leave one of them out.")
    if asked.weights_only and asked.bits:
        raise UsageError(f"--weights-only is eight bits, --bits {asked.bits} is not.", "Leave one of them out.")
    if asked.calibrate and not asked.int8:
        raise UsageError("--calibrate chooses ranges of activations, which stay in fp16.", "Add --int8.")
    for option, given in (("--qat", asked.qat), ("--max-drop", asked.max_drop is not None)):
        beside = {"--weights-only": asked.weights_only, "--bits": asked.bits, "--sparsity": asked.sparsity}
        others = [name for name, value in beside.items() if value]
        if given and (not asked.int8 or others):
            hint = f"Leave {' and '.join(others)} out: " if others else "Write "
            raise UsageError(f"{option} is of weights and activations in eight bits.", f"{hint}--int8 {option}.")
    if (asked.recipe_name or asked.settings) and not asked.qat:
        raise UsageError("a recipe is what --qat trains by.", "Add --qat, or leave --recipe and --set out.")
    bits: Any = int(asked.bits) if asked.bits else 8 if asked.int8 or asked.weights_only else 16
    return Compression(
        weight_bits=bits,
        group_channels=GROUP_CHANNELS if asked.bits and asked.target == "ios18" else None,
        sparsity_ratio=asked.sparsity or 0.0,
        activation_bits=8 if asked.int8 else 16,
        calibration=(asked.calibrate or "percentile") if asked.int8 else None,
    )


@click.command()
@click.argument("checkpoint_name", metavar="[CHECKPOINT]", required=False)
@compression_options
@click.option(
    "--data",
    "data_root",
    type=click.Path(),
    help="Folder with train/ and val/, or emoji10; default: the checkpoint's data.",
)
@click.option("--images", type=Integer(128), default=256, show_default=True, help="Training pictures to calibrate on.")
@click.option(
    "--recipe", "recipe_name", metavar="RECIPE", help="Of --qat: what to train by; default: recipes/_qat.yaml."
)
@recipe_set_option
@click.option("--device", default="auto", show_default=True, help="Of --qat: cpu, cuda, mps, or auto.")
@click.option("--resume", type=click.Path(), metavar="RUN_DIR", help="Go on with a training that was stopped.")
@table_option
@output_option
@dry_run_option
@json_option
@click.pass_context
def command(
    context: click.Context, resume: str | None, output: str | None, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Write a smaller CoreML package of CHECKPOINT (default: the newest) and measure it by running it.

    --int8, --weights-only or --bits says how numbers are kept, --sparsity leaves some out; --qat trains the network for
    it first, --max-drop leaves some of it in fp16. A pruned checkpoint is quantized like any other.

    Example:  vig quantize --int8
    """
    from vigcli.config.quantize_record import RESULT_FILE

    if resume is not None:
        options = kept_options(context, Path(resume), options, "quantize")
        if (Path(resume) / RESULT_FILE).is_file():
            say(f"It had ended; what it found is in {Path(resume) / RESULT_FILE}.")
            return
    asked = Asked(**options)
    job = _job(asked, compression_of(asked))
    options["checkpoint_name"] = str(job.path.resolve())  # when it is resumed, the newest may be another one
    from vigcli.cli.load import against, picked_device, run_folder
    from vigcli.cli.quantize_print import as_origin, as_record, priced, show
    from vigcli.files import write_json
    from vigcli.latency.table import find_table
    from vigcli.runs.rundir import OPTIONS_FILE, new_run

    (table_file, latency_table), device = find_table(asked.table_name), picked_device(asked.device)
    if dry_run:
        _plan(job, resume or run_folder(output), as_json)
        return
    begun = contextlib.nullcontext(Path(resume)) if resume is not None else new_run("quantize", run_folder(output))
    with begun as run, progress() as advance:
        if resume is None:
            write_json(run / OPTIONS_FILE, options)
        package, written, found, first_layers, seconds = _made(job, run, device, advance)
        prices = priced(written, latency_table)
        made = {
            "package": str(package),
            "compression": written.compression and written.compression.model_dump(),
            "first_layers": list(first_layers),
        }
        figures = {**as_record(found, prices), **as_origin(prices, table_file.stem, latency_table)}
        answer = {**job.record(), **made, **figures, "seconds": seconds and round(seconds, 1)}
        write_json(run / RESULT_FILE, {**answer, "layers": [vars(layer) for layer in found.layers]})
    if as_json:
        emit_json(answer)
    else:
        show(found, written, package, prices)
        click.echo(f"Next:  vig verify {package}{'' if job.recipe is not None else against(job.path)}")
    if job.max_drop is not None and -found.difference.points > job.max_drop:
        drop, count = -found.difference.points, len(job.val)
        lost = f"{drop * count / 100:.0f} of the {count} pictures measured"
        what = f"top-1 drops by {drop:.2f} points ({lost})"
        hint = "What stays in fp16 was decided on training pictures, not on these; allow a greater drop"
        hint += ", or train it so: --qat." if not written.compression or not written.compression.qat else "."
        raise InfeasibleError(f"{what}, more than --max-drop {job.max_drop:g}.", hint)


def _job(asked: Asked, compression: Compression) -> Job:
    """Everything that can be refused before anything long is done."""
    from vigcli.archs.checkpoint import load_checkpoint
    from vigcli.cli.load import data_of, named, picked_checkpoint
    from vigcli.compress.calibrate import check_images
    from vigcli.compress.quantize import check_target
    from vigcli.runs.provenance import sha256
    from vigcli.train.data import check_classes, open_data

    minimum_ios = check_target(compression, int(asked.target.removeprefix("ios")) if asked.target else None)
    path = picked_checkpoint(asked.checkpoint_name)
    checkpoint = load_checkpoint(path)
    data = data_of(checkpoint.meta, asked.data_root)
    train, val = open_data(data, "train"), open_data(data, "val")
    for pictures in (train, val):
        check_classes(pictures, checkpoint.meta.arch.num_classes, checkpoint.meta.labels)
    if checkpoint.meta.quantization and compression.is_plain_int8 and not (asked.qat or asked.calibrate):
        compression = compression.as_trained()
    count = min(asked.images, len(train))
    if compression.calibration:
        check_images(count, train.name)
    say(f"Taking {named(path, checkpoint.meta)}: {compression.text_with_ranges}; iOS {minimum_ios} and later.")
    calibrating = f"Calibrating on {count} training pictures, measuring on {len(val)} others."
    say(calibrating if compression.calibration else f"Measuring on {len(val)} pictures.")
    job = Job(path, checkpoint, sha256(path), compression, minimum_ios, data, count, val, None, asked.max_drop)
    if asked.qat:
        return job._replace(recipe=qat_recipe_of(job, asked.recipe_name, tuple(asked.settings)))
    return job


def _plan(job: Job, folder: str | None, as_json: bool) -> None:
    """What would be trained and written."""
    from vigcli.cli.load import due_package
    from vigcli.train.data import open_data
    from vigcli.train.schedule import plan

    due = job.shipped.model_copy(update={"max_drop_points": job.max_drop})
    record = {**job.record(), "compression": due.model_dump(mode="json")}
    steps: dict[str, Any] = {}
    if job.recipe is not None:
        steps = {"epochs": job.recipe.epochs, **plan(job.recipe, len(open_data(job.data, "train")))}
    package = due_package(f"{due.name}.mlpackage", folder)
    if as_json:
        emit_json({**record, "package": package, "training": steps or None})
        return
    others = "" if job.max_drop is None else f"; {job.shipped.name}.mlpackage where nothing has to stay in fp16"
    fields([("package", f"{package}{others}"), *((name, figure(value)) for name, value in steps.items())])
    say("Nothing was written.")


def _made(job: Job, run: Path, device: str, advance: Progress) -> Made:
    """The package written, and measured beside the network and its fp16 package."""
    from vigcli.archs.checkpoint import load_checkpoint
    from vigcli.compress.measure import baseline, cost
    from vigcli.compress.quantize import compress, half_package
    from vigcli.compress.schemes import first_layers
    from vigcli.coreml.verify import twin_of
    from vigcli.runs.provenance import provenance, sha256
    from vigcli.runs.rundir import write_run_file
    from vigcli.train.data import load_split
    from vigcli.train.state import STATE_FILE

    meta, digest = job.checkpoint.meta, job.checkpoint_sha256
    record = provenance(sys.argv, 0, meta.model_dump_json(), [digest])
    write_run_file(run, record)
    pixels, _ = load_split(
        job.data, "train", meta.preprocessing, meta.arch.resolution, limit=job.num_calibration_images
    )
    start, checkpoint = time.monotonic(), job.checkpoint
    goes_on = (run / STATE_FILE).is_file()  # a training whose time was not kept
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(half_package(checkpoint, digest, job.minimum_ios, pixels, advance))
        if job.recipe is not None:
            path = trained(job, source, pixels, run, device, record, advance)
            checkpoint, original = load_checkpoint(path), source
            source = stack.enter_context(half_package(checkpoint, sha256(path), job.minimum_ios, pixels, advance))
        else:
            original = source
        compression, ranges = settled(job, checkpoint, source, pixels, advance)
        package = run / f"{compression.name}.mlpackage"
        written = compress(source, package, compression, pixels, ranges=ranges, on_progress=advance)
        seconds = time.monotonic() - start
        base = baseline(job.checkpoint, original, job.val, advance)
        twin = None if job.recipe is None else twin_of(checkpoint, source.meta)
        found = cost(package, source, base, job.val, twin, advance)
        return Made(package, written, found, first_layers(source.program), None if goes_on else seconds)

"""`vig quantize`: an int8 package, and what it cost."""

from __future__ import annotations

import sys
from typing import Any

import click

from vigcli.cli.options import Integer, dry_run_option, json_option, output_option
from vigcli.cli.output import emit_json, progress, say, table
from vigcli.errors import ConfigError, UsageError
from vigcli.units import format_bytes


@click.command()
@click.argument("checkpoint_name", metavar="[CHECKPOINT]", required=False)
@click.option("--int8", is_flag=True, help="Weights and activations in eight bits (W8A8).")
@click.option(
    "--target",
    type=click.Choice(("ios16", "ios17", "ios18")),
    default="ios17",
    show_default=True,
    help="The least iOS that runs the package; eight-bit activations need iOS 17.",
)
@click.option(
    "--data", "data_root", type=click.Path(), help="Folder with train/ and val/; default: the checkpoint's data."
)
@click.option("--images", type=Integer(128), default=256, show_default=True, help="Training pictures to calibrate on.")
@output_option
@dry_run_option
@json_option
def command(
    checkpoint_name: str | None,
    int8: bool,
    target: str,
    data_root: str | None,
    images: int,
    output: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write an int8 CoreML package of CHECKPOINT (default: the newest) and measure it by running it.

    Example:  vig quantize --int8
    """
    if not int8:
        raise UsageError("what to quantize to is not said.", "Write vig quantize --int8.")
    if target == "ios16":
        hint = "Take --target ios17, or stay in fp16: vig export --target ios16."
        raise UsageError("--target ios16: has no operations on eight-bit activations.", hint)
    ios: Any = int(target.removeprefix("ios"))
    from vigcli.archs.checkpoint import load_checkpoint
    from vigcli.cli.load import data_of, named, picked_checkpoint, run_folder
    from vigcli.train.data import check_classes, load_split, open_data

    path = picked_checkpoint(checkpoint_name)
    checkpoint = load_checkpoint(path)
    meta = checkpoint.meta
    data = data_of(meta, data_root)
    train, val = open_data(data, "train"), open_data(data, "val")
    check_classes(train, meta.arch.num_classes, meta.labels)
    check_classes(val, meta.arch.num_classes, meta.labels)
    if len(train) < 128:
        raise ConfigError(f"{train.name}: {len(train)} pictures are too few to calibrate on.", "Give at least 128.")
    say(f"Taking {named(path, meta)}.")
    say(f"Calibrating on {min(images, len(train))} training pictures, measuring on {len(val)} others.")
    if dry_run:
        if as_json:
            emit_json(
                {"checkpoint": str(path), "num_calibration_images": min(images, len(train)), "num_images": len(val)}
            )
        return
    from vigcli.compress.quantize import quantize
    from vigcli.config.compression import INT8
    from vigcli.coreml.convert import preprocessing_text
    from vigcli.coreml.runtime import open_runner
    from vigcli.files import bytes_on_disk, write_json
    from vigcli.runs.provenance import provenance, sha256
    from vigcli.runs.rundir import new_run, write_run_file
    from vigcli.train.data import eval_batches
    from vigcli.train.evaluate import agreement_percent, evaluate, normalized

    size = meta.arch.resolution
    digest = sha256(path)
    calibration, _ = load_split(data, "train", meta.preprocessing, size, limit=images)
    with new_run("quantize", run_folder(output)) as run:
        package = run / "int8.mlpackage"
        with progress() as advance:
            written = quantize(checkpoint, digest, package, INT8, calibration, ios, on_progress=advance)
            runner = open_runner(package)

            def measured(what: str, predict: Any) -> Any:
                batches = eval_batches(val, meta.preprocessing, size, batch_size=runner.batch_size)
                return evaluate(predict, batches, lambda done: advance(f"{what}: images", done, len(val)))

            fp32 = measured("fp32", normalized(checkpoint.model, meta.preprocessing))
            int8_result = measured("int8", runner)
        agreement = agreement_percent(fp32, int8_result)
        write_run_file(run, provenance(sys.argv, 0, meta.model_dump_json(), [digest]))
        size_bytes = bytes_on_disk(package)
        answer = {
            "package": str(package),
            "checkpoint": str(path),
            "size_bytes": size_bytes,
            "minimum_ios": written.minimum_ios,
            "num_calibration_images": len(calibration),
            "num_images": fp32.num_images,
            "top1_percent_fp32": round(fp32.top1_percent, 2),
            "top1_percent_int8": round(int8_result.top1_percent, 2),
            "agreement_percent": round(agreement, 2),
            "latency_ms": None,
        }
        write_json(run / "quantize.json", answer)
    if as_json:
        emit_json(answer)
        return
    rows = []
    for name, result in (("fp32 network", fp32), ("int8 package", int8_result)):
        low, high = result.interval_percent()
        is_int8 = result is int8_result
        rows.append((
            name, f"{result.top1_percent:.1f} ({low:.1f} to {high:.1f})", result.num_images,
            f"{agreement:.1f}" if is_int8 else "100.0", format_bytes(size_bytes) if is_int8 else "",
            "not known" if is_int8 else "",
        ))  # fmt: skip
    table(("", "top-1 % (95 %)", "pictures", "agreement %", "size", "ms"), rows, title=f"{path}, measured")
    say(f"The package was run by {runner.ran_by}. It needs iOS {ios} or later.")
    say("Milliseconds of int8: not known; the latency tables know fp16.")
    say(f"Wrote {package}. Input: {preprocessing_text(written)}.")
    click.echo(f"Next:  vig verify {package}")

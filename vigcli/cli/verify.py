"""`vig verify`: is a package what its checkpoint says?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vigcli.cli.options import Integer, json_option, output_option
from vigcli.cli.output import emit_json, fields, progress, say
from vigcli.errors import VigError

if TYPE_CHECKING:
    from torch import Tensor

    from vigcli.archs.checkpoint import Checkpoint
    from vigcli.config.package import PackageMeta
    from vigcli.coreml.graphs import Divergence
    from vigcli.coreml.interpreter import Program

    Verdict = tuple[dict[str, Any], list[tuple[str, str]], Divergence | None]  # figures, what to print, what is wrong


@click.command()
@click.argument("package_name", metavar="[PACKAGE]", required=False)
@click.option(
    "--against",
    "checkpoint_name",
    metavar="CHECKPOINT",
    type=click.Path(),
    help="What it was made from; default: found by its hash, in runs/ and beside the package.",
)
@click.option(
    "--images",
    "image_names",
    metavar="PATH",
    multiple=True,
    type=click.Path(),
    help="A picture or a folder of them; embedded ones fill up. Default: those alone.",
)
@click.option("--inputs", type=Integer(16), default=16, show_default=True, help="Pictures to run, at least.")
@output_option
@json_option
def command(
    package_name: str | None,
    checkpoint_name: str | None,
    image_names: tuple[str, ...],
    inputs: int,
    output: str | None,
    as_json: bool,
) -> None:
    """Hold PACKAGE (default: the newest) to the checkpoint that it was made from, operation by operation.

    PACKAGE is run by vig's interpreter; an ONNX file may be named too, and is run by ONNX Runtime.

    Example:  vig verify runs/0003-export/fp16.mlpackage --images cat.jpg
    """
    from vigcli.archs.checkpoint import load_checkpoint
    from vigcli.cli.load import checkpoint_of, picked_package
    from vigcli.runs.provenance import provenance
    from vigcli.runs.rundir import new_run, write_run_file

    package = picked_package(package_name, ["*.onnx"])
    verified = _verify_onnx if package.suffix == ".onnx" else _verify_package
    with new_run("verify", output) as run:
        opened, meta = _opened(package)
        path = checkpoint_of(package, meta.checkpoint_sha256, checkpoint_name)
        say(f"Taking {package} and {path}.")
        pixels, names = _pictures(image_names, inputs, meta)
        paths = {"package": str(package), "checkpoint": str(path)}
        record = provenance(sys.argv, 0, meta.model_dump_json(), [meta.checkpoint_sha256])
        answer, lines, divergence = verified(run, opened, load_checkpoint(path), pixels, names, paths, record)
        write_run_file(run, record)
    if as_json:
        emit_json({**paths, "run": str(run), **answer})
    else:
        fields([*lines, ("verdict", "DIVERGES" if divergence else f"{package.name} is what its checkpoint says")])
    say(answer["note"])
    say(f"Wrote {run}.")
    if divergence is not None:
        what = f"{package}: {divergence.op_type} '{divergence.name}' diverges: {divergence.why}."
        raise VigError(what, _hint(divergence, run))


def _opened(package: Path) -> tuple[Any, PackageMeta]:
    """What is verified, and what it says of itself."""
    if package.suffix == ".onnx":
        from vigcli.coreml.verify_onnx import load_onnx

        return package, load_onnx(package)[1]
    from vigcli.coreml.convert import meta_of
    from vigcli.coreml.interpreter import Program

    program = Program.load(package)
    return program, meta_of(program)


def _verify_package(
    run: Path,
    program: Program,
    checkpoint: Checkpoint,
    pixels: Tensor,
    names: list[str],
    paths: dict[str, str],
    record: dict[str, Any],
) -> Verdict:
    from vigcli.coreml.verify import verify
    from vigcli.coreml.verify_report import lines, summary, write_report

    with progress() as advance:
        report = verify(program, checkpoint, pixels, advance)
    write_report(run, report, names, paths, record)
    return summary(report), lines(report), report.divergence


def _verify_onnx(
    run: Path,
    file: Path,
    checkpoint: Checkpoint,
    pixels: Tensor,
    names: list[str],
    paths: dict[str, str],
    record: dict[str, Any],
) -> Verdict:
    from vigcli.coreml.verify_onnx import lines, summary, verify_onnx
    from vigcli.files import write_json

    with progress() as advance:
        report = verify_onnx(file, checkpoint, pixels, advance)
    inputs = [{"name": name, "relative_error": error} for name, error in zip(names, report.errors, strict=False)]
    write_json(run / "verify.json", {**paths, **summary(report), "inputs": inputs})
    return summary(report), lines(report), report.divergence


def _hint(divergence: Divergence, run: Path) -> str:
    from vigcli.coreml.verify import OVERFLOW

    if divergence.why == OVERFLOW:
        return "Export it with --precision mixed or fp32, or train it: drawn weights are of no scale."
    return f"All that was found is in {run}. Export it again; was it edited?"


def _pictures(names: Sequence[str], count: int, meta: Any) -> tuple[Tensor, list[str]]:
    """The pictures that are named, and embedded ones until they are enough: pixels, and what each is called."""
    import torch

    from vigcli.config.recipe import Data
    from vigcli.train.data import open_data, spread
    from vigcli.train.pictures import picture_files, read_picture
    from vigcli.train.preprocess import eval_pixels

    files = picture_files(names)
    images = [read_picture(file, str(file)) for file in files]
    called = [str(file) for file in files]
    if missing := max(count - len(files), 0):
        embedded = open_data(Data(source="emoji10"), "val")
        places = spread(len(embedded), missing)
        images += [embedded[i][0] for i in places]
        called += [f"{embedded.name} {i}" for i in places]
    return torch.cat([eval_pixels([image], meta.preprocessing, meta.arch.resolution) for image in images]), called

"""`vig verify`: is a package what its checkpoint says?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from vigcli.cli.options import Integer, json_option, output_option
from vigcli.cli.output import emit_json, fields, progress, say
from vigcli.errors import VigError

if TYPE_CHECKING:
    from torch import Tensor


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
@click.option("--inputs", type=Integer(32), default=32, show_default=True, help="Pictures to run, at least.")
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
    """Run PACKAGE (default: the newest) op by op and hold it to the checkpoint that it was made from.

    Example:  vig verify runs/0003-export/fp16.mlpackage --images cat.jpg
    """
    from vigcli.archs.checkpoint import load_checkpoint
    from vigcli.cli.load import checkpoint_of, picked_package
    from vigcli.coreml.convert import package_meta
    from vigcli.coreml.verify import CAVEAT, OVERFLOW, verify
    from vigcli.coreml.verify_report import lines, summary, write_report
    from vigcli.runs.provenance import provenance
    from vigcli.runs.rundir import new_run, write_run_file

    package = picked_package(package_name)
    meta = package_meta(package)
    path = checkpoint_of(package, meta.checkpoint_sha256, checkpoint_name)
    say(f"Taking {package} and {path}.")
    pixels, names = _pictures(image_names, inputs, meta)
    with new_run("verify", output) as run:
        with progress() as advance:
            report = verify(package, load_checkpoint(path), pixels, advance)
        record = provenance(sys.argv, 0, meta.model_dump_json(), [meta.checkpoint_sha256])
        write_run_file(run, record)
        paths = {"package": str(package), "checkpoint": str(path)}
        write_report(run, report, names, paths, record)
    if as_json:
        emit_json({**paths, "run": str(run), **summary(report)})
    else:
        fields(
            [*lines(report), ("verdict", "the package is what its checkpoint says" if report.passed else "DIVERGES")]
        )
    say(CAVEAT)
    say(f"Wrote {run}/verify.html and verify.json.")
    if report.divergence is not None:
        d = report.divergence
        hint = f"Every operation is in {run}/verify.html. Export it again; was it edited?"
        if d.why == OVERFLOW:
            hint = "Export it with --precision fp32, or train it: drawn weights are of no scale."
        raise VigError(f"{package}: {d.op_type} '{d.name}' diverges: {d.why}.", hint)


def _pictures(names: Sequence[str], count: int, meta: Any) -> tuple[Tensor, list[str]]:
    """The pictures that are named, and embedded ones until they are enough: pixels, and what each is called."""
    import torch

    from vigcli.config.recipe import Data
    from vigcli.train.data import eval_pixels, open_data, spread
    from vigcli.train.pictures import picture_files, read_picture

    files = picture_files(names)
    images = [read_picture(file, str(file)) for file in files]
    called = [str(file) for file in files]
    if missing := max(count - len(files), 0):
        embedded = open_data(Data(source="emoji10"), "val")
        places = spread(len(embedded), missing)
        images += [embedded[i][0] for i in places]
        called += [f"{embedded.name} {i}" for i in places]
    return torch.cat([eval_pixels([image], meta.preprocessing, meta.arch.resolution) for image in images]), called

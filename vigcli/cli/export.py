"""`vig export`: the fp16 CoreML package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, cast

import click

from vigcli.cli.options import dry_run_option, json_option, output_option
from vigcli.cli.output import emit_json, fields, progress, say
from vigcli.units import format_bytes


@click.command()
@click.argument("checkpoint_name", metavar="[CHECKPOINT]", required=False)
@click.option("--precision", type=click.Choice(("fp16", "fp32")), default="fp16", show_default=True)
@output_option
@dry_run_option
@json_option
def command(checkpoint_name: str | None, precision: str, output: str | None, dry_run: bool, as_json: bool) -> None:
    """Write the CoreML package (ML Program, iOS 16 and later) of CHECKPOINT (default: the newest).

    Example:  vig export
    """
    from vigcli.archs.checkpoint import load_checkpoint
    from vigcli.cli.load import named, picked_checkpoint, run_folder
    from vigcli.coreml.convert import export, preprocessing_text
    from vigcli.coreml.interpreter import Program
    from vigcli.files import bytes_on_disk
    from vigcli.runs.provenance import provenance, sha256
    from vigcli.runs.rundir import new_run, write_run_file

    path = picked_checkpoint(checkpoint_name)
    checkpoint = load_checkpoint(path)
    say(f"Taking {named(path, checkpoint.meta)}.")
    if dry_run:
        say(f"Would write {output or 'a new run in runs/'}/{precision}.mlpackage.")
        if as_json:
            emit_json({"checkpoint": str(path), "precision": precision, "output": output})
        return
    digest = sha256(path)
    with new_run("export", run_folder(output)) as run, progress() as advance:
        package = run / f"{precision}.mlpackage"
        advance("converting", 0, 1)
        meta = export(checkpoint, digest, package, cast(Literal["fp16", "fp32"], precision))
        write_run_file(run, provenance(sys.argv, 0, meta.model_dump_json(), [digest]))
    counts = Program.load(package).op_counts
    size_bytes = bytes_on_disk(package)
    answer = {
        "package": str(package),
        "checkpoint": str(path),
        "size_bytes": size_bytes,
        "minimum_ios": meta.minimum_ios,
        "preprocessing": preprocessing_text(meta),
        "op_counts": dict(counts.most_common()),
    }
    if as_json:
        emit_json(answer)
        return
    fields([
        ("package", package),
        ("size", format_bytes(size_bytes)),
        ("runs on", f"iOS {meta.minimum_ios} and later"),
        ("input", answer["preprocessing"]),
        ("classes", f"{meta.arch.num_classes}: {', '.join(meta.labels[:10]) or 'numbered, their names are not known'}"),
        ("operations", f"{sum(counts.values())}, of which gather {counts['gather']}, topk {counts['topk']}"),
    ])  # fmt: skip
    where = "" if path.parent.parent == Path("runs") else f" --checkpoint {path}"  # those of runs/ are found by hash
    click.echo(f"Next:  vig verify {package}{where}")

"""`vig import`: the authors' weights as a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vigcli.cli.options import json_option, num_classes_option, resolution_option, set_option
from vigcli.cli.output import emit_json, fields, say


@click.command("import")
@click.argument("file")
@click.option("--arch", "name", required=True, metavar="NAME", help="The network whose weights they are: vig ls archs.")
@set_option
@resolution_option
@num_classes_option
@click.option("--ema", is_flag=True, help="Take the moving average of the weights, where the file holds both.")
@click.option("--bgr", is_flag=True, help="The weights expect blue before red, as of networks trained with OpenCV.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="The checkpoint; default: NAME.safetensors here.")
@click.option("--force", is_flag=True, help="Replace the checkpoint if it exists.")
@json_option
def command(
    file: str,
    name: str,
    settings: tuple[str, ...],
    resolution: int | None,
    num_classes: int | None,
    ema: bool,
    bgr: bool,
    output: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a checkpoint from FILE, weights that a network's authors, or timm, published (.pth, .pt, .safetensors).

    Of a pickle nothing is run: it may hold tensors, plain containers and numbers, and argparse's namespaces.

    Example:  vig import model_best.pth --arch mobilevigv2_s
    """
    from vigcli.archs.checkpoint import save_checkpoint
    from vigcli.archs.official import read_official
    from vigcli.cli.load import arch_with, check_memory, checkpoint_output, preprocessing_of
    from vigcli.config.checkpoint import CheckpointMeta
    from vigcli.measure.count import count_params
    from vigcli.runs.provenance import provenance, sha256

    path = checkpoint_output(output or f"{name.removeprefix('timm:')}.safetensors", force)
    config = arch_with(name, settings, resolution, num_classes)
    params = count_params(config).total
    check_memory(name, params)
    model, weights = read_official(file, config, ema)
    preprocessing = preprocessing_of(config).model_copy(update={"channels": "BGR" if bgr else "RGB"})
    digest = sha256(file)
    taken = weights.taken or "the whole file"
    record = provenance(sys.argv, 0, config.model_dump_json(), [digest])
    record["imported"] = {"file": Path(file).name, "sha256": digest, "weights": taken}
    meta = CheckpointMeta(arch=config, preprocessing=preprocessing, parents=(digest,), provenance=record)
    save_checkpoint(path, model, meta)
    say(f"Wrote {path}.")
    answer = {
        "checkpoint": str(path),
        "network": name,
        "file": file,
        "sha256": digest,
        "weights": taken,
        "tensors": len(weights.tensors),
        "params": params,
        "left_out": list(weights.left),
    }
    if as_json:
        emit_json(answer)
        return
    fields([
        ("file", f"{file} (sha256 {digest[:12]})"),
        ("weights", f"{taken}: {len(weights.tensors)} tensors"),
        ("left out", ", ".join(weights.left) or "nothing"),
        ("network", f"{name}: {params:,} parameters, {config.num_classes} classes, {config.resolution} px"),
    ])  # fmt: skip
    click.echo(f"Next:  vig export {path}")

"""`vig build`: a network by name."""

from __future__ import annotations

import sys

import click

from vigcli.cli.options import json_option, num_classes_option, resolution_option, seed_option, set_option
from vigcli.cli.output import emit_json, fields, say
from vigcli.units import format_count


@click.command()
@click.argument("name")
@set_option
@resolution_option
@num_classes_option
@seed_option
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write a checkpoint (.safetensors).")
@click.option("--force", is_flag=True, help="Replace the checkpoint if it exists.")
@json_option
def command(
    name: str,
    settings: tuple[str, ...],
    resolution: int | None,
    num_classes: int | None,
    seed: int,
    output: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Build the network NAME (`vig ls archs`) with seeded weights; count it, and write a checkpoint with -o.

    Example:  vig build mobilevigv2_ti --set head_width=384 -o my.safetensors
    """
    from vigcli.archs import build
    from vigcli.archs.checkpoint import save_checkpoint
    from vigcli.cli.load import arch_with, check_memory, checkpoint_output
    from vigcli.config.checkpoint import CheckpointMeta
    from vigcli.measure.count import count_params
    from vigcli.runs.provenance import provenance

    config = arch_with(name, settings, resolution, num_classes)
    params = count_params(config)
    if output is not None:
        checkpoint_output(output, force)
        check_memory(name, params.total)
        record = provenance(sys.argv, seed, config.model_dump_json())
        save_checkpoint(output, build(config, seed=seed), CheckpointMeta(arch=config, provenance=record))
        say(f"Wrote {output}.")
    if as_json:
        emit_json({"arch": config.model_dump(mode="json"), "params": params._asdict(), "checkpoint": output})
        return
    shape = f"{config.in_chans} x {config.resolution} x {config.resolution}"
    rows = [("network", name), ("input", shape), ("classes", str(config.num_classes))]
    rows += [(f"params {kind}", f"{value:,} ({format_count(value)})") for kind, value in params._asdict().items()]
    fields(rows)

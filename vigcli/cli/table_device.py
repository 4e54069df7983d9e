"""`vig table build --device mac` and `vig table add`: rows measured on Apple hardware, and into a table with them."""

from __future__ import annotations

from pathlib import Path

import click

from vigcli.cli.options import json_option
from vigcli.cli.output import emit_json, fields, progress, say
from vigcli.errors import Interrupted, UsageError
from vigcli.units import format_bytes


def measure_on_apple(
    space_name: str, device: str, units: str, every: int, rounds: int, iterations: int, name: str, team: str,
    output: str, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Time the blocks of a space on a Mac or an iPhone, or write the packages that it takes; the same line goes on."""
    from vigcli.config.space import load_space
    from vigcli.coreml import device_blocks as job
    from vigcli.coreml.chains import PLAN_FILE, load_plan
    from vigcli.files import bytes_on_disk
    from vigcli.latency.protocol import Protocol
    from vigcli.paths import find_file

    target = job.Target("mac" if device == "mac" else "iphone", units, name, team)
    if not dry_run:
        job.check_can_measure(target)  # before the packages, which take a while
    space = load_space(find_file("space", space_name))
    protocol = Protocol(rounds=rounds, iterations=iterations, trim=iterations // 5)
    folder = Path(output)
    with progress() as advance:
        if (folder / PLAN_FILE).exists():
            plan = load_plan(folder)
            if (plan.base, plan.every, plan.protocol) != (space.base, every, protocol):
                hint = "Give the options that it was written with, or another folder with -o."
                raise UsageError(f"-o {output}: holds a plan of other blocks, rounds or iterations.", hint)
            say(f"Taking the packages in {folder}.")
        else:
            plan = job.dry_run(space, folder, protocol, every, advance)
        answer = {
            "folder": str(folder), "num_blocks": len(plan.blocks), "num_packages": len(plan.packages),
            "size_bytes": bytes_on_disk(folder), "num_inferences": len(plan.packages) * rounds * iterations,
        }  # fmt: skip
        try:
            found = None if dry_run else job.measure_on_device(plan, folder, target, advance)
        except KeyboardInterrupt:
            raise Interrupted("stopped; what was timed is kept.", "The same line again goes on from there.") from None
    if found is not None:
        answer |= {"num_rows": len(found.rows), "rows": str(folder / job.ROWS_FILE), "failures": found.failures}
    if as_json:
        emit_json(answer)
        return
    fields([
        ("folder", folder),
        ("blocks", f"{len(plan.blocks)}, by {len(plan.packages)} packages, {format_bytes(bytes_on_disk(folder))}"),
        ("protocol", f"{protocol}: {answer['num_inferences']:,} inferences"),
        *([("rows", f"{len(found.rows)}; {len(found.failures)} blocks have none: failures.json")] if found else []),
    ])  # fmt: skip
    if found is None:
        same = f"--units {units} --every {every} --rounds {rounds} --iterations {iterations}"
        click.echo(f"Next, on a Mac:  vig table build {space_name} --device {device} {same} -o {folder}")
    elif found.rows:
        click.echo(f"Next:  vig table add TABLE {folder / job.ROWS_FILE} -o NEW.yaml")


@click.command()
@click.argument("table_name", metavar="TABLE")
@click.argument("rows_path", metavar="ROWS.csv", type=click.Path(dir_okay=False))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="The table with the rows in it.")
@json_option
def add(table_name: str, rows_path: str, output: str, as_json: bool) -> None:
    """Put measured rows into a copy of TABLE: new ones are added, those of the same blocks replaced, others stay.

    Example:  vig table add iphone13-mini measured/rows.csv -o mine.yaml
    """
    from vigcli.config.load import dump
    from vigcli.files import write_text
    from vigcli.latency.measured import table_rows
    from vigcli.latency.table import load_table

    table = load_table(table_name)
    rows = table_rows(rows_path, table)
    joined = table.with_rows(rows)
    num_new = len(rows.keys() - table.rows.keys())
    num_measured = sum(row.kind == "measured" for row in joined.rows.values())
    write_text(output, f"# A table that `vig table add` put measured rows into.\n{dump(joined)}")
    percent = 100 * num_measured / len(joined.rows)
    say(
        f"Wrote {output}: {num_new} rows are new, {len(rows) - num_new} replaced; "
        f"{num_measured} of {len(joined.rows)} are measured now ({percent:.2g} %)."
    )
    if as_json:
        emit_json({
            "path": output, "num_new": num_new, "num_replaced": len(rows) - num_new, "num_rows": len(joined.rows),
            "num_measured": num_measured, "measured_percent": percent,
        })  # fmt: skip

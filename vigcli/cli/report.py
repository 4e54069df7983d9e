"""`vig report`: what was measured, as a page to read."""

from __future__ import annotations

from pathlib import Path

import click

from vigcli.cli.options import json_option
from vigcli.cli.output import emit_json, say, table


@click.group()
def command() -> None:
    """Put what was measured side by side, as a page to read.

    Example:  vig report compress
    """


@command.command()
@click.argument("runs", nargs=-1, type=click.Path(), metavar="[RUN]...")
@click.option(
    "-o", "--output", type=click.Path(), default="compress.html", show_default=True, help="The page to write."
)
@json_option
def compress(runs: tuple[str, ...], output: str, as_json: bool) -> None:
    """Compare the packages that `vig quantize` made, in RUNs or in all of runs/: size, accuracy, agreement, time.

    Example:  vig report compress
    """
    from vigcli.compress.report import COLUMNS, found_runs, read_rows, report_page
    from vigcli.files import write_text

    networks = read_rows(map(Path, runs) if runs else found_runs(Path("runs")))
    write_text(Path(output), report_page(networks))
    if as_json:
        emit_json({network: [row._asdict() for row in rows] for network, rows in networks.items()})
        return
    for network, rows in networks.items():
        table(COLUMNS, [row.cells(rows[0].size_bytes) for row in rows], title=network)
        click.echo()
    say(f"Wrote {output}.")

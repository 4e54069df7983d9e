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

    A RUN is a run directory, its quantize.json, or a folder of runs. Runs are compared in blocks of one checkpoint, on
    the same pictures, by the same latency table.

    Example:  vig report compress
    """
    from vigcli.compress.report import read_blocks, report_page
    from vigcli.files import write_text

    blocks = read_blocks(map(Path, runs or ("runs",)))
    write_text(Path(output), report_page(blocks))
    if as_json:
        emit_json([block.as_json() for block in blocks])
        return
    for block in blocks:
        table(block.columns, block.cells, title=f"{block.first.network}: {block.about}")
        if block.doubts:
            say(block.doubts)
        click.echo()
    say(f"Wrote {output}.")

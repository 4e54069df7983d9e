"""What commands print: data on stdout, talk on stderr; tables, JSON and progress look the same everywhere."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click

from vigcli.units import format_duration


def colour() -> bool | None:
    """False where the user wants none (https://no-color.org); None leaves it to whether it is a terminal."""
    return False if os.environ.get("NO_COLOR") else None


def say(text: str) -> None:
    """A line of talk, on stderr."""
    click.echo(text, err=True)


def emit_json(value: Any) -> None:
    """`value` as indented JSON on stdout."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """A table on stdout: text columns to the left, columns of figures to the right, never cut or wrapped."""
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    right = [bool(cells) and all(row[i][:1] in "-+±0123456789" for row in cells) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        aligned = (t.rjust(w) if r else t.ljust(w) for t, w, r in zip(row, widths, right, strict=True))
        return "  ".join(aligned).rstrip()

    if title:
        click.echo(click.style(title, bold=True))
    click.echo(click.style(line(columns), bold=True))
    for row in cells:
        click.echo(line(row))


def fields(pairs: Sequence[tuple[str, Any]]) -> None:
    """Names and values on stdout, one a line."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"{click.style(name.ljust(width), bold=True)}  {value}")


def figure(value: int | float | str) -> str:
    """A count with its thousands apart, another number in three digits, a word as it is."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else value


class Progress:
    """Progress on stderr that counts what costs: a line in place on a terminal, else a plain line every 15 s."""

    def __init__(self) -> None:
        self.tty = sys.stderr.isatty() and colour() is None
        self.what = ""
        self.start = self.last = time.monotonic()
        self.first = 0

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """The rate is that of what was done since the first call: what is resumed was not done now."""
        now = time.monotonic()
        if what != self.what:
            self.start, self.what, self.first = now, what, done
        if now - self.last < (0.2 if self.tty else 15):
            return
        if done >= total and not self.tty:  # what is over is no progress
            return
        self.last = now
        seconds = now - self.start
        rate = (done - self.first) / seconds if seconds > 0.1 else 0  # in less nothing is told of a speed
        shown = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
        left = f"{shown}/s  {format_duration((total - done) / rate)} left" if rate > 0 else ""
        text = f"{what} {done:,}/{total:,}  {left}  {note}".rstrip()
        click.echo(f"\r\033[K{text}" if self.tty else text, err=True, nl=not self.tty)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """A `Progress` that clears its line at the end."""
    shown = Progress()
    try:
        yield shown
    finally:
        if shown.tty:
            click.echo("\r\033[K", err=True, nl=False)

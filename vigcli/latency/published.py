"""Published milliseconds and the ops of the networks they were measured on, from CSV files that are not trusted."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from vigcli.errors import ConfigError
from vigcli.latency.calibrated import Network, Row
from vigcli.latency.trace import Op, OpTrace

MAX_OPS = 100_000  # of a kind and size in a network
_HINT = "Compare it with the file of the same name in latency_tables/published/."


def load_published(folder: Path) -> tuple[list[Row], dict[Network, OpTrace]]:
    """The published measurements of buildable networks, and the ops of these networks (path lengths unknown: 0).

    Raises ConfigError with file and line for a file that is cut off, a missing column, or a value that is none.
    """
    ops: dict[Network, dict[str, list[Op]]] = {}
    for line in read_csv(folder / "published_network_ops.csv.gz"):
        op = Op(line.text("kind"), line.count("act_MB", 1e6), line.count("weight_MB", 1e6), line.count("gmacs", 1e9))
        lists = ops.setdefault((line.text("builder"), line.whole("resolution", 1)), {"F0": [], "F2": []})
        lists[line.one_of("fusion", ("F0", "F2"))] += [op] * line.whole("count", 1, MAX_OPS)
    rows = []
    for line in read_csv(folder / "published_latencies.csv"):
        if line.cells.get("builder"):
            network = line.text("builder"), line.whole("resolution", 1)
            row = Row(*network, line.text("group"), line.positive("latency_ms"))
            if row.network not in ops:
                raise line.wrong("builder", "has no ops in published_network_ops.csv.gz")
            rows.append(row)
    return rows, {network: OpTrace(tuple(x["F0"]), tuple(x["F2"]), 0) for network, x in ops.items()}


def read_csv(path: Path, hint: str = _HINT) -> Iterator[Line]:
    """The lines of a CSV file, or of a gzipped one, with a header. Raises ConfigError where it is damaged.

    Args:
        hint: how to mend what is wrong with the file.
    """
    number = 1
    try:
        with gzip.open(path, "rt", **_TEXT) if path.suffix == ".gz" else open(path, **_TEXT) as file:  # type: ignore[call-overload]
            for number, cells in enumerate(csv.DictReader(file, strict=True), 2):
                if None in cells:  # where csv puts what is beyond the header
                    raise ConfigError(f"{path}:{number}: has more cells than the header.", hint)
                yield Line(path, number, cells, hint)
    except (csv.Error, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path}:{number}: the file is damaged: {error}.", hint) from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.", "Check the path.") from error
    if number == 1:
        raise ConfigError(f"{path}: holds no rows.", hint)


_TEXT = {"newline": "", "encoding": "utf-8"}


class Line:
    """One line of a CSV file, whose cells are read as what they should be."""

    def __init__(self, path: Path, number: int, cells: dict[str, str], hint: str):
        self.path, self.number, self.cells, self.hint = path, number, cells, hint

    def wrong(self, column: str, why: str) -> ConfigError:
        """The complaint about a cell, with file and line."""
        return ConfigError(f"{self.path}:{self.number}: {column} = '{self.cells.get(column)}' {why}.", self.hint)

    def text(self, column: str) -> str:
        """A cell that is not empty."""
        if column not in self.cells:
            raise ConfigError(f"{self.path}:{self.number}: there is no column '{column}'.", self.hint)
        if (found := self.cells[column]) is None:
            raise ConfigError(f"{self.path}:{self.number}: ends before the column '{column}'.", self.hint)
        if not found.strip():
            raise self.wrong(column, "is empty")
        return found

    def one_of(self, column: str, known: tuple[str, ...]) -> str:
        if (found := self.text(column)) not in known:
            raise self.wrong(column, f"is none of {', '.join(known)}")
        return found

    def positive(self, column: str) -> float:
        """A number above zero."""
        return self._number(column, lambda x: x > 0, "is no number above 0")

    def at_least_0(self, column: str) -> float:
        """A number, zero included."""
        return self._number(column, lambda x: x >= 0, "is no number from 0 on")

    def whole(self, column: str, least: int, most: int = 10**12) -> int:
        """A whole number from `least` on."""
        sound = self._number(
            column, lambda x: least <= x <= most and x == int(x), f"is no whole number from {least} on"
        )
        return int(sound)

    def count(self, column: str, unit: float) -> int:
        """So many units, of which the cell counts `unit` as one."""
        return round(self.at_least_0(column) * unit)

    def _number(self, column: str, sound: Callable[[float], bool], why: str) -> float:
        try:
            value = float(self.text(column))
        except ValueError:
            raise self.wrong(column, why) from None
        if not math.isfinite(value) or not sound(value):
            raise self.wrong(column, why)
        return value

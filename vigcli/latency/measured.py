"""The file of measured rows that a measuring machine gives back: written there, checked and turned into a table's rows
here. Nothing in it is trusted."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from vigcli.errors import ConfigError
from vigcli.files import write_text
from vigcli.latency.interpolate import Features
from vigcli.latency.published import Line, read_csv
from vigcli.latency.table import MAX_ROW_MS, LatencyTable, Row, squeezed

_PATTERNS = {
    "signature": r"\w+(\[[^\[\]]+\])? \d+x\d+x\d+",  # as `BlockSpec.signature` writes it
    "package_sha256": r"[0-9a-f]{64}",
    "date": r"\d{4}-\d\d-\d\d",
}
UNITS = ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY")  # as coremltools names them
_HINT = "Take the file as `vig table build --device mac` wrote it; docs/measure_on_a_mac.md explains its columns."


class MeasuredRow(NamedTuple):
    """One block as it was measured, and all that one needs to judge or repeat it. The fields are the file's columns.

    Attributes:
        unit: of every time in the row; `ms` alone is read.
        num_runs: inferences that are left of both packages after trimming.
        few, many: copies of the block in the two packages; `few_ms`, `many_ms` are their means.
        where: the machine, as people call its model, its chip and who drove it.
        placement: how many operations of the longer package each unit runs, by CoreML's plan: `ANE 40, CPU 1`.
        package_sha256: of the longer package.
        gmacs ... num_ops: of the block, for tables that interpolate (`Row.features`).
    """

    signature: str
    ms: float
    plus_minus_ms: float
    unit: str
    num_runs: int
    few: int
    many: int
    few_ms: float
    many_ms: float
    device: str
    soc: str
    os: str
    where: str
    compute_units: str
    precision: str
    placement: str
    protocol: str
    package_sha256: str
    coremltools: str
    xcode: str
    date: str
    gmacs: float
    depthwise_gmacs: float
    act_mb: float
    weight_mb: float
    num_ops: float

    @property
    def features(self) -> Features:
        return self.gmacs, self.depthwise_gmacs, self.act_mb, self.weight_mb, self.num_ops

    @property
    def table_row(self) -> Row:
        """What a table keeps of it."""
        return Row(
            ms=self.ms,
            plus_minus_ms=self.plus_minus_ms,
            kind="measured",
            num_runs=self.num_runs,
            where=f"{self.where}; {self.os}; {self.date}",
            placement=self.placement,
            features=self.features,
        )


def write_measured(path: Path | str, rows: Iterable[MeasuredRow]) -> None:
    """Write rows as CSV, whole or not at all; times to a nanosecond."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # else a bare CR would end a line
    writer.writerow(MeasuredRow._fields)
    writer.writerows([round(cell, 6) if isinstance(cell, float) else cell for cell in row] for row in rows)
    write_text(path, text.getvalue())


def read_measured(path: Path | str) -> list[MeasuredRow]:
    """The rows of a file. Raises ConfigError with file and line for a missing column, a value that is none, times in
    another unit than ms, and a block that stands twice."""
    path, seen, rows = Path(path), {}, []  # type: ignore[var-annotated]
    if not path.is_file():
        raise ConfigError(f"{path}: no such file of rows.", "`vig table build --device mac` writes one.")
    for line in read_csv(path, _HINT):
        row = _row(line)
        if row.signature in seen:
            raise line.wrong("signature", f"stands in line {seen[row.signature]} already")
        seen[row.signature] = line.number
        rows.append(row)
    return rows


def table_rows(path: Path | str, table: LatencyTable) -> dict[str, Row]:
    """Signature -> row, of a file that was measured on the table's device, with its compute units and precision.

    Raises ConfigError with file and line: what `read_measured` refuses, and rows of another device or precision,
    because a millisecond of one never stands for that of another.
    """
    names = {squeezed(name) for name in (table.device, *table.aliases)}
    rows = {}
    for number, row in enumerate(read_measured(path), 2):
        for ours, theirs, same in (
            (table.device, row.device, squeezed(row.device) in names),
            (table.compute_unit, row.compute_units, table.compute_unit.split()[0] == row.compute_units),
            (table.precision, row.precision, table.precision == row.precision),
        ):
            if not same:
                raise ConfigError(
                    f"{path}:{number}: measured on {theirs}, and the table is of {ours}.",
                    "Add it to the table it is of.",
                )
        try:
            rows[row.signature] = row.table_row
        except ValidationError as error:
            why = "; ".join(str(complaint["msg"]) for complaint in error.errors())
            raise ConfigError(f"{path}:{number}: {why}.", _HINT) from None
    return rows


def _row(line: Line) -> MeasuredRow:
    line.one_of("unit", ("ms",))
    line.one_of("compute_units", UNITS)
    line.one_of("precision", ("fp16", "fp32"))
    for column, pattern in _PATTERNS.items():
        if not re.fullmatch(pattern, line.text(column), re.ASCII):
            raise line.wrong(column, f"does not match {pattern}")
    if line.positive("ms") > MAX_ROW_MS:
        raise line.wrong("ms", f"is above {MAX_ROW_MS:g}; milliseconds are meant")
    few, many = line.whole("few", 0), line.whole("many", 1)
    if few >= many:
        raise line.wrong("many", "is not above few")
    numbers = {
        **{name: line.positive(name) for name in ("ms", "few_ms", "many_ms")},
        **{name: line.at_least_0(name) for name in ("plus_minus_ms", *MeasuredRow._fields[-5:])},
        **{"few": few, "many": many, "num_runs": line.whole("num_runs", 1)},
    }
    texts = {name: line.text(name) for name in MeasuredRow._fields if name not in numbers}
    return MeasuredRow(**numbers, **texts)  # type: ignore[arg-type]

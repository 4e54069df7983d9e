"""Latency tables: milliseconds for each block on one device, with where they come from and how wrong they may be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from vigcli.config.load import Strict, load
from vigcli.errors import ConfigError, NotMeasurableError, did_you_mean
from vigcli.latency.calibrated import CalibratedModel, Coefficients, family
from vigcli.latency.trace import OpTrace
from vigcli.paths import builtin_names, find_file

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Range = tuple[NonNegative, Positive]


class Member(Strict):
    """One member of the calibrated model; see `vigcli.latency.calibrated.Coefficients`."""

    fusion: Literal["F0", "F2"]
    combine: Literal["sum", "max"]
    fixed_ms: NonNegative
    act_ms_per_mb: NonNegative
    spill_ms_per_mb: NonNegative
    weight_ms_per_mb: NonNegative


class Hull(Strict):
    """Least and greatest value among the networks that the model was fitted to; outside is extrapolation."""

    act_mb: Range
    weight_mb: Range
    num_ops: Range
    gmacs: Range

    @model_validator(mode="after")
    def _sound(self) -> Hull:
        for name, (low, high) in zip(type(self).model_fields, self.bounds(), strict=True):
            if low >= high:
                raise ValueError(f"{name}: {low:g} is not below {high:g}")
        return self

    def bounds(self) -> list[Range]:
        """The ranges in the order in which `LatencyTable.outside` takes its values."""
        return [self.act_mb, self.weight_mb, self.num_ops, self.gmacs]


class HeldOutError(Strict):
    """How well networks that a fit had not seen were predicted."""

    mape_percent: NonNegative
    within_10_percent: Annotated[float, Field(ge=0, le=100)]
    kendall_tau: Annotated[float, Field(ge=-1, le=1)]


class HeldOut(Strict):
    """The errors with each network, and with each family of networks, held out of the fit."""

    network: HeldOutError
    family: HeldOutError


class Interval(Strict):
    """Multiply and divide an estimate by `factor`: so many percent of new networks of a known family lie inside."""

    factor: Annotated[float, Field(gt=1)]
    coverage_percent: Annotated[float, Field(gt=0, lt=100)]


class Row(Strict):
    """One block on the device; `plus_minus_ms` is half the spread of the model's members, or of the runs."""

    ms: NonNegative
    plus_minus_ms: NonNegative
    kind: Literal["calibrated", "measured"] = "calibrated"


class LatencyTable(Strict):
    """Prices of one device, compute unit and precision.

    Attributes:
        device: as people call it; `aliases` are other names that find it.
        scale: the device's factor on the members' milliseconds.
        families: of the networks that the model was fitted to; the interval of another family is wider.
        out_of_scope: beginnings of names of networks that the model does not price, and why.
        rows: block signature -> milliseconds on this device. A block without a row is priced by the members.
    """

    format: Literal[1]
    unit: Literal["ms"]
    device: str
    aliases: tuple[str, ...] = ()
    soc: str
    os: str
    compute_unit: str
    precision: Literal["fp16"]
    kind: Literal["calibrated"]
    protocol: str
    source: str
    pattern: str
    scope: str
    fitted_with: dict[str, str]
    scale: Annotated[float, Field(gt=0, le=1000)]
    interval: Interval
    new_family_interval: Interval
    families: tuple[str, ...]
    out_of_scope: dict[str, str]
    held_out: HeldOut
    hull: Hull
    model: Annotated[tuple[Member, ...], Field(min_length=1)]
    rows: dict[str, Row]

    @property
    def calibrated(self) -> CalibratedModel:
        return CalibratedModel(tuple(Coefficients(**member.model_dump()) for member in self.model), {})

    @property
    def fixed_ms(self) -> float:
        """Milliseconds of one inference that belong to no block."""
        return self.scale * self.calibrated.fixed_ms

    def block_ms(self, signature: str, trace: OpTrace) -> BlockPrice:
        """Milliseconds of one block: its row, else what the calibrated model says of its ops."""
        if signature in self.rows:
            row = self.rows[signature]
            return BlockPrice(row.ms, row.plus_minus_ms, True, row.kind)
        members = [self.scale * member.op_ms(trace) for member in self.calibrated.members]
        return BlockPrice(float(np.mean(members)), float(np.ptp(members)) / 2, False, "calibrated")

    def network_ms(self, blocks_ms: Any) -> Any:
        """Milliseconds of networks from the sum of their blocks; a number or an array."""
        return self.fixed_ms + blocks_ms

    def outside(self, act_mb: float, weight_mb: float, num_ops: float, gmacs: float) -> tuple[str, ...]:
        """The features of a network that lie outside the fitted range."""
        names = ("activations", "weights", "ops", "GMACs")
        values = zip(names, (act_mb, weight_mb, num_ops, gmacs), self.hull.bounds(), strict=True)
        return tuple(name for name, value, (low, high) in values if not low <= value <= high)

    def estimate(self, name: str, blocks: Sequence[tuple[str, OpTrace]], precision: str = "fp16") -> LatencyEstimate:
        """The latency of a network given as (signature, trace) of its blocks; `name` tells its family.

        Raises NotMeasurableError for a precision that the table does not know.
        """
        if precision != self.precision:
            raise NotMeasurableError(
                f"the table of {self.device} knows {self.precision}, not {precision}.", "Measure it on the device."
            )
        prices = [self.block_ms(signature, trace) for signature, trace in blocks]
        ms = float(self.network_ms(sum(price.ms for price in prices)))
        ops = [trace for _, trace in blocks]
        features = (
            sum(t.act_mb for t in ops), sum(t.weight_mb for t in ops), sum(t.num_ops for t in ops),
            sum(t.macs for t in ops) / 1e9,
        )  # fmt: skip
        measured = sum(price.ms for price in prices if price.kind == "measured") / ms
        known = family(name) in self.families
        interval = self.interval if known else self.new_family_interval
        reasons = [why for start, why in self.out_of_scope.items() if name.startswith(start)]
        if not known and not reasons:
            reasons = ["a family that was not fitted"]
        if any(op.kind == "topk" for trace in ops for op in trace.ops):
            reasons.append("top-k, which leaves the Neural Engine")
        return LatencyEstimate(
            ms,
            ms / interval.factor,
            ms * interval.factor,
            self.device,
            sum(price.exact for price in prices),
            len(prices),
            100 * measured,
            (*self.outside(*features), *reasons),
        )


class BlockPrice(NamedTuple):
    """Milliseconds of a block, and whether the table has a row for it."""

    ms: float
    plus_minus_ms: float
    exact: bool
    kind: str


class LatencyEstimate(NamedTuple):
    """The price of a network: `low_ms` to `high_ms` is the table's interval; `outside` names what is extrapolated."""

    ms: float
    low_ms: float
    high_ms: float
    device: str
    num_rows: int  # blocks that have a row in the table
    num_blocks: int
    measured_percent: float
    outside: tuple[str, ...]

    def __str__(self) -> str:
        mark = f"  OUTSIDE what was fitted: {', '.join(self.outside)}" if self.outside else ""
        return f"{self.ms:.2f} ms ({self.low_ms:.2f} to {self.high_ms:.2f}), {self.device}, calibrated{mark}"


def load_table(name: Path | str) -> LatencyTable:
    """A latency table by file, built-in name, or the name of its device (`"iPhone 13 mini"`). Raises ConfigError."""
    try:
        return load(LatencyTable, find_file("table", str(name)))
    except ConfigError:
        wanted = _squeezed(str(name))
        tables = {known: load(LatencyTable, find_file("table", known)) for known in builtin_names("table")}
        for table in tables.values():
            if wanted in map(_squeezed, (table.device, *table.aliases)):
                return table
        if Path(name).exists() or Path(name).suffix:
            raise
        raise ConfigError(f"'{name}' is no known latency table.", did_you_mean(str(name), tables)) from None


def _squeezed(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def rows_for(table: LatencyTable, blocks: Iterable[tuple[str, OpTrace]]) -> dict[str, Row]:
    """Rows for blocks as the table's calibrated model prices them, rounded to a nanosecond."""
    bare = table.model_copy(update={"rows": {}})
    rows = {}
    for signature, trace in blocks:
        price = bare.block_ms(signature, trace)
        rows[signature] = Row(ms=round(price.ms, 6), plus_minus_ms=round(price.plus_minus_ms, 6))
    return rows

"""Latency tables: milliseconds for each block on one device, with where they come from and how wrong they may be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import (
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from vigcli.config.load import Strict, load, parse_yaml, read_text
from vigcli.errors import ConfigError, NotMeasurableError, did_you_mean
from vigcli.latency.calibrated import family
from vigcli.latency.calibration import Accuracy, Calibration, Interval, NonNegative, Text
from vigcli.latency.interpolate import BlockPrice, Interpolation
from vigcli.latency.trace import OpTrace
from vigcli.paths import builtin_names, find_file

MAX_ROW_MS = 10_000.0  # a block slower than that was not measured in milliseconds
MAX_DISAGREEMENT = 0.15  # between the price and the second opinion; among the fitted networks it is 8 % at most
TIE = 0.1  # two networks of a family whose predictions are nearer are in the right order in 66 to 74 % of cases

ACCURACY_OF = {  # what was held out
    "network": "held-out networks",
    "family": "held-out families",
    "nested": "held-out families, the model chosen without them",
    "mobilevig": "MobileViG and v2 held out, iPhone 13 mini",
    "labs": "a lab's rows by another lab, one factor for the two",
    "device": "held-out networks of this device",
    "networks": "whole networks",
    "interpolated": "blocks, by the other rows of their kind",
}


class Row(Strict):
    """One block on the device.

    Attributes:
        plus_minus_ms: half the spread of the model's members, or the standard error of the runs.
        num_runs: of a measured row; 0 of a calibrated one.
        where: machine or person that measured it.
        placement: the unit that ran it, where the runtime says so.
        features: GMACs, depthwise GMACs, MB of activations and of weights, operations: what blocks without a row are
            interpolated by, in a table without a calibration.
    """

    ms: Annotated[float, Field(gt=0, le=MAX_ROW_MS)]
    plus_minus_ms: NonNegative
    kind: Literal["calibrated", "measured"] = "calibrated"
    num_runs: Annotated[int, Field(ge=0)] = 0
    where: str = ""
    placement: str = ""
    features: tuple[NonNegative, NonNegative, NonNegative, NonNegative, NonNegative] | None = None

    @model_validator(mode="after")
    def _sound(self) -> Row:
        if (self.kind == "measured") != (self.num_runs > 0):
            raise ValueError(
                f"a {self.kind} row of {self.num_runs} runs\nMeasured rows say num_runs, calibrated ones have none."
            )
        if self.kind == "measured" and not self.where:
            raise ValueError("where is empty\nA measured row says which machine it was measured on.")
        return self

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is not said: a table has thousands of rows."""
        defaults = {name: field.default for name, field in type(self).model_fields.items() if name != "kind"}
        return {name: value for name, value in handler(self).items() if value != defaults.get(name, ...)}


class LatencyTable(Strict):
    """Prices of one device, compute unit and precision.

    Attributes:
        device: as people call it; `aliases` are other names that find it.
        fixed_ms: of one inference, that belong to no block.
        kind: of the rows; `mixed` where some are measured and some calibrated.
        tools: versions of what made the table.
        interval: of the price of a new network.
        accuracy: how well networks were predicted, by what was held out.
        num_rows: of `rows`, so that a file that was cut off is seen.
        rows: block signature -> milliseconds on this device. A block without a row is priced by the calibration, else
            interpolated between measured rows of its kind.
    """

    format: Literal[2]
    unit: Literal["ms"]
    device: Text
    aliases: tuple[str, ...] = ()
    soc: Text
    os: Text
    runtime: Text
    compute_unit: Text
    precision: Literal["fp16", "fp32", "int8"]
    protocol: Text
    source: Text
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    tools: Annotated[dict[Text, Text], Field(min_length=1)]
    kind: Literal["calibrated", "measured", "mixed"]
    fixed_ms: NonNegative
    interval: Interval
    accuracy: dict[str, Accuracy]
    calibration: Calibration | None
    num_rows: Annotated[int, Field(ge=1)]
    rows: dict[str, Row]
    _lines: tuple[dict[str, Row], Interpolation] | None = PrivateAttr(None)

    @field_validator("format", mode="before")
    @classmethod
    def _of_this_format(cls, value: Any) -> Any:
        if value == 1:
            raise ValueError("format = 1 is that of an older vig\nMake the table again: `vig table fit`.")
        return value

    @model_validator(mode="after")
    def _sound(self) -> LatencyTable:
        if len(self.rows) != self.num_rows:
            raise ValueError(
                f"num_rows = {self.num_rows}, but there are {len(self.rows)}\nIs the file cut off? Take it anew."
            )
        if self.kind != kind_of(self.rows):
            raise ValueError(f"kind = {self.kind}, but the rows are {kind_of(self.rows)}\nSay what they are.")
        if self.calibration is None and self.kind != "measured":
            raise ValueError("calibration is missing\nCalibrated rows say by what.")
        return self

    def with_rows(self, rows: Mapping[str, Row]) -> LatencyTable:
        """The table with these rows added, or in place of those of the same blocks; the others are untouched."""
        joined = dict(sorted({**self.rows, **rows}.items()))
        return self.model_copy(update={"rows": joined, "num_rows": len(joined), "kind": kind_of(joined)})

    def block_ms(self, signature: str, trace: OpTrace) -> BlockPrice:
        """Milliseconds of one block: its row, else by the calibration, else interpolated between rows of its kind.

        Raises NotMeasurableError for a block that none of them knows: nothing is free.
        """
        model = self.calibration
        second = None if model is None else model.second_ms(trace)
        row = self.rows.get(signature)
        if row is not None and row.kind == "measured":
            return BlockPrice(row.ms, row.plus_minus_ms, "exact", row.kind, None if second is None else row.ms)
        if model is not None:
            doubts = model.doubts(trace)
            if row is not None:
                return BlockPrice(row.ms, row.plus_minus_ms, "exact", row.kind, second, doubts)
            ms = model.members_ms(trace)
            return BlockPrice(float(np.mean(ms)), float(np.ptp(ms)) / 2, "model", "calibrated", second, doubts)
        found = self._interpolation().price(signature, trace)
        if found is None:
            raise NotMeasurableError(
                f"the table of {self.device} has no row for {signature}, nor for another block of its kind.",
                "Measure it: `vig table build`.",
            )
        return found

    def _interpolation(self) -> Interpolation:
        if self._lines is None or self._lines[0] is not self.rows:  # a copy may have other rows
            known = {signature: (row.ms, row.features) for signature, row in self.rows.items() if row.features}
            self._lines = self.rows, Interpolation(known)
        return self._lines[1]

    def network_ms(self, blocks_ms: Any) -> Any:
        """Milliseconds of networks from the sum of their blocks; a number or an array."""
        return self.fixed_ms + blocks_ms

    def disagreement(self, ms: Any, second_blocks_ms: Any) -> Any:
        """By how much the second opinion is above (or below) a price, as a ratio; 0 without one. Numbers or arrays."""
        if self.calibration is None:
            return 0.0 * ms
        fixed = self.calibration.scale * self.calibration.cross_check.fixed_ms
        return (fixed + second_blocks_ms) / ms - 1

    def outside(self, act_mb: float, weight_mb: float, num_ops: float, gmacs: float) -> tuple[str, ...]:
        """The features of a network that lie outside the fitted range."""
        if self.calibration is None:
            return ()
        names = ("activations", "weights", "ops", "GMACs")
        values = zip(names, (act_mb, weight_mb, num_ops, gmacs), self.calibration.hull.bounds(), strict=True)
        return tuple(name for name, value, (low, high) in values if not low <= value <= high)

    @property
    def error_text(self) -> str:
        """What the milliseconds are, and how wrong they may be, in a line."""
        parts = [
            f"{self.accuracy[by].mape_percent:g} % mean error on {what}"
            for by, what in ACCURACY_OF.items()
            if by in self.accuracy and by in ("network", "family", "networks")
        ]
        measured = sum(row.kind == "measured" for row in self.rows.values())
        what = {
            "calibrated": "calibrated, not measured",
            "measured": "measured block by block",
            "mixed": f"{measured} of {len(self.rows)} blocks measured, the others calibrated",
        }[self.kind]
        return f"{what}: {', '.join(parts)}" if parts else what

    def estimate(
        self, name: str, blocks: Sequence[tuple[str, OpTrace]], precision: str | None = None
    ) -> LatencyEstimate:
        """The latency of a network given as (signature, trace) of its blocks; `name` tells its family.

        Raises NotMeasurableError for a precision or a block that the table does not know.
        """
        if precision not in (None, self.precision):
            raise NotMeasurableError(
                f"the table of {self.device} knows {self.precision}, not {precision}.", "Measure it on the device."
            )
        prices = [self.block_ms(signature, trace) for signature, trace in blocks]
        ms = float(self.network_ms(sum(price.ms for price in prices)))
        ops = [trace for _, trace in blocks]
        measured_ms = sum(price.ms for price in prices if price.kind == "measured")
        model, interval, reasons = self.calibration, self.interval, []
        if model is not None and any(price.kind == "calibrated" for price in prices):
            known = family(name) in model.families
            interval = self.interval if known else model.new_family_interval
            reasons = [why for start, why in model.out_of_scope.items() if name.startswith(start)]
            if not known and not reasons:
                reasons = ["a family that was not fitted"]
            features = (
                sum(t.act_mb for t in ops), sum(t.weight_mb for t in ops), sum(t.num_ops for t in ops),
                sum(t.macs for t in ops) / 1e9,
            )  # fmt: skip
            doubts = dict.fromkeys(doubt for price in prices for doubt in price.doubts)
            reasons = [*self.outside(*features), *reasons, *doubts]
            off = float(self.disagreement(ms, sum(price.second_ms or 0.0 for price in prices)))
            if abs(off) > MAX_DISAGREEMENT:
                reasons.append(f"a second model says {100 * off:+.0f} %")
        num_outside = sum(price.how == "outside" for price in prices)
        if num_outside:
            reasons.append(f"{num_outside} blocks beyond the rows of their kind")
        # What was measured does not widen with the interval, which is the model's.
        sure = measured_ms if model is not None else 0.0
        return LatencyEstimate(
            ms,
            sure + (ms - sure) / interval.factor,
            sure + (ms - sure) * interval.factor,
            self.device,
            "measured" if measured_ms and measured_ms >= ms - self.fixed_ms - 1e-9 else "calibrated",
            sum(price.how == "exact" for price in prices),
            len(prices),
            100 * measured_ms / ms,
            tuple(reasons),
        )


def kind_of(rows: Mapping[str, Row]) -> Literal["calibrated", "measured", "mixed"]:
    """Of a table: that of its rows."""
    kinds = {row.kind for row in rows.values()}
    return "mixed" if len(kinds) > 1 else kinds.pop() if kinds else "calibrated"


def distinguishable(one_ms: float, other_ms: float) -> bool:
    """Whether a table may rank two networks: predictions within 10 % of each other are told apart by chance."""
    return abs(math.log(one_ms / other_ms)) > math.log(1 + TIE)


class LatencyEstimate(NamedTuple):
    """The price of a network: `low_ms` to `high_ms` is the table's interval; `outside` names what is extrapolated."""

    ms: float
    low_ms: float
    high_ms: float
    device: str
    kind: str  # measured where every block is, else calibrated
    num_rows: int  # blocks that have a row in the table
    num_blocks: int
    measured_percent: float  # of the milliseconds
    outside: tuple[str, ...]

    def __str__(self) -> str:
        mark = f"  OUTSIDE what was fitted: {', '.join(self.outside)}" if self.outside else ""
        share = f", {self.measured_percent:.0f} % measured" if self.measured_percent and self.kind != "measured" else ""
        return f"{self.ms:.2f} ms ({self.low_ms:.2f} to {self.high_ms:.2f}), {self.device}, {self.kind}{share}{mark}"


def load_table(name: Path | str) -> LatencyTable:
    """A latency table by file, built-in name, or the name of its device (`"iPhone 13 mini"`). Raises ConfigError."""
    return find_table(name)[1]


def find_table(name: Path | str) -> tuple[Path, LatencyTable]:
    """As `load_table`, with the file that the table is from."""
    try:
        path = find_file("table", str(name))
        return path, load(LatencyTable, path)
    except ConfigError:
        known = next((file for file in builtin_names("table") if squeezed(str(name)) in _device_names(file)), None)
        if known is not None:
            path = find_file("table", known)
            return path, load(LatencyTable, path)
        if Path(name).exists() or Path(name).suffix:
            raise
        raise ConfigError(
            f"'{name}' is no known latency table.", did_you_mean(str(name), builtin_names("table"))
        ) from None


def _device_names(name: str) -> list[str]:
    """What a built-in table's device is called, without reading its rows."""
    path = find_file("table", name)
    head, _ = parse_yaml(read_text(path).partition("\nrows:")[0], str(path))
    return [squeezed(str(known)) for known in (head.get("device"), *head.get("aliases", ()))]


def squeezed(name: str) -> str:
    """A device's name without what people spell differently: `iPhone 13 mini` as `iphone13mini`."""
    return "".join(c for c in name.lower() if c.isalnum())


def rows_for(calibration: Calibration, blocks: Iterable[tuple[str, OpTrace]]) -> dict[str, Row]:
    """Rows for blocks as a calibration prices them, rounded to a nanosecond."""
    rows = {}
    for signature, trace in blocks:
        members = calibration.members_ms(trace)
        rows[signature] = Row(ms=round(float(np.mean(members)), 6), plus_minus_ms=round(float(np.ptp(members)) / 2, 6))
    return rows

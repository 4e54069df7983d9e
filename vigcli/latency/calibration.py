"""What a calibrated table says of its model, in the form in which the file holds it; `calibrated` fits such models."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from vigcli.config.load import Strict
from vigcli.latency.calibrated import SPILL_MB, Coefficients
from vigcli.latency.trace import MARKS, OpTrace

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Range = tuple[NonNegative, Positive]
Text = Annotated[str, Field(min_length=1, pattern=r"\S")]


class Member(Strict):
    """One member of the calibrated model; see `vigcli.latency.calibrated.Coefficients`."""

    fusion: Literal["F0", "F2"]
    combine: Literal["sum", "max"]
    fixed_ms: NonNegative
    act_ms_per_mb: NonNegative
    spill_ms_per_mb: NonNegative
    weight_ms_per_mb: NonNegative
    spill_from_mb: tuple[Positive, ...] = SPILL_MB

    @property
    def coefficients(self) -> Coefficients:
        return Coefficients(**self.model_dump())


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


class Accuracy(Strict):
    """How well networks were predicted that neither a fit nor a row had seen whole."""

    mape_percent: NonNegative
    within_10_percent: Annotated[float, Field(ge=0, le=100)]
    kendall_tau: Annotated[float, Field(ge=-1, le=1)]
    num_rows: Annotated[int, Field(ge=1)]
    """Measurements that were predicted."""


class Interval(Strict):
    """Multiply and divide an estimate by `factor`: so many percent of networks that were held out lie inside."""

    factor: Annotated[float, Field(gt=1)]
    coverage_percent: Annotated[float, Field(gt=0, le=100)]


class Calibration(Strict):
    """A model that prices what was not measured, fitted to published measurements of whole networks.

    Attributes:
        scale: the device's factor on the members' milliseconds; from `num_scale_rows` measurements of it.
        members: the price is their mean; `cross_check` is a second opinion, a simpler model fitted to the same.
        new_family_interval: of networks whose family is not among `families`, to which the model was fitted.
        op_kinds: of the operations that were fitted.
        out_of_scope: beginnings of names of networks that the model does not price, and why.
        hull: what was fitted.
        pattern: which trace of a network is fitted and priced.
        notes: what else was measured of the device, and left out.
    """

    scale: Annotated[float, Field(gt=0, le=1000)]
    num_scale_rows: Annotated[int, Field(ge=1)]
    num_rows: Annotated[int, Field(ge=1)]
    pattern: Text
    scope: Text
    notes: tuple[Text, ...] = ()
    new_family_interval: Interval
    families: tuple[str, ...]
    op_kinds: tuple[str, ...]
    out_of_scope: dict[str, str]
    hull: Hull
    members: Annotated[tuple[Member, ...], Field(min_length=1)]
    cross_check: Member

    @property
    def fixed_ms(self) -> float:
        return self.scale * float(np.mean([member.fixed_ms for member in self.members]))

    def members_ms(self, trace: OpTrace) -> list[float]:
        """What each member says of the ops of a block."""
        return [self.scale * member.coefficients.op_ms(trace) for member in self.members]

    def second_ms(self, trace: OpTrace) -> float:
        """What the cross-check says of the ops of a block."""
        return self.scale * self.cross_check.coefficients.op_ms(trace)

    def doubts(self, trace: OpTrace) -> tuple[str, ...]:
        """Why the price of a block is not to be trusted, by what its ops are."""
        marks = {op.mark for op in trace.ops} - {""}
        kinds = {op.kind for op in trace.ops if not op.mark} - set(self.op_kinds)
        unfitted = [f"operations that were not fitted ({kind})" for kind in sorted(kinds)]
        return (*unfitted, *(text for mark, text in MARKS.items() if mark in marks))

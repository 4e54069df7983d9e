"""The calibrated latency model: published iPhone measurements -> a price that is a fixed cost plus a sum over ops.

The mean of four members (two fusions, two ways to combine moving and weights), none selected by its score. How far a
price can be trusted, and what is refused, is told by the hull and by the table that carries the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vigcli.latency.trace import OpTrace

Network = tuple[str, int]  # builder and resolution in pixels

REFERENCE_GROUP = "ip13mini_ios16_modelbench"  # the lab (iPhone 13 mini, iOS 16) whose scale is 1
CORE_GROUPS = (
    REFERENCE_GROUP,
    "ip12_ios16_xcode_repnext",
    "ip12_ios16_xcode_repvit",
    "ip12_ios16_xcode_snap",
    "ip12pro_modelbench_apple",
    "ip12promax_mobileclip",
    "ip14_ios16_xcode_swiftformer",
    "ip13_starnet",
)
IOS18_GROUP = "ip13_ios18_xcode_recnext"
CORE_MAX_MS = 4.0
NOT_CORE_NETWORKS = ("deit", "vit_", "resnet", "regnet", "convnext", "dm_nfnet")
SUSPECT_ROWS = ((REFERENCE_GROUP, "timm:mobilevitv2_100"),)  # 3.0 ms; the iPhone 14 says 1.7 and every model agrees

SPILL_MB = (1.0, 2.0, 3.0)


class Form(NamedTuple):
    """What a member is fitted as; see `Coefficients`."""

    fusion: str
    combine: str
    spill_from_mb: tuple[float, ...] = SPILL_MB


MEMBERS = (Form("F0", "sum"), Form("F0", "max"), Form("F2", "sum"), Form("F2", "max"))
CROSS_CHECK = Form("F0", "sum", (2.0,))  # the second opinion: four coefficients
SCALE_SD = 0.15  # log-normal prior of a lab's scale
LOSS_SCALE = 0.05  # error of log(predicted / measured) at which the loss turns from square to absolute

# Families that share their blocks are held out together.
_MERGED_FAMILIES = {
    "mobilevigv2": "mobilevig",
    "repnext": "repvit",
    "recnext": "repvit",
    "efficientformerv2": "efficientformer",
    "mobilevitv2": "mobilevit",
    "mobilevitv3": "mobilevit",
}


class Row(NamedTuple):
    """One published measurement of a network that can be built."""

    builder: str
    resolution: int
    group: str  # the lab and device
    latency_ms: float

    @property
    def network(self) -> Network:
        return self.builder, self.resolution

    @property
    def family(self) -> str:
        return family(self.builder)


def family(builder: str) -> str:
    """`timm:fastvit_t8` -> `fastvit`; families that share blocks have one name."""
    name = builder.split(":")[-1].split("_")[0]
    return _MERGED_FAMILIES.get(name, name)


def core16(rows: Iterable[Row]) -> list[Row]:
    """The rows that the model is fitted to: iOS 16-era Neural Engine, up to 4 ms, mobile networks."""
    return usable(rows, CORE_GROUPS)


def usable(rows: Iterable[Row], groups: Sequence[str]) -> list[Row]:
    """Rows of these labs that the model speaks of."""
    return [
        row
        for row in rows
        if row.group in groups
        and row.latency_ms <= CORE_MAX_MS
        and not row.builder.split(":")[-1].startswith(NOT_CORE_NETWORKS)
        and (row.group, row.builder) not in SUSPECT_ROWS
    ]


@dataclass(frozen=True)
class Coefficients:
    """One member: T_ms = fixed + sum over ops of move (+ or max) weight_ms_per_mb * W, with fp16 MB of 1e6 bytes.

    move = act_ms_per_mb * A + spill_ms_per_mb * S(A); A is an op's activations in and out, S(A) the mean over
    the k of `spill_from_mb`, in MB, of max(0, A - k).
    """

    fusion: str  # F0 or F2
    combine: str  # sum or max
    fixed_ms: float
    act_ms_per_mb: float
    spill_ms_per_mb: float
    weight_ms_per_mb: float
    spill_from_mb: tuple[float, ...] = SPILL_MB

    def op_ms(self, trace: OpTrace) -> float:
        features = _features(trace, self.fusion, self.spill_from_mb)
        return float(_op_ms(features, self.slopes, self.combine).sum())

    @property
    def slopes(self) -> np.ndarray:
        """Milliseconds per MB of activations, of spill, of weights."""
        return np.array([self.act_ms_per_mb, self.spill_ms_per_mb, self.weight_ms_per_mb])


@dataclass(frozen=True)
class CalibratedModel:
    """The mean of its members, and the factor of each lab and device; the reference lab's is 1."""

    members: tuple[Coefficients, ...]
    scales: dict[str, float]

    @property
    def fixed_ms(self) -> float:
        """Milliseconds of one prediction that no op accounts for, at scale 1."""
        return sum(member.fixed_ms for member in self.members) / len(self.members)

    def op_ms(self, trace: OpTrace) -> float:
        """Milliseconds of the ops of a network or block at scale 1: they add up over blocks."""
        return sum(member.op_ms(trace) for member in self.members) / len(self.members)

    def latency_ms(self, trace: OpTrace, scale: float = 1.0) -> float:
        """Milliseconds of a whole network on a device of that scale."""
        return scale * (self.fixed_ms + self.op_ms(trace))


def _features(trace: OpTrace, fusion: str, spill_from_mb: Sequence[float]) -> np.ndarray:
    """(ops, 3): MB of activations, of spill, of weights."""
    ops = trace.ops if fusion == "F0" else trace.fused
    act = np.array([op.act_bytes for op in ops]) / 1e6
    weight = np.array([op.weight_bytes for op in ops]) / 1e6
    spill = np.mean([np.maximum(0.0, act - k) for k in spill_from_mb], axis=0)
    return np.stack([act, spill, weight], axis=1)


def _op_ms(features: np.ndarray, slopes: np.ndarray, combine: str) -> np.ndarray:
    return (features * _active(features, slopes, combine)) @ slopes


def _active(features: np.ndarray, slopes: np.ndarray, combine: str) -> np.ndarray:
    """1 where a feature is paid for: in the max form an op pays for moving or for its weights, whichever is more."""
    if combine == "sum":
        return np.ones_like(features)
    moves = features[:, :2] @ slopes[:2] >= features[:, 2] * slopes[2]
    return np.stack([moves, moves, ~moves], axis=1).astype(float)


def fit(
    rows: Sequence[Row],
    traces: Mapping[Network, OpTrace],
    forms: Sequence[Form] = MEMBERS,
    loss_scale: float = LOSS_SCALE,
) -> CalibratedModel:
    """Fit the members to the rows; every row's network must have a trace."""
    return Fitter(rows, traces, forms).fit(rows, loss_scale)


def fit_scale(model: CalibratedModel, rows: Sequence[Row], traces: Mapping[Network, OpTrace]) -> float:
    """The factor of a device that the model was not fitted to, from the networks measured on it."""
    ratios = [row.latency_ms / model.latency_ms(traces[row.network]) for row in rows]
    return float(np.exp(np.median(np.log(ratios))))


class Fitter:
    """Fits members to parts of the rows again and again, with the ops of their networks laid out once."""

    def __init__(self, rows: Sequence[Row], traces: Mapping[Network, OpTrace], forms: Sequence[Form] = MEMBERS):
        self.traces = traces
        self._tables = {form: _Table.of(rows, traces, form) for form in forms}

    def fit(self, rows: Sequence[Row], loss_scale: float = LOSS_SCALE) -> CalibratedModel:
        """The mean of all members, fitted to these of the rows."""
        fits = [(form, *_fit_member(rows, table, form.combine, loss_scale)) for form, table in self._tables.items()]
        members = tuple(
            Coefficients(form.fusion, form.combine, *map(float, found), spill_from_mb=form.spill_from_mb)  # type: ignore
            for form, found, _ in fits
        )
        scales = {group: float(np.mean([x[2][group] for x in fits])) for group in fits[0][2]}
        return CalibratedModel(members, scales)

    def latencies_ms(self, model: CalibratedModel, rows: Sequence[Row]) -> np.ndarray:
        """Milliseconds at scale 1 of the rows' networks by a model of these members: (rows,)."""
        found = []
        for table, member in zip(self._tables.values(), model.members, strict=True):
            networks = [table.index[row.network] for row in rows]
            found.append(member.fixed_ms + table.sums(member.slopes, member.combine)[networks, 1:] @ member.slopes)
        return np.asarray(np.mean(found, axis=0))


@dataclass(frozen=True)
class _Table:
    """The ops of all networks in one array, so that a fit is a few matrix products."""

    features: np.ndarray  # (ops of all networks, 3)
    starts: np.ndarray  # (networks,) first op of each
    totals: np.ndarray  # (networks, 4): 1 and the sums of all features
    index: dict[Network, int]

    @classmethod
    def of(cls, rows: Iterable[Row], traces: Mapping[Network, OpTrace], form: Form) -> _Table:
        index = {network: i for i, network in enumerate(dict.fromkeys(row.network for row in rows))}
        features = [_features(traces[network], form.fusion, form.spill_from_mb) for network in index]
        starts = np.cumsum([0, *(len(x) for x in features[:-1])])
        joined = np.concatenate(features)
        return cls(joined, starts, _sums(joined, starts), index)

    def sums(self, slopes: np.ndarray, combine: str) -> np.ndarray:
        """(networks, 4): 1 and the sums of the features that are paid for; times the coefficients it is the time."""
        if combine == "sum":
            return self.totals
        return _sums(self.features * _active(self.features, slopes, combine), self.starts)


def _sums(paid: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.insert(np.add.reduceat(paid, starts), 0, 1.0, axis=1)


def _fit_member(
    rows: Sequence[Row], table: _Table, combine: str, loss_scale: float
) -> tuple[np.ndarray, dict[str, float]]:
    """Coefficients at the reference lab and the labs' scales: least relative error, soft-L1, non-negative."""
    from scipy.optimize import least_squares

    groups = sorted({row.group for row in rows})
    networks = np.array([table.index[row.network] for row in rows])
    labs = np.array([groups.index(row.group) for row in rows])
    measured_ms = np.array([row.latency_ms for row in rows])
    prior = loss_scale / SCALE_SD

    def residuals(x: np.ndarray) -> np.ndarray:
        predicted_ms = (table.sums(x[1:4], combine) @ x[:4])[networks]
        return np.concatenate([np.log(predicted_ms / measured_ms) + x[4 + labs], prior * x[4:]])

    def jacobian(x: np.ndarray) -> np.ndarray:
        sums = table.sums(x[1:4], combine)[networks]
        by_coefficient = sums / (sums @ x[:4])[:, None]
        by_lab = np.eye(len(groups))[labs]
        return np.block([[by_coefficient, by_lab], [np.zeros((len(groups), 4)), prior * np.eye(len(groups))]])

    start = np.concatenate([[0.5, 0.002, 0.03, 0.03], np.zeros(len(groups))])
    lower = np.concatenate([np.zeros(4), np.full(len(groups), -np.inf)])
    found = least_squares(
        residuals, start, jacobian, bounds=(lower, np.inf), loss="soft_l1", f_scale=loss_scale, x_scale="jac"
    ).x
    scales = np.exp(found[4:])
    reference = scales[groups.index(REFERENCE_GROUP)] if REFERENCE_GROUP in groups else 1.0
    return found[:4] * reference, {group: float(scale / reference) for group, scale in zip(groups, scales, strict=True)}


class Range(NamedTuple):
    low: float
    high: float


def hull(rows: Iterable[Row], traces: Mapping[Network, OpTrace]) -> dict[str, Range]:
    """Smallest and largest act_mb, weight_mb, num_ops and gmacs among the fitted networks: outside is extrapolation."""
    fitted = [traces[network] for network in {row.network for row in rows}]
    values: dict[str, list[float]] = {
        "act_mb": [x.act_mb for x in fitted],
        "weight_mb": [x.weight_mb for x in fitted],
        "num_ops": [x.num_ops for x in fitted],
        "gmacs": [x.macs / 1e9 for x in fitted],
    }
    return {name: Range(min(x), max(x)) for name, x in values.items()}

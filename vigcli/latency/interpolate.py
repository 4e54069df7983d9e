"""Blocks between measured ones: the price of a block without a row, by rows of its kind.

Blocks of a kind (`graph`, `inverted_residual`, ...) cost about linearly in what they compute and move. What the rows of
a kind are off that line, as ratios, is told between them by a Gaussian process over the logarithms of their features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigcli.latency.trace import OpTrace

Array = NDArray[np.float64]
Features = tuple[float, float, float, float, float]
REACH = 2.0  # of a row's ratio, in powers of e of a feature
AMPLITUDE, TREND, NOISE = 0.3, 0.012, 1e-3  # variances of the logarithms of ratios: near, along features, of a timing


class BlockPrice(NamedTuple):
    """Milliseconds of a block, and how they are known.

    Attributes:
        how: `exact` (its row), `model` (the calibration), `interpolated` or `outside` (beyond the rows of its kind).
        kind: `measured` or `calibrated`; what is interpolated between measured rows is measured.
        second_ms: a second opinion; None in a table without a calibration.
        doubts: why a calibration is not to be trusted with it; empty where it was measured.
    """

    ms: float
    plus_minus_ms: float
    how: str
    kind: str
    second_ms: float | None = None
    doubts: tuple[str, ...] = ()


def features_of(trace: OpTrace) -> Features:
    """GMACs, depthwise GMACs, MB of activations and of weights, operations."""
    return trace.macs / 1e9, trace.depthwise_macs / 1e9, trace.act_mb, trace.weight_mb, float(trace.num_ops)


@dataclass(frozen=True)
class _Line:
    """The rows of one kind, the non-negative line through them, and what they are off it."""

    features: Array  # (rows, 5)
    slopes: Array
    places: Array  # (rows, 5): logarithms of the features
    middle: float  # of the logarithms of ratios
    weights: Array  # (rows,)
    inverse: Array  # (rows, rows), of the covariance

    @classmethod
    def through(cls, features: Array, ms: Array) -> _Line:
        from scipy.optimize import nnls

        slopes, _ = nnls(features / ms[:, None], np.ones(len(ms)))  # least relative error
        places = _places(features, features)
        ratios = np.log(ms / (features @ slopes))
        middle = float(ratios.mean())
        inverse: Array = np.linalg.inv(_covariance(places, places) + NOISE * np.eye(len(ms))).astype(np.float64)
        return cls(features, slopes, places, middle, inverse @ (ratios - middle), inverse)

    def at(self, wanted: Array) -> tuple[float, float]:
        """Milliseconds and their spread."""
        place = _places(wanted[None], self.features)
        near = _covariance(place, self.places)[0]
        ms = float(wanted @ self.slopes * np.exp(self.middle + near @ self.weights))
        variance = float(_covariance(place, place)[0, 0] - near @ self.inverse @ near)
        return ms, ms * max(variance, 0.0) ** 0.5


def _places(features: Array, of_rows: Array) -> Array:
    """Logarithms about their middle; a thousandth of the most is next to none."""
    least = 1e-3 * of_rows.max(0) + 1e-12
    return np.log(features + least) - np.log(of_rows + least).mean(0)


def _covariance(ones: Array, others: Array) -> Array:
    squares = ((ones[:, None] - others[None]) ** 2).sum(-1)
    return AMPLITUDE * np.exp(-squares / (2 * REACH**2)) + TREND * ones @ others.T


class Interpolation:
    """Prices of blocks by the measured rows of their kind."""

    def __init__(self, rows: Mapping[str, tuple[float, Features]]):
        kinds: dict[str, list[tuple[float, Features]]] = {}
        for signature, (ms, features) in rows.items():
            kinds.setdefault(block_kind(signature), []).append((ms, features))
        self._lines = {
            kind: _Line.through(np.array([f for _, f in found]), np.array([ms for ms, _ in found]))
            for kind, found in kinds.items()
        }

    def price(self, signature: str, trace: OpTrace) -> BlockPrice | None:
        """None where there is no row of the kind."""
        line = self._lines.get(block_kind(signature))
        if line is None:
            return None
        wanted = np.array(features_of(trace))
        ms, spread = line.at(wanted)
        inside = (wanted >= 0.99 * line.features.min(0)).all() and (wanted <= 1.01 * line.features.max(0)).all()
        return BlockPrice(ms, spread, "interpolated" if inside else "outside", "measured")


def left_out(rows: Mapping[str, tuple[float, Features]]) -> dict[str, float]:
    """Milliseconds of each row by the other rows of its kind: how well what lies between rows is known.

    A row that is the only one of its kind is left out.
    """
    kinds: dict[str, list[str]] = {}
    for signature in rows:
        kinds.setdefault(block_kind(signature), []).append(signature)
    found = {}
    for signatures in kinds.values():
        features = np.array([rows[s][1] for s in signatures])
        ms = np.array([rows[s][0] for s in signatures])
        for i, signature in enumerate(signatures if len(signatures) > 1 else ()):
            line = _Line.through(np.delete(features, i, 0), np.delete(ms, i))
            found[signature] = line.at(features[i])[0]
    return found


def block_kind(signature: str) -> str:
    """`graph[mixer=mgc reach=2 ...] 64x28x28` -> `graph mgc`, `mobilevit[attention=separable ...]` likewise."""
    name, _, options = signature.partition(" ")[0].partition("[")
    option, _, value = options.split(" ")[0].rstrip("]").partition("=")
    return f"{name} {value}" if option in ("mixer", "attention") else name

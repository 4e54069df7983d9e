"""How wrong the calibrated model is, by rows whose network or family a fit has not seen."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigcli.latency.calibrated import CROSS_CHECK, LOSS_SCALE, MEMBERS, Fitter, Form, Network, Row
from vigcli.latency.trace import OpTrace

Array = NDArray[np.float64]
LOSS_SCALES = (0.03, LOSS_SCALE, 0.1)
# What `nested` chooses between: each member alone, the cross-check, and the mean of the members.
CANDIDATES: tuple[tuple[Form, ...], ...] = (*((form,) for form in (*MEMBERS, CROSS_CHECK)), MEMBERS)


class Errors(NamedTuple):
    """How well rows are predicted."""

    mape: float  # mean absolute relative error, a ratio
    within_10_ratio: float  # rows predicted to within 10 %
    tau: float  # Kendall's tau between predicted and measured, inside a lab
    num_rows: int


def held_out(
    fitter: Fitter, fitted: Sequence[Row], rows: Sequence[Row], by: str, loss_scale: float = LOSS_SCALE
) -> tuple[Array, Array]:
    """Milliseconds at scale 1 of every row, and its lab's scale, by a fit to `fitted` without its network (or family).

    Args:
        fitter: of all these rows.
        by: "network" or "family".
    """
    price, scale = np.zeros(len(rows)), np.ones(len(rows))
    keys = [getattr(row, by) for row in rows]
    for key in dict.fromkeys(keys):
        model = fitter.fit([row for row in fitted if getattr(row, by) != key], loss_scale)
        here = [i for i, other in enumerate(keys) if other == key]
        price[here] = fitter.latencies_ms(model, [rows[i] for i in here])
        scale[here] = [model.scales.get(rows[i].group, 1.0) for i in here]
    return price, scale


def nested(rows: Sequence[Row], traces: Mapping[Network, OpTrace]) -> Errors:
    """Each family predicted by the candidate and loss that predict the other families best when these are held out.

    What the choice of a model costs: nothing that a row is judged by has seen it, its form included.
    """
    fitters = {form: Fitter(rows, traces, (form,)) for forms in CANDIDATES for form in forms}
    measured_ms = np.array([row.latency_ms for row in rows])
    family_of = np.array([row.family for row in rows])

    @functools.cache  # a fit without two families serves whichever of them is judged and whichever chosen for
    def without(form: Form, loss_scale: float, families: frozenset[str]) -> tuple[Array, Array]:
        model = fitters[form].fit([row for row in rows if row.family not in families], loss_scale)
        scales = np.array([model.scales.get(row.group, 1.0) for row in rows])
        return fitters[form].latencies_ms(model, rows), scales

    def predicted(forms: Sequence[Form], loss_scale: float, families: frozenset[str]) -> Array:
        """Of all rows, by the mean of these forms."""
        return np.prod(np.mean([without(form, loss_scale, families) for form in forms], axis=0), axis=0)

    unseen = np.zeros(len(rows))
    for family in dict.fromkeys(family_of):
        others = dict.fromkeys(family_of[family_of != family])
        mapes = {}
        for forms, loss_scale in itertools.product(CANDIDATES, LOSS_SCALES):
            off = [
                np.abs(predicted(forms, loss_scale, frozenset((family, other))) / measured_ms - 1)[family_of == other]
                for other in others
            ]
            mapes[forms, loss_scale] = np.concatenate(off).mean()
        best = min(mapes, key=mapes.__getitem__)
        unseen[family_of == family] = predicted(*best, frozenset((family,)))[family_of == family]
    return errors(rows, unseen)


def one_family_held_out(fitter: Fitter, rows: Sequence[Row], family: str, group: str) -> Errors:
    """Of a family's rows by one lab, none of its rows by any lab being seen."""
    here = [row for row in rows if (row.family, row.group) == (family, group)]
    return errors(here, np.prod(held_out(fitter, rows, here, "family"), 0))


def between_labs(rows: Iterable[Row]) -> Errors:
    """Of each lab's rows by every other lab that measured the same networks, after one factor for the two.

    What no model of these rows can honestly claim to be better than.
    """
    labs: dict[str, dict[Network, Row]] = {}
    for row in rows:
        labs.setdefault(row.group, {})[row.network] = row
    judged: list[Row] = []
    predicted: list[Array] = []
    for (lab, ours), (other, theirs) in itertools.permutations(labs.items(), 2):
        common = [network for network in ours if network in theirs]
        if len(common) > 1:  # a factor of one network says nothing
            ours_ms, theirs_ms = (np.array([of[network].latency_ms for network in common]) for of in (ours, theirs))
            judged += [ours[network]._replace(group=f"{lab} by {other}") for network in common]
            predicted.append(theirs_ms * np.median(ours_ms / theirs_ms))
    return errors(judged, np.concatenate(predicted))


def on_one_device(rows: Sequence[Row], price: Array) -> Array:
    """Predictions of a device's rows from held-out prices at scale 1, scaled by the rows of its other networks."""
    ratios = np.log([row.latency_ms for row in rows]) - np.log(price)
    networks = [row.network for row in rows]
    others = [[r for r, n in zip(ratios, networks, strict=True) if n != network] for network in networks]
    return price * np.exp([np.median(r) for r in others])


def coverage(rows: Sequence[Row], predicted: Array, factor: float) -> float:
    """The share of rows that lie between prediction / factor and prediction * factor."""
    off = np.abs(np.log(predicted / np.array([row.latency_ms for row in rows])))
    return float((off <= np.log(factor)).mean())


def errors(rows: Sequence[Row], predicted: Array) -> Errors:
    """Of predictions of the rows."""
    error = np.abs(predicted / np.array([row.latency_ms for row in rows]) - 1)
    agree = [
        np.sign(predicted[i] - predicted[j]) * np.sign(rows[i].latency_ms - rows[j].latency_ms)
        for i in range(len(rows))
        for j in range(i)
        if rows[i].group == rows[j].group and rows[i].latency_ms != rows[j].latency_ms
    ]
    return Errors(float(error.mean()), float((error <= 0.1).mean()), float(np.mean(agree)) if agree else 0.0, len(rows))

"""The figures of the study that proposed the calibrated model, beside what its rows and its lists of ops give here.

The tables differ from it in two things: they leave out the suspect row, and take our own trace of the networks whose
graphs we write with fewer ops.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from vigcli.latency.calibrated import (
    CROSS_CHECK,
    MEMBERS,
    REFERENCE_GROUP,
    SUSPECT_ROWS,
    Fitter,
    Network,
    Row,
    core16,
)
from vigcli.latency.crossvalidation import Errors, between_labs, errors, held_out, nested, one_family_held_out
from vigcli.latency.trace import OpTrace


class Reproduced(NamedTuple):
    """One figure of the study.

    Attributes:
        model: `mean of four`, `second model` (the cross-check), or `labs`, where one lab predicts another.
        by: what was held out, as a table's accuracy names it.
        here: what the same rows give here.
        theirs_percent, theirs_tau: the study's mean error and Kendall's tau; None where it gives none.
    """

    model: str
    by: str
    here: Errors
    theirs_percent: float
    theirs_tau: float | None


_THEIRS = {
    ("mean of four", "network"): (7.65, 0.869),
    ("mean of four", "family"): (9.1, 0.844),
    ("mean of four", "nested"): (10.0, None),  # "about"
    ("mean of four", "mobilevig"): (3.1, None),
    ("second model", "network"): (8.0, 0.853),
    ("second model", "family"): (9.6, 0.821),
    ("second model", "mobilevig"): (2.9, None),
    ("labs", "labs"): (5.6, None),
}


def study_rows(published: Iterable[Row]) -> list[Row]:
    """The rows that the study fitted and judged by: ours and the suspect one."""
    rows = list(published)
    return [*core16(rows), *(row for row in rows if (row.group, row.builder) in SUSPECT_ROWS)]


def reproduced(published: Iterable[Row], captured: Mapping[Network, OpTrace]) -> list[Reproduced]:
    """The study's figures again; takes a quarter of a minute.

    Args:
        published: the measurements of all labs.
        captured: the ops of their networks, as they were captured on their authors' code.
    """
    rows = study_rows(published)
    found = {("mean of four", "nested"): nested(rows, captured), ("labs", "labs"): between_labs(rows)}
    for model, forms in (("mean of four", MEMBERS), ("second model", (CROSS_CHECK,))):
        fitter = Fitter(rows, captured, forms)
        for by in ("network", "family"):
            found[model, by] = errors(rows, np.prod(held_out(fitter, rows, rows, by), 0))
        found[model, "mobilevig"] = one_family_held_out(fitter, rows, "mobilevig", REFERENCE_GROUP)
    return [Reproduced(*key, found[key], *theirs) for key, theirs in _THEIRS.items()]

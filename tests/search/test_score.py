"""The predicted accuracy: the study's test vectors, and that a search cannot farm it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vigcli.config.archs import PUBLISHED, VARIANTS
from vigcli.latency.table import load_table
from vigcli.search.job import describe
from vigcli.search.score import ERROR_POINTS, FAMILY_OFFSETS, predicted_top1_percent


@pytest.mark.parametrize(
    ("numbers", "options", "top1"),
    [
        ((5271074, 662142336, 47, 0.032225), {}, 77.471),
        ((5695824, 629634560, 79, 0.040921), {}, 78.398),
        ((27878864, 3558228480, 115, 0.021723), {}, 83.885),
        ((5578632, 2000831488, 90, 0.018277), {"distilled": False}, 78.101),
        ((3504872, 300774272, 53, 0.068877), {"distilled": False, "epochs": 450}, 74.658),
    ],
    ids=["mobilevig_ti", "mobilevigv2_ti", "mobilevigv2_b", "mobilevit_s", "mobilenetv2_100"],
)
def test_vectors_of_the_study(numbers: tuple[float, ...], options: dict[str, Any], top1: float) -> None:
    assert float(predicted_top1_percent(*numbers, **options)) == pytest.approx(top1, abs=1e-3)


def test_the_parts_of_the_formula_that_no_vector_has() -> None:
    numbers = (5e6, 6e8, 60, 0.03)
    s = -np.log(100 - predicted_top1_percent(*numbers))
    for options, change in (
        ({"old_recipe": True}, -0.059726),
        ({"offset": -0.018}, -0.018),
        ({"distilled": False}, -0.072830),
        ({"epochs": 150}, -0.024362),
        ({"epochs": 30_000}, 2 * 0.024362),
    ):
        changed = -np.log(100 - predicted_top1_percent(*numbers, **options))
        assert changed - s == pytest.approx(change, abs=1e-9)


def test_more_is_never_worse_and_what_is_easily_farmed_is_capped() -> None:
    start = np.array([2e6, 2e8, 30, 0.02])
    for i, factor in ((0, 2), (1, 2), (2, 2), (3, 2)):
        more = start.copy()
        more[i] *= factor
        assert predicted_top1_percent(*more) > predicted_top1_percent(*start)
    assert predicted_top1_percent(2e6, 2e8, 130, 0.15) == predicted_top1_percent(2e6, 2e8, 900, 0.9)


def test_published_variants_are_predicted_within_the_stated_error() -> None:
    """Nine of ten networks are within it; those that are not have 1.3 M parameters, or 105 M, where the formula is too
    kind."""
    table = load_table("iphone13-mini")
    errors = {
        name: describe(name, config, table).top1_percent - PUBLISHED[name].top1
        for name, config in VARIANTS.items()
        if config.family in FAMILY_OFFSETS
    }
    outside = {name for name, error in errors.items() if abs(error) > ERROR_POINTS}
    assert len(outside) <= 0.13 * len(errors), outside
    assert max(map(abs, errors.values())) < 2


def test_families_without_an_offset_are_predicted_all_the_same() -> None:
    """Of ViG too few networks were in the fit; Ti is out by more than the stated error."""
    table = load_table("iphone13-mini")
    others = {name: config for name, config in VARIANTS.items() if config.family not in FAMILY_OFFSETS}
    assert {config.family for config in others.values()} == {"vig", "pvig"}
    for name, config in others.items():
        assert abs(describe(name, config, table).top1_percent - PUBLISHED[name].top1) < 4.5


def test_the_number_of_classes_is_no_merit() -> None:
    table, few = load_table("iphone13-mini"), VARIANTS["mobilevigv2_ti"].changed({"num_classes": 10})
    assert describe("", few, table).top1_percent == describe("", VARIANTS["mobilevigv2_ti"], table).top1_percent

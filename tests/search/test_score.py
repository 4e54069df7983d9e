"""The predicted accuracy: the study's test vectors, and that a search cannot farm it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigcli.config.archs import PUBLISHED, VARIANTS, arch_config
from vigcli.errors import ConfigError
from vigcli.latency.table import load_table
from vigcli.paths import builtin_folder
from vigcli.search.columns import Columns
from vigcli.search.explain import explain
from vigcli.search.job import describe
from vigcli.search.score import PATH, Size, load_score, predicted_top1_percent
from vigcli.search.size import network_size


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
    assert float(predicted_top1_percent(*numbers, **options)) == pytest.approx(top1, abs=0.02)


def test_the_parts_of_the_formula_that_no_vector_has() -> None:
    numbers, of = (5e6, 6e8, 60, 0.03), load_score().coefficients
    s = -np.log(100 - predicted_top1_percent(*numbers))
    for options, change in (
        ({"old_recipe": True}, of["old_recipe"]),
        ({"offset": -0.018}, -0.018),
        ({"distilled": False}, -of["distilled"]),
        ({"epochs": 150}, -of["log2_epochs"]),
        ({"epochs": 30_000}, 2 * of["log2_epochs"]),
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


SIZES = st.tuples(st.floats(1e5, 1e9), st.floats(1e6, 1e11), st.floats(1, 1000), st.floats(0, 1))


@given(SIZES, st.integers(0, 3), st.floats(1, 10))
def test_the_prediction_never_falls_with_more_of_anything(numbers: tuple[float, ...], i: int, factor: float) -> None:
    more = [min(x * factor, 1) if i == j == 3 else x * factor if i == j else x for j, x in enumerate(numbers)]
    before, after = predicted_top1_percent(*numbers), predicted_top1_percent(*more)
    assert after >= before - 1e-9
    assert before < 100


def test_arrays_are_predicted_as_single_networks_are() -> None:
    rows = np.random.default_rng(0).uniform((1e6, 1e8, 20, 0), (3e7, 5e9, 200, 0.2), (50, 4))
    single = [float(predicted_top1_percent(*row)) for row in rows]
    np.testing.assert_allclose(predicted_top1_percent(*rows.T), single)


def test_the_intervals_are_wider_where_a_family_has_no_offset() -> None:
    score = load_score()
    assert score.interval("pvig") == score.new_family
    assert score.interval("mobilevigv2") == score.known_family
    assert score.new_family.points_90 > score.known_family.points_90 > score.known_family.points_80
    assert score.offset("pvig") == 0 > score.offset("mobilevigv2")


def test_what_the_fit_has_not_seen_is_said() -> None:
    score, size = load_score(), Size(5e6, 6e8, 60, 0.03)
    assert score.outside("mobilevigv2", size) == ()
    assert score.outside("mobilevigv2", size._replace(depthwise_share=0.1)) == ("depthwise_share",)
    assert score.outside("timm", size._replace(depthwise_share=0.1)) == ()
    assert score.outside("timm", size._replace(params=1e9, path_layers=999)) == ("params", "path_layers")


def test_a_damaged_score_is_told_by_line(tmp_path: Path) -> None:
    text = (builtin_folder("space") / PATH).read_text()
    for old, new, complaint in (
        ("alpha: 3.0", "alpha: x", "score.yaml:9: alpha"),
        ("num_rows: 227", "rows: 227", "rows"),
        ("format: 1", "format: 2", "score.yaml:2: format"),
        ("depthwise_share: [", "depthwise: [", "depthwise"),
    ):
        (tmp_path / "score.yaml").write_text(text.replace(old, new, 1))
        with pytest.raises(ConfigError, match=complaint):
            load_score(tmp_path / "score.yaml")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilevig_ti", (5271074, 662142336, 47, 0.032225)),
        ("mobilevigv2_b", (27878864, 3558228480, 115, 0.021723)),
        ("mobilevit_s", (5578632, 2000831488, 90, 0.018277)),
        ("timm:mobilenetv2_100", (3504872, 300774272, 53, 0.068877)),
    ],
)
def test_networks_are_counted_as_the_study_counted_them(name: str, expected: tuple[float, ...]) -> None:
    assert network_size(arch_config(name)) == pytest.approx(expected, rel=1e-4)


def test_published_variants_are_predicted_within_the_stated_error() -> None:
    """Nine of ten networks are within it; those that are not have 1.3 M parameters, or 105 M, where the formula is too
    kind."""
    score = load_score()
    errors = {
        name: explain(config).top1_percent - PUBLISHED[name].top1
        for name, config in VARIANTS.items()
        if config.family in score.family_offsets
    }
    outside = {name for name, error in errors.items() if abs(error) > score.known_family.points_90}
    assert len(outside) <= 0.13 * len(errors), outside
    assert max(map(abs, errors.values())) < 2


def test_families_without_an_offset_are_predicted_all_the_same() -> None:
    """Of ViG too few networks were in the fit; Ti is out by more than the stated error."""
    others = {name: config for name, config in VARIANTS.items() if config.family not in load_score().family_offsets}
    assert {config.family for config in others.values()} == {"vig", "pvig"}
    for name, config in others.items():
        assert abs(explain(config).top1_percent - PUBLISHED[name].top1) < 4.5


def test_the_number_of_classes_is_no_merit() -> None:
    few = VARIANTS["mobilevigv2_ti"].changed({"num_classes": 10})
    assert explain(few).top1_percent == explain(VARIANTS["mobilevigv2_ti"]).top1_percent


@pytest.mark.parametrize("name", ["mobilevig_ti", "mobilevit_xxs"])
def test_a_search_predicts_what_the_score_says_of_a_network(name: str) -> None:
    changes = {"mobilevig_ti": {"cpe_kernel": 7}, "mobilevit_xxs": {"residual": True}}[name]
    config = VARIANTS[name].changed({**changes, "num_classes": 10})
    found = describe("", config, Columns([load_table("iphone13-mini")])).top1_percent
    assert found == pytest.approx(explain(config).top1_percent)
    assert found > explain(VARIANTS[name]).top1_percent + 0.2

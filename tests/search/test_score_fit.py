"""The fit of the score: the figures it claims, and files that are not trusted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vigcli.errors import ConfigError
from vigcli.paths import builtin_folder, builtin_names
from vigcli.search.score import FEATURES, load_score
from vigcli.search.score_fit import SIZE_ALONE, Study, load_study, read_accuracy, read_latencies, ridge

FOLDER = builtin_folder("space") / "published"
TABLES = builtin_folder("table") / "published"


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(FOLDER, TABLES)


def test_ridge_is_least_squares_with_a_row_for_every_standardised_coefficient() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(2, 1, size=(40, 5)) * [1, 10, 0.1, 3, 1], generator.normal(1, 1, size=40)
    z = np.c_[np.ones(40), (x - x.mean(0)) / x.std(0)]
    penalty = np.sqrt(3) * np.c_[np.zeros(5), np.eye(5)]  # none on the intercept
    theirs = z @ np.linalg.lstsq(np.r_[z, penalty], np.r_[y, np.zeros(5)])[0]
    found = ridge(x, y)
    np.testing.assert_allclose(found[0] + x @ found[1:], theirs)
    assert np.isfinite(ridge(np.c_[x, np.ones(40)], y)).all()  # a column of one value has nothing to say


def test_the_shipped_score_is_what_the_fit_gives(study: Study) -> None:
    shipped, fitted = load_score(), study.fit(FOLDER / "accuracy.csv")
    for name in FEATURES:
        assert fitted.coefficients[name] == pytest.approx(shipped.coefficients[name], abs=1e-5)
    keep = {"date": shipped.date, "tools": shipped.tools, "effects": shipped.effects}
    keep |= {"coefficients": shipped.coefficients, "intercept": shipped.intercept, "means": shipped.means}
    assert fitted.model_copy(update=keep) == shipped


def test_the_figures_of_the_study_come_out(study: Study) -> None:
    """Within 0.006 of the reference's, whose data differed in a detail: its coefficients differ by 0.0007."""
    assert (len(study.rows), len(study.families)) == (227, 29)
    errors = study.errors()
    assert errors.mae_points == pytest.approx(0.95, abs=0.005)
    assert errors.tau == pytest.approx(0.822, abs=0.001)
    assert errors.own_families.tau == pytest.approx(0.92, abs=0.002)
    for order, claimed in (
        (errors.equal_macs, 0.650), (errors.equal_params, 0.577), (errors.equal_both, 0.511),
        (errors.equal_latency, 0.679),
    ):  # fmt: skip
        assert order.tau == pytest.approx(claimed, abs=0.006)
    assert errors.equal_latency.num_pairs == pytest.approx(112, abs=1)
    alone = study.errors(SIZE_ALONE)
    assert alone.mae_points == pytest.approx(1.48, abs=0.005)
    assert (alone.equal_macs.tau, alone.equal_both.tau) == pytest.approx((0.516, 0.272), abs=0.001)
    for name in ("tau", "equal_macs", "equal_params", "equal_both", "equal_latency", "own_families"):
        ours, theirs = getattr(errors, name), getattr(alone, name)
        assert getattr(ours, "tau", ours) > getattr(theirs, "tau", theirs) + 0.04
    reference = {"mobilevig": -0.040, "mobilevigv2": -0.018, "greedyvig": -0.026, "clustervig": -0.022,
                 "mobilevit": -0.021, "mobilevitv2": 0.003, "mobilevitv3": 0.033}  # fmt: skip
    found = study.fit(FOLDER / "accuracy.csv").family_offsets
    assert {name: offset.s for name, offset in found.items()} == pytest.approx(reference, abs=6e-4)


def test_a_row_is_predicted_by_a_fit_that_has_not_seen_its_family(study: Study) -> None:
    """Nonsense in a family changes the predictions of the others, and never its own."""
    before = study.held_out()
    chosen = study.family == 3
    other = load_study(FOLDER, TABLES)
    other.target = np.where(chosen, other.target + 1, other.target)
    after = other.held_out()
    rows = np.arange(len(study.rows))
    own = (study.family, study.family, rows)
    np.testing.assert_array_equal(before[own][chosen], after[own][chosen])
    assert (before[own][~chosen] != after[own][~chosen]).all()
    np.testing.assert_array_equal(before[3], after[3])  # nor those of pairs with it


def test_half_a_point_is_where_the_order_begins_to_be_known(study: Study) -> None:
    """What `TIE_POINTS` stands on."""
    percent = {gap.from_points: gap.right_percent for gap in study.right_order()}
    assert percent[0] < 55
    assert percent[0.25] < 70
    assert 75 < percent[0.5] < percent[2]


def test_the_published_files_are_no_spaces() -> None:
    assert "score" not in builtin_names("space")
    assert len(read_accuracy(FOLDER / "accuracy.csv")) == 429


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (",84.028,", ",184.028,", r"accuracy.csv:2: top1_percent = '184.028' is no percentage below 100"),
        (",84.028,", ",nan,", r":2: top1_percent = 'nan' is no number above 0"),
        (",84.028,1,", ",84.028,yes,", r":2: distilled = 'yes' is none of 0, 1"),
        (",31457256,", ",3.5,", r":2: params = '3.5' is no whole number from 1 on"),
        (",0.0412905,", ",1.5,", r":2: depthwise_share_of_macs = '1.5' is no share"),
        (",mobile,", ",phone,", r":2: domain = 'phone' is none of"),
        ("network,", "name,", r":2: there is no column 'network'"),
    ],
)
def test_a_damaged_accuracy_file_is_told_by_line(old: str, new: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "accuracy.csv"
    path.write_text((FOLDER / "accuracy.csv").read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=complaint):
        read_accuracy(path)


def test_empty_and_cut_off_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.csv"
    lines = (FOLDER / "accuracy.csv").read_text().splitlines()
    path.write_text(lines[0] + "\n")
    with pytest.raises(ConfigError, match="holds no rows"):
        read_accuracy(path)
    path.write_text("\n".join(lines[:3])[:-40])
    with pytest.raises(ConfigError, match=":3: "):
        read_accuracy(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="damaged"):
        read_latencies(path)

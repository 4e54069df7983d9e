"""`vig score`: predictions with what they are made of, and the file held to the fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vigcli.errors import ConfigError
from vigcli.paths import builtin_folder
from vigcli.search import ablations, score
from vigcli.search.score import PATH, load_score

Vig = Callable[..., str]


def test_a_prediction_stands_beside_the_published_figure(vig: Vig) -> None:
    text = vig("score", "show", "mobilevigv2_ti", "timm:mobilenetv2_100")
    line = next(line for line in text.splitlines() if line.startswith("mobilevigv2_ti"))
    assert "78.0 ±1.4" in line
    assert "77.7" in line
    assert "arXiv:2406.05850" in line
    assert "72.91" in text
    assert "predicted" in text
    assert "published" in text


def test_parts_are_points_and_effects_have_sources(vig: Vig) -> None:
    (plain,) = json.loads(vig("score", "show", "mobilevigv2_s", "--json"))
    (changed,) = json.loads(vig("score", "show", "mobilevigv2_s", "--set", "stages[2].mixer=svga", "--json"))
    assert plain["effects"] == []
    (effect,) = changed["effects"]
    assert effect["path"] == "stages[2].mixer"
    assert "Table 3" in effect["source"]
    assert changed["top1_percent"] == pytest.approx(plain["top1_percent"] + effect["points"], abs=0.011)
    assert changed["published_top1_percent"] is None
    assert set(plain["points"]) == {"params", "MACs", "layers", "depthwise", "recipe", "family"}
    assert plain["top1_kind"] == "predicted"


def test_a_checkpoint_is_scored_as_its_network(vig: Vig) -> None:
    vig("build", "mobilevigv2_ti", "--num-classes", "10", "-o", "x.safetensors")
    (built,) = json.loads(vig("score", "show", "x.safetensors", "--json"))
    (named,) = json.loads(vig("score", "show", "mobilevigv2_ti", "--json"))
    assert named["published_top1_percent"] == 77.7
    unknown = {"name": "", "published_top1_percent": None, "published_source": None}  # its weights are drawn
    assert built == named | unknown | {"name": "x.safetensors"}
    vig("score", "show", "x.safetensors", "--set", "cpe_kernel=0", code=2)


def test_every_published_network_is_predicted_inside_what_was_seen_or_said_to_be_outside(
    vig: Vig, capsys: pytest.CaptureFixture[str]
) -> None:
    (large,) = json.loads(vig("score", "show", "clustervig_b", "--json"))
    assert "params" in large["outside"]


@pytest.fixture
def _quick_effects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablations, "published_effects", lambda _: load_score().effects)


@pytest.mark.usefixtures("_quick_effects")
def test_the_file_is_held_to_the_fit(vig: Vig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "0.822" in vig("score", "fit", "--check")
    text = (builtin_folder("space") / PATH).read_text()
    for old, new, complaint in (
        ("mae_points: 0.953", "mae_points: 0.9", "mean error"),
        ("equal_macs: {tau: 0.655", "equal_macs: {tau: 0.7", "tau, equal MACs"),
        ("ln_params: 0.108253", "ln_params: 0.2", "ln_params"),
        ("points_90: 1.36", "points_90: 1.0", "known_family"),
        ("s: -0.018", "s: 0.018", "offset of mobilevigv2"),
    ):
        path = tmp_path / f"{len(complaint)}.yaml"
        path.write_text(text.replace(old, new, 1))
        claimed = score.load_score(path)
        with monkeypatch.context() as patch:
            patch.setattr("vigcli.search.score.load_score", lambda claimed=claimed: claimed)
            found = json.loads(vig("score", "fit", "--check", "--json", code=1))
        assert any(complaint in worse for worse in found["worse"])
    vig("score", "fit", "--check", "-o", "x.yaml", code=2)


@pytest.mark.usefixtures("_quick_effects")
def test_a_fit_that_is_written_can_be_loaded(vig: Vig, tmp_path: Path) -> None:
    vig("score", "fit", "-o", "mine.yaml")
    assert score.load_score(tmp_path / "mine.yaml").coefficients == pytest.approx(load_score().coefficients, abs=1e-5)
    with pytest.raises(ConfigError):
        score.load_score(tmp_path / "none.yaml")


@pytest.mark.slow
def test_the_shipped_score_is_fit_and_ablations_of_today(vig: Vig) -> None:
    assert json.loads(vig("score", "fit", "--check", "--json"))["worse"] == []

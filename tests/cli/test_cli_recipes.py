"""Recipes that build on others, as the commands show and copy them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from vigcli.config.recipe import load_recipe
from vigcli.paths import builtin_names, find_file

Vig = Callable[..., str]


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.yaml").write_text("base: emoji10\nepochs: 7\n", encoding="utf-8")
    return "mine.yaml"


@pytest.mark.parametrize("words", [["check"], ["train", "--dry-run"]])
def test_resolved_values_are_shown(words: list[str], mine: str, vig: Vig) -> None:
    shown = vig(words[0], mine, *words[1:])
    assert "epochs: 7\n" in shown
    assert "arch: mobilevigv2_ti\n" in shown
    assert json.loads(vig(words[0], mine, *words[1:], "--json"))["recipe"]["batch_size"] == 32


def test_what_check_prints_is_the_recipe(mine: str, vig: Vig, tmp_path: Path) -> None:
    (tmp_path / "shown.yaml").write_text(vig("check", mine), encoding="utf-8")
    assert load_recipe(tmp_path / "shown.yaml") == load_recipe(tmp_path / mine)


def test_a_copied_recipe_needs_no_other_file(vig: Vig, tmp_path: Path) -> None:
    vig("cp", "v1_s", "mine.yaml")
    text = (tmp_path / "mine.yaml").read_text(encoding="utf-8")
    assert "base" not in yaml.safe_load(text)
    assert "# Expected: 78.2 % top-1" in text
    assert "#   cooldown" in text, "the header of the base came along"
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe(find_file("recipe", "v1_s"))


def test_recipes_are_listed_with_the_accuracy_to_expect(vig: Vig) -> None:
    listed = vig("ls", "recipes")
    assert all(name in listed for name in builtin_names("recipe"))
    assert "79.8 published" in listed
    assert "71.8 measured" in listed
    assert set(json.loads(vig("ls", "recipes", "--json"))["recipes"]) == set(builtin_names("recipe"))

"""The built-in recipes against a table of what papers and authors' code say; recipes that build on others."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from vigcli.archs import build
from vigcli.cli.main import cli
from vigcli.config.archs import PUBLISHED, VARIANTS, TimmConfig
from vigcli.config.load import get_path
from vigcli.config.recipe import load_recipe
from vigcli.config.recipe_file import read_header, whole_text
from vigcli.paths import builtin_folder, builtin_names
from vigcli.train.check import check
from vigcli.train.data import train_transform
from vigcli.train.schedule import make_optimizer, plan

NAMES = builtin_names("recipe")
OF_PAPERS = [name for name in NAMES if not name.startswith("emoji10")]
FACTS: dict[str, dict[str, list[Any]]] = yaml.safe_load((Path(__file__).parents[1] / "data/recipes.yaml").read_text())
SETTLED = {  # what every recipe of a paper must have a fact of
    "resolution", "multiscale", "epochs", "batch_size", "optimizer.name", "optimizer.lr", "optimizer.weight_decay",
    "schedule.name", "augment.scale", "augment.rand_augment", "augment.erase", "augment.mixup", "augment.cutmix",
    "augment.repeats", "label_smoothing", "ema_decay", "clip_grad_norm", "preprocessing.crop_ratio",
    "preprocessing.mean",
}  # fmt: skip
IMAGES = {"folder": 1_281_167, "emoji10": 1278}


def _path(name: str) -> Path:
    return builtin_folder("recipe") / f"{name}.yaml"


def _facts(name: str) -> list[tuple[str, Any, str]]:
    """Field, value and source of every fact of a recipe."""
    return [
        (field, value, source)
        for names, facts in FACTS.items()
        if re.fullmatch(names, name)
        for field, (value, source) in facts.items()
    ]


def _top1(name: str) -> float | None:
    expected = read_header(_path(name)).notes["Expected"]
    found = re.match(r"([\d.]+) % top-1 \(published, [^)]*; not reproduced here\)", expected)
    return float(found[1]) if found else None


@pytest.mark.parametrize("name", OF_PAPERS)
def test_values_are_those_of_the_papers(name: str) -> None:
    recipe = load_recipe(_path(name))
    values = recipe.model_dump(mode="json") | {"arch": recipe.arch_config().model_dump(mode="json")}
    values["top1"] = _top1(name)
    assert {field for field, _, _ in _facts(name)} >= SETTLED
    for field, value, source in _facts(name):
        assert get_path(values, field) == value, (field, source)


def test_facts_are_of_some_recipe_and_told_once() -> None:
    for names in FACTS:
        assert any(re.fullmatch(names, name) for name in OF_PAPERS), names
    for name in OF_PAPERS:
        fields = [field for field, _, source in _facts(name) if source]
        assert len(set(fields)) == len(fields) == len(_facts(name)), name


def test_every_variant_has_a_recipe_with_its_published_result() -> None:
    networks = {name: load_recipe(_path(name)).arch for name in OF_PAPERS if not name.endswith("_384")}
    assert sorted(map(str, networks.values())) == sorted(VARIANTS)
    for name, network in networks.items():
        assert _top1(name) == PUBLISHED[str(network)].top1, name


@pytest.mark.parametrize("name", NAMES)
def test_headers_tell_command_cost_and_needs(name: str) -> None:
    header, recipe = read_header(_path(name)), load_recipe(_path(name))
    assert {"Expected", "Cost", "Needs", "Differs"} <= set(header.notes)
    words = shlex.split(header.command)
    assert words[:3] == ["vig", "train", f"recipes/{name}.yaml"]
    command = cli.get_command(None, "train")  # type: ignore[arg-type]
    command.make_context("train", words[2:], resilient_parsing=False)
    assert ("--data" in words) == (recipe.data.source == "folder")
    for base in re.findall(r"see (\w+\.yaml)", header.notes["Differs"]):
        assert (builtin_folder("recipe") / base).is_file()
    about, steps = re.search(r"(about )?([\d,]+) steps", header.notes["Cost"]).groups()  # type: ignore[union-attr]
    counted = plan(recipe, IMAGES[recipe.data.source])["total_steps"]
    assert bool(about) == bool(recipe.multiscale)  # the number hangs on the resolutions that are drawn
    assert steps == f"{round(counted, -3) if about else counted:,}"


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_sound(name: str) -> None:
    recipe = load_recipe(_path(name))
    counts = plan(recipe, IMAGES[recipe.data.source])
    assert counts["lr_peak"] == pytest.approx(recipe.optimizer.lr)
    check(recipe, counts["total_steps"])
    train_transform(recipe.augment, recipe.preprocessing, recipe.resolution)
    network = build(recipe.arch_config(), device="meta")
    make_optimizer(recipe, network)
    if recipe.distillation is not None and not isinstance(recipe.arch_config(), TimmConfig):
        assert recipe.arch_config().model_dump()["distilled"], "no head for the teacher's answer"


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_stands_alone_and_means_the_same(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.yaml"
    copy.write_text(whole_text(_path(name)), encoding="utf-8")
    assert load_recipe(copy) == load_recipe(_path(name))
    assert "base" not in yaml.safe_load(copy.read_text())
    assert read_header(copy).command == read_header(_path(name)).command

"""Recipes that build on others: whose values hold, where complaints point, and what is refused."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from vigcli.config.archs import arch_config
from vigcli.config.load import dump, dump_yaml, read_yaml
from vigcli.config.recipe import Recipe, load_recipe
from vigcli.config.recipe_file import MAX_FILES, read_header, read_layers, whole_text
from vigcli.errors import ConfigError
from vigcli.paths import find_file

BASE = """# A base.
arch: mobilevigv2_ti
epochs: 10
batch_size: 32
optimizer: {lr: 1e-3, weight_decay: 0.1}
schedule: {warmup_epochs: 1}
distillation: {teacher: "timm:regnety_160"}
"""


def _write(folder: Path, **files: str) -> Path:
    """The first of the files."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(files))}.yaml"


def test_mappings_are_merged_and_all_else_is_replaced(tmp_path: Path) -> None:
    child = "base: below\nepochs: 20\noptimizer: {lr: 2e-3}\ndistillation: null\n"
    recipe = load_recipe(_write(tmp_path, above=child, below=BASE))
    assert (recipe.epochs, recipe.batch_size, recipe.distillation) == (20, 32, None)
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (2e-3, 0.1)


def test_a_network_is_taken_whole(tmp_path: Path) -> None:
    transformer, graph = (dump(arch_config(name)) for name in ("mobilevit_s", "mobilevigv2_ti"))
    arch = {"arch": read_yaml(_write(tmp_path, t=transformer))[0]}
    below = BASE.replace("mobilevigv2_ti", "\n" + textwrap.indent(graph, "  "))
    recipe = load_recipe(_write(tmp_path, above="base: below\nresolution: 256\n" + dump_yaml(arch), below=below))
    assert recipe.arch_config() == arch_config("mobilevit_s")


def test_three_files_and_settings_of_what_the_last_holds(tmp_path: Path) -> None:
    files = {"above": "base: middle.yaml\nepochs: 30\n", "middle": "base: below\nbatch_size: 8\n", "below": BASE}
    recipe = load_recipe(_write(tmp_path, **files), ("optimizer.weight_decay=0.2", "arch.expansion=3"))
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer.weight_decay) == (30, 8, 0.2)
    assert recipe.arch_config().model_dump()["expansion"] == 3


@pytest.mark.parametrize(
    ("above", "below", "place"),
    [
        ("base: below\nepochs: few\n", BASE, "above.yaml:2: epochs"),
        ("base: below\n", BASE.replace("0.1", "heavy"), "below.yaml:5: optimizer.weight_decay"),
        ("base: below\noptimizer: {lr: 1}\n", BASE.replace("0.1", "heavy"), "below.yaml:5: optimizer.weight_decay"),
        ("base: below\noptimizer:\n  lr: 1e-3\n  wd: 1\n", BASE, "above.yaml:4: optimizer.wd"),
        ("base: below\n", BASE.replace("epochs: 10", "epoch: 10"), "below.yaml:3: epoch"),
        ("# \nbase: below\n", BASE + "epochs: 3\n", "below.yaml:8: epochs"),
    ],
)
def test_complaints_point_into_the_right_file(above: str, below: str, place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe(_write(tmp_path, above=above, below=below))
    assert str(error.value).startswith(f"{tmp_path}/{place}: ")


@pytest.mark.parametrize(
    ("files", "message", "hint"),
    [
        ({"a": "base: a\n"}, "a.yaml:1: base: a.yaml builds on itself", "circle"),
        ({"a": "base: b\n", "b": "\nbase: a\n"}, "b.yaml:2: base: a.yaml builds on itself", "circle"),
        ({"a": "base: blow\n", "below": BASE}, "a.yaml:1: base: no recipe 'blow'", "'below'"),
        ({"a": "base: v2_x\n"}, "no recipe 'v2_x'", "'v2_"),
        ({"a": "base: /etc/passwd\n"}, "'/etc/passwd' is no name of a recipe", "alone"),
        ({"a": "base: ../b\n", "b": BASE}, "'../b' is no name of a recipe", "alone"),
        ({"a": "base: [b]\n", "b": BASE}, "is no name of a recipe", "alone"),
        ({"a": f"base: {'b' * 5000}\n"}, "is no name of a recipe", "alone"),
        ({"a": "base:\n"}, "'None' is no name of a recipe", "alone"),
        ({"a": "base: b\n", "b": "- 1\n"}, "b.yaml is no recipe", "Name a recipe"),
        ({"a": "base: b\n", "b": ""}, "b.yaml: is empty", "vig cp"),
        ({f"r{i}": f"base: r{i + 1}\n" for i in range(MAX_FILES + 1)}, f"more than {MAX_FILES} recipes", "Merge"),
    ],
)
def test_bases_that_are_refused(files: dict[str, str], message: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe(_write(tmp_path, **files))
    assert message in str(error.value)
    assert hint in error.value.hint


def test_a_file_beside_comes_before_a_built_in_one_but_not_before_itself(tmp_path: Path) -> None:
    own = load_recipe(_write(tmp_path, v2_s="base: v2_s\nepochs: 31\n"))  # a file of that name that builds on it
    assert (own.epochs, own.batch_size) == (31, 2048)
    beside = load_recipe(_write(tmp_path, mine="base: v2_s\n", v2_s=BASE))
    assert beside.batch_size == 32


def test_what_a_run_keeps_and_what_is_copied_is_whole(tmp_path: Path) -> None:
    path = _write(tmp_path, above="# Above.\nbase: below\nepochs: 20\n", below=BASE)
    kept = _write(tmp_path, kept=dump(load_recipe(path)))
    copy = _write(tmp_path, copy=whole_text(path))
    (tmp_path / "below.yaml").unlink()
    assert load_recipe(kept) == load_recipe(copy)
    assert copy.read_text().startswith("# Above.\n#\n# A base.\n")
    assert whole_text(copy) == copy.read_text()
    assert Recipe.parse(read_yaml(kept)[0]).epochs == 20


def test_headers() -> None:
    header = read_header(find_file("recipe", "emoji10"))
    assert header.title.startswith("A first training run")
    assert header.command == "vig train recipes/emoji10.yaml"
    assert header.notes["Cost"].startswith("195 steps")
    assert header.notes["Cost"].endswith("--set precision=fp32")


def test_the_schema_asks_for_a_base_or_for_what_it_would_bring() -> None:
    schema = Recipe.model_json_schema()
    assert schema["properties"]["base"]["type"] == "string"
    needed = [set(form["required"]) for form in schema["anyOf"]]
    assert needed == [{"base"}, {"arch", "epochs", "batch_size", "optimizer"}]
    assert "required" not in schema


def test_layers_tell_their_files(tmp_path: Path) -> None:
    path = _write(tmp_path, above="base: below\n", below=BASE)
    assert [file.name for file in read_layers(path).files] == ["above.yaml", "below.yaml"]
    assert "base" not in read_layers(path).data

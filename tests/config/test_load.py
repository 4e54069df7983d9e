"""YAML in and out, paths, `--set`, and complaints."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vigcli.config.archs import VARIANTS, AnyArch, TimmConfig
from vigcli.config.load import (
    apply_settings,
    dump,
    dump_yaml,
    get_path,
    join_path,
    load,
    parse_yaml,
    read_yaml,
    set_path,
    split_path,
)
from vigcli.config.recipe import Recipe, load_recipe
from vigcli.config.space import SearchSpace, load_space
from vigcli.errors import ConfigError, UsageError, VigError
from vigcli.paths import builtin_names, find_file
from vigcli.registry import FAMILIES

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
TRICKY = st.sampled_from(
    ["3e-4", "010", "12:30", "off", "yes", "null", "~", "", "-", "1_000", "0x1f", "=", "2024-01-01"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | TRICKY
PLAIN = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | TRICKY, inner, max_size=3), max_leaves=8
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
LOCATIONS = st.tuples(NAMES, st.lists(NAMES | st.integers(0, 999_999), max_size=5)).map(lambda x: (x[0], *x[1]))


@st.composite
def archs(draw: st.DrawFn) -> AnyArch:
    """A valid configuration of any family."""
    if draw(st.integers(0, 4)) == 0:
        return TimmConfig(
            name=draw(st.from_regex(r"[a-z0-9_.]{1,20}", fullmatch=True)), num_classes=draw(st.integers(1, 9))
        )
    variant = VARIANTS[draw(st.sampled_from(sorted(VARIANTS)))]
    data = variant.model_dump(mode="json")
    for stage in data.get("stages", ()):
        stage["width"] = 4 * draw(st.integers(2, 300))
        stage["local_depth" if "local_depth" in stage else "depth"] = draw(st.integers(1, 9))
    for rate in {"drop_path_rate", "dropout", "head_dropout"} & set(data):
        data[rate] = draw(st.floats(0, 0.99))
    data["distilled"] = draw(st.booleans())
    return type(variant).parse(data)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    arch = draw(archs() | st.sampled_from(sorted(VARIANTS)))
    if not isinstance(arch, str):
        arch = arch.changed({"num_classes": max(2, arch.num_classes)}).model_dump(mode="json")
    data = {
        "arch": arch,
        "epochs": draw(st.integers(30, 400)), "batch_size": draw(st.integers(1, 4096)),
        "optimizer": {"lr": draw(st.floats(1e-5, 10)), "name": draw(st.sampled_from(["adamw", "sgd"]))},
        "data": {"root": draw(st.none() | TEXT | TRICKY)},
        "ema_decay": draw(st.none() | st.floats(0.01, 0.999)),
    }  # fmt: skip
    return Recipe.parse(data)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    choices = st.lists(
        st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TRICKY, min_size=1, max_size=4
    )
    genes = draw(st.dictionaries(LOCATIONS.map(join_path), choices, min_size=1, max_size=4))
    return SearchSpace.parse({"base": draw(st.sampled_from(sorted(VARIANTS))), "genes": genes})


@given(PLAIN)
@settings(max_examples=150, deadline=None)
def test_plain_data_comes_back(data: Any) -> None:
    assert parse_yaml(dump_yaml(data), "x")[0] == data


@given(recipes() | spaces() | archs())
@settings(max_examples=60, deadline=None)
def test_any_configuration_comes_back(config: Any) -> None:
    data, _ = parse_yaml(dump(config), "x")
    assert type(config).parse(data) == config
    assert type(config).parse(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("name", builtin_names("recipe"))
def test_a_shipped_recipe_comes_back(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(find_file("recipe", name))
    (tmp_path / "x.yaml").write_text(dump(recipe))
    assert load(Recipe, tmp_path / "x.yaml") == recipe


def test_settings_reach_into_a_network_that_a_recipe_names() -> None:
    path = find_file("recipe", "emoji10")
    recipe = load_recipe(path, ("arch.stages[0].width=48", "epochs=7", "arch.cpe_kernel=0"))
    assert (recipe.epochs, recipe.arch_config().changed({}).model_dump()["cpe_kernel"]) == (7, 0)
    assert recipe.arch_config().stage_shapes()[0].width == 48
    assert (recipe.arch_config().resolution, recipe.arch_config().num_classes) == (160, 10)
    with pytest.raises(ConfigError, match=r"--set: arch.stages\[0\].width: must be"):
        load_recipe(path, ("arch.stages[0].width=0",))
    with pytest.raises(ConfigError, match=r"arch.cpe: unknown key"):
        load_recipe(path, ("arch.cpe=0",))


@given(st.text(max_size=60) | st.text("[]{}:,-&*!|>'\"# \n\tab1", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        data, _ = parse_yaml(text, "x.yaml")
    except ConfigError as error:
        refused = error
    else:
        assert repr(parse_yaml(dump_yaml(data), "x")[0]) == repr(data)  # as text, for .nan is unlike itself
        return
    assert str(refused).startswith("x.yaml")
    assert refused.hint


@given(st.binary(max_size=80))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with pytest.raises(VigError, match=re.escape(str(path))):
        load_recipe(path)


@pytest.mark.parametrize("text", ["a: 1\nb: {c: 1, c: 2}", "b:\n  c: 1\n  c: 2", '"a": 1\na: 1', "x: [{a: 1, a: 1}]"])
def test_a_key_that_stands_twice_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^f:\d: (b\.c|a|x\[0\]\.a): this key stands twice"):
        parse_yaml(text, "f")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: &x [1]\nb: [*x, *x]", "f:1: aliases"),
        ("&x a: 1", "f:1: aliases"),
        ("<<: {a: 1}", "f:1: a key must be"),
        ("? [a]\n: 1", "f:1: a key must be"),
        ("a: !!python/object/apply:os.system [ls]", "f:1: the tag .*os.system is not read"),
        ("a: !!binary aGk=", "the tag"),
        ("a: !!timestamp 2020-01-01", "the tag"),
        ("!!set {a}", "the tag"),
        ("a: !mine 1", "the tag !mine"),
        ("a:\n\tb: 1", "f:2: found character"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: [1", "expected ',' or ']'"),
        ("a: \x01", "special characters"),
        ("a: " + "9" * 5000, "f:1: cannot read"),
        ('a: "\\ud800"', "f:1: cannot read"),
        ('a: "\\0"', "f:1: cannot read"),
        ('"\\0": 1', "f:1: cannot read"),
        ("[" * 100_000, "nested too deep"),
        ("- " * 3000, "nested too deep"),
        ("{a: " * 3000, "nested too deep"),
    ],
)
def test_hostile_text_is_refused_at_once(text: str, what: str) -> None:
    start = time.process_time()
    with pytest.raises(ConfigError, match=what) as refused:
        parse_yaml(text, "f")
    assert refused.value.hint
    assert time.process_time() - start < 1


def test_numbers_are_those_of_yaml_1_2() -> None:
    text = "[3e-4, 1e3, .5, 010, 0o7, 0x1f, 12:30, 1_000, on, True, ~, 2024-01-01, -7]"
    assert parse_yaml(text, "x")[0] == [
        3e-4, 1e3, 0.5, "010", "0o7", "0x1f", "12:30", "1_000", "on", True, None, "2024-01-01", -7,
    ]  # fmt: skip


def test_only_regular_utf8_files_of_a_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes("# café".encode("latin-1"))
    (tmp_path / "large").write_bytes(b"a: 1\n" * 300_000)
    (tmp_path / "empty").touch()
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    for name, what in (
        ("pipe", "a folder or a device"), (".", "a folder or a device"), ("latin", "not UTF-8"),
        ("large", "larger than 1 MB"), ("none", "No such file"), ("latin/x", "Not a directory"),
        ("n" * 300, "too long"),
    ):  # fmt: skip
        with pytest.raises((ConfigError, OSError), match=what):
            read_yaml(tmp_path / name)
    for loader in (load_recipe, load_space):
        with pytest.raises(ConfigError, match="is empty"):
            loader(tmp_path / "empty")
    assert read_yaml(tmp_path / "bom")[0] == {"a": 1}


# ---------------------------------------------------------------------------------------------------- paths


@given(LOCATIONS)
@settings(max_examples=100)
def test_a_path_comes_back(location: tuple[str | int, ...]) -> None:
    assert split_path(join_path(location)) == location


@pytest.mark.parametrize(
    "path", ["", ".", "a.", ".a", "a..b", "a[", "a[]", "a[-1]", "a[x]", "[0]", "a b", "a[٣]", "é", "a\n", "a[0]b", "1a"]
)
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="is not a path"):
        split_path(path)


@given(LOCATIONS, st.integers())
@settings(max_examples=60)
def test_a_value_is_found_where_it_was_put(location: tuple[str | int, ...], value: int) -> None:
    location = tuple(part % 3 if isinstance(part, int) else part for part in location)
    data: Any = 0
    for part in reversed(location):
        data = {part: data} if isinstance(part, str) else [data if i == part else None for i in range(part + 1)]
    set_path(data, join_path(location), value)
    assert get_path(data, join_path(location)) == value


@given(
    NAMES.filter(lambda n: n not in {"true", "null"}), st.integers() | st.floats(allow_nan=False) | st.booleans() | TEXT
)
@settings(max_examples=60)
def test_set_reads_what_dump_writes(name: str, value: Any) -> None:
    data = {"a": [{}]}
    apply_settings(data, [f"a[0].{name}={dump_yaml(value)}"])
    assert data == {"a": [{name: value}]}


@pytest.mark.parametrize(
    ("setting", "error", "what"),
    [
        ("stages[9].width=1", ConfigError, r"--set stages\[9\]\.width: stages has only 4"),
        ("stages[9]=1", ConfigError, "has only 4"),
        ("stages.x=1", ConfigError, "stages is a list"),
        ("stages[0].width.x=1", ConfigError, r"stages\[0\]\.width is a single value"),
        ("stages[0][0]=1", ConfigError, r"stages\[0\]"),
        ("nope.x=1", ConfigError, "--set nope.x: no such key"),
        ("stages[0].width=[1", ConfigError, r"--set stages\[0\]\.width:1: expected"),
        ("a..b=1", UsageError, "not a path"),
        ("=", UsageError, "not a path"),
        ("", UsageError, "no '='"),
        ("stages[0].width", UsageError, "no '='"),
    ],
)
def test_nonsense_settings_are_refused(setting: str, error: type[VigError], what: str) -> None:
    with pytest.raises(error, match=what) as refused:
        apply_settings(VARIANTS["mobilevigv2_ti"].model_dump(mode="json"), [setting])
    assert refused.value.hint or "nope" in setting


def test_a_complaint_is_the_files_or_that_of_set(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(find_file("recipe", "emoji10").read_text())
    with pytest.raises(ConfigError, match=r"^--set: epochs: must be an integer"):
        load_recipe(path, ("epochs=1.5",))
    path.write_text(path.read_text().replace("epochs: 5", "epochs: 5.0"))
    with pytest.raises(ConfigError, match=r"r\.yaml:\d+: epochs: must be an integer"):
        load_recipe(path, ("epochs=1.5",))


# ---------------------------------------------------------------------------------------------------- complaints

RECIPE = "arch: mobilevigv2_ti\nepochs: 50\nbatch_size: 8\noptimizer: {lr: 1e-3}\n"
KNOWN = ", ".join(f"'{family}'" for family in (*FAMILIES, "timm"))
STAGES = "{local_depth: 1, width: 8}, " * 3


@pytest.mark.parametrize(
    ("old", "new", "what", "hint"),
    [
        ("epochs", "epocs", "f:2: epocs: unknown key (and 1 more).", "Did you mean 'epochs'?"),
        ("{lr:", "{Lr:", "f:4: optimizer.Lr: unknown key (and 1 more).", "Did you mean 'lr'?"),
        ("50", '"50"', 'f:2: epochs: must be an integer, not "50".', "Write a whole number, without quotes."),
        ("50", "1e400", "f:2: epochs: must be an integer, not Infinity.", "Write a whole number, without quotes."),
        ("50", "true", "f:2: epochs: must be an integer, not true.", "Write a whole number, without quotes."),
        ("50", "9" * 20, f"f:2: epochs: must be less than or equal to 10000, not {'9' * 20}.", "Change the value."),
        ("1e-3", ".nan", "f:4: optimizer.lr: must be a finite number, not NaN.", "Change the value."),
        ("{lr: 1e-3}", "3", "f:4: optimizer: must be a mapping, not 3.", "Write key: value."),
        ("50", "20", "f:1: warm-up and cool-down leave no epoch to train.", "Shorten them, or train for more epochs."),
        ("_ti", "_tu", "f:1: arch: 'mobilevigv2_tu' is no known network.", "Did you mean 'mobilevigv2_ti'?"),
        ("mobilevigv2_ti", "{family: x}", "f:1: arch: unknown 'family'.", f"Known: {KNOWN}."),
        ("mobilevigv2_ti", "{a: 1}", "f:1: arch: 'family' is missing.", "Say which kind it is."),
        (
            "mobilevigv2_ti", "timm:a/b", 'f:1: arch: timm:a/b: name: "a/b" does not match ^[a-zA-Z0-9_.]+$.',
            "Check the spelling.",
        ),
        (
            "mobilevigv2_ti", f"{{family: mobilevigv2, stages: [{STAGES}{{local_depth: 1, widht: 8}}]}}",
            "f:1: arch.stages[3].widht: unknown key (and 1 more).", "Did you mean 'width'?",
        ),
        (
            "mobilevigv2_ti", f"{{family: mobilevigv2, stages: [{STAGES}]}}",
            "f:1: arch.stages: must have at least 4 items, not 3.", "Add or remove some.",
        ),
        (
            "50", "50\nresolution: 64", "f:1: K = 8 on a grid of 8 links every token to itself alone (stages[1]).",
            "Take 96 px, or another reach.",
        ),
        (
            "50", "50\nresolution: 250",
            "f:1: resolution = 250 is no multiple of 32, the stride of the last feature map.", "Take 224 or 256.",
        ),
        (
            "mobilevigv2_ti", "mobilevit_s\nresolution: 224",
            "f:1: stages[4].patch = 2 does not divide its feature map of 7 x 7 (resolution 224).",
            "Take resolution 256, another patch, or resample: true.",
        ),
    ],
)  # fmt: skip
def test_a_complaint_says_where_what_and_how_to_mend_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, what: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert RECIPE.count(old) == 1
    Path("f").write_text(RECIPE.replace(old, new))
    with pytest.raises(ConfigError) as refused:
        load_recipe("f")
    assert (str(refused.value), refused.value.hint) == (what, hint)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("stages[1].reach", "stages[1].raech", r":18: genes: stages\[1\]\.raech: no such key"),
        ("stages[1].reach", "stages[7].reach", r":18: genes: stages\[7\]\.reach: stages has only 4"),
        ("stages[1].reach", "stages[1]..reach", r":18: genes: 'stages\[1\]\.\.reach' is not a path"),
        ("[4, 6, 8]", "[4, x]", r":18: genes: stages\[1\]\.reach: must be an integer, not \"x\""),
        ("[4, 6, 8]", "[4, 4]", ":18: .*stands twice"),
        ("[4, 6, 8]", "[]", r":18: genes\.stages\[1\]\.reach: must have at least 1"),
        ("base: mobilevigv2_s", "base: nope", ":10: base: 'nope' is no known network"),
        ("base: mobilevigv2_s", "base: timm:resnet18", ":10: base: a network of timm"),
        ("mobilevigv2_b]", "nope]", r":33: trained_shapes\.variants\[3\]: 'nope' is no known"),
        ("mobilevigv2_b]", "timm:resnet18]", ":32: trained_shapes: timm:resnet18 is of another family"),
    ],
)
def test_a_space_is_checked_when_it_is_loaded(tmp_path: Path, old: str, new: str, what: str) -> None:
    text = find_file("space", "mobilevigv2").read_text()
    assert text.count(old) == 1
    (tmp_path / "s.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=what) as refused:
        load_space(tmp_path / "s.yaml")
    assert refused.value.hint


# ---------------------------------------------------------------------------------------------------- built-in files


def test_built_in_names_have_no_path_tricks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = find_file("recipe", "v2_s")
    for name in ("v2_s.yaml", "recipes/v2_s.yaml", "recipes/v2_s", "./v2_s"):
        assert find_file("recipe", name) == expected
    for name in ("/v2_s", "/no/recipes/v2_s.yaml", "../v2_s", "v2_s.txt", "", ".", "..", "v2_s.yaml/x", "tables/v2_s"):
        with pytest.raises(ConfigError) as refused:
            find_file("recipe", name)
        assert refused.value.hint
    Path("v2_s").write_text("mine")
    assert find_file("recipe", "v2_s") == Path("v2_s")


def test_plain_yaml_reads_what_is_dumped() -> None:
    data = {"a": [1, 2.5, "x", None, True]}
    assert yaml.safe_load(dump_yaml(data)) == data

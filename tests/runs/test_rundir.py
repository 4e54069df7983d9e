"""Run directories: numbered, never shared, gone when nothing came of them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vigcli.config.load import read_yaml
from vigcli.errors import ConfigError, UsageError, VigError
from vigcli.runs.provenance import provenance, sha256
from vigcli.runs.rundir import RECIPE_FILE, RUN_FILE, new_run, newest, write_run_file


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fail(error: BaseException, folder: str | None = None, result: str | None = None) -> None:
    with new_run("train", folder) as run:
        write_run_file(run, {})
        (run / (result or RECIPE_FILE)).touch()
        raise error


def make(job: str, folder: str | None = None) -> Path:
    with new_run(job, folder) as run:
        (run / "x").touch()
    return run


def test_numbers_go_on_after_the_greatest() -> None:
    assert [str(make("train")), str(make("export"))] == ["runs/0001-train", "runs/0002-export"]
    for name in ("0041-search", "12345-train", "99-old", "٩٩٩٩٩٩-train", "notes"):
        Path("runs", name).mkdir()
    assert str(make("train")) == "runs/12346-train"


def test_no_two_share_a_directory() -> None:
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(make, ["train"] * 24))
    assert len(set(runs)) == 24


def test_a_failed_run_that_holds_nothing_is_gone(tmp_path: Path) -> None:
    for folder in (None, "a/b"):
        with pytest.raises(KeyboardInterrupt):
            fail(KeyboardInterrupt(), folder)
        assert os.listdir(tmp_path) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="x"):
        fail(ValueError("x"), "mine")
    assert os.listdir(tmp_path) == ["mine"], "a folder that was there stays"


def test_a_failed_run_that_holds_a_result_stays() -> None:
    with pytest.raises(ValueError, match="x"):
        fail(ValueError("x"), result="state.safetensors")
    assert sorted(os.listdir("runs/0001-train")) == [RUN_FILE, "state.safetensors"]


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    make("train", "mine")
    with pytest.raises(UsageError, match="not empty"):
        make("train", "mine")
    for place in ("mine/x", "/proc/nothing/run"):
        with pytest.raises(VigError, match="cannot make a run directory"):
            make("train", place)
    (tmp_path / "runs").touch()
    with pytest.raises(VigError, match="cannot make a run directory"):
        make("train")


def test_the_newest_is_by_time_not_by_number() -> None:
    for job, age in (("one", 30), ("two", 10), ("three", 20)):
        path = make(job) / "c.safetensors"
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    assert newest(["*/c.safetensors"], "checkpoint", "hint").parent.name == "0002-two"
    with pytest.raises(ConfigError, match=r"runs/: holds no package\.") as missing:
        newest(["*/*.mlpackage"], "package", "Make one.")
    assert missing.value.hint == "Make one."


def test_a_run_says_where_it_comes_from() -> None:
    with new_run("train") as run:
        write_run_file(run, provenance(["vig", "train", "a: b"], 3, "config", ["c0ffee"]))
    record, _ = read_yaml(run / RUN_FILE)
    assert record["argv"] == ["vig", "train", "a: b"]
    assert record["seed"] == 3
    assert record["parents"] == ["c0ffee"]
    assert {"vig", "python", "torch"} <= set(record["versions"])


def test_the_hash_of_a_folder_is_of_names_and_contents(tmp_path: Path) -> None:
    hashes = set()
    for name, content in (("a", "1"), ("b", "1"), ("b", "2")):
        folder = tmp_path / f"{name}{content}"
        folder.mkdir()
        (folder / name).write_text(content)
        hashes.add(sha256(folder))
    assert len(hashes) == 3

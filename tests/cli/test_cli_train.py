"""`vig train`: what it leaves, and what it says before the first step of what cannot be trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tiny
from PIL import Image
from trainings import TINY, recipe

from vigcli.archs.checkpoint import load_checkpoint, save_checkpoint
from vigcli.cli.main import main
from vigcli.config.load import dump

if TYPE_CHECKING:
    from conftest import Vig

QUICK = ["--device", "cpu", "--set", "data.workers=0"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of three pictures in each split."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("cat", "dog", "eel"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for i in range(3):
                pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / label / f"{i}.png")
    return tmp_path


def write_recipe(folder: Path, **changes: Any) -> None:
    arch = TINY.changed({"num_classes": 3}).model_dump(mode="json")
    plain = {"num_classes": 3, "arch": arch, "epochs": 1, "schedule": {"warmup_epochs": 0}, "augment": {},
             "data": {"source": "folder", "root": str(folder / "data"), "workers": 0}}  # fmt: skip
    (folder / "r.yaml").write_text(dump(recipe(**plain | changes)))


def test_what_a_run_leaves(vig: Vig, folder: Path) -> None:
    write_recipe(folder)
    (folder / "data/train/cat/0.png").write_bytes(b"")
    result = json.loads(vig("train", "r.yaml", "-o", "run", "--json", *QUICK))
    assert {path.name for path in (folder / "run").iterdir()} == {
        "checkpoint.safetensors", "confusion.png", "curves.png", "history.json", "log.jsonl", "recipe.yaml", "run.yaml",
        "state.safetensors",
    }  # fmt: skip
    assert Image.open(folder / "run/confusion.png").format == "PNG"
    assert [Path(name).name for name in result["damaged"]] == ["0.png"]
    lines = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    assert lines[0].keys() == {"step", "epoch", "loss", "lr", "resolution", "images_per_s"}
    assert lines[-1]["val_top1_percent"] == result["history"][-1]["val_top1_percent"]
    assert load_checkpoint(folder / "run/checkpoint.safetensors").meta.labels == ("cat", "dog", "eel")


def test_tensorboard(vig: Vig, folder: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_recipe(folder)
    vig("train", "r.yaml", "-o", "run", "--tensorboard", *QUICK)
    events = reading.EventAccumulator(str(folder / "run/tensorboard"))
    events.Reload()
    tags = {"step/loss", "step/lr", "step/images_per_s", "epoch/train_loss", "epoch/val_top1_percent"}
    assert set(events.Tags()["scalars"]) == tags


def test_tensorboard_that_is_not_there(vig: Vig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    write_recipe(folder)
    vig("train", "r.yaml", "-o", "run", "--tensorboard", *QUICK, code=6)
    assert not (folder / "run").exists()


def _no_pictures(folder: Path) -> None:
    for path in (folder / "data/train").rglob("*.png"):
        path.unlink()


def _one_class(folder: Path) -> None:
    for split in ("train", "val"):
        for label in ("dog", "eel"):
            (folder / "data" / split / label).rename(folder / f"{split}{label}")


def _another_class_in_val(folder: Path) -> None:
    (folder / "data/val/eel").rename(folder / "data/val/elk")


def _teacher(folder: Path) -> None:
    config = TINY.changed({"num_classes": 7})
    save_checkpoint(folder / "teacher.safetensors", *tiny.checkpoint(config=config))


MISTAKES: list[Any] = [
    (_no_pictures, [], 3, "holds no picture", "fill it"),
    (_one_class, [], 3, "holds one class alone, 'cat'", "another class"),
    (_another_class_in_val, [], 3, "not the expected ones (missing: eel; unknown: elk)", "Name the folder"),
    (None, ["arch=mobilevigv2_ti", "num_classes=5"], 3, "holds 3 classes, but the network has 5", "num_classes=3"),
    (_teacher, ["distillation={teacher: teacher.safetensors}"], 3, "this teacher's 7 classes are not", "Fine-tune it"),
    (None, ["data.workers=64"], 3, "data.workers: 64 are more than this machine's", "--set data.workers="),
    (None, ["arch=mobilevigv2_ti", "resolution=64"], 3, "links every token to itself alone", "Take 96 px"),
    (None, ["multiscale=[64, 96]"], 3, "multiscale: 64 px", "Leave out 64"),
    (None, ["weights=none.safetensors"], 6, "none.safetensors: no such file of weights", "weights"),
    (None, ['freeze=["stages[9]"]'], 3, "no part 'stages[9]'", "stages"),
    (None, ["batch_size=1"], 3, "too few for a step", "batch_size"),
]  # fmt: skip


@pytest.mark.parametrize(("prepare", "settings", "code", "what", "hint"), MISTAKES, ids=[row[3] for row in MISTAKES])
def test_mistakes_are_said_before_the_first_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    prepare: Any, settings: list[str], code: int, what: str, hint: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    write_recipe(folder)
    if prepare is not None:
        prepare(folder)
    with pytest.raises(SystemExit) as stop:
        main(["train", "r.yaml", *(word for setting in settings for word in ("--set", setting)), "--device", "cpu"])
    error = capsys.readouterr().err
    assert stop.value.code == code, error
    first, second = error.splitlines()
    assert what in first
    assert hint in second
    assert not (folder / "runs").exists()


def test_the_plan_of_a_multiscale_run(vig: Vig, folder: Path) -> None:
    write_recipe(folder, multiscale=[96, 160], batch_size=6)
    plan = json.loads(vig("train", "r.yaml", "--dry-run", "--json"))["plan"]
    assert plan["images_per_step"] == "6 or 2"


def test_what_is_resumed_must_be_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("none", "data"):
        with pytest.raises(SystemExit) as stop:
            main(["train", "--resume", str(folder / name)])
        assert stop.value.code == 3
        assert "is no folder of a training run" in capsys.readouterr().err


@pytest.mark.parametrize(("gpus", "device", "what"), [
    (4, "auto", "8 processes want a GPU each, and this machine has 4"),
    (8, "cuda:1", "--device cuda:1: several processes train on cpu, or on cuda with a GPU for each"),
])  # fmt: skip
def test_processes_want_a_gpu_each(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gpus: int, device: str, what: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    write_recipe(folder)
    with pytest.raises(SystemExit) as stop:
        main(["train", str(folder / "r.yaml"), "--nproc", "8", "--device", device])
    assert stop.value.code == 6
    assert what in capsys.readouterr().err

"""`vig run`: what is picked when little is named, the numbers, and pictures that cannot be read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from vigcli.archs.checkpoint import save_checkpoint
from vigcli.cli.main import main
from vigcli.config.recipe import Preprocessing
from vigcli.coreml.convert import export
from vigcli.coreml.interpreter import Program
from vigcli.train.preprocess import eval_pixels

pytest.importorskip("coremltools", exc_type=ImportError)
Vig = Callable[..., str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/ with a checkpoint and its package."""
    runs = tmp_path_factory.mktemp("made") / "runs"
    checkpoint = tiny.checkpoint()
    for name in ("0001-train", "0002-export"):
        (runs / name).mkdir(parents=True)
    save_checkpoint(runs / "0001-train" / "checkpoint.safetensors", *checkpoint)
    export(checkpoint, "ab" * 32, runs / "0002-export" / "fp16.mlpackage")
    return runs


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """The same runs, and pictures beside them."""
    shutil.copytree(made, tmp_path / "runs")
    (tmp_path / "many").mkdir()
    for i, name in enumerate(("a.png", "many/b.png", "many/c.jpg")):
        Image.fromarray(tiny.pixels(1, seed=i, size=120)[0].byte().permute(1, 2, 0).numpy()).save(tmp_path / name)
    return tmp_path / "runs"


@pytest.mark.usefixtures("runs")
def test_the_newest_is_taken_and_gives_the_package_s_probabilities(vig: Vig, tmp_path: Path) -> None:
    answer = json.loads(vig("run", "a.png", "--top", "10", "--json"))
    assert answer["subject"] == "runs/0002-export/fp16.mlpackage"
    assert answer["ran_by"] == "vig's interpreter (torch), not Apple's runtime"
    assert not answer["preprocessing_is_a_guess"]
    found = answer["pictures"][0]["top"]
    pixels = eval_pixels([Image.open(tmp_path / "a.png")], Preprocessing(), 96)
    expected = Program.load(tmp_path / answer["subject"]).predict(pixels.float())[0]
    by_class = sorted(found, key=lambda entry: entry["class"])
    assert [entry["label"] for entry in by_class] == list(tiny.LABELS)
    torch.testing.assert_close(torch.tensor([entry["probability"] for entry in by_class]), expected)
    probabilities = [entry["probability"] for entry in found]
    assert probabilities == sorted(probabilities, reverse=True)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("subject", ["runs/0001-train", "runs/0001-train/checkpoint.safetensors"])
def test_a_checkpoint_gives_nearly_the_same(vig: Vig, subject: str) -> None:
    network, package = (
        json.loads(vig("run", name, "a.png", "many", "--top", "1", "--json")) for name in (subject, "runs/0002-export")
    )
    assert network["ran_by"].startswith("torch ")
    for ours, theirs in zip(network["pictures"], package["pictures"], strict=True):
        assert ours["picture"] == theirs["picture"]
        assert ours["top"][0]["label"] == theirs["top"][0]["label"]
        assert ours["top"][0]["probability"] == pytest.approx(theirs["top"][0]["probability"], abs=0.01)


@pytest.mark.usefixtures("runs")
def test_a_table_of_many(vig: Vig) -> None:
    lines = vig("run", "runs/0002-export/fp16.mlpackage", "many", "a.png", "--top", "2").splitlines()
    assert lines[0].split() == ["picture", "class", "probability"]
    assert [line.split()[0] for line in lines[1:]] == [*["many/b.png"] * 2, *["many/c.jpg"] * 2, *["a.png"] * 2]


@pytest.mark.usefixtures("runs")
def test_a_picture_that_cannot_be_read_costs_itself_alone(
    vig: Vig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "many" / "bad.png").write_bytes(b"no picture")
    answer = json.loads(vig("run", "many", "--json", code=3))
    assert [record["picture"] for record in answer["pictures"]] == ["many/b.png", "many/c.jpg"]
    assert vig("run", "many/bad.png", code=3) == ""


@pytest.mark.usefixtures("runs", "vig")
def test_what_is_neither_a_picture_nor_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "old.mlmodel").write_bytes(b"")
    (tmp_path / "net.onnx").write_bytes(b"")
    for line, code, said in (
        (("run", "notes.txt", "a.png"), 2, "notes.txt: is neither a picture nor what could be run on one."),
        (("run", "fp16.mlpackge", "a.png"), 2, "fp16.mlpackge: does not exist: it is no picture"),
        (("run", "old.mlmodel", "a.png"), 3, "is a CoreML model in one file, not an .mlp"),
        (("verify", "runs/0001-train/checkpoint.safetensors"), 3, "is a file of weights, not an .mlpackage."),
        (("export", "runs/0002-export/fp16.mlpackage"), 3, "is a CoreML package, not a checkpoint."),
        (("profile", "net.onnx"), 3, "is an ONNX file, not a checkpoint."),
        (("profile", "none.mlpackage"), 3, "none.mlpackage: does not exist."),
        (("export", "runs/0001-train", "--data", "nope", "--dry-run"), 6, "nope/train: no such folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(line)
        error = capsys.readouterr().err
        assert stop.value.code == code, error
        assert said in error


@pytest.mark.usefixtures("runs", "vig")
def test_a_device_moves_no_package_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "runs/0002-export", "a.png", "--device", "cuda"])
    assert "--device cuda is of checkpoints" in capsys.readouterr().err


@pytest.mark.usefixtures("runs")
def test_a_picture_is_seen_upright(vig: Vig, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    image = Image.open(tmp_path / "a.png")
    image.rotate(180).save(tmp_path / "turned.png", exif=exif.tobytes())
    first, second = json.loads(vig("run", "a.png", "turned.png", "--json"))["pictures"]
    assert first["top"] == second["top"]

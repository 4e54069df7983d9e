"""`vig eval`: the same figures as by hand, several subjects on the same pictures, and classes by their names."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file

from vigcli.archs import build
from vigcli.archs.checkpoint import Checkpoint, save_checkpoint
from vigcli.archs.external import native_preprocessing
from vigcli.config.recipe import Data
from vigcli.coreml.convert import export
from vigcli.coreml.interpreter import Program
from vigcli.errors import ConfigError
from vigcli.paths import embedded
from vigcli.train.data import load_split, open_data
from vigcli.train.intervals import paired_difference, wilson_percent

pytest.importorskip("coremltools", exc_type=ImportError)
Vig = Callable[..., str]
LIMIT = 64


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows emoji10's classes, in another order than their folders', and its package."""
    folder = tmp_path_factory.mktemp("made")
    labels = open_data(Data(source="emoji10"), "val").labels
    model, meta = tiny.checkpoint()
    checkpoint = Checkpoint(model, meta.model_copy(update={"labels": labels[::-1]}))
    save_checkpoint(folder / "net.safetensors", *checkpoint)
    export(checkpoint, "ab" * 32, folder / "fp16.mlpackage")
    return folder


def test_figures_are_those_by_hand(vig: Vig, made: Path) -> None:
    answer = json.loads(vig("eval", str(made / "fp16.mlpackage"), "--limit", str(LIMIT), "--json"))
    (found,) = answer["subjects"]
    pixels, labels = load_split(Data(source="emoji10"), "val", tiny.checkpoint().meta.preprocessing, 96, LIMIT)
    scores = Program.load(made / "fp16.mlpackage").predict(pixels.float()).flip(1)  # in the order of the folders
    order = scores.argsort(dim=1, descending=True, stable=True)
    right = order[:, 0] == labels
    assert (answer["data"], answer["num_images"]) == ("emoji10.zip", LIMIT)
    assert found["ran_by"] == "vig's interpreter (torch), not Apple's runtime"
    assert found["top1_percent"] == pytest.approx(100 * float(right.double().mean()), abs=0.01)
    assert found["top1_interval_95"] == pytest.approx(wilson_percent(int(right.sum()), LIMIT), abs=0.01)
    top5 = (order[:, :5] == labels[:, None]).any(1)
    assert found["top5_percent"] == pytest.approx(100 * float(top5.double().mean()), abs=0.01)
    names = open_data(Data(source="emoji10"), "val").labels
    assert [entry["label"] for entry in found["classes"]] == list(names)
    assert sum(entry["num_images"] for entry in found["classes"]) == LIMIT
    pairs = {(names[c], names[p]) for c, p in zip(labels.tolist(), order[:, 0].tolist(), strict=True) if c != p}
    assert {(c, p) for c, p, _ in found["confusions"]} == pairs
    assert sum(count for *_, count in found["confusions"]) == LIMIT - int(right.sum())
    assert found["images_per_s"] > 0


def test_two_are_compared_on_the_same_pictures(vig: Vig, made: Path) -> None:
    subjects = [str(made / "net.safetensors"), str(made / "fp16.mlpackage")]
    first, second = json.loads(vig("eval", *subjects, "--limit", str(LIMIT), "--json"))["subjects"]
    assert "agreement_percent" not in first
    assert second["agreement_percent"] > 90
    points, low, high = second["difference_points_95"]
    assert points == pytest.approx(second["top1_percent"] - first["top1_percent"], abs=0.02)
    assert low <= points <= high
    same = json.loads(vig("eval", subjects[0], subjects[0], "--limit", str(LIMIT), "--json"))["subjects"][1]
    right = (torch.arange(LIMIT) < 3).numpy()
    assert same["agreement_percent"] == 100
    assert same["difference_points_95"] == pytest.approx(list(paired_difference(right, right)), abs=0.01)
    text = vig("eval", *subjects, "--limit", "20")
    assert "points against the first" in text
    assert "taken for" not in text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Some pictures of two of the classes."""
    with zipfile.ZipFile(embedded("emoji10.zip")) as file:
        for kind in ("face", "flag"):
            for name in [name for name in file.namelist() if name.startswith(f"val/{kind}/")][:6]:
                file.extract(name, tmp_path / "data")
    return tmp_path / "data"


def test_pictures_of_some_classes_are_enough(vig: Vig, made: Path, folder: Path) -> None:
    (found,) = json.loads(vig("eval", str(made / "net.safetensors"), "--data", str(folder), "--json"))["subjects"]
    assert [(entry["label"], entry["num_images"]) for entry in found["classes"]] == [("face", 6), ("flag", 6)]
    (folder / "val" / "flag").rename(folder / "val" / "flagge")
    vig("eval", str(made / "net.safetensors"), "--data", str(folder), code=3)


def test_a_corrupt_picture_is_named(vig: Vig, made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = next((folder / "val" / "face").iterdir())
    file.write_bytes(b"no picture")
    vig("eval", str(made / "net.safetensors"), "--data", str(folder), code=3)


def test_tables_of_one(vig: Vig, made: Path) -> None:
    text = vig("eval", str(made / "net.safetensors"), "--limit", "40")
    for part in ("40 pictures of emoji10.zip, measured", "top-1 % (95 %) by class", "Most often confused", "images/s"):
        assert part in text


def test_a_network_of_timm_wants_a_file(vig: Vig, folder: Path, tmp_path: Path) -> None:
    """Its 1,000 classes have no names here: folders must be as many, which these are not."""
    vig("eval", "timm:mobilenetv3_small_050", code=6)
    weights = tmp_path / "weights.safetensors"
    save_file(build("timm:mobilenetv3_small_050").state_dict(), weights)
    vig("eval", "timm:mobilenetv3_small_050", "--weights", str(weights), "--data", str(folder), code=3)
    vig("eval", "timm:mobilenetv3_small_075", "--weights", str(weights), "--data", str(folder), code=3)
    vig("eval", "timm:mobilenetv3_smal_075", "--weights", str(weights), "--data", str(folder), code=3)
    for i in range(998):
        (folder / "val" / f"x{i}").symlink_to(folder / "val" / "face")
    answer = vig("eval", "timm:mobilenetv3_small_050", "--weights", str(weights), "--data", str(folder),
                 "--limit", "2", "--json")  # fmt: skip
    assert json.loads(answer)["subjects"][0]["preprocessing"]["crop_ratio"] == 0.875


def test_timm_s_own_preparation() -> None:
    assert native_preprocessing("dla34").interpolation == "bilinear"
    assert native_preprocessing("vit_base_patch16_224").mean == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match="takes no centre crop"):
        native_preprocessing("volo_d4_448")

"""`vig verify`: where the checkpoint is found, which pictures are run, what is written, and how it ends."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import faults
import pytest
import tiny
import torch
from PIL import Image

from vigcli.archs.checkpoint import save_checkpoint
from vigcli.coreml.convert import export
from vigcli.coreml.interpreter import Program
from vigcli.coreml.verify import MIN_INPUTS
from vigcli.runs.provenance import sha256
from vigcli.train.pictures import read_picture
from vigcli.train.preprocess import eval_pixels

pytest.importorskip("coremltools", exc_type=ImportError)
Vig = Callable[..., str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, and its fp16 package beside it."""
    folder = tmp_path_factory.mktemp("made")
    checkpoint = tiny.checkpoint()
    save_checkpoint(folder / "net.safetensors", checkpoint.model, checkpoint.meta)
    export(checkpoint, sha256(folder / "net.safetensors"), folder / "net.mlpackage")
    return folder


@pytest.fixture
def jpeg(tmp_path: Path) -> Path:
    """A picture that is not square and has no sharp edges."""
    pixels = tiny.pixels(1, seed=3, size=200)[0, :, :, :150].to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).resize((300, 400)).save(tmp_path / "cat.jpg", quality=95)
    return tmp_path / "cat.jpg"


def test_a_picture_and_a_report(made: Path, jpeg: Path, vig: Vig, tmp_path: Path) -> None:
    answer = vig("verify", str(made / "net.mlpackage"), "--images", str(jpeg), "-o", "out", "--json")
    found = json.loads(answer)
    assert found["passed"]
    assert found["checkpoint"] == str(made / "net.safetensors"), "beside the package"
    assert found["num_inputs"] == MIN_INPUTS
    assert "never been compared" in found["note"]
    full = json.loads((tmp_path / "out/verify.json").read_text())
    assert [full["inputs"][0]["name"], full["inputs"][1]["name"]] == [str(jpeg), "emoji10.zip 0"]
    assert full["ops"][0].keys() == {"name", "type", "snr_db", "fp32_snr_db"}
    assert set(full["stages"].values()) == {None}
    page = (tmp_path / "out/verify.html").read_text()
    HTMLParser().feed(page)
    assert page.count("<svg") == 2
    assert all(op["name"].replace("_", "_<wbr>") in page for op in full["ops"])
    assert "argv" in (tmp_path / "out/run.yaml").read_text()


def test_an_edited_package_ends_with_1_and_a_report(made: Path, vig: Vig, tmp_path: Path) -> None:
    path = Path(shutil.copytree(made / "net.mlpackage", tmp_path / "edited.mlpackage"))
    name = faults.minimum_for_maximum(path)
    against = str(made / "net.safetensors")
    answer = json.loads(vig("verify", str(path), "--against", against, "-o", "out", "--json", code=1))
    assert answer["first_divergence"]["name"] == name
    assert not answer["passed"]
    full = json.loads((tmp_path / "out/verify.json").read_text())
    assert full["stages"]["graph"] == answer["first_divergence"]
    assert name in (tmp_path / "out/verify.html").read_text()
    assert "DIVERGES" in vig("verify", str(path), "--against", against, code=1)


def test_pictures_are_prepared_as_the_package_says_and_as_timm_does(made: Path, jpeg: Path) -> None:
    """By nothing but the sentence of the package, and Pillow."""
    checkpoint = tiny.checkpoint()
    text = Program.load(made / "net.mlpackage").metadata["preprocessing"]
    told = re.match(r"resize the short side to (\d+) px \((\w+)\), centre crop (\d+) x (\d+), RGB, 0 to 255", text)
    assert told is not None
    short, size = int(told[1]), int(told[3])
    with Image.open(jpeg) as picture:
        scale = short / min(picture.size)
        width, height = (int(side * scale) for side in picture.size)
        picture = picture.convert("RGB").resize((width, height), Image.Resampling[told[2].upper()])
        left, top = round((width - size) / 2), round((height - size) / 2)
        own = picture.crop((left, top, left + size, top + size))
    pixels = torch.frombuffer(bytearray(own.tobytes()), dtype=torch.uint8).reshape(size, size, 3).permute(2, 0, 1)
    by_timm = eval_pixels([read_picture(jpeg, "cat.jpg")], checkpoint.meta.preprocessing, size)[0]
    assert torch.equal(pixels, by_timm)

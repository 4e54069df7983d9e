"""`vig export`: what it prints, writes and refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

from vigcli.archs.checkpoint import load_checkpoint, save_checkpoint
from vigcli.cli.load import checkpoint_of
from vigcli.cli.main import main
from vigcli.config.package import PackageMeta
from vigcli.coreml.convert import package_meta
from vigcli.coreml.interpreter import Program
from vigcli.runs.provenance import sha256

pytest.importorskip("coremltools", exc_type=ImportError)
Vig = Callable[..., str]

DRY = """\
would write  there/model.onnx
runs on      ONNX Runtime
precision    fp32
input        image: tensor, 2 x 3 x 96 x 96, RGB
             resize the short side to 106 px (bicubic), centre crop 96 x 96, RGB, 0 to 255; normalization is inside
outputs      stride4: 2 x 8 x 24 x 24; stride8: 2 x 16 x 12 x 12; stride16: 2 x 16 x 6 x 6; stride32: 2 x 16 x 3 x 3
licence      Weights: trained on drawn; no licence is stated.
"""
WRITTEN = """\
package        there/fp16.mlpackage
size           * kB
runs on        iOS 17 and later
precision      fp16; all results in range on 16 pictures
input          image: image, 1 x 3 x 96 x 96, RGB
               resize the short side to 106 px (bicubic), centre crop 96 x 96, RGB, 0 to 255; normalization is inside
outputs        classLabel: the likeliest class; classLabel_probs: the probability of every class
classes        10: kind 0, kind 1, kind 2, kind 3, kind 4, kind 5, kind 6, kind 7, kind 8, kind 9
licence        Weights: trained on drawn; no licence is stated.
operations     *, of which gather 0, topk 0
Neural Engine  no operation that is reported to leave it; `vig profile PACKAGE` has them all
checkpoint     net.safetensors (sha256 *)
Next:  vig verify there/fp16.mlpackage --against net.safetensors
"""


@pytest.fixture
def net(vig: Vig, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "net.safetensors", *tiny.checkpoint())
    return Path("net.safetensors")


def test_what_would_be_written_is_said_and_nothing_is(vig: Vig, net: Path, tmp_path: Path) -> None:
    assert vig("export", str(net), "--target", "onnx", "--features", "--batch", "2", "--dry-run", "-o", "there") == DRY
    assert "would write  fp16.mlpackage in a new run in runs/\n" in vig("export", str(net), "--dry-run")
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_what_was_written_is_said(vig: Vig, net: Path, tmp_path: Path) -> None:
    said = vig("export", str(net), "--target", "ios17", "-o", "there")
    assert re.sub(r"[\d.]+(?= kB)|(?<=sha256 )\w+|(?<=operations     )\d+", "*", said) == WRITTEN
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["fp16.mlpackage", "run.yaml"]


@pytest.mark.parametrize("options", [
    ("--target", "ios18", "--precision", "fp32", "--input", "tensor", "--batch", "3", "--logits"), ("--features",), (),
], ids=" ".join)  # fmt: skip
def test_the_package_is_what_was_asked_for(vig: Vig, net: Path, options: tuple[str, ...]) -> None:
    answer = json.loads(vig("export", str(net), *options, "--json"))
    program = Program.load(answer["package"])
    meta = package_meta(answer["package"])
    assert PackageMeta.parse(answer["metadata"]) == meta
    assert meta.checkpoint_sha256 == sha256(net)
    assert (meta.precision, meta.minimum_ios) == (answer["precision"], answer["minimum_ios"])
    assert [(f.name, f.shape) for f in program.inputs] == [(answer["input"]["name"], tuple(answer["input"]["shape"]))]
    assert {f.name: list(f.shape or ()) for f in program.outputs} == answer["outputs"]
    assert dict(program.op_counts) == answer["op_counts"]
    assert answer["num_images"] == 16
    if "--logits" in options:
        assert (meta.precision, meta.minimum_ios, meta.input, meta.batch, meta.output) == (
            "fp32", 18, "tensor", 3, "logits",
        )  # fmt: skip


def test_an_onnx_file_for_onnx_runtime(vig: Vig, net: Path) -> None:
    pytest.importorskip("onnxruntime")
    said = vig("export", str(net), "--target", "onnx")
    assert "precision   fp32; ONNX Runtime is " in said
    assert said.endswith("Next:  vig run runs/0001-export/model.onnx PICTURE\n")
    assert Path("runs/0001-export/model.onnx").is_file()


def test_a_network_is_exported_by_its_name_with_drawn_weights(vig: Vig, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "timm:mobilenetv3_small_050"])
    said = capsys.readouterr()
    assert "DRAWN AT RANDOM" in said.err
    assert "precision      fp16; not looked at, for the weights are drawn\n" in said.out
    assert said.out.endswith("Next:  vig verify runs/0001-export/fp16.mlpackage\n")
    package = Path("runs/0001-export/fp16.mlpackage")
    drawn = checkpoint_of(package, package_meta(package).checkpoint_sha256, None)
    assert drawn.parent == package.parent
    assert load_checkpoint(drawn).meta.preprocessing.interpolation == "bicubic"
    vig("quantize", "--int8", code=3)  # drawn weights are not the newest checkpoint


def test_overflow_is_refused_and_leaves_nothing(vig: Vig, net: Path, tmp_path: Path) -> None:
    model, meta = load_checkpoint(net)
    with torch.no_grad():
        model.get_submodule("stages.1.2.0.branch.1.norm").weight.mul_(1e5)  # type: ignore[union-attr, operator]
        model.get_submodule("stages.1.2.0.branch.2.proj.conv").weight.div_(1e5)  # type: ignore[union-attr, operator]
    save_checkpoint("loud.safetensors", model, meta)
    vig("export", "loud.safetensors", code=1)
    assert not (tmp_path / "runs").exists()
    said = vig("export", "loud.safetensors", "--precision", "mixed")
    kept = package_meta("runs/0001-export/mixed.mlpackage").fp32_results
    told = f"{len(kept)} results kept in fp32, from x_1 on"
    assert f"precision      mixed; all results in range on 16 pictures; {told}\n" in said
    assert kept[0] == "x_1"


def test_a_named_network_that_fails_leaves_nothing(vig: Vig, tmp_path: Path) -> None:
    vig("export", "timm:mobilenetv3_small_050", "--data", "nowhere", code=6)
    assert list(tmp_path.iterdir()) == []

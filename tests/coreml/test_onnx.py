"""The ONNX target: what the file says of itself, and that it is torch's network or is not written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from vigcli.archs import backbone
from vigcli.archs.checkpoint import Checkpoint
from vigcli.config.archs import ArchConfig
from vigcli.config.package import Output, PackageMeta
from vigcli.config.recipe import Preprocessing
from vigcli.coreml import onnx as target
from vigcli.coreml.onnx import TOLERANCE, export_onnx
from vigcli.errors import ConfigError, UnavailableError, VigError
from vigcli.train.preprocess import normalize

onnx = pytest.importorskip("onnx", exc_type=ImportError)
onnxruntime = pytest.importorskip("onnxruntime", exc_type=ImportError)
SHA = "ab" * 32
PICTURES = tiny.pixels(4).to(torch.uint8)
CONFIGS = {"static": tiny.CONFIG, "masks and neighbours": tiny.DYNAMIC, "clusters": tiny.CLUSTERED}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(("output", "batch"), [("probabilities", 1), ("features", 3)])
def test_a_network_of_any_kind_is_torchs(config: ArchConfig, output: Output, batch: int, tmp_path: Path) -> None:
    """Also where its features decide: what the runtime decided is what torch is asked for, and a near tie."""
    found = export_onnx(tiny.checkpoint(config=config), SHA, tmp_path / "m.onnx", PICTURES, output=output, batch=batch)
    assert 0 < found.error <= TOLERANCE
    assert found.op_counts["Conv"] > 10
    assert "Constant" not in found.op_counts


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("output", ["logits", "probabilities", "features"])
def test_it_takes_rgb_and_gives_what_it_is_asked_for(output: Output, channels: str, tmp_path: Path) -> None:
    preprocessing = Preprocessing.parse({"mean": (0.3, 0.5, 0.6), "std": (0.1, 0.2, 0.4), "channels": channels})
    made = tiny.checkpoint()
    made = Checkpoint(made.model, made.meta.model_copy(update={"preprocessing": preprocessing}))
    export_onnx(made, SHA, tmp_path / "m.onnx", PICTURES, output=output, batch=2)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    assert [(x.name, x.shape, x.type) for x in session.get_inputs()] == [("image", [2, 3, 96, 96], "tensor(float)")]
    found = session.run(None, {"image": PICTURES[:2].float().numpy()})
    with torch.no_grad():
        x = normalize(PICTURES[:2], preprocessing)
        logits = made.model(x)
        expected = {"logits": [logits], "probabilities": [logits.softmax(1)]}.get(output)
        expected = expected or backbone(tiny.CONFIG, made.model)(x)
    names = ["stride4", "stride8", "stride16", "stride32"] if output == "features" else [output]
    assert [x.name for x in session.get_outputs()] == names
    for value, due in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, due, rtol=1e-3, atol=1e-5)


def test_it_says_what_it_is(tmp_path: Path) -> None:
    made = tiny.checkpoint()
    meta = export_onnx(made, SHA, tmp_path / "m.onnx", PICTURES).meta
    model = onnx.load_model(str(tmp_path / "m.onnx"))
    said = {prop.key: prop.value for prop in model.metadata_props}
    assert PackageMeta.parse(json.loads(said["vig"])) == meta
    assert (meta.precision, meta.input, meta.output, meta.checkpoint_sha256) == ("fp32", "tensor", "probabilities", SHA)
    assert not {"minimum_ios", "fp32_results"} & json.loads(said["vig"]).keys()
    assert json.loads(said["labels"]) == list(tiny.LABELS)
    assert "centre crop 96 x 96, RGB, 0 to 255" in said["preprocessing"]
    assert said["license"]
    assert model.producer_name == "vig"
    assert "mobilevigv2, fp32" in model.doc_string


@pytest.mark.parametrize("factor", [1 + 1e-3, float("nan")])
def test_what_is_not_torchs_is_not_written(factor: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = target.to_onnx

    def damaged(*args: object) -> bytes:
        model = onnx.load_from_string(written(*args))  # type: ignore[arg-type]
        weight = next(x for x in model.graph.initializer if len(x.dims) == 4 and x.dims[2] == 3)
        value = onnx.numpy_helper.to_array(weight).copy()
        value *= factor
        weight.CopyFrom(onnx.numpy_helper.from_array(value, weight.name))
        return model.SerializeToString()

    monkeypatch.setattr(target, "to_onnx", damaged)
    with pytest.raises(VigError, match=r"m\.onnx: ONNX Runtime is .* off torch, more than 1e-05"):
        export_onnx(tiny.checkpoint(), SHA, tmp_path / "m.onnx", PICTURES)
    assert list(tmp_path.iterdir()) == []


def test_what_onnx_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = tiny.checkpoint()
    monkeypatch.setattr(type(made.model.stem), "forward", lambda self, x: torch.linalg.svd(x).S)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="cannot be exported to ONNX") as refused:
        export_onnx(made, SHA, tmp_path / "m.onnx", PICTURES)
    assert "--target ios16" in refused.value.hint


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_extra_the_line_to_type(package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnavailableError, match=f"{package} is not installed") as missing:
        export_onnx(tiny.checkpoint(), SHA, tmp_path / "m.onnx", PICTURES)
    assert missing.value.hint == "pip install 'vig[measure]'"

"""Verification of ONNX files: sound ones pass, and what was changed is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from vigcli.config.archs import ArchConfig
from vigcli.config.package import Output
from vigcli.coreml.exact import TOLERANCE
from vigcli.coreml.onnx import export_onnx
from vigcli.coreml.verify_onnx import OnnxReport, verify_onnx
from vigcli.errors import ConfigError

onnx = pytest.importorskip("onnx", exc_type=ImportError)
pytest.importorskip("onnxruntime", exc_type=ImportError)
SHA = "ab" * 32
PIXELS = tiny.pixels(4)


@pytest.mark.parametrize(("output", "batch"), [("probabilities", 1), ("features", 3)])
@pytest.mark.parametrize("config", [tiny.CONFIG, tiny.DYNAMIC], ids=["static", "dynamic"])
def test_a_sound_file_passes(config: ArchConfig, output: Output, batch: int, tmp_path: Path) -> None:
    checkpoint = tiny.checkpoint(config=config)
    export_onnx(checkpoint, SHA, tmp_path / "net.onnx", PIXELS.to(torch.uint8), output=output, batch=batch)
    report = verify_onnx(tmp_path / "net.onnx", checkpoint, PIXELS)
    assert report.passed, report.divergence
    assert len(report.errors) == len(PIXELS)
    assert 0 < max(report.errors) <= TOLERANCE


def one_percent(model: Any) -> None:
    kernels = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]
    weight = onnx.numpy_helper.to_array(kernels[9]).copy()
    weight.flat[np.abs(weight).argmax()] *= 1.01
    kernels[9].CopyFrom(onnx.numpy_helper.from_array(weight, kernels[9].name))


def minimum(model: Any) -> None:
    next(node for node in model.graph.node if node.op_type == "Max").op_type = "Min"


def unknown_operation(model: Any) -> None:
    model.graph.node[3].op_type = "Unheard"


def said(key: str, change: Callable[[str], str]) -> Callable[[Any], None]:
    def fault(model: Any) -> None:
        prop = next(prop for prop in model.metadata_props if prop.key == key)
        prop.value = change(prop.value)

    return fault


def other_crop(text: str) -> str:
    return text.replace('"crop_ratio":0.9', '"crop_ratio":1')


FAULTS = {
    "weight": ("values", "scores", one_percent),
    "minimum": ("values", "scores", minimum),
    "operation": ("checker", "onnx.checker", unknown_operation),
    "labels": ("description", "labels", said("labels", lambda text: json.dumps(json.loads(text)[::-1]))),
    "crop": ("description", "preprocessing", said("vig", other_crop)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, tmp_path: Path) -> None:
    checkpoint, path = tiny.checkpoint(), tmp_path / "net.onnx"
    export_onnx(checkpoint, SHA, path, PIXELS.to(torch.uint8))
    stage, name, change = FAULTS[fault]
    model = onnx.load_model(str(path))
    change(model)
    onnx.save_model(model, str(path))
    report: OnnxReport = verify_onnx(path, checkpoint, PIXELS)
    assert report.divergence is not None
    assert report.divergence == report.stages[stage]
    assert report.divergence.name == name


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    checkpoint, path = tiny.checkpoint(), tmp_path / "net.onnx"
    export_onnx(checkpoint, SHA, path, PIXELS.to(torch.uint8))
    model = onnx.load_model(str(path))
    del model.metadata_props[:]
    onnx.save_model(model, str(path))
    with pytest.raises(ConfigError, match="no ONNX file of vig"):
        verify_onnx(path, checkpoint, PIXELS)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="is no ONNX file"):
        verify_onnx(path, checkpoint, PIXELS)

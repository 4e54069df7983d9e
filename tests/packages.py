"""Looking into a package's message and editing it, and how far two results are apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vigcli.coreml.apple import coremltools

MODEL, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def decibels(actual: Tensor, expected: Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (actual - expected).square().sum()))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Rewrite the model's message in place."""
    model_path = path / MODEL
    model = coremltools().proto.Model_pb2.Model.FromString(model_path.read_bytes())
    change(model)
    model_path.write_bytes(model.SerializeToString())


def operations(model: Any) -> Any:
    function = model.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def constant(model: Any, operation: Any, parameter: str) -> Any:
    """The value of an operation's parameter, to be read or changed in place."""
    name = operation.inputs[parameter].arguments[0].name
    return next(o for o in operations(model) if o.outputs[0].name == name).attributes["val"].immediateValue.tensor


def change_weights(path: Path, stored: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Replace a tensor in the weight file, found by its bytes, by a changed one of the same type and shape."""
    file = path / WEIGHTS
    content, old = file.read_bytes(), stored.contiguous().numpy().tobytes()
    assert content.count(old) == 1
    new = change(stored.clone()).to(stored.dtype).contiguous().numpy().tobytes()
    assert new != old
    file.write_bytes(content.replace(old, new))

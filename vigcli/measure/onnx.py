"""The one door to ONNX: a module as an ONNX model, and ONNX Runtime; what they are for is left to the callers."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import nn

from vigcli.errors import NotMeasurableError, UnavailableError

INSTALL_HINT = "pip install 'vig[measure]'"
OPSET = 17


def onnx() -> ModuleType:
    """The onnx module, imported on first use. Raises UnavailableError where it is not installed."""
    return _imported("onnx")


def onnxruntime() -> ModuleType:
    """The onnxruntime module, imported on first use.

    Raises UnavailableError where it is not installed, or onnx, without which torch does not export.
    """
    onnx()
    return _imported("onnxruntime")


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UnavailableError(f"{name} is not installed.", INSTALL_HINT) from error


def to_onnx(
    module: nn.Module, shape: Sequence[int], name: str, inputs: Sequence[str] = (), outputs: Sequence[str] = ()
) -> bytes:
    """A module in evaluation mode as an ONNX model for an input of that shape, batch included, of float32.

    Args:
        inputs, outputs: what they are called in the model.

    Raises NotMeasurableError, with `name`, for one that the exporter does not take.
    """
    model, logger = io.BytesIO(), logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")  # shapes are constants by design; the tracer remarks on each
            torch.onnx.export(
                module.eval(), (torch.zeros(*shape),), model, opset_version=OPSET, dynamo=False,  # type: ignore[arg-type]
                input_names=list(inputs), output_names=list(outputs),
            )  # fmt: skip
    except Exception as error:  # whatever an operation of a custom block makes it raise
        reason = str(error).strip().partition("\n")[0][:120] or type(error).__name__
        raise NotMeasurableError(
            f"{name}: cannot be exported to ONNX: {reason}", "Leave its network out, or write the block otherwise."
        ) from error
    finally:
        logger.setLevel(level)
    return model.getvalue()

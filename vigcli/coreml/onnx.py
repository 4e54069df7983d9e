"""The second target: an ONNX file of the module that a package is made of, in fp32, with the same metadata.

ONNX Runtime must give torch's logits, or feature maps, on real pictures before the file is put in its place.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vigcli.archs.checkpoint import Checkpoint
from vigcli.config.package import (
    Output,
    PackageMeta,
    class_labels,
    licence_text,
    network_name,
    planned,
    preprocessing_text,
    version_text,
)
from vigcli.coreml.convert import INPUT_NAME, METADATA_KEY, deployable, output_names
from vigcli.coreml.exact import TOLERANCE, Exact
from vigcli.errors import ConfigError, NotMeasurableError, VigError
from vigcli.files import replacing
from vigcli.measure.onnx import onnx, onnxruntime, to_onnx

_OTHER_TARGET = "Export it to CoreML: --target ios16."
_DECISIONS = {"TopK": 1, "ArgMin": 0, "Less": 0, "LessOrEqual": 0}  # operation -> its output that is a choice


class OnnxFile(NamedTuple):
    """What was written, and the largest error of an output, relative to its largest value, on the pictures."""

    meta: PackageMeta
    error: float
    op_counts: Counter[str]


def export_onnx(
    checkpoint: Checkpoint,
    checkpoint_sha256: str,
    path: Path | str,
    images: Tensor,
    *,
    output: Output = "probabilities",
    batch: int = 1,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> OnnxFile:
    """Write the ONNX file of a checkpoint, whole or not at all: (B, 3, R, R) RGB in 0 ... 255, of float32, go in.

    Args:
        images: (N, 3, R, R) uint8 RGB pictures on which ONNX Runtime is held to torch.

    Raises ConfigError for a network that ONNX does not hold, VigError where the two differ, UnavailableError without
    onnx and onnxruntime.
    """
    onnxruntime()  # before anything is computed
    meta = planned(checkpoint.meta, checkpoint_sha256, "fp32", 16, "tensor", output, batch)
    on_progress("converting", 0, 1)
    module = deployable(checkpoint, meta)
    try:
        written = to_onnx(module, meta.input_shape, network_name(meta), [INPUT_NAME], output_names(module, meta))
    except NotMeasurableError as refused:
        raise ConfigError(str(refused), _OTHER_TARGET) from refused
    model = onnx().load_from_string(written)
    _describe(model, meta)
    onnx().checker.check_model(model, full_check=True)
    with replacing(path) as temporary:
        onnx().save_model(model, str(temporary))
        error = _error(temporary, checkpoint, meta, images, on_progress)
        if not error <= TOLERANCE:
            what = f"ONNX Runtime is {error:.1e} of the largest value off torch, more than {TOLERANCE:g}"
            raise VigError(f"{path}: {what}; nothing was written.", _OTHER_TARGET)
    counts = Counter(node.op_type for node in model.graph.node if node.op_type != "Constant")
    return OnnxFile(meta, error, counts)


def _describe(model: Any, meta: PackageMeta) -> None:
    """Write into a model what it is; what only a CoreML package has is left out."""
    about = {
        METADATA_KEY: meta.model_dump_json(exclude={"minimum_ios", "fp32_results"}),
        "labels": json.dumps(class_labels(meta)),
        "license": licence_text(meta),
        "preprocessing": preprocessing_text(meta),
    }
    model.producer_name, model.producer_version = "vig", version_text(meta)
    model.doc_string = f"{network_name(meta)}, fp32. Input: {preprocessing_text(meta)}."
    for key, value in about.items():
        model.metadata_props.add(key=key, value=value)


# ------------------------------------------------------------------------------------------------ against torch


def _error(
    path: Path, checkpoint: Checkpoint, meta: PackageMeta, images: Tensor, on_progress: Callable[[str, int, int], None]
) -> float:
    """The largest relative error of what ONNX Runtime gives, logits in place of probabilities, against the network in
    float64. What that decides by its features (neighbours, clusters) it decides as ONNX Runtime did, within rounding.
    """
    exact = Exact(checkpoint, meta.output)
    run = opened(onnx().load_model(str(path)), meta)
    for start in range(0, len(images), meta.batch):
        on_progress("checking", start, len(images))
        pixels = images[torch.arange(start, start + meta.batch) % len(images)].float()
        exact.compare(pixels, *run(pixels))
    return max(exact.error, exact.regret)


def opened(model: Any, meta: PackageMeta) -> Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]:
    """A model as a function of pixels: to its outputs before a softmax, and to what its operations choose."""
    runtime = onnxruntime()
    wanted = [given.name for given in model.graph.output]
    if meta.output == "probabilities":
        wanted = [next(node.input[0] for node in model.graph.node if list(node.output) == wanted)]
    nodes = [node for node in model.graph.node if node.op_type in _DECISIONS]
    names = [*wanted, *(node.output[_DECISIONS[node.op_type]] for node in nodes)]
    del model.graph.output[:]
    model.graph.output.extend(onnx().helper.make_empty_tensor_value_info(name) for name in names)
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        results = [torch.from_numpy(np.asarray(x)) for x in session.run(names, {INPUT_NAME: pixels.numpy()})]
        return results[: len(wanted)], results[len(wanted) :]

    return run

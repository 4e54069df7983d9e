"""Is an ONNX file what its checkpoint says? It is fp32, so that ONNX Runtime must give the checkpoint's scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vigcli.archs.checkpoint import Checkpoint
from vigcli.config.load import parse_as
from vigcli.config.package import PackageMeta, class_labels, preprocessing_text
from vigcli.coreml.convert import METADATA_KEY
from vigcli.coreml.description import metadata_apart
from vigcli.coreml.exact import TOLERANCE, Exact
from vigcli.coreml.graphs import Divergence
from vigcli.coreml.onnx import opened
from vigcli.errors import ConfigError
from vigcli.measure.onnx import onnx

CAVEAT = "Run by ONNX Runtime on this machine's CPU."
REEXPORT_HINT = "Export it again: vig export --target onnx."


@dataclass(frozen=True)
class OnnxReport:
    """What was found.

    Attributes:
        stages: what each found first, or None, in order: checker, description, values.
        errors: of every picture, relative to its largest score.
        num_ops: of the graph, constants apart.
    """

    meta: PackageMeta
    stages: dict[str, Divergence | None]
    errors: list[float]
    num_ops: int

    @property
    def divergence(self) -> Divergence | None:
        """The first of the first stage that found one."""
        return next((found for found in self.stages.values() if found), None)

    @property
    def passed(self) -> bool:
        return self.divergence is None


def load_onnx(path: Path | str) -> tuple[Any, PackageMeta]:
    """The model of a file of `vig export --target onnx`, and what it says of itself. Raises ConfigError."""
    library = onnx()
    try:
        model = library.load_model(str(path))
    except Exception as error:  # of protobuf, which says little
        raise ConfigError(f"{path}: is no ONNX file, or is damaged.", REEXPORT_HINT) from error
    said = {prop.key: prop.value for prop in model.metadata_props}
    try:
        data = json.loads(said.get(METADATA_KEY, ""))
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: is no ONNX file of vig: its metadata is missing.", REEXPORT_HINT) from None
    return model, parse_as(PackageMeta, data, str(path))


def verify_onnx(
    path: Path | str,
    checkpoint: Checkpoint,
    pixels: Tensor,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> OnnxReport:
    """Hold an ONNX file to the checkpoint that it was made from.

    Args:
        pixels: (N, 3, R, R) RGB in 0 ... 255.

    Raises ConfigError for a file that is not ours. What differs is told by the report.
    """
    model, meta = load_onnx(path)
    num_ops = sum(node.op_type != "Constant" for node in model.graph.node)
    stages = {
        "checker": _checked(model),
        "description": metadata_apart(checkpoint.meta, meta) or _texts_apart(model, checkpoint, meta),
        "values": None,
    }
    errors: list[float] = []
    exact = Exact(checkpoint, meta.output)
    try:
        run = opened(model, meta)
        for start in range(0, len(pixels), meta.batch):
            on_progress("running", start, len(pixels))
            group = pixels[torch.arange(start, start + meta.batch) % len(pixels)].float()
            errors += exact.compare(group, *run(group))
    except Exception as error:  # ONNX Runtime has a private type for each thing that is wrong
        stages["values"] = Divergence("model", Path(path).name, f"does not run: {' '.join(str(error).split())[:200]}")
    if exact.error > TOLERANCE:
        what = f"the largest error is {exact.error:.1e} of the largest score"
        stages["values"] = Divergence("model", "scores", what)
    elif exact.regret > TOLERANCE:
        stages["values"] = Divergence("model", "choices", f"are {exact.regret:.1e} worse than the checkpoint's")
    return OnnxReport(meta, stages, errors[: len(pixels)], num_ops)


def _checked(model: Any) -> Divergence | None:
    try:
        onnx().checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, or what shape inference raises
        return Divergence("model", "onnx.checker", f"refuses it: {' '.join(str(error).split())[:200]}")
    return None


def _texts_apart(model: Any, checkpoint: Checkpoint, meta: PackageMeta) -> Divergence | None:
    said = {prop.key: prop.value for prop in model.metadata_props}
    due = {"labels": json.dumps(class_labels(checkpoint.meta)), "preprocessing": preprocessing_text(meta)}
    for name, text in due.items():
        if said.get(name) != text:
            return Divergence("metadata", name, "is not what the checkpoint says")
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    if shape != meta.input_shape:
        return Divergence("input", model.graph.input[0].name, f"its shape is {shape}, not {meta.input_shape}")
    return None


def summary(report: OnnxReport) -> dict[str, Any]:
    """The figures of a verdict."""
    return {
        "passed": report.passed,
        "precision": "fp32",
        "num_inputs": len(report.errors),
        "num_ops": report.num_ops,
        "relative_error": max(report.errors, default=None),
        "tolerance": TOLERANCE,
        "first_divergence": report.divergence and vars(report.divergence),
        "stages": {stage: found and vars(found) for stage, found in report.stages.items()},
        "note": CAVEAT,
    }


def lines(report: OnnxReport) -> list[tuple[str, str]]:
    """What was held to what, and what it measured: a name and a text each."""
    worst = max(report.errors, default=None)
    off = "did not run" if worst is None else f"{worst:.1e} of a picture's largest score off the checkpoint"
    return [
        ("onnx.checker", "refuses it" if report.stages["checker"] else "accepts it"),
        ("ONNX Runtime", f"{off} (held to {TOLERANCE:g})"),
        ("graph", f"{report.num_ops} operations; not compared one by one"),
        ("inputs", f"{len(report.errors)} pictures at {report.meta.arch.resolution} px"),
    ]

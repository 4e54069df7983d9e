"""What a package says of itself against what its checkpoint and its fp32 twin say: inputs, outputs, labels, metadata.

How its operations compute is left to `vigcli.coreml.graphs`.
"""

from __future__ import annotations

from typing import Any

from vigcli.config.checkpoint import CheckpointMeta
from vigcli.config.package import PackageMeta, class_labels
from vigcli.coreml.graphs import Divergence
from vigcli.coreml.interpreter import Program
from vigcli.coreml.package import Feature

PREPROCESSING_KEY = "preprocessing"
FORMATS = {16: (7, "CoreML6"), 17: (8, "CoreML7"), 18: (9, "CoreML8")}  # of a file, and of its operations


def compare_descriptions(
    twin: Program, shipped: Program, checkpoint: CheckpointMeta, meta: PackageMeta
) -> Divergence | None:
    """The first thing that a package says otherwise than its checkpoint.

    Args:
        twin: the fp32 package that the checkpoint makes with the same options.
        meta: what the package says of itself.
    """
    return (
        _features_apart("input", twin.inputs, shipped.inputs)
        or _features_apart("output", twin.outputs, shipped.outputs)
        or _labels_apart(shipped, checkpoint)
        or metadata_apart(checkpoint, meta)
        or _texts_apart(twin, shipped)
        or _format_apart(shipped, meta)
    )


def _features_apart(which: str, ours: list[Feature], theirs: list[Feature]) -> Divergence | None:
    names = [[feature.name for feature in features] for features in (ours, theirs)]
    if names[0] != names[1]:
        return Divergence(which, ", ".join(names[1]), f"the checkpoint's package has {', '.join(names[0])}")
    for first, second in zip(ours, theirs, strict=True):
        for what in ("kind", "shape", "color"):
            due, given = getattr(first, what), getattr(second, what)
            if due != given:
                return Divergence(which, second.name, f"its {what} is {_short(given)}, not {_short(due)}")
    return None


def _labels_apart(shipped: Program, checkpoint: CheckpointMeta) -> Divergence | None:
    for step in shipped.steps:
        if step.op.name == "classify":
            due, given = class_labels(checkpoint), [str(label) for label in step.constants["classes"]]
            for i, (label, other) in enumerate(zip(due, given, strict=False)):
                if label != other:
                    return Divergence("classify", step.outputs[0].name, f"label {i} is '{other}', not '{label}'")
            if len(due) != len(given):
                what = f"it has {len(given)} labels, not {len(due)}"
                return Divergence("classify", step.outputs[0].name, what)
    return None


def metadata_apart(checkpoint: CheckpointMeta, meta: PackageMeta) -> Divergence | None:
    """The first field that a package says otherwise than its checkpoint."""
    for name in CheckpointMeta.model_fields:
        due, given = getattr(checkpoint, name), getattr(meta, name)
        if due != given:
            where, due, given = _apart(*(meta.model_dump(mode="json")[name] for meta in (checkpoint, meta)))
            what = f"its {where} is" if where else "is"
            return Divergence("metadata", name, f"{what} {_short(given)}, the checkpoint's {_short(due)}")
    return None


def _apart(due: Any, given: Any, path: str = "") -> tuple[str, Any, Any]:
    """Where two values of plain data first differ, and what stands there: `stages[0].width`."""
    if isinstance(due, dict) and isinstance(given, dict) and due.keys() == given.keys():
        pairs = [(f"{path}.{key}".lstrip("."), due[key], given[key]) for key in due]
    elif isinstance(due, list) and isinstance(given, list) and len(due) == len(given):
        pairs = [(f"{path}[{i}]", *both) for i, both in enumerate(zip(due, given, strict=True))]
    else:
        return path, due, given
    return next(_apart(first, second, where) for where, first, second in pairs if first != second)


def _texts_apart(twin: Program, shipped: Program) -> Divergence | None:
    due, given = (program.metadata.get(PREPROCESSING_KEY) for program in (twin, shipped))
    return None if due == given else Divergence("metadata", PREPROCESSING_KEY, f"is '{given}', not '{due}'")


def _format_apart(shipped: Program, meta: PackageMeta) -> Divergence | None:
    names = ("specification version", "opset")
    for name, given, due in zip(names, shipped.format, FORMATS[meta.minimum_ios], strict=True):
        if given != due:
            return Divergence("metadata", name, f"is {given}; that of iOS {meta.minimum_ios} is {due}")
    return None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."

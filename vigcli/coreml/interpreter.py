"""Runs a CoreML ML Program in torch on any OS, operation by operation, to check a package where CoreML is not.

It says what the file says. It has never been compared with Apple's runtime, whose kernels may round elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from vigcli.coreml.ops.const import TensorType
from vigcli.coreml.package import DAMAGE, REEXPORT_HINT, Feature, read_package, shown, texts_of
from vigcli.coreml.steps import OpInfo, Step, build_steps, half, misfit
from vigcli.errors import ConfigError

__all__ = ["OpInfo", "Precision", "Program", "Step", "Tap"]

Precision = Literal["stored", "fp32"]
Tap = Callable[["OpInfo", Tensor], "Tensor | None"]

SMALLEST_BATCH = 16
BATCH_PARAMETERS = {"reshape": "shape", "slice_by_index": "end", "slice_by_size": "size"}
AXIS_PARAMETERS = ("axis", "axes")
PICTURES_HINT = "`Program.run` takes inputs of any kind, by name."


class BatchMixed(Exception):
    """A result has another shape than a batch of the program's own result has: the images cannot run together."""


class _Scoring(NamedTuple):
    """How images are scored: where they go in, what is run, which result is the scores."""

    feature: Feature
    steps: list[Step]
    result: str
    precision: Precision
    tap: Tap | None


@dataclass
class Program:
    """An ML Program with its weights; `load` reads one, `run` evaluates it, `predict` scores many images.

    Attributes:
        op_counts: how often each operation occurs, constants apart; of compressed weights also what expands them.
        format: the specification version of the file and the opset of its operations.
        constants: what steps look up by name.
        batch_size: how many images `predict` runs together: those that the package takes at once; where it takes one,
            more, as long as that is the same as one by one.
    """

    path: Path
    inputs: list[Feature]
    outputs: list[Feature]
    metadata: dict[str, str]
    format: tuple[int, str]
    op_counts: Counter[str]
    steps: list[Step]
    constants: dict[str, Any] = field(repr=False)
    batch_size: int = 1

    @classmethod
    def load(cls, path: str | Path) -> Program:
        """Read an .mlpackage; one that is damaged, of another kind or beyond the known operations is a ConfigError."""
        path = Path(path)
        files = read_package(path)
        steps = build_steps(path, files)
        metadata = texts_of(files.description.metadata)
        own = _own_batch(steps.inputs)
        size = own if own > 1 else _batch_size(steps.steps, steps.types)
        format = (files.model.specification_version, files.function.opset)
        return cls(
            path, steps.inputs, steps.outputs, metadata, format, steps.counts, steps.steps, steps.constants, size
        )  # fmt: skip

    @property
    def num_ops(self) -> int:
        """What "operations" counts in all that is printed: those that run for every input, labelling among them."""
        return len(self.steps)

    @property
    def operations(self) -> list[OpInfo]:
        """What a tap sees, in order: every result that depends on the inputs."""
        return [output for step in self.steps for output in step.outputs]

    def run(
        self, inputs: Mapping[str, Tensor | np.ndarray], *, precision: Precision = "stored", tap: Tap | None = None
    ) -> dict[str, Any]:
        """The outputs by name: tensors, and for a classifier the label and the probability of every label.

        An image is RGB, 0..255, (1, 3, H, W), whatever the order of the channels that the package expects.
        precision: 'stored' rounds to fp16 what the program keeps in fp16, as a device does; 'fp32' does not.
        tap: is given every result, and may give another in its place, which is rounded as the result was.
        """
        self._check_precision(precision)
        values = {**self.constants}
        for feature in self.inputs:
            if feature.name not in inputs:
                raise ConfigError(f"{self.path}: the input '{shown(feature.name)}' is not given.")
            values[feature.name] = self._prepare(feature, torch.as_tensor(inputs[feature.name]), precision)
        self._evaluate(self.steps, values, precision, tap)
        return {output.name: values[output.name] for output in self.outputs}

    def predict(self, images: Tensor, *, precision: Precision = "stored", tap: Tap | None = None) -> Tensor:
        """(B, 3, H, W) -> (B, num_classes): what a classifier ranks, or the only output.

        Images run together where that is the same as one by one; a tap then sees the results of a batch, and those of
        a batch that had to be given up twice. A package of batch N runs N at a time, the last of them repeated where
        fewer are left.
        """
        self._check_precision(precision)
        if not len(images):
            raise ConfigError(f"{self.path}: there are no images to predict.")
        scoring = _Scoring(self._image_input(), *self._scores(), precision, tap)
        if _own_batch(self.inputs) > 1:
            return torch.cat([self._filled(group, scoring) for group in images.split(self.batch_size)])
        scores: list[Tensor] = []
        done = 0
        while done < len(images):
            # Only a full batch has the size that shows a mix-up; what is left over runs one by one.
            size = self.batch_size if done + self.batch_size <= len(images) else 1
            try:
                scores.append(self._scored(images[done : done + size], scoring, batch=size))
                done += size
            except BatchMixed:
                self.batch_size = 1
        return torch.cat(scores)

    def _filled(self, images: Tensor, scoring: _Scoring) -> Tensor:
        """The scores of fewer images than the package takes at once, or as many."""
        last = images[-1:].expand(self.batch_size - len(images), *images.shape[1:])
        return self._scored(torch.cat([images, last]), scoring)[: len(images)]

    def _scored(self, images: Tensor, scoring: _Scoring, batch: int = 1) -> Tensor:
        precision, name = scoring.precision, scoring.feature.name
        values = {**self.constants, name: self._prepare(scoring.feature, images, precision, batch)}
        self._evaluate(scoring.steps, values, precision, scoring.tap, batch, keep=scoring.result)
        scores: Tensor = values[scoring.result]
        if scores.numel() % len(images):
            sizes = _sizes(scores.shape)
            raise ConfigError(f"{self.path}: its output of {sizes} has no row for each of {len(images)} images.")
        return scores.reshape(len(images), -1)

    def _image_input(self) -> Feature:
        """The one input, if pictures can go into it."""
        if len(self.inputs) != 1:
            raise ConfigError(f"{self.path}: it has {len(self.inputs)} inputs; images go into one.", PICTURES_HINT)
        (feature,) = self.inputs
        if feature.type is None or len(feature.type.shape) != 4 or not feature.type.dtype.startswith("fp"):
            what = f"{feature.type.dtype} of {_sizes(feature.type.shape)}" if feature.type else feature.kind
            raise ConfigError(f"{self.path}: its input '{shown(feature.name)}' is {what}, no picture.", PICTURES_HINT)
        return feature

    def _scores(self) -> tuple[list[Step], str]:
        """The steps that make the scores of the classes, and the name of the scores."""
        for step in self.steps:
            if step.op.name == "classify" and "probabilities" in step.variables:
                return [s for s in self.steps if s is not step], step.variables["probabilities"][0]
        if len(self.outputs) != 1:
            raise ConfigError(f"{self.path}: it has {len(self.outputs)} outputs; scores need one, or class labels.")
        return self.steps, self.outputs[0].name

    def _check_precision(self, precision: str) -> None:
        if precision not in get_args(Precision):
            raise ConfigError(f"precision '{precision}' is not one of {', '.join(get_args(Precision))}.")

    def _prepare(self, feature: Feature, value: Tensor, precision: Precision, batch: int = 1) -> Tensor:
        assert feature.type is not None
        if not _fits(value.shape, feature.type.shape, batch):
            due, given = _sizes(feature.type.shape), _sizes(value.shape)
            raise ConfigError(f"{self.path}: the input '{shown(feature.name)}' is {due}, not {given}.")
        if not feature.type.dtype.startswith("fp"):
            return value.int()
        if feature.color == "BGR":
            value = value.flip(1)
        return half(value.float()) if precision == "stored" and feature.type.dtype == "fp16" else value.float()

    @torch.no_grad()
    def _evaluate(
        self,
        steps: list[Step],
        values: dict[str, Any],
        precision: Precision,
        tap: Tap | None = None,
        batch: int = 1,
        keep: str | None = None,
    ) -> None:
        """Fill `values` with every result; results that nobody asks for any more are dropped."""
        stored = precision == "stored"
        for step in steps:
            results = self._apply(step, values, batch)
            for info, result, rounded in zip(step.outputs, results, step.rounded, strict=True):
                if isinstance(result, Tensor):
                    self._check(info, result, batch)
                    result = half(result) if stored and rounded else result
                    if tap is not None:
                        result = _tapped(tap, info, result, stored)
                values[info.name] = result
            for name in step.last_uses:
                if name != keep:
                    del values[name]

    def _apply(self, step: Step, values: dict[str, Any], batch: int) -> tuple[Any, ...]:
        try:
            return step(values, _widened(step, batch) if batch > 1 else None)
        except DAMAGE as error:
            if batch > 1:
                raise BatchMixed(step.outputs[0].name) from error
            what = shown(f"{step.op.name} '{step.outputs[0].name}' does not run: {error}")
            raise ConfigError(f"{self.path}: {what}.") from error

    def _check(self, info: OpInfo, result: Tensor, batch: int) -> None:
        if batch > 1:
            if info.type and not _fits(result.shape, info.type.shape, batch):
                raise BatchMixed(info.name)
        elif why := misfit(result, info):
            what = shown(f"{info.op_type} '{info.name}'")
            raise ConfigError(f"{self.path}: {what} does not run as declared: {why}.", REEXPORT_HINT)


def _tapped(tap: Tap, info: OpInfo, result: Tensor, stored: bool) -> Tensor:
    replaced = tap(info, result)
    if replaced is None:
        return result
    fp16 = stored and info.type is not None and info.type.dtype == "fp16" and replaced.is_floating_point()
    return half(replaced) if fp16 else replaced


def _sizes(shape: Iterable[int | None]) -> str:
    return " x ".join("any" if size is None else str(size) for size in shape)


def _fits(actual: Iterable[int], declared: tuple[int | None, ...], batch: int) -> bool:
    """Whether a shape is the declared one, its leading 1 standing for the batch."""
    actual = tuple(actual)
    if actual == declared and batch == 1:
        return True
    if batch > 1:
        declared = (batch, *declared[1:]) if declared[:1] == (1,) else (-1,)
    return len(actual) == len(declared) and all(d is None or a == d for a, d in zip(actual, declared, strict=True))


def _widened(step: Step, batch: int) -> dict[str, Any]:
    """The constants of a step in which a leading 1 is the batch, with the batch in its place."""
    name = BATCH_PARAMETERS.get(step.op.name)
    sizes = step.constants.get(name) if name else None
    return {name: [batch, *sizes[1:]]} if name and isinstance(sizes, list) and sizes[0] == 1 else {}


def _own_batch(inputs: list[Feature]) -> int:
    """The images that a package takes at once: its one input's first dimension; 1 where that is open."""
    shape = inputs[0].shape if len(inputs) == 1 else None
    return (shape[0] or 1) if shape and len(shape) == 4 else 1


def _batch_size(steps: list[Step], types: Mapping[str, TensorType | None]) -> int:
    """A size that is no dimension of any tensor, so that a batch which gets mixed up shows in a shape; 1 where an
    operation works along the batch itself, which no shape would show."""
    for step in steps:
        names = (*step.outputs[0].inputs, step.outputs[0].name)
        rank = max((len(type_.shape) for type_ in map(types.get, names) if type_), default=0)
        if any(axis % max(rank, 1) == 0 for axis in _axes(step)):
            return 1
    sizes = {size for type_ in types.values() if type_ for size in type_.shape}
    return next(size for size in range(SMALLEST_BATCH, SMALLEST_BATCH + len(sizes) + 1) if size not in sizes)


def _axes(step: Step) -> list[int]:
    axes = [step.constants.get(name) for name in AXIS_PARAMETERS]
    return [axis for given in axes if given is not None for axis in (given if isinstance(given, list) else [given])]

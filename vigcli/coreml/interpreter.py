"""Runs a CoreML ML Program in torch on any OS, operation by operation, to check a package where CoreML is not.

It says what the file says. It has never been compared with Apple's runtime, whose kernels may round elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vigcli.coreml.ops import OPS, Op
from vigcli.coreml.ops.const import TensorType, WeightFiles, decode
from vigcli.coreml.package import (
    DAMAGE,
    REEXPORT_HINT,
    Feature,
    PackageFiles,
    damaged_description,
    read_package,
    texts_of,
)
from vigcli.errors import ConfigError

Precision = Literal["stored", "fp32"]
Tap = Callable[["OpInfo", Tensor], "Tensor | None"]

COMPRESSED_WEIGHT = "constexpr_"
SMALLEST_BATCH = 16
# Where a program of batch 1 writes that 1 down as a constant.
BATCH_PARAMETERS = {"reshape": "shape", "slice_by_index": "end", "slice_by_size": "size"}
AXIS_PARAMETERS = ("axis", "axes")


@dataclass(frozen=True)
class OpInfo:
    """One result of one operation; an operation with two results has two."""

    name: str
    op_type: str
    type: TensorType | None
    inputs: tuple[str, ...]


@dataclass
class Step:
    """An operation, ready to run: what is constant is converted, the rest is looked up by name.

    Attributes:
        constant_names: what the package calls its constants; those of weights tell where in the network it is.
    """

    op: Op
    constants: dict[str, Any]
    variables: dict[str, list[str]]
    outputs: tuple[OpInfo, ...]
    constant_names: tuple[str, ...] = ()
    last_uses: tuple[str, ...] = ()

    def __call__(self, values: Mapping[str, Any], replaced: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
        arguments = {name: self.op.convert(name, [values[v] for v in names]) for name, names in self.variables.items()}
        results = self.op.function(**{**self.constants, **(replaced or {})}, **arguments)
        return results if isinstance(results, tuple) else (results,)


class BatchMixed(Exception):
    """A result has another shape than a batch of the program's own result has: the images cannot run together."""


@dataclass
class Program:
    """An ML Program with its weights; `load` reads one, `run` evaluates it, `predict` scores many images."""

    path: Path
    inputs: list[Feature]
    outputs: list[Feature]
    metadata: dict[str, str]
    op_counts: Counter[str]
    steps: list[Step]
    constants: dict[str, Any] = field(repr=False)
    batch_size: int = 1

    @classmethod
    def load(cls, path: str | Path) -> Program:
        """Read an .mlpackage; one that is damaged, of another kind or beyond the known operations is a ConfigError."""
        path = Path(path)
        files = read_package(path)
        _refuse_unknown_operations(path, files.block)
        builder = _Builder(files.weights)
        for operation in files.block.operations:
            try:
                builder.add(operation)
            except DAMAGE as error:
                names = ", ".join(output.name for output in operation.outputs)
                raise ConfigError(f"{path}: {operation.type} '{names}' is damaged: {error}.", REEXPORT_HINT) from error
        try:
            return builder.build(path, files)
        except DAMAGE as error:
            raise damaged_description(path, error) from error

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
        """
        self._check_precision(precision)
        values = {**self.constants}
        for feature in self.inputs:
            if feature.name not in inputs:
                raise ConfigError(f"{self.path}: the input '{feature.name}' is not given.")
            values[feature.name] = self._prepare(feature, torch.as_tensor(inputs[feature.name]), precision)
        self._evaluate(self.steps, values, precision, tap)
        return {output.name: values[output.name] for output in self.outputs}

    def predict(self, images: Tensor, *, precision: Precision = "stored", tap: Tap | None = None) -> Tensor:
        """(B, 3, H, W) -> (B, num_classes): what a classifier ranks, or the only output.

        Images run together where that is the same as one by one; a tap then sees the results of a batch, and those of
        a batch that had to be given up twice.
        """
        self._check_precision(precision)
        if len(self.inputs) != 1:
            raise ConfigError(f"{self.path}: it has {len(self.inputs)} inputs; images go into one.")
        if not len(images):
            raise ConfigError(f"{self.path}: there are no images to predict.")
        steps, result = self._scores()
        scores: list[Tensor] = []
        done = 0
        while done < len(images):
            # Only a full batch has the size that shows a mix-up; what is left over runs one by one.
            size = self.batch_size if done + self.batch_size <= len(images) else 1
            try:
                scores.append(self._predict_together(images[done : done + size], steps, result, precision, tap))
                done += size
            except BatchMixed:
                self.batch_size = 1
        return torch.cat(scores)

    def _predict_together(
        self, images: Tensor, steps: list[Step], result: str, precision: Precision, tap: Tap | None
    ) -> Tensor:
        feature = self.inputs[0]
        values = {**self.constants, feature.name: self._prepare(feature, images, precision, batch=len(images))}
        self._evaluate(steps, values, precision, tap, len(images), keep=result)
        return values[result].reshape(len(images), -1)

    def _scores(self) -> tuple[list[Step], str]:
        """The steps that make the scores of the classes, and the name of the scores."""
        for step in self.steps:
            if step.op.name == "classify":
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
            due = " x ".join("any" if size is None else str(size) for size in feature.type.shape)
            given = " x ".join(map(str, value.shape))
            raise ConfigError(f"{self.path}: the input '{feature.name}' is {due}, not {given}.")
        if not feature.type.dtype.startswith("fp"):
            return value.int()
        if feature.color == "BGR":
            value = value.flip(1)
        return _rounded(value.float(), feature.type, precision)

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
        for step in steps:
            results = self._apply(step, values, batch)
            for info, result in zip(step.outputs, results, strict=True):
                if isinstance(result, Tensor):
                    if batch > 1 and info.type and not _fits(result.shape, info.type.shape, batch):
                        raise BatchMixed(info.name)
                    result = _rounded(result, info.type, precision)
                    if tap is not None:
                        replaced = tap(info, result)
                        result = result if replaced is None else replaced
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
            raise ConfigError(f"{self.path}: {step.op.name} '{step.outputs[0].name}' does not run: {error}.") from error


def _fits(actual: Iterable[int], declared: tuple[int | None, ...], batch: int) -> bool:
    """Whether a shape is the declared one, its leading 1 standing for the batch."""
    actual = tuple(actual)
    if batch > 1:
        declared = (batch, *declared[1:]) if declared[:1] == (1,) else (-1,)
    return len(actual) == len(declared) and all(d is None or a == d for a, d in zip(actual, declared, strict=True))


def _rounded(x: Tensor, type_: TensorType | None, precision: Precision) -> Tensor:
    if precision == "stored" and type_ is not None and type_.dtype == "fp16" and x.is_floating_point():
        return x.half().float()
    return x


def _widened(step: Step, batch: int) -> dict[str, Any]:
    """The constants of a step in which a leading 1 is the batch, with the batch in its place."""
    name = BATCH_PARAMETERS.get(step.op.name)
    sizes = step.constants.get(name) if name else None
    return {name: [batch, *sizes[1:]]} if name and isinstance(sizes, list) and sizes[0] == 1 else {}


class _Builder:
    """Turns the operations of a program into steps, evaluating what depends on constants alone (the weights)."""

    def __init__(self, weights: WeightFiles):
        self.weights = weights
        self.constants: dict[str, Any] = {}
        self.types: dict[str, TensorType | None] = {}
        self.steps: list[Step] = []
        self.op_counts: Counter[str] = Counter()

    def add(self, operation: Any) -> None:
        for output in operation.outputs:
            self.types[output.name] = TensorType.of(output.type)
        if operation.type == "const":
            self.constants[operation.outputs[0].name] = decode(operation.attributes["val"], self.weights)
            return
        self.op_counts[operation.type] += 1
        step = self._step(operation)
        if step.variables:
            if operation.type.startswith(COMPRESSED_WEIGHT):
                raise ValueError("its weights are not constant")
            self.steps.append(step)
            return
        for info, value in zip(step.outputs, step({}), strict=True):
            self.constants[info.name] = _rounded(value, info.type, "stored")

    def _step(self, operation: Any) -> Step:
        op = OPS[operation.type]
        unknown = {*operation.inputs, *operation.attributes} - {"name"} - op.parameters.keys()
        if unknown:
            raise ValueError(f"its parameter '{min(unknown)}' is unknown")
        constants, variables, constant_names = dict(op.defaults), {}, []
        # iOS 16's compressed weights keep their numbers here; everything else has inputs.
        for parameter in op.parameters.keys() & {*operation.attributes}:
            constants[parameter] = op.convert(parameter, [decode(operation.attributes[parameter], self.weights)])
        for parameter, argument in sorted(operation.inputs.items()):  # a message keeps them in no order
            names = [self._name(binding) for binding in argument.arguments]
            constants.pop(parameter, None)
            if all(name in self.constants for name in names):
                constants[parameter] = op.convert(parameter, [self.constants[name] for name in names])
                constant_names += names
            else:
                variables[parameter] = names
        missing = op.parameters.keys() - constants.keys() - variables.keys()
        if missing:
            raise ValueError(f"its parameter '{min(missing)}' is missing")
        sources = tuple(name for names in variables.values() for name in names)
        outputs = tuple(OpInfo(o.name, operation.type, self.types[o.name], sources) for o in operation.outputs)
        return Step(op, constants, variables, outputs, tuple(constant_names))

    def _name(self, binding: Any) -> str:
        """The name of an argument; one that is written in place gets a name of its own."""
        if binding.WhichOneof("binding") == "name":
            return binding.name
        name = f"value {len(self.constants)}"
        self.constants[name] = decode(binding.value, self.weights)
        return name

    def build(self, path: Path, files: PackageFiles) -> Program:
        for given in files.function.inputs:
            self.types[given.name] = TensorType.of(given.type)
        known = self.types.keys() | self.constants.keys()
        sources = {name for step in self.steps for info in step.outputs for name in info.inputs}
        absent = (sources | set(files.block.outputs)) - known
        if absent:
            raise ValueError(f"nothing computes '{min(absent)}'")
        inputs = [Feature.of(f, self.types[f.name]) for f in files.description.input]
        outputs = [Feature.of(f, self.types[f.name]) for f in files.description.output]
        self._mark_last_uses({output.name for output in outputs})
        used = sources | {output.name for output in outputs}
        constants = {name: value for name, value in self.constants.items() if name in used}
        metadata = texts_of(files.description.metadata)
        return Program(path, inputs, outputs, metadata, self.op_counts, self.steps, constants, self._batch_size())

    def _mark_last_uses(self, outputs: set[str]) -> None:
        seen = outputs | self.constants.keys()
        for step in reversed(self.steps):
            mine = {info.name for info in step.outputs} | set(step.outputs[0].inputs)
            step.last_uses = tuple(mine - seen)
            seen |= mine

    def _batch_size(self) -> int:
        """A size that is no dimension of any tensor, so that a batch which gets mixed up shows in a shape; 1 where an
        operation works along the batch itself, which no shape would show."""
        for step in self.steps:
            names = (*step.outputs[0].inputs, step.outputs[0].name)
            rank = max(len(type_.shape) for type_ in map(self.types.get, names) if type_)
            if any(axis % max(rank, 1) == 0 for axis in _axes(step)):
                return 1
        sizes = {size for type_ in self.types.values() if type_ for size in type_.shape}
        return next(size for size in range(SMALLEST_BATCH, SMALLEST_BATCH + len(sizes) + 1) if size not in sizes)


def _axes(step: Step) -> list[int]:
    axes = [step.constants.get(name) for name in AXIS_PARAMETERS]
    return [axis for given in axes if given is not None for axis in (given if isinstance(given, list) else [given])]


def _refuse_unknown_operations(path: Path, block: Any) -> None:
    unknown = sorted({operation.type for operation in block.operations} - OPS.keys() - {"const"})
    if unknown:
        raise ConfigError(
            f"{path} has operations that the interpreter does not know: {', '.join(unknown)}.",
            "Only the operations of this project's kinds of networks are covered.",
        )

"""From the messages of a program to steps that are ready to run, with what is constant evaluated once; running them is
the interpreter's job.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vigcli.coreml.messages import Binding, Block, FeatureDescription, Operation
from vigcli.coreml.ops import OPS, Op
from vigcli.coreml.ops.const import LARGEST, Decoder, TensorType
from vigcli.coreml.package import DAMAGE, REEXPORT_HINT, Feature, PackageFiles, damaged_description, shown
from vigcli.errors import ConfigError

COMPRESSED_WEIGHT = "constexpr_"
MOST_AT_ONCE = 4 * LARGEST  # numbers alive at one time
# coremltools names a parameter after its module: network_stages_0_1_weight_to_fp16.
PARAMETER = re.compile(r"^(\w+)_(weight|bias|gamma|beta|alpha)(_|$)")
NUM_NAMED = 3


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
        rounded: for each result whether a device would round it to fp16: it is declared so, and is not one of numbers
            that are fp16 already.
        last_uses: the results that nobody asks for after this step.
    """

    op: Op
    constants: dict[str, Any]
    variables: dict[str, list[str]]
    outputs: tuple[OpInfo, ...]
    constant_names: tuple[str, ...]
    rounded: tuple[bool, ...]
    last_uses: tuple[str, ...] = ()

    def __call__(self, values: Mapping[str, Any], replaced: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
        arguments = {name: self.op.convert(name, [values[v] for v in names]) for name, names in self.variables.items()}
        results = self.op.function(**{**self.constants, **(replaced or {}), **arguments})
        results = results if isinstance(results, tuple) else (results,)
        if len(results) != len(self.outputs):
            raise ValueError(f"it has {len(results)} results, not {len(self.outputs)}")
        return results


def half(x: Tensor) -> Tensor:
    """Rounded to fp16, to even, beyond 65504 to infinity."""
    return x.half().float()


def misfit(result: Any, info: OpInfo) -> str:
    """What is wrong with a result, given what the program declares of it; nothing if they agree."""
    if info.type is None or not isinstance(result, Tensor):
        return ""
    due = info.type.shape
    if len(due) != result.dim() or any(d not in (None, n) for d, n in zip(due, result.shape, strict=True)):
        return f"its result is {list(result.shape)} instead of {list(due)}"
    if info.type.dtype.startswith("fp") != result.is_floating_point():
        return f"its result is of {result.dtype} instead of {info.type.dtype}"
    return ""


@dataclass
class Steps:
    """What a program runs.

    Attributes:
        steps: in order.
        constants: what the steps look up by name, and outputs that are constant.
        types: of every input, constant and result; None for what is no tensor.
        counts: how often each operation occurs, constants apart.
    """

    steps: list[Step]
    constants: dict[str, Any]
    types: dict[str, TensorType | None]
    counts: Counter[str]
    inputs: list[Feature]
    outputs: list[Feature]


def build_steps(path: Path, files: PackageFiles) -> Steps:
    """The steps of a package. Raises ConfigError where it is damaged or beyond the known operations."""
    refuse_unknown_operations(path, files.block)
    try:
        builder = Builder(files)
    except DAMAGE as error:
        raise damaged_description(path, error) from error
    for operation in files.block.operations:
        try:
            builder.add(operation)
        except DAMAGE as error:
            raise _damaged(path, operation.type, [output.name for output in operation.outputs], error) from error
    try:
        steps = builder.build()
    except DAMAGE as error:
        raise damaged_description(path, error) from error
    return steps


def _damaged(path: Path, op_type: str, names: Iterable[str], error: Exception) -> ConfigError:
    what = shown(f"{op_type} '{', '.join(names)}' is damaged: {error}")
    return ConfigError(f"{path}: {what}.", REEXPORT_HINT)


def refuse_unknown_operations(path: Path, block: Block) -> None:
    """Names every kind of operation that the interpreter does not know, and where the first of each stands."""
    places: dict[str, str] = {}
    module = ""
    for operation in block.operations:
        sources = [binding.name or "" for argument in operation.inputs.values() for binding in argument.arguments]
        found = list(filter(None, map(PARAMETER.match, sources)))
        module = found[0][1] if found else module
        if operation.type not in OPS and operation.type != "const":
            name = f"'{operation.outputs[0].name}'" if operation.outputs else "without a result"
            places.setdefault(operation.type, f"{operation.type} ({name}{f', near {module}' if module else ''})")
    if places:
        named = [places[kind] for kind in sorted(places)[:NUM_NAMED]]
        more = f" and {len(places) - NUM_NAMED} more" if len(places) > NUM_NAMED else ""
        raise ConfigError(
            f"{path} has operations that the interpreter does not know: {shown(', '.join(named))}{more}.",
            "It covers the operations of networks that look at one picture.",
        )


class Builder:
    """Turns the operations of a program into steps, evaluating what depends on constants alone (the weights)."""

    def __init__(self, files: PackageFiles):
        self.block = files.block
        self.described_inputs, self.described_outputs = files.interface()
        self.decoder = Decoder(files.weights)
        self.constants: dict[str, Any] = {}
        self.types: dict[str, TensorType | None] = {}
        self.steps: list[Step] = []
        self.counts: Counter[str] = Counter()
        for given in files.function.inputs:
            self._declare(given.name, TensorType.of(given.type))
        if sorted(self.types) != sorted(feature.name for feature in self.described_inputs):
            raise ValueError("the inputs of its description are not those of its program")
        self.inputs = self._features(self.described_inputs)

    def _declare(self, name: str, type_: TensorType | None) -> None:
        if not name or name in self.types:
            raise ValueError(f"the name '{name}' is given twice" if name else "a result has no name")
        self.types[name] = type_

    def _features(self, described: list[FeatureDescription]) -> list[Feature]:
        for feature in described:
            if feature.name not in self.types:
                raise ValueError(f"nothing computes '{feature.name}'")
        return [Feature.of(feature, self.types[feature.name]) for feature in described]

    def add(self, operation: Operation) -> None:
        """The next operation; it may use what came before."""
        if operation.blocks or not operation.outputs:
            raise ValueError("it has operations inside" if operation.blocks else "it has no result")
        if operation.type == "const":
            (output,) = operation.outputs
            value, type_ = operation.attributes["val"], TensorType.of(output.type)
            if TensorType.of(value.type) != type_:
                raise ValueError(f"its value is {TensorType.of(value.type)}, declared as {type_}")
            self.constants[output.name] = self.decoder.value(value)
            self._declare(output.name, type_)
            return
        self.counts[operation.type] += 1
        step = self._step(operation)
        for info in step.outputs:
            self._declare(info.name, info.type)
        if step.variables:
            if operation.type.startswith(COMPRESSED_WEIGHT):
                raise ValueError("its weights are not constant")
            self.steps.append(step)
            return
        for info, value, rounded in zip(step.outputs, step({}), step.rounded, strict=True):
            if why := misfit(value, info):
                raise ValueError(why)
            self.constants[info.name] = half(value) if rounded else value

    def _step(self, operation: Operation) -> Step:
        op = OPS[operation.type]
        unknown = {*operation.inputs, *operation.attributes} - {"name"} - op.parameters.keys()
        if unknown:
            raise ValueError(f"its parameter '{min(unknown)}' is unknown")
        constants, variables, constant_names = dict(op.defaults), {}, []
        # iOS 16's compressed weights keep their numbers here; everything else has inputs.
        for parameter in op.parameters.keys() & {*operation.attributes}:
            constants[parameter] = op.convert(parameter, [self.decoder.value(operation.attributes[parameter])])
        sources = []
        for parameter, argument in sorted(operation.inputs.items()):  # a message keeps them in no order
            op.check_count(parameter, len(argument.arguments))
            names = [self._name(binding) for binding in argument.arguments]
            constants.pop(parameter, None)
            if all(name in self.constants for name in names):
                constants[parameter] = op.convert(parameter, [self.constants[name] for name in names])
                constant_names += names
            else:
                variables[parameter] = names
            sources += names
        missing = op.parameters.keys() - constants.keys() - variables.keys()
        if missing:
            raise ValueError(f"its parameter '{min(missing)}' is missing")
        inputs = tuple(name for names in variables.values() for name in names)
        outputs = tuple(OpInfo(o.name, operation.type, TensorType.of(o.type), inputs) for o in operation.outputs)
        return Step(op, constants, variables, outputs, tuple(constant_names), self._rounded(op, sources, outputs))

    def _rounded(self, op: Op, sources: list[str], outputs: tuple[OpInfo, ...]) -> tuple[bool, ...]:
        types = [type_.dtype for type_ in map(self.types.__getitem__, sources) if type_]
        already = op.exact and not any(dtype.startswith("fp") and dtype != "fp16" for dtype in types)
        return tuple(info.type is not None and info.type.dtype == "fp16" and not already for info in outputs)

    def _name(self, binding: Binding) -> str:
        """The name of an argument; one that is written in place gets a name of its own."""
        if binding.value is None:
            if binding.name not in self.types:
                raise ValueError(f"nothing computes '{binding.name}' before it is used")
            return binding.name
        name = f"value {len(self.constants)}"
        self.constants[name] = self.decoder.value(binding.value)
        self._declare(name, TensorType.of(binding.value.type))
        return name

    def build(self) -> Steps:
        """All steps, once every operation was added."""
        outputs = self._features(self.described_outputs)
        if not outputs or {output.name for output in outputs} != set(self.block.outputs):
            raise ValueError("the outputs of its description are not those of its program")
        last = {output.name for output in outputs}
        self._mark_last_uses(last)
        self._check_memory()
        used = last | {name for step in self.steps for info in step.outputs for name in info.inputs}
        constants = {name: value for name, value in self.constants.items() if name in used}
        return Steps(self.steps, constants, self.types, self.counts, self.inputs, outputs)

    def _mark_last_uses(self, outputs: set[str]) -> None:
        seen = outputs | self.constants.keys()
        for step in reversed(self.steps):
            mine = {info.name for info in step.outputs} | set(step.outputs[0].inputs)
            step.last_uses = tuple(mine - seen)
            seen |= mine

    def _check_memory(self) -> None:
        """Refuse a program whose results, as declared, would not fit in memory together."""
        sizes = {name: math.prod(size or 1 for size in type_.shape) for name, type_ in self.types.items() if type_}
        alive = sum(sizes.get(feature.name, 0) for feature in self.inputs)
        for step in self.steps:
            alive += sum(sizes.get(info.name, 0) for info in step.outputs)
            if alive > MOST_AT_ONCE:
                raise ValueError(f"'{step.outputs[0].name}' and what is needed beside it are too large")
            alive -= sum(sizes.get(name, 0) for name in step.last_uses)

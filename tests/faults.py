"""Faults to plant in a package: each edits its files in place, and says what has to be named for it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import packages
import tiny
import torch
from torch import Tensor, nn

from vigcli.archs.checkpoint import Checkpoint
from vigcli.config.archs import arch_config
from vigcli.coreml.graphs import Graph
from vigcli.coreml.interpreter import Program, Step

# Small, with layer norms, attention and separate sums.
NORMALIZED = arch_config("mobilevit_xxs").changed(
    {"resolution": 64, "num_classes": 10, "stem_width": 8, "head_width": 16, "num_heads": 2}
    | {f"stages[{i}].width": 8 for i in range(5)}
    | {f"stages[{i}].local_depth": 1 for i in range(5)}
    | {f"stages[{i}].transformer_width": 8 for i in range(5)}
    | {f"stages[{i}].transformer_depth": depth for i, depth in enumerate((0, 0, 2, 1, 0))}
)
Fault = Callable[[Path], str]
STORED = {"fp32": torch.float32, "fp16": torch.float16}


def normalized_checkpoint() -> Checkpoint:
    """A MobileViT whose activations are the GELU that is computed by tanh."""
    checkpoint = tiny.checkpoint(config=NORMALIZED)
    for module in list(checkpoint.model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.SiLU):
                setattr(module, name, nn.GELU("tanh"))
    return checkpoint


def loud_checkpoint() -> Checkpoint:
    """The tiny network with activations beyond fp16 in its first blocks."""
    checkpoint = tiny.checkpoint()
    for key in ("norm.weight", "norm.bias"):
        checkpoint.model.get_parameter(f"stages.0.0.branch.0.{key}").detach().mul_(2e4)
    return checkpoint


def steps(path: Path, op_type: str) -> list[Step]:
    return [step for step in Graph(Program.load(path)).steps if step.op.name == op_type]


def editing(path: Path, name: str, change: Callable[[Any, Any], None]) -> str:
    """Edit the message of the operation that gives a result; the other argument is the whole model's."""

    def edit(model: Any) -> None:
        change(next(o for o in packages.operations(model) if o.outputs[0].name == name), model)

    packages.edit(path, edit)
    return name


def own_constant(model: Any, operation: Any, parameter: str) -> Any:
    """The value of a parameter, after it was made the operation's own: constants are shared."""
    binding = operation.inputs[parameter].arguments[0]
    mine = copy.deepcopy(next(o for o in packages.operations(model) if o.outputs[0].name == binding.name))
    mine.outputs[0].name = f"{binding.name}_of_{operation.outputs[0].name}"
    binding.name = mine.outputs[0].name
    packages.operations(model).insert(0, mine)  # a copy
    return packages.operations(model)[0].attributes["val"].immediateValue.tensor


def numbers(tensor: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Change floats that a message holds itself, in either precision."""
    if tensor.WhichOneof("value") == "bytes":
        half = torch.frombuffer(bytearray(tensor.bytes.values), dtype=torch.float16)
        tensor.bytes.values = change(half.float()).half().numpy().tobytes()
    else:
        values = change(torch.tensor(list(tensor.floats.values)))
        tensor.floats.values[:] = values.tolist()


def stored_weight(path: Path, step: Step) -> Tensor:
    """A convolution's weight as the file has it: floats of either precision, or integers."""
    weight: Tensor = step.constants["weight"]
    description = Program.load(path).metadata["vig"]
    precision = json.loads(description)["precision"]
    if precision == "int8":
        return (weight / (weight.abs().flatten(1).amax(1)[:, None, None, None] / 127)).round().to(torch.int8)
    assert step.outputs[0].type
    return weight.to(STORED[step.outputs[0].type.dtype])


def with_weight(change: Callable[[Tensor], Tensor], number: int = 9) -> Fault:
    def fault(path: Path) -> str:
        step = steps(path, "conv")[number]
        packages.change_weights(path, stored_weight(path, step), change)
        return step.outputs[0].name

    return fault


def one_percent(weight: Tensor) -> Tensor:
    """The largest weight by a hundredth; of integers by one, which is nearly that."""
    place = weight.float().abs().argmax()
    flat = weight.view(-1)
    flat[place] = flat[place] * 1.01 if weight.is_floating_point() else flat[place] - flat[place].sign()
    return weight


def minimum_for_maximum(path: Path) -> str:
    name = steps(path, "maximum")[3].outputs[0].name
    return editing(path, name, lambda operation, model: setattr(operation, "type", "minimum"))


def moved_slice(path: Path) -> str:
    """As long as it was, one place further."""
    step = next(
        step for step in steps(path, "slice_by_index") if step.constants["begin"][2] == 0 < step.constants["end"][2] < 6
    )

    def change(operation: Any, model: Any) -> None:
        for bound in ("begin", "end"):
            own_constant(model, operation, bound).ints.values[2] += 1

    return editing(path, step.outputs[0].name, change)


def gelu(mode: str) -> Fault:
    def change(operation: Any, model: Any) -> None:
        own_constant(model, operation, "mode").strings.values[0] = mode

    return lambda path: editing(path, steps(path, "gelu")[4].outputs[0].name, change)


def swapped_operands(path: Path) -> str:
    """x_i - max x_j for max x_j - x_i."""

    def change(operation: Any, model: Any) -> None:
        x, y = operation.inputs["x"].arguments[0], operation.inputs["y"].arguments[0]
        x.name, y.name = y.name, x.name

    return editing(path, steps(path, "sub")[2].outputs[0].name, change)


def dropped_bias(path: Path) -> str:
    name = steps(path, "conv")[7].outputs[0].name
    return editing(path, name, lambda operation, model: operation.inputs.pop("bias"))


def dropped_residual(path: Path) -> str:
    """What reads the sum reads what it added instead."""
    graph = Graph(Program.load(path))
    number = next(i for i, step in enumerate(graph.steps) if step.op.name == "add")
    name = graph.steps[number].outputs[0].name

    def change(operation: Any, model: Any) -> None:
        branch = operation.inputs["y"].arguments[0].name
        for other in packages.operations(model):
            for argument in other.inputs.values():
                for binding in argument.arguments:
                    if binding.name == name:
                        binding.name = branch
        packages.operations(model).remove(operation)

    editing(path, name, change)
    return graph.steps[number + 1].outputs[0].name


def wrong_mean(path: Path) -> str:
    """Of one channel, by a unit of 255."""

    def change(operation: Any, model: Any) -> None:
        numbers(own_constant(model, operation, "y"), lambda y: y + torch.tensor([0.0, 1.0, 0.0]))

    return editing(path, steps(path, "sub")[0].outputs[0].name, change)


def wrong_epsilon(path: Path) -> str:
    """Of the first normalization, ten times as much."""

    def change(operation: Any, model: Any) -> None:
        numbers(own_constant(model, operation, "epsilon"), lambda y: 10 * y)

    return editing(path, steps(path, "layer_norm")[0].outputs[0].name, change)


def swapped_labels(path: Path) -> str:
    def change(operation: Any, model: Any) -> None:
        labels = operation.inputs["classes"].arguments[0].value
        first, second = labels.immediateValue.list.values[:2]
        texts = [value.immediateValue.tensor.strings for value in (first, second)]
        texts[0].values[0], texts[1].values[0] = texts[1].values[0], texts[0].values[0]

    return editing(path, steps(path, "classify")[0].outputs[0].name, change)


def other_colour_order(path: Path) -> str:
    packages.edit(path, lambda model: setattr(model.description.input[0].type.imageType, "colorSpace", 30))  # BGR
    return "image"


def other_preprocessing(path: Path) -> str:
    """In what the package says of itself alone."""

    def change(model: Any) -> None:
        texts = model.description.metadata.userDefined
        data = json.loads(texts["vig"])
        data["preprocessing"]["crop_ratio"] = 1.0
        texts["vig"] = json.dumps(data)

    packages.edit(path, change)
    return "preprocessing"


def other_system(path: Path) -> str:
    packages.edit(path, lambda model: setattr(model, "specificationVersion", model.specificationVersion + 1))
    return "specification version"


def wrong_scale(path: Path) -> str:
    """Of a quantization, a twentieth more; what dequantizes its integers is named, or what reads that."""
    program = Program.load(path)
    graph = Graph(program)
    quantize = [step for step in program.steps if step.op.name == "quantize"][11]
    readers = [s.outputs[0].name for s in program.steps if quantize.outputs[0].name in s.outputs[0].inputs]
    named = next(s.outputs[0].name for s in graph.steps if set(s.outputs[0].inputs) & set(readers))

    def change(operation: Any, model: Any) -> None:
        numbers(own_constant(model, operation, "scale"), lambda scale: 1.05 * scale)

    editing(path, quantize.outputs[0].name, change)
    return named


FAULTS: dict[str, Fault] = {
    "a weight x 1.01": with_weight(one_percent),
    "two channels of a weight swapped": with_weight(lambda weight: weight[[1, 0, *range(2, len(weight))]]),
    "a bias dropped": dropped_bias,
    "a slice moved by one": moved_slice,
    "minimum for maximum": minimum_for_maximum,
    "tanh for exact GELU": gelu("TANH_APPROXIMATION"),
    "operands of a difference swapped": swapped_operands,
    "a residual dropped": dropped_residual,
    "a mean of the input wrong by 1/255": wrong_mean,
    "two labels swapped": swapped_labels,
    "BGR for RGB": other_colour_order,
    "another crop in the metadata": other_preprocessing,
    "another specification version": other_system,
}
NORMALIZED_FAULTS: dict[str, Fault] = {  # of a network with layer norms and tanh GELU
    "exact for tanh GELU": gelu("EXACT"),
    "ten times the epsilon of a norm": wrong_epsilon,
}
INT8_FAULTS: dict[str, Fault] = {"an activation's scale wrong by 5 %": wrong_scale}
ALL = FAULTS | NORMALIZED_FAULTS | INT8_FAULTS

"""What a package should compute, operation by operation: by the interpreter, and by the torch network that it was made
of. Both are what CoreML's own values are held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vigcli.archs.checkpoint import Checkpoint
from vigcli.coreml.convert import deployable, meta_of
from vigcli.coreml.interpreter import OpInfo, Program
from vigcli.coreml.op_blocks import module_of, op_blocks, weights_begin
from vigcli.coreml.package import Feature

HANDED_OUT = ("fp16", "fp32", "int32")  # the types of results that CoreML gives
LAYERS = ("conv", "conv_transpose", "linear", "layer_norm")  # operations that are a whole layer of torch
AFTER_THE_NETWORK = ("softmax", "cast", "classify")  # what stands behind the last block


class Agreement(NamedTuple):
    """How near a value is to its reference.

    Attributes:
        db: signal-to-noise ratio, 150 at the most; of whole numbers none.
        equal_percent: of whole numbers, those that are the same.
    """

    db: float | None = None
    equal_percent: float | None = None


def inputs_of(program: Program, picture: Tensor | None) -> dict[str, Tensor]:
    """An input for each of a program's: the picture (3, R, R), RGB in 0 ... 255, where it fits, else drawn numbers.

    Of a dimension that is not fixed the drawn numbers have one.
    """
    generator = torch.Generator().manual_seed(0)
    given = {}
    for feature in program.inputs:
        shape = tuple(size or 1 for size in feature.shape or ())
        if picture is not None and shape[1:] == tuple(picture.shape):
            given[feature.name] = picture.float().expand(shape)
        elif feature.kind == "image":
            given[feature.name] = torch.randint(0, 256, shape, generator=generator).float()
        else:
            given[feature.name] = torch.rand(shape, generator=generator)
    return given


def comparable(program: Program) -> list[str]:
    """The results that CoreML can hand out, in order."""
    return [
        info.name for info in program.operations
        if info.type is not None and info.type.dtype in HANDED_OUT and info.op_type != "classify"
    ]  # fmt: skip


def interpreter_values(program: Program, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every result that CoreML could hand out, rounded as the package stores it."""
    values: dict[str, Tensor] = {}
    wanted = set(comparable(program))

    def keep(info: OpInfo, value: Tensor) -> None:
        if info.name in wanted:
            values[info.name] = value

    program.run(inputs, tap=keep)
    return values


def torch_values(program: Program, checkpoint: Checkpoint, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the torch network computes in fp32, by the operation of the package that gives the same.

    That is, of a layer the operation that has its weight, of a block its last operation, and what the package gives in
    the end. Other operations have no counterpart by name, nor have layers whose weights are equal.
    """
    meta = meta_of(program)
    network = deployable(checkpoint, meta)
    results = _results_by(program, list(meta.arch.named_blocks()) if meta.arch.family != "timm" else [])
    values: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, value: Any) -> None:
            size = value.numel() if isinstance(value, Tensor) else 0
            result = next((result for result, elements in results[name] if elements == size), None)
            if result is not None:
                values[result] = value

        return hook

    for name, module in network.named_modules():
        if name.replace(".", "_") in results:
            module.register_forward_hook(keep(name.replace(".", "_")))
    with torch.no_grad():
        scores = network(*(as_taken(feature, inputs[feature.name]) for feature in program.inputs))
    if isinstance(scores, Tensor):
        values[comparable(program)[-1]] = scores
    return values


def as_taken(feature: Feature, pixels: Tensor) -> Tensor:
    """An image as the program takes it, of one that is RGB."""
    return pixels.flip(1) if feature.color == "BGR" else pixels


def _results_by(program: Program, blocks: list[str]) -> dict[str, list[tuple[str, int]]]:
    """Of every module that may have one, the results that could be its own, the likeliest first, with their sizes."""
    places = op_blocks(program, blocks)
    layers: dict[str, list[tuple[str, int]]] = {}
    ends: dict[str, list[tuple[str, int]]] = {}
    for step in reversed(program.steps):
        info = step.outputs[0]
        if info.type is None or info.type.dtype not in HANDED_OUT or None in info.type.shape:
            continue
        result = (info.name, math.prod(size or 1 for size in info.type.shape))
        module, block = module_of(step), places[info.name]
        if module and step.op.name in LAYERS:
            layers.setdefault(module, []).append(result)
        if block in blocks and step.op.name not in AFTER_THE_NETWORK:
            ends.setdefault(weights_begin(block).rstrip("_"), []).append(result)
    return ends | {module: results for module, results in layers.items() if len(results) == 1}


def agreement(value: np.ndarray | Tensor, reference: Tensor, up_to_a_factor: bool = False) -> Agreement:
    """How near a value is to its reference of as many elements, which may be laid out otherwise.

    Args:
        up_to_a_factor: leave one out of the difference, as of an int8 package, where coremltools moves the scale of a
            residual sum into the quantization around it.
    """
    ours, theirs = torch.as_tensor(value).reshape(-1), reference.reshape(-1)
    if not reference.is_floating_point():
        return Agreement(equal_percent=100 * float((ours == theirs).double().mean()))
    return Agreement(db=decibels(ours, theirs, up_to_a_factor))


def worst(agreements: Sequence[Agreement]) -> Agreement:
    """The least of each kind, as of the results of one operation."""
    db = [agreement.db for agreement in agreements if agreement.db is not None]
    equal = [agreement.equal_percent for agreement in agreements if agreement.equal_percent is not None]
    return Agreement(min(db, default=None), min(equal, default=None))


def decibels(value: Tensor, reference: Tensor, up_to_a_factor: bool = False) -> float:
    """Signal-to-noise ratio, 150 at the most; -150 where a value is no number."""
    v, r = value.double(), reference.double()
    if up_to_a_factor and float(r.square().sum()):
        r = r * ((v * r).sum() / r.square().sum())
    signal, noise = float(r.square().sum()), float((v - r).square().sum())
    if not math.isfinite(noise):
        return -150.0
    return 150.0 if noise <= 1e-15 * signal else 10 * math.log10(max(signal, 1e-300) / noise)

"""A compression as coremltools' own passes write it: whole numbers with scales, palettes, zeros that are not stored.

What the palettes are is decided here; that a package keeps to its scheme is held by `vigcli.coreml.compressed`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from vigcli.compress.calibrate import STEPS, Ranges
from vigcli.config.compression import LEAST_WEIGHTS, Compression
from vigcli.coreml.convert import quiet
from vigcli.coreml.graphs import output_axis
from vigcli.coreml.interpreter import Program
from vigcli.coreml.ranges import FP16_MAX, MARGIN

ITERATIONS = 60  # of k-means, which mostly ends before
PASSES = (  # that a program needs after its compression; it went through all others when it was converted
    "int_op_canonicalization",
    "nullify_redundant_quantization_zero_point",
    "dequantize_quantize_pair_elimination",
    "distributive_quantized_binary_op_scale_normalization",
    "const_elimination",
    "const_deduplication",
    "remove_redundant_ops",
    "dead_code_elimination",
)
_MODE = {"mode": "linear_symmetric"}
Numbers = NDArray[Any]


def compressed_weights(model: Any, program: Program, compression: Compression) -> Any:
    """The model (of coremltools) with its weights compressed.

    Args:
        program: the same, as the interpreter reads it.
    """
    cto = importlib.import_module("coremltools.optimize.coreml")
    kept = _none_for(model, compression.kept)

    def config(options: Any, own: dict[str, Any] | None = None) -> Any:
        return cto.OptimizationConfig(global_config=options, op_name_configs={**(own or {}), **kept})

    joint = {"joint_compression": compression.sparsity_ratio > 0}
    with quiet(), _few_passes():
        if compression.sparsity_ratio:
            zeros = cto.OpMagnitudePrunerConfig(
                target_sparsity=compression.sparsity_ratio, weight_threshold=LEAST_WEIGHTS
            )
            model = cto.prune_weights(model, config(zeros))
        if compression.has_palettes:
            palettes = _palettes(cto, compression)
            names = _op_names(model)
            own = {names[name]: palettes(compression.group_of(channels)) for name, channels in _widths(program)}
            return cto.palettize_weights(model, config(palettes(None), own), **joint)
        if compression.weight_bits == 8:
            scales = cto.OpLinearQuantizerConfig(**_MODE, weight_threshold=0)
            return cto.linear_quantize_weights(model, config(scales), **joint)
    return model


def _op_names(model: Any) -> dict[str, str]:
    """What coremltools calls the operations, by their first results: `op_82` gives `var_82`."""
    function = model.get_spec().mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    return {
        operation.outputs[0].name: operation.attributes["name"].immediateValue.tensor.strings.values[0]
        for operation in operations
        if operation.type != "const"
    }


def _none_for(model: Any, results: Iterable[str]) -> dict[str, None]:
    """A configuration that leaves the operations alone which have these results."""
    names = _op_names(model)
    return dict.fromkeys(names[result] for result in results)


def _widths(program: Program) -> Iterator[tuple[str, int]]:
    """The operations that have a weight, with its output channels."""
    for step in program.steps:
        for value in step.constants.values():
            if hasattr(value, "ndim") and value.ndim >= 2 and value.numel() > LEAST_WEIGHTS:
                yield step.outputs[0].name, value.shape[output_axis(step)]


def _palettes(cto: Any, compression: Compression) -> Callable[[int | None], Any]:
    def of_group(channels: int | None) -> Any:
        options: dict[str, Any] = {"granularity": "per_tensor"}
        if channels is not None and compression.group_channels is not None:
            options = {"granularity": "per_grouped_channel", "group_size": channels}
        return cto.OpPalettizerConfig(
            mode="custom",
            lut_function=lambda weight: palette(weight, compression.weight_bits),
            weight_threshold=LEAST_WEIGHTS,
            **options,
        )

    return of_group


def palette(weight: Numbers, bits: int) -> tuple[Numbers, Numbers]:
    """(values, indices): 2^bits values, and the nearest of them for each weight that is not zero.

    k-means in one dimension from evenly filled clusters: deterministic, and every value is the mean of its weights.
    Zeros of a sparse weight take no part; where none are meant to be left out, a zero is as good a weight as any.
    """
    numbers = weight.reshape(-1).astype(np.float64)
    used = np.sort(numbers[numbers != 0] if (numbers == 0).mean() > 0.01 else numbers)
    if not len(used):
        used = numbers
    values = _centres(used, 2**bits).astype(weight.dtype)
    bounds = (values[1:].astype(np.float64) + values[:-1]) / 2
    return values, np.searchsorted(bounds, numbers).astype(np.uint8)


def _centres(ordered: Numbers, count: int) -> Numbers:
    """Lloyd's iterations on ordered numbers; a cluster that empties keeps its place."""
    sums = np.concatenate([[0.0], ordered.cumsum()])
    centres = ordered[((np.arange(count) + 0.5) * len(ordered) / count).astype(int)]
    for _ in range(ITERATIONS):
        ends = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        ends = np.concatenate([[0], ends, [len(ordered)]])
        sizes = np.diff(ends)
        moved = np.where(sizes > 0, np.diff(sums[ends]) / np.maximum(sizes, 1), centres)
        if np.allclose(moved, centres, rtol=1e-6, atol=0):
            break
        centres = moved
    return np.asarray(centres)


def _few_passes() -> Any:
    """coremltools runs all its passes after each compression, and would guard the indices of neighbours once more."""
    pipeline = importlib.import_module("coremltools.converters.mil.mil.passes.pass_pipeline")
    return mock.patch.multiple(pipeline, _COMMON_PASSES=[f"common::{name}" for name in PASSES], _CLEANUP_PASSES=[])


# ------------------------------------------------------------------------------------------------ activations


def compressed_activations(model: Any, compression: Compression, ranges: Ranges) -> Any:
    """The model with quantizations around what can compute in eight bits, by these ranges.

    Private functions are replaced or called; `constraints.txt` pins the release and tests run them.
    """
    cto = importlib.import_module("coremltools.optimize.coreml")
    passes = importlib.import_module("coremltools.optimize.coreml._post_training_quantization")
    stock = importlib.import_module("coremltools.optimize.coreml.experimental._post_training_quantization")
    debugger = importlib.import_module("coremltools.optimize.coreml.experimental._model_debugger")

    def gathered(model: Any, *_: Any, **__: Any) -> Ranges:
        joined = {name: {**bounds} for name, bounds in ranges.items()}
        concats = debugger.ModelDebugger(model)._get_concat_op_info()
        stock._adjust_concat_surrounding_activation_stats(concats, joined)  # what a concat joins has one range
        return joined

    config = cto.OptimizationConfig(
        global_config=cto.OpLinearQuantizerConfig(**_MODE), op_name_configs=_none_for(model, compression.kept)
    )
    with (
        quiet(),
        _few_passes(),
        _sums_within_range(),
        _sums_of_numbers_alone(),
        mock.patch.object(passes, "_get_activation_calibration_stats", gathered),
    ):
        return cto.linear_quantize_activations(model, config, sample_data=[])


def _sums_of_numbers_alone() -> Any:
    """coremltools would quantize the sums of indices too by which it keeps those of neighbours from being negative."""
    passes = importlib.import_module("coremltools.optimize.coreml._quantization_passes")
    types = importlib.import_module("coremltools.converters.mil.mil").types

    def is_valid(self: Any, op: Any) -> bool:
        return op.op_type != "add" or bool(types.is_float(op.outputs[0].dtype))

    return mock.patch.object(passes.insert_prefix_quantize_dequantize_pair, "is_valid_op", is_valid)


def _sums_within_range() -> Any:
    """coremltools computes a sum x + y in units of y's scale, unless it would leave the range of fp16 then: x is tried
    next in place of y."""
    sums = importlib.import_module("coremltools.converters.mil.mil.passes.defs.optimize_quantization")
    moved = sums.distributive_quantized_binary_op_scale_normalization
    divided = moved.try_to_divide

    def within_range(self: Any, x: Any, y: Any, z: Any) -> tuple[Any, Any]:
        scales = divided(self, x, y, z)
        largest = 0.0 if scales[0] is None else STEPS * (float(scales[0].max()) + 1)
        return scales if largest <= FP16_MAX / MARGIN else (None, None)

    return mock.patch.object(moved, "try_to_divide", within_range)

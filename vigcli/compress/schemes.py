"""A compression as coremltools' own passes write it: whole numbers with scales, palettes, zeros that are not stored.

What the palettes are is decided here; that a package keeps to its scheme is held by `vigcli.coreml.compressed`.
"""

from __future__ import annotations

import contextlib
import heapq
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vigcli.compress.calibrate import UNSIGNED_STEPS, Ranges
from vigcli.config.compression import LEAST_WEIGHTS, Compression
from vigcli.coreml.compressed import LAYERS, cutoff
from vigcli.coreml.convert import quiet
from vigcli.coreml.graphs import output_axis
from vigcli.coreml.interpreter import Program
from vigcli.coreml.ranges import FP16_MAX, MARGIN
from vigcli.coreml.steps import Step
from vigcli.errors import ConfigError

MOST_ITERATIONS = 5000  # of k-means, which ends before
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
ACTIVATIONS = ("gelu", "silu", "clip")  # quantized with the layer or sum before them; relu6 is a clip
LEAST_SCALE = 2.0**-14  # that fp16 holds in full
_MODE = {"mode": "linear_symmetric"}
_PREFIX = "coremltools.optimize.coreml._quantization_passes"
_SUFFIX = "coremltools.converters.mil.mil.passes.defs.optimize_activation_quantization"
Numbers = NDArray[Any]


def compressed_weights(model: Any, program: Program, compression: Compression) -> Any:
    """The model (of coremltools) with its weights compressed.

    Args:
        program: the same, as the interpreter reads it.
    """
    cto = importlib.import_module("coremltools.optimize.coreml")
    others = [step.outputs[0].name for step in program.steps if step.constants and not _weights(step)]
    kept = _none_for(model, {*compression.kept, *others})

    def config(options: Any, own: dict[str, Any] | None = None) -> Any:
        return cto.OptimizationConfig(global_config=options, op_name_configs={**(own or {}), **kept})

    joint = {"joint_compression": compression.sparsity_ratio > 0}
    with quiet(), _few_passes(), _shared_constants_stay(cto):
        if compression.sparsity_ratio:
            model = cto.prune_weights(model, config(None, _zeros(cto, model, program, compression)))
        if compression.has_palettes:
            palettes = _palettes(cto, compression)
            names = _op_names(model)
            own = {names[result]: palettes(weight.shape[axis]) for result, weight, axis in _large_weights(program)}
            return cto.palettize_weights(model, config(palettes(None), own), **joint)
        if compression.weight_bits == 8:
            scales = cto.OpLinearQuantizerConfig(**_MODE, weight_threshold=0)
            return cto.linear_quantize_weights(model, config(scales), **joint)
    return model


def first_layers(program: Program) -> tuple[str, ...]:
    """The results of the layers that read the picture.

    They stay in fp16, whatever the scheme: a picture has wide areas of one colour, to which a rounded weight adds the
    same everywhere, so that these few hundred numbers would make more noise than all others together.
    """
    of_picture, found = {feature.name for feature in program.inputs}, list[str]()
    for step in program.steps:
        if of_picture.isdisjoint(name for names in step.variables.values() for name in names):
            continue
        if _weights(step):
            found.append(step.outputs[0].name)
        else:
            of_picture.update(output.name for output in step.outputs)
    return tuple(found)


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


def _large_weights(program: Program) -> Iterator[tuple[str, Tensor, int]]:
    """The weights that palettes and zeros are for: the operation by its result, the weight, the axis of its outputs."""
    for step in program.steps:
        for weight in _weights(step):
            if weight.numel() > LEAST_WEIGHTS:
                yield step.outputs[0].name, weight, output_axis(step)


def _weights(step: Step) -> list[Tensor]:
    """The weights of an operation that is a layer; those of norms, scales and tables of positions are none."""
    constants = step.constants.values() if step.op.name in LAYERS else ()
    return [x for x in constants if isinstance(x, Tensor) and x.ndim > 1]


def _zeros(cto: Any, model: Any, program: Program, compression: Compression) -> dict[str, Any]:
    """For each operation how much of its weight becomes zero. coremltools' own choice goes by numpy's percentile of
    fp16, which is wrong: of more than 65,504 weights it makes none zero."""
    names = _op_names(model)
    return {
        names[result]: cto.OpThresholdPrunerConfig(
            threshold=cutoff(weight, compression.sparsity_ratio),
            minimum_sparsity_percentile=0.0,
            weight_threshold=LEAST_WEIGHTS,
        )
        for result, weight, _ in _large_weights(program)
    }


def _palettes(cto: Any, compression: Compression) -> Callable[[int | None], Any]:
    """The configuration for a weight of so many output channels."""

    def chosen(weight: Numbers) -> tuple[Numbers, Numbers]:
        numbers = weight.reshape(-1)
        used = numbers != 0 if compression.sparsity_ratio else np.ones(numbers.size, bool)
        indices = np.zeros(numbers.size, np.uint8)  # a zero that is not stored needs none
        values, indices[used] = palette(numbers[used], compression.weight_bits)
        return values, indices

    def of_group(channels: int | None) -> Any:
        options: dict[str, Any] = {"granularity": "per_tensor"}
        if channels is not None and compression.group_channels is not None:
            options = {"granularity": "per_grouped_channel", "group_size": compression.group_of(channels)}
        return cto.OpPalettizerConfig(
            mode="custom",
            lut_function=chosen,
            weight_threshold=LEAST_WEIGHTS,
            **options,
        )

    return of_group


def palette(weight: Numbers, bits: int) -> tuple[Numbers, Numbers]:
    """(values, indices): 2^bits values, and the nearest of them for each weight.

    k-means in one dimension, the same every time: every value is the mean of the weights that are nearest to it.
    """
    numbers = weight.reshape(-1).astype(np.float64)
    ordered = np.sort(numbers) if numbers.size else np.zeros(1)
    values = _means(ordered, _split(ordered, 2**bits))
    indices = np.searchsorted((values[1:] + values[:-1]) / 2, numbers, side="right")
    return values.astype(weight.dtype), indices.astype(np.uint8)


def _split(ordered: Numbers, count: int) -> Numbers:
    """Where to begin: the cluster of the largest error is cut at its mean, until there are so many."""
    sums, squares = (np.concatenate([[0.0], x.cumsum()]) for x in (ordered, ordered**2))

    def mean(start: int, end: int) -> float:
        return float(sums[end] - sums[start]) / (end - start)

    def cluster(start: int, end: int) -> tuple[float, int, int]:
        error = squares[end] - squares[start] - (end - start) * mean(start, end) ** 2
        return -float(error), start, end

    clusters = [cluster(0, len(ordered))]
    while len(clusters) < count:
        _, start, end = heapq.heappop(clusters)
        cut = start + int(np.searchsorted(ordered[start:end], mean(start, end), side="right"))
        if cut in (start, end):  # all are equal
            heapq.heappush(clusters, (0.0, start, end))
            break
        heapq.heappush(clusters, cluster(start, cut))
        heapq.heappush(clusters, cluster(cut, end))
    centres = sorted(mean(start, end) for _, start, end in clusters)
    return np.array(centres + centres[-1:] * (count - len(centres)))


def _means(ordered: Numbers, centres: Numbers) -> Numbers:
    """Lloyd's iterations until no weight changes its cluster; a cluster that is empty stays where it is."""
    sums = np.concatenate([[0.0], ordered.cumsum()])
    ends: Numbers = np.zeros(0)
    for _ in range(MOST_ITERATIONS):
        before, ends = ends, np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        if np.array_equal(before, ends):
            break
        bounds = np.concatenate([[0], ends, [len(ordered)]])
        sizes = np.diff(bounds)
        centres = np.where(sizes > 0, np.diff(sums[bounds]) / np.maximum(sizes, 1), centres)
    return centres


def _shared_constants_stay(cto: Any) -> Any:
    """coremltools refuses a constant, such as a bias of zeros, that something compressed shares with what is not: it
    stays as it is."""
    of_constant = cto.OptimizationConfig._get_const_op_config

    def config(self: Any, op: Any) -> Any:
        try:
            return of_constant(self, op)
        except ValueError:  # its readers are to be treated differently
            return None

    return mock.patch.object(cto.OptimizationConfig, "_get_const_op_config", config)


def _few_passes() -> Any:
    """coremltools runs all its passes after each compression, and would guard the indices of neighbours once more."""
    pipeline = importlib.import_module("coremltools.converters.mil.mil.passes.pass_pipeline")
    return mock.patch.multiple(pipeline, _COMMON_PASSES=[f"common::{name}" for name in PASSES], _CLEANUP_PASSES=[])


# ------------------------------------------------------------------------------------------------ activations


def compressed_activations(model: Any, compression: Compression, ranges: Ranges) -> Any:
    """The model with quantizations around what can compute in eight bits, by these ranges.

    Raises ConfigError for what has none among them, as where a network was trained in place of another package.

    Private functions are replaced or called; `constraints.txt` pins the release and tests run them.
    """
    cto = importlib.import_module("coremltools.optimize.coreml")
    passes = importlib.import_module("coremltools.optimize.coreml._post_training_quantization")
    stock = importlib.import_module("coremltools.optimize.coreml.experimental._post_training_quantization")
    debugger = importlib.import_module("coremltools.optimize.coreml.experimental._model_debugger")

    def gathered(model: Any, *_: Any, **__: Any) -> Ranges:
        joined = _Known((name, {**bounds}) for name, bounds in ranges.items())
        concats = debugger.ModelDebugger(model)._get_concat_op_info()
        concats = [names for names in concats if not joined.keys().isdisjoint(names)]  # known ranges are joined already
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
        _activations_with_what_is_before(),
        _unsigned_where_nothing_is_negative(cto),
        mock.patch.object(passes, "_get_activation_calibration_stats", gathered),
    ):
        return cto.linear_quantize_activations(model, config, sample_data=[])


class _Known(dict[str, dict[str, float]]):
    """Ranges of which one that is asked for and missing is an error with its name."""

    def __missing__(self, name: str) -> NoReturn:
        hint = "Choose ranges anew: --calibrate percentile."
        raise ConfigError(f"nothing says which range '{name}' has, that the package rounds.", hint)


def _activations_with_what_is_before() -> Any:
    """Before an activation that coremltools does not know it quantizes what the convolution gives, and once more after
    it; its own training with quantization does so after it alone."""
    suffix = importlib.import_module(_SUFFIX).insert_suffix_quantize_dequantize_pair
    return mock.patch.object(suffix, "_allowed_activations", {*suffix._allowed_activations, *ACTIVATIONS})


@contextlib.contextmanager
def _unsigned_where_nothing_is_negative(cto: Any) -> Iterator[None]:
    """What no picture made negative, as behind a relu, has 255 steps from 0 on, as coremltools' own training gives it;
    its calibration would give it 127, and as many that are never used."""
    before = importlib.import_module(_PREFIX).insert_prefix_quantize_dequantize_pair
    behind = importlib.import_module(_SUFFIX).insert_suffix_quantize_dequantize_pair
    construct, transform = before._construct_quant_dequant_op, behind._try_apply_transform
    from_zero = cto.OpLinearQuantizerConfig(mode="linear", dtype="uint8")

    def is_unsigned(self: Any, name: str) -> bool:
        bounds = self._activation_stats[name]
        return bool(bounds["rmin"] >= 0 and bounds["rmax"] >= UNSIGNED_STEPS * LEAST_SCALE)

    def quantize_before(self: Any, x: Any, dtype: Any, mode: str) -> Any:
        chosen = (from_zero.dtype, from_zero.mode) if is_unsigned(self, x.name) else (dtype, mode)
        return construct(self, x, *chosen)

    def quantize_behind(self: Any, last: Any, reader: Any, block: Any, visited: Any, config: Any) -> Any:
        chosen = from_zero if is_unsigned(self, last.outputs[0].name) else config
        return transform(self, last, reader, block, visited, chosen)

    with (
        mock.patch.object(before, "_construct_quant_dequant_op", quantize_before),
        mock.patch.object(behind, "_try_apply_transform", quantize_behind),
    ):
        yield


def _sums_of_numbers_alone() -> Any:
    """coremltools would quantize the sums of indices too by which it keeps those of neighbours from being negative."""
    passes = importlib.import_module(_PREFIX)
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
        largest = 0.0 if scales[0] is None else UNSIGNED_STEPS * (float(scales[0].max()) + 1)
        return scales if largest <= FP16_MAX / MARGIN else (None, None)

    return mock.patch.object(moved, "try_to_divide", within_range)

"""Int8 packages: weights and activations in eight bits, ranges gathered over the whole calibration set.

coremltools' own calibration runs Apple's runtime and, in 9.0, keeps only the last sample's ranges. Here the ranges come
from our interpreter, over every image, and its stock passes do the rest.
"""

from __future__ import annotations

import functools
import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from torch import Tensor

from vigcli.archs.checkpoint import Checkpoint
from vigcli.coreml.apple import coremltools
from vigcli.coreml.convert import PackageMeta, export, meta_of, quiet, save_package
from vigcli.coreml.interpreter import Program
from vigcli.coreml.ranges import FP16_MAX, MARGIN, reaches
from vigcli.errors import ConfigError, VigError

MIN_IMAGES = 128

Ranges = dict[str, dict[str, float]]


def quantize_int8(
    checkpoint: Checkpoint,
    checkpoint_sha256: str,
    pixels: Tensor,
    path: Path | str,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    minimum_ios: Literal[17, 18] = 17,
) -> PackageMeta:
    """Write the int8 package of a checkpoint: weights per channel, activations per tensor, symmetric.

    Args:
        pixels: (N, 3, R, R) uint8 RGB pictures to calibrate on, at least 128; never those it is measured on.

    Raises ConfigError for too few pictures and for graphs of nearest neighbours, VigError for activations that fp16
    cannot hold.
    """
    if len(pixels) < MIN_IMAGES:
        raise ConfigError(f"{len(pixels)} pictures are too few to calibrate on.", f"Give at least {MIN_IMAGES}.")
    with tempfile.TemporaryDirectory(prefix="vig-fp16-") as folder:
        source = Path(folder) / "fp16.mlpackage"
        on_progress("converting", 0, 1)
        program = export(checkpoint, checkpoint_sha256, source, "fp16", minimum_ios)
        meta = meta_of(program)
        if "topk" in program.op_counts:  # for iOS 17 coremltools adds to the indices, and would quantize the sum
            raise ConfigError("a graph of nearest neighbours cannot be quantized to int8.", "Export it: vig export.")
        ranges = activation_ranges(program, pixels, on_progress)
        model = _quantized(source, ranges)
    meta = meta.model_copy(update={"precision": "int8"})
    save_package(model, meta, path)
    return meta


def activation_ranges(
    program: Program, pixels: Tensor, on_progress: Callable[[str, int, int], None] = lambda what, done, total: None
) -> Ranges:
    """The least and greatest value of the input and of every result over all pictures.

    Raises VigError for a result that fp16 cannot hold.
    """
    ranges: Ranges = {program.inputs[0].name: {"rmin": float(pixels.min()), "rmax": float(pixels.max())}}
    for reach in reaches(program, pixels, "stored", functools.partial(on_progress, "calibrating")):
        if not reach.largest < FP16_MAX:  # not a number is no less than it either
            raise VigError(
                f"{reach.info.op_type} '{reach.info.name}' reaches {reach.largest:.3g}, beyond what fp16 holds.",
                "Train with weight decay or gradient clipping, and quantize again.",
            )
        ranges[reach.info.name] = {"rmin": reach.low, "rmax": reach.high}
    return ranges


def _quantized(source: Path, ranges: Ranges) -> Any:
    """The package with coremltools' activation and weight passes applied, fed with our ranges.

    Private functions are replaced or called; `constraints.txt` pins the release and tests run them.
    """
    ct = coremltools()
    cto = importlib.import_module("coremltools.optimize.coreml")
    passes = importlib.import_module("coremltools.optimize.coreml._post_training_quantization")
    stock = importlib.import_module("coremltools.optimize.coreml.experimental._post_training_quantization")
    debugger = importlib.import_module("coremltools.optimize.coreml.experimental._model_debugger")

    def gathered(model: Any, *_: Any, **__: Any) -> Ranges:
        concats = debugger.ModelDebugger(model)._get_concat_op_info()
        stock._adjust_concat_surrounding_activation_stats(concats, ranges)  # what a concat joins has one range
        return ranges

    def config(**options: Any) -> Any:
        options = {"mode": "linear_symmetric", **options}
        return cto.OptimizationConfig(global_config=cto.OpLinearQuantizerConfig(**options))

    sums = importlib.import_module("coremltools.converters.mil.mil.passes.defs.optimize_quantization")
    moved = sums.distributive_quantized_binary_op_scale_normalization
    divided = moved.try_to_divide

    def within_range(self: Any, x: Any, y: Any, z: Any) -> tuple[Any, Any]:
        """The scales of a sum x + y over that of y, unless the sum would leave the range of fp16 then: x is tried
        next in place of y."""
        scales = divided(self, x, y, z)
        largest = 0.0 if scales[0] is None else 127 * (float(scales[0].max()) + 1)
        return scales if largest <= FP16_MAX / MARGIN else (None, None)

    with quiet(), mock.patch.object(moved, "try_to_divide", within_range):
        model = ct.models.MLModel(str(source), skip_model_load=True)
        with mock.patch.object(passes, "_get_activation_calibration_stats", gathered):
            model = cto.linear_quantize_activations(model, config(), sample_data=[])
        return cto.linear_quantize_weights(model, config(weight_threshold=0))

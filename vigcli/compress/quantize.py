"""Compressed packages: the fp16 package of a checkpoint, its weights compressed, then its activations quantized by what
they reach in that package. What was gained and lost is left to `vigcli.compress.measure`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vigcli.archs.checkpoint import Checkpoint
from vigcli.compress.calibrate import Ranges, activation_ranges, check_images
from vigcli.compress.schemes import compressed_activations, compressed_weights, first_layers
from vigcli.config.compression import Compression
from vigcli.config.package import MinimumIos, PackageMeta
from vigcli.coreml.apple import coremltools
from vigcli.coreml.convert import export, meta_of, quiet, save_package, write_program
from vigcli.coreml.interpreter import Program
from vigcli.errors import UsageError

RANGE_IMAGES = 16

Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class Source:
    """The fp16 package that compressed ones are made of; its file lies in a temporary folder."""

    path: Path
    program: Program
    meta: PackageMeta


@contextlib.contextmanager
def half_package(
    checkpoint: Checkpoint,
    checkpoint_sha256: str,
    minimum_ios: MinimumIos,
    pixels: Tensor | None = None,
    on_progress: Progress = silent,
) -> Iterator[Source]:
    """Convert a checkpoint once, to be compressed in as many ways as is wanted.

    Args:
        pixels: (N, 3, R, R) uint8 RGB pictures, of which the first are run to see that fp16 holds the network.

    Raises VigError where it does not.
    """
    with tempfile.TemporaryDirectory(prefix="vig-fp16-") as folder:
        path = Path(folder) / "fp16.mlpackage"
        some = None if pixels is None else pixels[:RANGE_IMAGES]
        program = export(checkpoint, checkpoint_sha256, path, "fp16", minimum_ios, images=some, on_progress=on_progress)
        yield Source(path, program, meta_of(program))


def quantize(
    checkpoint: Checkpoint,
    checkpoint_sha256: str,
    path: Path | str,
    compression: Compression,
    pixels: Tensor | None = None,
    minimum_ios: MinimumIos | None = None,
    *,
    ranges: Ranges | None = None,
    on_progress: Progress = silent,
) -> PackageMeta:
    """Write the compressed package of a checkpoint, whole or not at all, and return what it says of itself.

    Args:
        minimum_ios: default: the first that runs the compression.

    The others as of `compress`. Raises ConfigError for too few pictures, and what `compress` and `check_target` raise.
    """
    ios = check_target(compression, minimum_ios)
    if compression.activation_bits == 8 and ranges is None:
        check_images(0 if pixels is None else len(pixels))
    with half_package(checkpoint, checkpoint_sha256, ios, pixels, on_progress) as source:
        return compress(source, path, compression, pixels, ranges=ranges, on_progress=on_progress)


def compress(
    source: Source,
    path: Path | str,
    compression: Compression,
    pixels: Tensor | None = None,
    *,
    ranges: Ranges | None = None,
    on_progress: Progress = silent,
) -> PackageMeta:
    """Write the compressed form of an fp16 package.

    Args:
        pixels: (N, 3, R, R) uint8 RGB pictures to calibrate 8-bit activations on, at least 128; never those it is
            measured on.
        ranges: of activations that are known already, as of a network that was trained with them; instead of pixels.

    Raises VigError for activations that fp16 cannot hold.
    """
    with quiet():
        model = coremltools().models.MLModel(str(source.path), skip_model_load=True)
    on_progress("compressing", 0, 1)
    kept = dict.fromkeys((*first_layers(source.program), *compression.kept))
    compression = compression.model_copy(update={"kept": tuple(kept)})
    model = compressed_weights(model, source.program, compression)
    if compression.activation_bits == 8:
        if ranges is None:
            assert pixels is not None
            assert compression.calibration is not None
            ranges = activation_ranges(_program_of(model), pixels, compression.calibration, on_progress)
            compression = compression.model_copy(update={"num_images": len(pixels)})
        model = compressed_activations(model, compression, ranges)
    precision = "int8" if compression.activation_bits == 8 else "fp16"
    meta = source.meta.model_copy(update={"precision": precision, "compression": compression})
    save_package(model, meta, path)
    return meta


def _program_of(model: Any) -> Program:
    """A model of coremltools as the interpreter reads it."""
    with tempfile.TemporaryDirectory(prefix="vig-weights-") as folder:
        write_program(model, Path(folder) / "net.mlpackage")
        return Program.load(Path(folder) / "net.mlpackage")


def check_target(compression: Compression, minimum_ios: int | None) -> MinimumIos:
    """The least iOS of a package. Raises UsageError for one that cannot run it, with what it can."""
    least = compression.least_ios
    if minimum_ios is None or minimum_ios == least:
        return least
    if minimum_ios > least:
        return 18 if minimum_ios == 18 else 17
    nearest = _nearest(compression, minimum_ios)
    hint = f"Take --target ios{least}" + (f", or {nearest}." if nearest else ".")
    raise UsageError(f"--target ios{minimum_ios}: {compression.text}: that needs iOS {least}.", hint)


def _nearest(compression: Compression, minimum_ios: int) -> str:
    """What comes nearest to a compression on an older iOS."""
    if compression.sparsity_ratio and compression.weight_bits < 16:
        return "leave --sparsity out" if minimum_ios == 17 or compression.activation_bits == 16 else ""
    if compression.activation_bits == 16:
        return ""
    whole = "write --weights-only in place of --int8 and its options"
    return f"keep the activations in fp16: {'leave --int8 out' if compression.has_palettes else whole}"

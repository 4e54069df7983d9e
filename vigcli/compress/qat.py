"""Quantization-aware training: the weights learn in the place of their int8 package, with its own ranges.

The network rounds where a package of it rounds (`vigcli.compress.rounded`), and is trained by a recipe to answer as it
did before. Ranges are those of the package that was calibrated first, and stay: what ships is what was trained. The
result is an ordinary checkpoint that knows its ranges.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vigcli.archs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vigcli.compress.calibrate import Ranges
from vigcli.compress.quantize import Progress, Source, compress
from vigcli.compress.rounded import Rounded, Roundings, find_roundings
from vigcli.config.archs import ArchConfig, TimmConfig
from vigcli.config.checkpoint import CheckpointMeta, Quantization
from vigcli.config.compression import Compression
from vigcli.config.recipe import Data, Recipe
from vigcli.config.recipe_parts import Distillation
from vigcli.coreml.convert import meta_of
from vigcli.coreml.graphs import Graph
from vigcli.coreml.interpreter import Program
from vigcli.coreml.verify import twin_of
from vigcli.errors import ConfigError
from vigcli.nn.deploy import deploy_attached
from vigcli.train.loop import TrainResult, train
from vigcli.train.network import Form
from vigcli.train.preprocess import normalize

QAT_RECIPE = "_qat.yaml"
TEMPERATURE = 3.0  # of a network that teaches itself: what it learned by heart it answers with one class alone at 1


def form_of(config: ArchConfig) -> Form:
    """What a package is made of, of a network in training form, so that gradients reach it."""
    return nn.Module.eval if isinstance(config, TimmConfig) else deploy_attached


def roundings_of(checkpoint: Checkpoint, package: Path | str, pixels: Tensor) -> Roundings:
    """Where a checkpoint's network rounds in a compressed package of it.

    Args:
        pixels: (1, 3, R, R) uint8 RGB, a picture to tell results by.

    Raises ConfigError for a network in which what the package rounds is not found.
    """
    program = Program.load(package)
    meta = meta_of(program)
    twin, x = Graph(twin_of(checkpoint, meta)), normalize(pixels, meta.preprocessing)
    with torch.no_grad():
        network = form_of(meta.arch)(checkpoint.model)
        return find_roundings(network, x, twin, Graph(program), meta.compression, pixels.float())


def calibrated_roundings(
    checkpoint: Checkpoint,
    source: Source,
    compression: Compression,
    pixels: Tensor,
    ranges: Ranges | None,
    on_progress: Progress,
) -> Roundings:
    """Where a checkpoint's network rounds in the package that it would make now.

    Args:
        pixels: (N, 3, R, R) uint8 RGB to calibrate on, unless `ranges` are known.
    """
    with tempfile.TemporaryDirectory(prefix="vig-int8-") as folder:
        package = Path(folder) / "net.mlpackage"
        compress(source, package, compression, pixels, ranges=ranges, on_progress=on_progress)
        on_progress("looking up what the package rounds", 0, 1)
        return roundings_of(checkpoint, package, pixels[:1])


def trained_ranges(meta: CheckpointMeta, source: Source) -> Ranges | None:
    """The ranges that a checkpoint was trained with; None where it was trained without.

    Raises ConfigError where they are of results that its package does not have.
    """
    if meta.quantization is None:
        return None
    names = {feature.name for feature in source.program.inputs} | {info.name for info in source.program.operations}
    if strange := sorted(meta.quantization.ranges.keys() - names):
        what = f"the checkpoint was trained with a range of '{strange[0]}', which its package does not have."
        hint = "Quantize for the iOS that it was trained for (--target), or choose ranges anew: --calibrate percentile."
        raise ConfigError(what, hint)
    return {name: {"rmin": low, "rmax": high} for name, (low, high) in meta.quantization.ranges.items()}


def qat_recipe(recipe: Recipe, path: Path | str, meta: CheckpointMeta, data: Data) -> Recipe:
    """A recipe for a checkpoint's network, classes and pictures, which teaches itself where no teacher is named."""
    named = recipe.with_network(meta.arch).model_dump(mode="json")
    start = str(Path(path).resolve())
    teacher = recipe.distillation or Distillation(teacher=start, kind="soft", alpha=1.0, temperature=TEMPERATURE)
    more = {"data": data, "preprocessing": meta.preprocessing, "distillation": teacher}
    plain = {name: part.model_dump(mode="json") for name, part in more.items()}
    return Recipe.parse(named | plain | {"weights": start, "compile": False})


def train_quantized(
    recipe: Recipe, roundings: Roundings, run_dir: Path, provenance: Mapping[str, Any], **job: Any
) -> TrainResult:
    """Train by a recipe with the roundings of a package; the last checkpoint knows its ranges.

    The job's other parts are those of `train`.
    """
    config = recipe.arch_config()
    form = functools.partial(Rounded, form=form_of(config), roundings=roundings)
    result = train(recipe, run_dir, provenance=provenance, form=form, **job)
    if result.finished and result.checkpoint is not None:
        model, meta = load_checkpoint(result.checkpoint)
        ranges = {name: (bounds["rmin"], bounds["rmax"]) for name, bounds in roundings.ranges.items()}
        learned = {"quantization": Quantization(ranges=ranges)}
        save_checkpoint(result.checkpoint, model, meta.model_copy(update=learned))
    return result

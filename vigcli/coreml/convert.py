"""From a checkpoint to a CoreML package: ML Program, image input with exact normalization, class labels, metadata."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vigcli.archs import backbone, inference_form
from vigcli.archs.checkpoint import Checkpoint
from vigcli.config.load import parse_as
from vigcli.config.package import (
    Input,
    MinimumIos,
    Output,
    PackageMeta,
    Precision,
    UniformPrecision,
    check_batch,
    class_labels,
    licence_text,
    network_name,
    output_texts,
    planned,
    preprocessing_text,
    version_text,
)
from vigcli.config.recipe import Channels, Preprocessing
from vigcli.coreml.apple import coremltools
from vigcli.coreml.interpreter import Program
from vigcli.coreml.package import REEXPORT_HINT
from vigcli.coreml.pipeline import brisk, pipeline
from vigcli.coreml.ranges import check_finite, check_half, kept_in_fp32, reaches
from vigcli.coreml.repeated import as_one_operation
from vigcli.errors import ConfigError
from vigcli.files import replacing
from vigcli.registry import FAMILIES

METADATA_KEY = "vig"
INPUT_NAME = "image"

Progress = Callable[[str, int, int], None]


class Deployable(nn.Module):
    """A network from pixels on: (B, 3, R, R) in 0 ... 255 -> (B, num_classes) probabilities, or what the network gives.

    Args:
        network: in evaluation form; gives (B, num_classes) logits or a list of feature maps.
        given: the order of the pixels' channels; where the network wants the other, they are turned round.
        softmax: give probabilities of logits.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, given: Channels = "RGB", softmax: bool = True):
        super().__init__()
        self.network = network
        self.softmax = softmax
        self.turned = given != preprocessing.channels
        mean, std = 255 * torch.tensor(preprocessing.mean), 255 * torch.tensor(preprocessing.std)
        self.register_buffer("mean", mean if given == "RGB" else mean.flip(0))
        self.register_buffer("variance", (std if given == "RGB" else std.flip(0)) ** 2)

    def logits(self, pixels: Tensor) -> Any:
        """What the network gives: logits, or the list of its feature maps."""
        # As a batch norm, because coremltools would make one of a product and a sum, and add 1e-5 to its variance.
        x = F.batch_norm(pixels, self.mean, self.variance, eps=0.0)
        if self.turned:  # by slices: a gather is reported to leave the Neural Engine
            x = torch.cat([x[:, 2:], x[:, 1:2], x[:, :1]], 1)
        return self.network(x)

    def forward(self, pixels: Tensor) -> Any:
        result = self.logits(pixels)
        if self.softmax:
            return torch.softmax(result, 1)
        return result if isinstance(result, Tensor) else tuple(result)


def export(
    checkpoint: Checkpoint,
    checkpoint_sha256: str,
    path: Path | str,
    precision: Precision = "fp16",
    minimum_ios: MinimumIos = 16,
    *,
    input: Input = "image",
    output: Output = "probabilities",
    batch: int = 1,
    images: Tensor | None = None,
    on_progress: Progress = lambda what, done, total: None,
) -> Program:
    """Write the package of a checkpoint, whole or not at all, and read it back.

    Args:
        images: (N, 3, R, R) uint8 RGB pictures on which no result may leave the range of its precision. `mixed` needs
            them: there the results that would leave fp16's range, and what is computed from these, are kept in fp32.

    Raises UsageError for a choice that no package can have, ConfigError for a network whose input is not an RGB image,
    VigError for one that leaves the range, UnavailableError without coremltools.
    """
    check_batch(input, output, batch)
    meta = planned(checkpoint.meta, checkpoint_sha256, precision, minimum_ios, input, output, batch)
    module = deployable(checkpoint, meta)
    if images is None:
        if precision == "mixed":
            raise ValueError("without pictures nothing tells what a mixed package keeps in fp32")
        with replacing(path) as temporary:
            program = _saved(_convert(module, meta), meta, temporary)
    else:
        with replacing(path) as temporary:
            program = _within_range(module, meta, images, temporary, on_progress)
    return dataclasses.replace(program, path=Path(path))


def _within_range(module: Deployable, meta: PackageMeta, images: Tensor, path: Path, on_progress: Progress) -> Program:
    """The package that is written at `path`, which holds all its results on the pictures."""
    blocks = list(meta.arch.named_blocks()) if meta.arch.family in FAMILIES else []
    kept: set[str] = set()
    while True:
        on_progress("converting", 0, 1)
        model = _convert(module, meta, kept)
        program = _saved(model, meta, path)
        found = reaches(program, images, on_progress=functools.partial(on_progress, "ranges"))
        check_finite(program, found, blocks)
        over = {reach.info.name for reach in found if reach.overflows}
        if meta.precision != "mixed" or not over - kept:
            check_half(program, found, len(images), blocks, meta.precision)
            in_fp32 = kept_in_fp32(program, meta.precision)
            return _saved(model, meta.model_copy(update={"fp32_results": in_fp32}), path) if in_fp32 else program
        kept |= over


def _saved(model: Any, meta: PackageMeta, path: Path) -> Program:
    save_package(model, meta, path)
    return Program.load(path)


def deployable(checkpoint: Checkpoint, meta: PackageMeta) -> Deployable:
    """The module that a package is made of; the checkpoint's own network is left as it is."""
    network = inference_form(meta.arch, checkpoint.model.float())
    if meta.output == "features":
        network = backbone(meta.arch, network)
    return Deployable(network, meta.preprocessing, meta.given_channels, meta.output == "probabilities").eval()


def _convert(module: Deployable, meta: PackageMeta, fp32_results: Collection[str] = ()) -> Any:
    pixels = torch.randint(0, 256, meta.input_shape, generator=torch.Generator().manual_seed(0)).float()
    precision: UniformPrecision = "fp32" if meta.precision == "fp32" else "fp16"
    return to_program(module, pixels, precision, meta.minimum_ios, fp32_results, **_interface(module, meta))


def output_names(module: Deployable, meta: PackageMeta) -> list[str]:
    """What the tensors that a module gives are called."""
    network: Any = module.network
    return list(network.names) if meta.output == "features" else [meta.output]


def output_shapes(checkpoint: Checkpoint, meta: PackageMeta) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a package of that kind gives, before labels are put to it."""
    module = deployable(checkpoint, meta)
    with torch.no_grad():
        result = module(torch.zeros(meta.input_shape))
    results = [result] if isinstance(result, Tensor) else result
    return {name: tuple(x.shape) for name, x in zip(output_names(module, meta), results, strict=True)}


def _interface(module: Deployable, meta: PackageMeta) -> dict[str, Any]:
    """What coremltools is told of the inputs and outputs of a package."""
    ct, shape = coremltools(), meta.input_shape
    if meta.input == "image":
        layout = getattr(ct.colorlayout, meta.given_channels)
        given = ct.ImageType(name=INPUT_NAME, shape=shape, color_layout=layout)
    else:
        given = ct.TensorType(name=INPUT_NAME, shape=shape, dtype=np.float32)
    if meta.output == "probabilities":
        return {"inputs": [given], "classifier_config": ct.ClassifierConfig(class_labels(meta))}
    outputs = [ct.TensorType(name=name, dtype=np.float32) for name in output_names(module, meta)]
    return {"inputs": [given], "outputs": outputs}


def to_program(
    module: nn.Module,
    example: Tensor,
    precision: UniformPrecision,
    minimum_ios: MinimumIos,
    fp32_results: Collection[str] = (),
    **interface: Any,
) -> Any:
    """The ML Program of a deployed module as coremltools makes it of a trace; nothing is loaded or written.

    Args:
        example: an input, whose shape the program is fixed to.
        fp32_results: of an fp16 program, results by name that are computed in fp32, and what reads them too.
        interface: what coremltools is told of inputs and outputs: `inputs`, `outputs`, `classifier_config`.
    """
    ct = coremltools()
    passes = pipeline(module)
    with quiet(), brisk(), torch.no_grad():
        with as_one_operation(passes):
            traced = torch.jit.trace(module, example, check_trace=False)
        return ct.convert(
            traced,
            convert_to="mlprogram",
            compute_precision=_half_but_for(fp32_results) if precision == "fp16" else ct.precision.FLOAT32,
            minimum_deployment_target=getattr(ct.target, f"iOS{minimum_ios}"),
            skip_model_load=True,
            pass_pipeline=passes,
            **interface,
        )


def _half_but_for(fp32_results: Collection[str]) -> Any:
    """fp16 as coremltools takes it. It is asked by the trace's names (`x.1`, `115`), of which a program makes others
    (`x_1_cast_fp16`, `var_115`)."""
    names = {name.removesuffix("_cast_fp16") for name in fp32_results}

    def is_half(op: Any) -> bool:
        given = [value for value in op.inputs.values() if value is not None]
        values = [one for value in given for one in (value if isinstance(value, list | tuple) else (value,))]
        return names.isdisjoint(spelt(value.name) for value in (*op.outputs, *values))

    def spelt(name: str) -> str:
        return re.sub(r"\W", "_", name if not name[0].isdigit() else f"var_{name}", flags=re.ASCII)

    return coremltools().transform.FP16ComputePrecision(op_selector=is_half)


def save_package(model: Any, meta: PackageMeta, path: Path | str) -> None:
    """Describe a converted model and write it."""
    classes = f", {meta.arch.num_classes} classes" if meta.output != "features" else ", feature maps"
    model.author = "vig"
    model.version = version_text(meta)
    model.license = licence_text(meta)
    model.short_description = (
        f"{network_name(meta)}{classes}, {meta.precision}, iOS {meta.minimum_ios} and later. "
        f"Input: {preprocessing_text(meta)}."
    )
    for name in model.input_description:
        model.input_description[name] = preprocessing_text(meta)
    for name, text in output_texts(meta, model.output_description).items():
        model.output_description[name] = text
    model.user_defined_metadata[METADATA_KEY] = meta.model_dump_json()
    model.user_defined_metadata["preprocessing"] = preprocessing_text(meta)
    write_program(model, path)


def write_program(model: Any, path: Path | str) -> None:
    """Write a converted model as a package, whole or not at all. Raises VigError where it cannot be written."""
    with replacing(path) as temporary, quiet():
        try:
            model.save(str(temporary))
        except RuntimeError as error:  # so coremltools calls a full disk
            raise OSError(errno.EIO, f"coremltools cannot save the package ({error})") from error


def package_meta(path: Path | str) -> PackageMeta:
    """What a package of ours says of itself. Raises ConfigError for another's."""
    return meta_of(Program.load(path))


def meta_of(program: Program) -> PackageMeta:
    """What a loaded package says of itself."""
    text = program.metadata.get(METADATA_KEY)
    if text is None:
        hint = "Only packages that `vig export` and `vig quantize` wrote can be verified."
        raise ConfigError(f"{program.path}: is no package of vig: its metadata is missing.", hint)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(f"{program.path}: what it says of itself is damaged.", REEXPORT_HINT) from None
    return parse_as(PackageMeta, data, str(program.path))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """coremltools' progress bars and warnings kept off the terminal; its errors still raise."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

"""One door to what was exported: a CoreML package or an ONNX file as something that scores pictures.

On a Mac a package is run by CoreML, elsewhere by our interpreter, and an ONNX file by ONNX Runtime; a `Runner` says by
which. How a picture becomes pixels is left to `vigcli.train`, and what scores are worth too.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vigcli.config.load import parse_as
from vigcli.config.package import crop_text
from vigcli.config.recipe import Preprocessing
from vigcli.coreml.apple import coremltools
from vigcli.coreml.convert import METADATA_KEY, PackageMeta, meta_of, quiet
from vigcli.coreml.interpreter import Program
from vigcli.errors import ConfigError, UnavailableError, VigError
from vigcli.measure.onnx import onnxruntime

Runtime = Literal["auto", "coreml", "interpreter"]
Scores = Literal["probabilities", "logits", "scores"]
Predict = Callable[[Tensor], Tensor]

INTERPRETER = "vig's interpreter (torch), not Apple's runtime"
BATCH = 64  # pictures that are handed over at once, about
# What Vision's `centerCrop` does: the short side fills the input, and the centre is taken.
VISION = Preprocessing(crop_ratio=1.0, interpolation="bilinear")


@dataclass(frozen=True, eq=False)
class Runner:
    """Something that scores pictures: call it with uint8 RGB (N, 3, R, R), any N, for (N, num_classes).

    Attributes:
        name: what was opened.
        ran_by: the runtime, in words.
        resolution: R.
        labels: class names in the order of the scores; empty where they are not known.
        scores: what the numbers are: probabilities, logits, or neither is known.
        preprocessing: from a picture to the pixels; its normalization is inside.
        is_guess: whether `preprocessing` is ours and not what the file says.
        batch_size: pictures to hand over at once, for speed.
    """

    name: str
    ran_by: str
    resolution: int
    num_classes: int
    labels: tuple[str, ...]
    scores: Scores
    preprocessing: Preprocessing
    predict: Predict = field(repr=False)
    is_guess: bool = False
    batch_size: int = BATCH

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        images = torch.as_tensor(images)
        if not len(images):
            raise ConfigError(f"{self.name}: there are no images to predict.")
        scores = self.predict(images)
        if scores.shape != (len(images), self.num_classes):
            found = " x ".join(map(str, scores.shape))
            what = f"{self.name}: gives {found} numbers for {len(images)} pictures, not {self.num_classes} each."
            raise ConfigError(what, "It is not what it says of itself: export it again.")
        return scores

    @property
    def preparation(self) -> str:
        """What is done with a picture, in words."""
        text = crop_text(self.preprocessing, self.resolution)
        return f"{text}: a GUESS (Vision's centerCrop); the file does not say" if self.is_guess else text

    @property
    def number(self) -> str:
        """What the number of a class is called, once logits are made probabilities."""
        return "score" if self.scores == "scores" else "probability"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The labels, or numbers."""
        return self.labels or tuple(map(str, range(self.num_classes)))


def open_runner(path: Path | str, runtime: Runtime = "auto") -> Runner:
    """A package or an ONNX file, ready to run.

    Args:
        runtime: of a package; `auto` is CoreML on a Mac and the interpreter elsewhere.

    Raises ConfigError for what is damaged, gives no scores of classes or takes no square RGB picture, UnavailableError
    where the runtime is not on this machine.
    """
    path = Path(path)
    on_mac = platform.system() == "Darwin"
    if runtime == "coreml" and not on_mac:
        hint = "Leave it out: vig's interpreter runs packages here."
        raise UnavailableError("--runtime coreml: CoreML runs on macOS alone.", hint)
    if not path.exists():
        raise ConfigError(f"{path}: no such package or ONNX file.", "`vig export` writes one.")
    if path.suffix == ".onnx":
        return _onnx_runner(path)
    program = Program.load(path)
    runner = _described(program)
    if on_mac and runtime != "interpreter":
        return replace(runner, predict=_coreml(program), ran_by=f"CoreML, macOS {platform.mac_ver()[0]}")
    return runner


def _described(program: Program) -> Runner:
    """What a package says of itself, run by the interpreter."""
    if len(program.inputs) != 1:
        raise ConfigError(f"{program.path}: takes {len(program.inputs)} inputs, not one picture.", _OURS)

    def predict(images: Tensor) -> Tensor:
        return program.predict(images.float())

    together = program.batch_size * max(1, BATCH // program.batch_size)
    if METADATA_KEY in program.metadata:
        return _runner_of(meta_of(program), str(program.path), INTERPRETER, predict, together)
    return _foreign(program, predict, together)


def _runner_of(meta: PackageMeta, name: str, ran_by: str, predict: Predict, batch_size: int) -> Runner:
    """What a file of ours says of itself."""
    if meta.output == "features":
        raise ConfigError(f"{name}: gives feature maps, not scores of classes.", "Export it without --features.")
    arch, labels = meta.arch, meta.labels
    return Runner(
        name, ran_by, arch.resolution, arch.num_classes, labels, meta.output, meta.preprocessing, predict,
        batch_size=batch_size,
    )  # fmt: skip


def _foreign(program: Program, predict: Predict, batch_size: int) -> Runner:
    """A classifier that others made, with pictures prepared as by Vision's `centerCrop`."""
    given = program.inputs[0]
    shape = given.shape or ()
    if given.kind != "image" or given.color == "GRAYSCALE":
        kind = given.color or given.kind
        raise ConfigError(f"{program.path}: takes {given.name}, a {kind}, not a picture in RGB.", _OURS)
    if len(shape) != 4 or None in shape or shape[2] != shape[3]:
        found = " x ".join("any" if size is None else str(size) for size in shape[2:])
        raise ConfigError(f"{program.path}: takes pictures of {found}, not of one square size.", _OURS)
    labels = _labels_of(program)
    count = len(labels) if labels is not None else _num_scores(program)
    names = tuple(map(str, labels or ()))
    return Runner(
        str(program.path), INTERPRETER, int(shape[2] or 0), count,
        () if names == tuple(map(str, range(count))) else names,
        "scores" if labels is None else "probabilities", VISION, predict, is_guess=True, batch_size=batch_size,
    )  # fmt: skip


_OURS = "Packages that `vig export` wrote can be run, and classifiers with one square RGB image input."


def _labels_of(program: Program) -> list[Any] | None:
    """The labels of a classifier, texts or numbers, in the order of its probabilities; None for another network."""
    for step in program.steps:
        if step.op.name == "classify":
            return [label.item() if isinstance(label, Tensor) else label for label in step.constants["classes"]]
    return None


def _num_scores(program: Program) -> int:
    """How many numbers the only output has."""
    sizes = [size for feature in program.outputs for size in (feature.shape or ())[-1:]]
    if len(program.outputs) != 1 or len(program.outputs[0].shape or ()) != 2 or None in sizes:
        found = ", ".join(f"{f.name} ({' x '.join(map(str, f.shape or ('?',)))})" for f in program.outputs)
        raise ConfigError(f"{program.path}: gives {found}, no scores of classes.", _OURS)
    return int(sizes[0] or 0)


# ------------------------------------------------------------------------------------------------ runtimes


def _coreml(program: Program) -> Predict:
    """Apple's runtime on all its compute units: tested with a model that is made, not run here."""
    with quiet():  # that it does not load is told where it is run
        model = coremltools().models.MLModel(str(program.path))
    feature, labels = program.inputs[0], _labels_of(program)
    wanted = next((f.name for f in program.outputs if f.kind == "probabilities"), program.outputs[0].name)
    batch = (feature.shape or (1,))[0] or 1

    def given(images: Tensor) -> Any:
        if feature.kind != "image":
            return images.float().numpy()
        assert len(images) == 1, "an image input takes one"
        return Image.fromarray(images[0].permute(1, 2, 0).numpy())  # CoreML itself makes BGR of it where it must

    def predict(images: Tensor) -> Tensor:
        parts = [_padded(part, batch) for part in images.split(batch)]
        try:
            answers = [answer[wanted] for answer in model.predict([{feature.name: given(part)} for part in parts])]
            if labels is not None:
                answers = [[answer[label] for label in labels] for answer in answers]
        except Exception as error:  # coremltools raises what CoreML says as it comes
            hint = "`--runtime interpreter` runs it without CoreML."
            raise VigError(f"{program.path}: CoreML does not run it: {_short(error)}.", hint) from error
        scores = np.concatenate([np.asarray(answer, np.float32).reshape(batch, -1) for answer in answers])
        return torch.from_numpy(scores[: len(images)])

    return predict


def _short(error: Exception) -> str:
    """What a runtime complains of, in a line."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def _padded(images: Tensor, batch: int) -> Tensor:
    """A full batch, its last picture repeated."""
    missing = batch - len(images)
    return torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images


_ONNX_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


def _onnx_runner(path: Path) -> Runner:
    """An ONNX file of `vig export`, whose metadata is that of a package."""
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of a private type for each thing that is wrong
        raise ConfigError(f"{path}: ONNX Runtime does not load it: {_short(error)}.", "Export it again.") from error
    meta = _onnx_meta(session, path)
    given, wanted = session.get_inputs()[0], session.get_outputs()[0].name
    dtype = _ONNX_TYPES.get(given.type)
    if dtype is None or len(session.get_inputs()) != 1:
        raise ConfigError(f"{path}: its input is {given.type}, not one picture.", "Export it again.")
    batch = given.shape[0] if isinstance(given.shape[0], int) else None

    def predict(images: Tensor) -> Tensor:
        scores = []
        for part in images.split(batch or BATCH):
            pixels = _padded(part, batch or len(part)).numpy().astype(dtype)
            try:
                scores.append(np.asarray(session.run([wanted], {given.name: pixels})[0], np.float32))
            except Exception as error:
                raise ConfigError(f"{path}: does not run: {_short(error)}.", "Export it again.") from error
        return torch.from_numpy(np.concatenate(scores)[: len(images)])

    return _runner_of(meta, str(path), f"ONNX Runtime {runtime.__version__}, CPU", predict, BATCH)


def _onnx_meta(session: Any, path: Path) -> PackageMeta:
    try:
        data = json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, ""))
    except (ValueError, RecursionError):
        hint = "Files of `vig export --target onnx` say it."
        raise ConfigError(f"{path}: does not say how pictures are prepared for it.", hint) from None
    return parse_as(PackageMeta, data, str(path))

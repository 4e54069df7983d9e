"""One door: the interpreter, CoreML (with a proxy that is made, beneath coremltools' own `predict`) and ONNX Runtime
give the checkpoint's scores, and what cannot be run is refused with its name."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packages
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor, nn

from vigcli.archs.checkpoint import Checkpoint
from vigcli.coreml import runtime
from vigcli.coreml.apple import coremltools
from vigcli.coreml.convert import METADATA_KEY, Deployable, PackageMeta, export, save_package, to_program, write_program
from vigcli.coreml.interpreter import Program
from vigcli.coreml.onnx import export_onnx
from vigcli.coreml.runtime import INTERPRETER, VISION, open_runner
from vigcli.errors import ConfigError, UnavailableError, VigError
from vigcli.measure.onnx import to_onnx

ct = pytest.importorskip("coremltools", exc_type=ImportError)
onnx = pytest.importorskip("onnx", exc_type=ImportError)

SHA, SIZE = "ab" * 32, tiny.CONFIG.resolution
PIXELS = tiny.pixels(5).to(torch.uint8)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return tiny.checkpoint()


@pytest.fixture(scope="module")
def logits(checkpoint: Checkpoint) -> Tensor:
    return logits_of(checkpoint)


@pytest.fixture(scope="module")
def package(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "fp32.mlpackage"
    export(checkpoint, SHA, path, "fp32")
    return path


class Small(nn.Module):
    """Too small to say anything: (B, 3, 8, 8) -> (B, 3) scores, or logits of our network's size."""

    def __init__(self, num_scores: int = 3):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Conv2d(3, num_scores, 8)
        self.layer.weight.data /= 255

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).flatten(1)


def image_input(shape: tuple[int, ...] = (1, 3, 8, 8), layout: str = "RGB") -> list[Any]:
    return [ct.ImageType(name="image", shape=shape, color_layout=ct.colorlayout[layout])]


def others(path: Path, module: nn.Module | None = None, **interface: Any) -> Path:
    """A package that says nothing of vig."""
    module, example = (module or Small()).eval(), torch.rand(interface["inputs"][0].shape.shape)
    write_program(to_program(module, example, "fp32", 16, **interface), path)
    return path


def described(checkpoint: Checkpoint) -> PackageMeta:
    """What a package of the checkpoint says of itself."""
    return PackageMeta(**dict(checkpoint.meta), checkpoint_sha256=SHA, precision="fp32")


# ------------------------------------------------------------------------------------------------ the interpreter


def test_a_package_scores_as_its_checkpoint(package: Path, checkpoint: Checkpoint, logits: Tensor) -> None:
    runner = open_runner(package)
    assert runner.ran_by == INTERPRETER
    assert (runner.resolution, runner.num_classes, runner.labels) == (SIZE, 10, tiny.LABELS)
    assert (runner.scores, runner.is_guess) == ("probabilities", False)
    assert runner.preprocessing == checkpoint.meta.preprocessing
    torch.testing.assert_close(runner(PIXELS), logits.softmax(1), rtol=1e-4, atol=1e-6)


def test_numpy_s_pictures_and_none(package: Path) -> None:
    runner, images = open_runner(package), tiny.pixels(2).to(torch.uint8)
    assert torch.equal(runner(images.numpy()), runner(images))
    with pytest.raises(ConfigError, match="there are no images"):
        runner(images[:0])


def test_pictures_are_handed_over_in_full_batches(package: Path) -> None:
    """What is left over of a batch runs one by one: the loaders' batches must be whole ones of the program."""
    assert open_runner(package).batch_size % Program.load(package).batch_size == 0
    assert 32 <= open_runner(package).batch_size <= 128


@pytest.fixture(scope="module")
def bgr(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights in a network that was trained with blue first."""
    preprocessing = checkpoint.meta.preprocessing.changed({"channels": "BGR"})
    return Checkpoint(checkpoint.model, checkpoint.meta.model_copy(update={"preprocessing": preprocessing}))


@pytest.fixture(scope="module")
def two(bgr: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of two pictures as a tensor, for logits."""
    path = tmp_path_factory.mktemp("two") / "two.mlpackage"
    export(bgr, SHA, path, "fp32", input="tensor", output="logits", batch=2)
    return path


def logits_of(checkpoint: Checkpoint) -> Tensor:
    with torch.no_grad():
        return Deployable(checkpoint.model, checkpoint.meta.preprocessing).logits(PIXELS.float())


def test_every_runner_is_handed_rgb(bgr: Checkpoint, two: Path, tmp_path: Path) -> None:
    export(bgr, SHA, tmp_path / "image.mlpackage", "fp32")
    expected = logits_of(bgr)
    assert open_runner(two).scores == "logits"
    assert packages.relative_error(open_runner(two)(PIXELS), expected) < 1e-5
    scores = open_runner(tmp_path / "image.mlpackage")(PIXELS)
    torch.testing.assert_close(scores, expected.softmax(1), rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------ CoreML


class Proxy:
    """What coremltools hands its inputs to on a Mac; here the interpreter answers."""

    def __init__(self, path: Path):
        self.program = Program.load(path)
        self.given: list[dict[str, Any]] = []

    def batchPredict(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:  # noqa: N802
        self.given += inputs
        return [self._answer(given) for given in inputs]

    def _answer(self, given: dict[str, Any]) -> dict[str, Any]:
        (name, value), *more = given.items()
        assert not more
        if isinstance(value, Image.Image):
            assert value.mode == "RGB"
            value = np.asarray(value).transpose(2, 0, 1)[None]
        answer = self.program.run({name: torch.from_numpy(np.array(value, np.float32))})
        return {key: x.numpy() if isinstance(x, Tensor) else x for key, x in answer.items()}


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> list[Proxy]:
    """This machine as a Mac whose CoreML is the interpreter; the proxies that were made."""
    proxies: list[Proxy] = []
    begin = coremltools().models.MLModel.__init__

    def made(self: Any, model: str, *args: Any, **options: Any) -> None:
        begin(self, model, *args, **options)
        proxies.append(Proxy(Path(model)))
        self.__proxy__ = proxies[-1]

    monkeypatch.setattr(coremltools().models.MLModel, "__init__", made)
    monkeypatch.setattr(runtime.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(runtime.platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    return proxies


def test_a_mac_runs_packages_by_coreml_and_says_so(package: Path, logits: Tensor, mac: list[Proxy]) -> None:
    runner = open_runner(package)
    assert runner.ran_by == "CoreML, macOS 15.1"
    torch.testing.assert_close(runner(PIXELS), logits.softmax(1), rtol=1e-4, atol=1e-6)
    assert len(mac[0].given) == len(PIXELS)
    assert np.array_equal(np.asarray(mac[0].given[2]["image"]), PIXELS[2].permute(1, 2, 0).numpy())


def test_a_mac_can_run_the_interpreter(package: Path, mac: list[Proxy]) -> None:
    runner = open_runner(package, "interpreter")
    assert runner.ran_by == INTERPRETER
    assert not mac


def test_coreml_gets_full_batches_of_tensors(bgr: Checkpoint, two: Path, mac: list[Proxy]) -> None:
    scores = open_runner(two)(PIXELS)
    assert [given["image"].shape for given in mac[-1].given] == [(2, 3, SIZE, SIZE)] * 3
    assert packages.relative_error(scores, logits_of(bgr)) < 1e-5


def test_what_coreml_refuses_is_told_with_its_reason(
    package: Path, mac: list[Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Proxy, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise RuntimeError("Error compiling model:\n no.")

    monkeypatch.setattr(Proxy, "batchPredict", fail)
    with pytest.raises(VigError, match="CoreML does not run it: Error compiling model: no") as refused:
        open_runner(package)(PIXELS)
    assert "--runtime interpreter" in refused.value.hint


def test_the_signatures_of_coremltools_that_are_called() -> None:
    model = coremltools().models.MLModel
    assert list(inspect.signature(model.__init__).parameters)[1] == "model"
    assert list(inspect.signature(model.predict).parameters)[1] == "data"
    assert "batchPredict" in inspect.getsource(model._get_predictions)


def test_coreml_elsewhere_is_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.platform, "system", lambda: "Linux")
    with pytest.raises(UnavailableError, match="macOS alone"):
        open_runner(package, "coreml")


# ------------------------------------------------------------------------------------------------ others' packages


def test_a_classifier_of_others_runs_with_a_guess_that_is_told(tmp_path: Path) -> None:
    labels = ct.ClassifierConfig(["ant", "bee", "cat"])
    module = nn.Sequential(Small(), nn.Softmax(1))
    runner = open_runner(others(tmp_path / "o.mlpackage", module, inputs=image_input(), classifier_config=labels))
    assert runner.is_guess
    assert "GUESS" in runner.preparation
    assert runner.preprocessing == VISION
    assert (runner.labels, runner.scores, runner.resolution) == (("ant", "bee", "cat"), "probabilities", 8)
    pixels = PIXELS[:, :, :8, :8]
    torch.testing.assert_close(runner(pixels), module(pixels.float()), rtol=1e-4, atol=1e-6)


def test_scores_without_labels_stay_what_they_are(tmp_path: Path) -> None:
    runner = open_runner(others(tmp_path / "o.mlpackage", inputs=image_input(layout="BGR")))
    assert (runner.labels, runner.scores, runner.class_names) == ((), "scores", ("0", "1", "2"))
    pixels = PIXELS[:, :, :8, :8]
    torch.testing.assert_close(runner(pixels), Small()(pixels.flip(1).float()), rtol=1e-4, atol=1e-4)


def test_numbered_labels_are_no_names(tmp_path: Path) -> None:
    labels = ct.ClassifierConfig([0, 1, 2])
    runner = open_runner(others(tmp_path / "o.mlpackage", inputs=image_input(), classifier_config=labels))
    assert runner.labels == ()


@pytest.mark.parametrize(
    ("module", "given", "why"),
    [
        (Small(), lambda: [ct.TensorType(name="x", shape=(1, 3, 8, 8))], "takes x, a tensor, not a picture"),
        (Small(), lambda: image_input((1, 3, 8, 12)), "takes pictures of 8 x 12"),
        (nn.AvgPool2d(2), image_input, "no scores of classes"),
        (nn.Conv2d(1, 1, 8), lambda: image_input((1, 1, 8, 8), "GRAYSCALE"), "a GRAYSCALE, not a picture in RGB"),
    ],
    ids=["tensor", "wide", "maps", "gray"],
)
def test_others_that_are_no_classifiers_are_refused(
    module: nn.Module, given: Callable[[], list[Any]], why: str, tmp_path: Path
) -> None:
    path = others(tmp_path / "o.mlpackage", module, inputs=given())
    with pytest.raises(ConfigError, match=why) as refused:
        open_runner(path)
    assert str(path) in str(refused.value)
    assert refused.value.hint


def test_feature_maps_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export(checkpoint, SHA, tmp_path / "f.mlpackage", "fp32", output="features")
    with pytest.raises(ConfigError, match="feature maps"):
        open_runner(tmp_path / "f.mlpackage")


def test_a_package_that_is_not_what_it_says_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    shape = (1, 3, SIZE, SIZE)
    module = nn.Sequential(nn.AdaptiveAvgPool2d(8), Small(3))
    program = to_program(module, torch.rand(shape), "fp32", 16, inputs=image_input(shape))
    path = tmp_path / "f.mlpackage"
    save_package(program, described(checkpoint), path)
    with pytest.raises(ConfigError, match="gives 5 x 3 numbers for 5 pictures, not 10 each"):
        open_runner(path)(PIXELS)


# ------------------------------------------------------------------------------------------------ ONNX


def onnx_file(path: Path, module: nn.Module, text: str | None, shape: tuple[int, ...] = (3, SIZE, SIZE)) -> Path:
    model = onnx.load_model(io.BytesIO(to_onnx(module, (1, *shape), "net")))
    if text is not None:
        model.metadata_props.add(key=METADATA_KEY, value=text)
    onnx.save_model(model, path)
    return path


def test_an_onnx_file_scores_as_its_checkpoint(
    checkpoint: Checkpoint, bgr: Checkpoint, logits: Tensor, tmp_path: Path
) -> None:
    export_onnx(bgr, SHA, tmp_path / "two.onnx", PIXELS, output="logits", batch=2)
    assert packages.relative_error(open_runner(tmp_path / "two.onnx")(PIXELS), logits_of(bgr)) < 1e-5
    export_onnx(checkpoint, SHA, tmp_path / "m.onnx", PIXELS)
    runner = open_runner(tmp_path / "m.onnx")
    assert runner.ran_by.startswith("ONNX Runtime ")
    assert runner.labels == tiny.LABELS
    torch.testing.assert_close(runner(PIXELS), logits.softmax(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("text", [None, "", "{", "[" * 100_000, "{}"], ids=["none", "empty", "cut", "deep", "bare"])
def test_onnx_files_of_others_are_refused(text: str | None, tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "m.onnx", Small(), text, (3, 8, 8))
    with pytest.raises(ConfigError, match=r"m\.onnx"):
        open_runner(path)


def test_a_damaged_onnx_file_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "m.onnx", Small(), "{}", (3, 8, 8))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ConfigError, match=r"m\.onnx: ONNX Runtime does not load it"):
        open_runner(path)
    with pytest.raises(ConfigError, match="no such package or ONNX file"):
        open_runner(tmp_path / "none.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.onnx: ONNX Runtime does not load it"):
        open_runner(tmp_path / "folder.onnx")


def test_an_onnx_file_of_another_size_is_refused_where_it_runs(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "m.onnx", Small(10), described(checkpoint).model_dump_json(), (3, 8, 8))
    with pytest.raises(ConfigError, match="does not run"):
        open_runner(path)(PIXELS)

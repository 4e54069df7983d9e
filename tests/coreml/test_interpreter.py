"""The interpreter on whole networks: it agrees with torch, it shows planted faults, and it refuses damaged packages."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from packages import decibels, edit, operations, relative_error
from torch import Tensor, nn

from vigcli.coreml.apple import coremltools
from vigcli.coreml.interpreter import OpInfo, Program
from vigcli.coreml.package import PackageFiles, read_package
from vigcli.errors import ConfigError

pytest.importorskip("coremltools", exc_type=ImportError)
SIZE = 32


class Net(nn.Module):
    """Small, with what the networks of this project have: a slice of a concat, max-relative links, an average."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.mix = nn.Conv2d(32, 64, 1)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x))
        shifted = torch.cat([x[:, :, -2:], x[:, :, :-2]], 2)
        x = torch.cat([x, torch.maximum(shifted, x) - x], 1)
        x = F.gelu(self.mix(x))
        return self.head(x.mean((2, 3)))


@functools.cache
def net() -> nn.Module:
    return Net().eval()


def image(batch: int = 1, size: int = SIZE, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def export(module: nn.Module, path: Path, *, precision: str = "FLOAT32", size: int = SIZE, **options: Any) -> Any:
    ct = coremltools()
    example = image(size=size)
    options.setdefault("inputs", [ct.TensorType(name="x", shape=example.shape)])
    options.setdefault("minimum_deployment_target", ct.target.iOS17)
    model = ct.convert(torch.jit.trace(module, example), compute_precision=getattr(ct.precision, precision), **options)
    model.save(str(path))
    return model


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packages") / "net.mlpackage"
    export(net(), path)
    return path


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "copy.mlpackage"))


def outcome(program: Program, x: Tensor, **options: Any) -> Tensor:
    (result,) = program.run({program.inputs[0].name: x}, **options).values()
    return result


# --- precision -----------------------------------------------------------------------------------------------------


def test_stored_precision_is_half_and_shows(tmp_path: Path) -> None:
    export(net(), tmp_path / "half.mlpackage", precision="FLOAT16")
    program, x = Program.load(tmp_path / "half.mlpackage"), image()
    seen: list[tuple[OpInfo, Tensor]] = []
    stored = outcome(program, x, tap=lambda info, value: seen.append((info, value)))
    assert [info for info, _ in seen] == program.operations
    half = [value for info, value in seen if info.type and info.type.dtype == "fp16"]
    assert half
    assert all(torch.equal(value, value.half().float()) for value in half)
    assert not torch.equal(stored, outcome(program, x, precision="fp32"))
    assert decibels(stored, net()(x)) > 30


def test_half_overflows_as_on_a_device(tmp_path: Path) -> None:
    class Big(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 300 * 300).mean((2, 3))

    export(Big(), tmp_path / "big.mlpackage", precision="FLOAT16")
    program = Program.load(tmp_path / "big.mlpackage")
    assert outcome(program, torch.ones(1, 3, SIZE, SIZE)).isinf().any()
    assert outcome(program, torch.ones(1, 3, SIZE, SIZE), precision="fp32").isfinite().all()


def test_describes_the_package(package: Path) -> None:
    program = Program.load(package)
    assert [(f.name, f.kind, f.shape) for f in program.inputs] == [("x", "tensor", (1, 3, SIZE, SIZE))]
    assert [f.shape for f in program.outputs] == [(1, 5)]
    assert program.op_counts["conv"] == 2
    assert program.op_counts["maximum"] == 1
    assert "const" not in program.op_counts


@pytest.mark.parametrize("backwards", [False, True])
def test_the_order_in_which_a_message_keeps_inputs_is_of_no_matter(
    backwards: bool, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message's map has none: it may change from file to file and from one process to the next."""
    before = Program.load(package)

    def ordered(path: Path) -> PackageFiles:
        files = read_package(path)
        for operation in files.block.operations:
            operation.inputs = dict(sorted(operation.inputs.items(), reverse=backwards))
        return files

    monkeypatch.setattr("vigcli.coreml.interpreter.read_package", ordered)
    assert [info.inputs for info in Program.load(package).operations] == [info.inputs for info in before.operations]


# --- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_is_the_same_as_one_by_one(package: Path) -> None:
    program, x = Program.load(package), image(2 * 17 + 3)
    assert program.batch_size > 1
    with torch.no_grad():
        torch.testing.assert_close(program.predict(x), net()(x), rtol=1e-5, atol=1e-6)
    assert program.batch_size > 1


class Folds(nn.Module):
    """Moves channels in front of the images, as MobileViT's unfolding does."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] * 3, 4, -1).softmax(2).amax(1).reshape(x.shape[0], -1)


class AcrossImages(nn.Module):
    """Pointless for one image, and changes no shape: only the axis tells."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).softmax(0) * x.flatten(1)


@pytest.mark.parametrize("module", [Folds(), AcrossImages()], ids=["folds", "across images"])
def test_images_that_cannot_run_together_run_one_by_one(module: nn.Module, tmp_path: Path) -> None:
    export(module, tmp_path / "n.mlpackage")
    program, x = Program.load(tmp_path / "n.mlpackage"), image(20)
    expected = torch.cat([module(one[None]) for one in x])
    torch.testing.assert_close(program.predict(x), expected, rtol=1e-5, atol=1e-6)
    assert program.batch_size == 1


@pytest.mark.parametrize("target", ["iOS16", "iOS17", "iOS18"])
def test_a_package_of_three_takes_any_number_of_images(target: str, tmp_path: Path) -> None:
    """Three at a time; where fewer are left the last is repeated, and its copies are dropped."""
    ct = coremltools()
    inputs = [ct.TensorType(name="x", shape=(3, 3, SIZE, SIZE))]
    model = ct.convert(
        torch.jit.trace(net(), image(3)),
        inputs=inputs,
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=getattr(ct.target, target),
        skip_model_load=True,
    )
    model.save(str(tmp_path / "three.mlpackage"))
    program, x = Program.load(tmp_path / "three.mlpackage"), image(7)
    assert program.batch_size == 3
    with torch.no_grad():
        expected = net()(x)
    for count in (1, 2, 3, 4, 6, 7):
        torch.testing.assert_close(program.predict(x[:count]), expected[:count], rtol=1e-5, atol=1e-6)
    (together,) = program.run({"x": x[:3]}).values()
    torch.testing.assert_close(together, expected[:3], rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="'x' is 3 x 3 x 32 x 32, not 1 x 3 x 32 x 32"):
        program.run({"x": x[:1]})


class Averages(nn.Module):
    """One row for all images together."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True).flatten(1)


def test_an_output_without_a_row_for_each_image(tmp_path: Path) -> None:
    ct = coremltools()
    inputs = [ct.TensorType(name="x", shape=(5, 3, 4, 4))]
    traced = torch.jit.trace(Averages(), image(5, size=4))
    ct.convert(traced, inputs=inputs, skip_model_load=True).save(str(tmp_path / "mean.mlpackage"))
    with pytest.raises(ConfigError, match="its output of 1 x 48 has no row for each of 5 images"):
        Program.load(tmp_path / "mean.mlpackage").predict(image(5, size=4))


# --- inputs and outputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_an_image_is_rgb_whatever_the_package_wants(color: str, tmp_path: Path) -> None:
    ct = coremltools()
    given = ct.ImageType(
        name="picture",
        shape=(1, 3, SIZE, SIZE),
        scale=1 / 127.5,
        bias=[-1, -0.9, -0.8],
        color_layout=getattr(ct.colorlayout, color),
    )
    export(net(), tmp_path / "image.mlpackage", inputs=[given])
    program, x = Program.load(tmp_path / "image.mlpackage"), (image() * 255).round()
    assert (program.inputs[0].kind, program.inputs[0].color) == ("image", color)
    ordered = x if color == "RGB" else x.flip(1)
    expected = net()(ordered / 127.5 - torch.tensor([1, 0.9, 0.8]).reshape(3, 1, 1))
    assert relative_error(outcome(program, x), expected) < 1e-5


@pytest.mark.parametrize("labels", [list("abcde"), [10, 20, 30, 40, 50]], ids=["strings", "integers"])
def test_a_classifier_names_its_classes(labels: list[Any], tmp_path: Path) -> None:
    ct = coremltools()
    model = export(net(), tmp_path / "c.mlpackage", classifier_config=ct.ClassifierConfig(labels))
    model.author, model.license, model.version, model.short_description = "A", "L", "1.2", "What it does"
    model.user_defined_metadata["accuracy"] = "0.5"
    model.save(str(tmp_path / "c.mlpackage"))
    program, x = Program.load(tmp_path / "c.mlpackage"), image(2)
    expected = net()(x)
    label, scores = program.run({"x": x[:1]}).values()
    assert label == labels[int(expected[0].argmax())]
    assert list(scores) == labels
    assert np.allclose(list(scores.values()), expected[0].detach(), atol=1e-5)
    assert [output.kind for output in program.outputs] == ["label", "probabilities"]
    assert relative_error(program.predict(x), expected) < 1e-5
    wanted = {"author": "A", "license": "L", "version": "1.2", "description": "What it does", "accuracy": "0.5"}
    assert wanted.items() <= program.metadata.items()


class Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = net().stem

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = F.gelu(self.stem(x))
        return fine, F.avg_pool2d(fine, 2)


def test_several_outputs_come_by_name_and_are_no_scores(tmp_path: Path) -> None:
    ct = coremltools()
    export(
        Maps().eval(), tmp_path / "maps.mlpackage", outputs=[ct.TensorType(name="fine"), ct.TensorType(name="coarse")]
    )
    program, x = Program.load(tmp_path / "maps.mlpackage"), image()
    outputs = program.run({"x": x})
    assert [feature.name for feature in program.outputs] == list(outputs) == ["fine", "coarse"]
    for seen, due in zip(outputs.values(), Maps()(x), strict=True):
        assert relative_error(seen, due) < 1e-5
    with pytest.raises(ConfigError, match="it has 2 outputs; scores need one"):
        program.predict(x)


def test_a_tap_may_replace_a_result_which_is_rounded_as_it_was(package: Path, tmp_path: Path) -> None:
    export(net(), tmp_path / "half.mlpackage", precision="FLOAT16")
    third = 1 / 3

    def replace(info: OpInfo, value: Tensor) -> Tensor | None:
        return torch.full_like(value, third) if info.op_type == "reduce_mean" else None

    for path in (package, tmp_path / "half.mlpackage"):
        program = Program.load(path)
        stored = outcome(program, image(), tap=replace)
        (mean,) = (info for info in program.operations if info.op_type == "reduce_mean")
        assert mean.type is not None
        given = torch.tensor(third).half().float() if mean.type.dtype == "fp16" else torch.tensor(third)
        head = next(step for step in program.steps if step.op.name == "linear")
        expected = F.linear(given.expand(1, 64), head.constants["weight"], head.constants["bias"])
        torch.testing.assert_close(stored, expected.half().float() if mean.type.dtype == "fp16" else expected)


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_what_needs_no_rounding_would_not_change_by_it(target: str, tmp_path: Path) -> None:
    """Of an fp16 package every result is an fp16 number, whether the interpreter rounds it or knows it to be one."""
    ct = coremltools()
    options = {"precision": "FLOAT16", "minimum_deployment_target": getattr(ct.target, target)}
    export(net(), tmp_path / "half.mlpackage", **options)
    program = Program.load(tmp_path / "half.mlpackage")
    kinds = {step.op.name: step.rounded for step in program.steps}
    assert kinds["maximum"] == kinds["concat"] == (False,)
    assert kinds["conv"] == kinds["gelu"] == (True,)
    program.run({"x": image()}, tap=_assert_half)


def _assert_half(info: OpInfo, value: Tensor) -> None:
    if info.type and info.type.dtype == "fp16":
        assert torch.equal(value, value.half().float())


def test_says_which_input_is_wrong(package: Path) -> None:
    program = Program.load(package)
    with pytest.raises(ConfigError, match="'x' is not given"):
        program.run({"y": image()})
    with pytest.raises(ConfigError, match="'x' is 1 x 3 x 32 x 32, not 1 x 3 x 16 x 16"):
        program.run({"x": image(size=16)})
    with pytest.raises(ConfigError, match="precision 'int4'"):
        program.run({"x": image()}, precision="int4")  # type: ignore[arg-type]


# --- planted faults -------------------------------------------------------------------------------------------------


def swap_maximum(model: Any) -> None:
    next(o for o in operations(model) if o.type == "maximum").type = "minimum"


def move_slice(model: Any) -> None:
    """Rows 1 to 15 instead of 0 to 14: the shape stays."""
    last = [o for o in operations(model) if o.type == "slice_by_index"][-1]
    for parameter in ("begin", "end"):
        name = last.inputs[parameter].arguments[0].name
        const = next(o for o in operations(model) if o.outputs[0].name == name)
        const.attributes["val"].immediateValue.tensor.ints.values[2] += 1


def scale_weight(path: Path) -> None:
    """One number of one convolution, by 1 %."""
    weights = path / "Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(weights.read_bytes())
    head = net().head.weight.detach().numpy()
    place = content.find(head.tobytes())
    assert place > 0
    largest = int(np.abs(head).argmax())
    content[place + 4 * largest : place + 4 * largest + 4] = (head.flat[largest] * np.float32(1.01)).tobytes()
    weights.write_bytes(content)


@pytest.mark.parametrize("fault", ["weight", "maximum", "slice"])
def test_a_planted_fault_shows(fault: str, copy: Path) -> None:
    if fault == "weight":
        scale_weight(copy)
    else:
        edit(copy, {"maximum": swap_maximum, "slice": move_slice}[fault])
    x = image()
    assert relative_error(outcome(Program.load(copy), x), net()(x)) > 1e-4

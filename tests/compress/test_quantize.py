"""Int8 packages: ranges of every calibration picture, what is refused, and how close the package stays."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import packages
import pytest
import tiny
import torch
from compressed import INT8
from torch import Tensor

from vigcli.archs.checkpoint import Checkpoint
from vigcli.compress.calibrate import MIN_IMAGES, activation_ranges
from vigcli.compress.quantize import quantize
from vigcli.config.archs import TimmConfig
from vigcli.config.compression import Compression
from vigcli.coreml.convert import Deployable, PackageMeta, export, meta_of
from vigcli.coreml.interpreter import OpInfo, Program
from vigcli.coreml.verify import verify
from vigcli.errors import ConfigError, VigError

pytest.importorskip("coremltools", exc_type=ImportError)
SHA = "ab" * 32


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return tiny.checkpoint()


@pytest.fixture(scope="module")
def calibration() -> Tensor:
    """The first picture, which a calibration that keeps the last range alone would forget, is by far the loudest."""
    pixels = 100 + tiny.pixels(MIN_IMAGES, seed=3) // 5
    generator = torch.Generator().manual_seed(0)
    pixels[0] = 255.0 * torch.randint(0, 2, pixels[0].shape, generator=generator)
    return pixels.to(torch.uint8)


@pytest.fixture(scope="module")
def half(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Program:
    path = tmp_path_factory.mktemp("half") / "fp16.mlpackage"
    export(checkpoint, SHA, path, "fp16", minimum_ios=17)
    return Program.load(path)


@pytest.fixture(scope="module")
def quantized(
    checkpoint: Checkpoint, calibration: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PackageMeta]:
    path = tmp_path_factory.mktemp("quantized") / "int8.mlpackage"
    return path, quantize(checkpoint, SHA, path, INT8, calibration)


def test_ranges_cover_every_picture(half: Program, calibration: Tensor) -> None:
    """Against the same pictures one by one; the program runs them in batches, with some left over."""
    some = torch.cat([calibration[:1], calibration[-40:]])
    seen: dict[str, list[Tensor]] = {}

    def keep(info: OpInfo, value: Tensor) -> None:
        if value.is_floating_point():
            seen.setdefault(info.name, []).append(torch.stack(value.aminmax()))

    for image in some:
        half.run({"image": image[None].float()}, tap=keep)
    steps: list[tuple[str, int, int]] = []
    ranges = activation_ranges(half, some, on_progress=lambda *step: steps.append(step))
    assert steps[0] == ("calibrating", 0, 41)
    assert ranges.pop("image") == {"rmin": 0.0, "rmax": 255.0}
    assert ranges.keys() == seen.keys()
    for name, bounds in seen.items():
        low, high = float(torch.stack(bounds)[:, 0].min()), float(torch.stack(bounds)[:, 1].max())
        rounding = 0.01 * max(-low, high)  # a batch may be added up in another order, in fp16
        assert ranges[name]["rmin"] == pytest.approx(low, abs=rounding)
        assert ranges[name]["rmax"] == pytest.approx(high, abs=rounding)


def test_the_first_picture_counts_as_much_as_the_last(half: Program, calibration: Tensor) -> None:
    turned, without = calibration.flip(0), calibration[1:]
    first, last, none = (activation_ranges(half, pixels) for pixels in (calibration, turned, without))
    conv = next(info.name for info in half.operations if info.op_type == "conv")
    assert first[conv] == pytest.approx(last[conv], rel=2e-3)
    assert first[conv]["rmax"] > 1.5 * none[conv]["rmax"]


def test_the_scales_of_the_package_are_the_ranges(
    checkpoint: Checkpoint, calibration: Tensor, quantized: tuple[Path, PackageMeta], tmp_path: Path
) -> None:
    """Symmetric, in 127 steps, of what 8-bit weights give. What a concat joins has one range, and the scale of a sum is
    moved into its operands."""
    quantize(checkpoint, SHA, tmp_path / "w8.mlpackage", Compression(weight_bits=8), minimum_ios=17)
    ranges = activation_ranges(Program.load(tmp_path / "w8.mlpackage"), calibration)
    program = Program.load(quantized[0])
    kinds = {info.name: info.op_type for info in program.operations}

    def users(name: str) -> set[str]:
        """The kinds of operations that read a result, through its quantization."""
        found: set[str] = set()
        for step in program.steps:
            if name in step.outputs[0].inputs:
                quantization = step.op.name in ("quantize", "dequantize")
                found |= users(step.outputs[0].name) if quantization else {step.op.name}
        return found

    exact = 0
    for step in program.steps:
        if step.op.name != "quantize":
            continue
        source, scale = step.outputs[0].inputs[0], float(step.constants["scale"])
        due = max(abs(bound) for bound in ranges[source].values()) / 127
        if "concat" in users(source):
            assert scale > 0.99 * due
        elif kinds[source] != "add":
            assert scale == pytest.approx(due, rel=0.01), source
            exact += 1
    assert exact > 30


def test_the_package_computes_in_eight_bits(quantized: tuple[Path, PackageMeta], checkpoint: Checkpoint) -> None:
    path, meta = quantized
    program = Program.load(path)
    assert meta == meta_of(program)
    assert (meta.precision, meta.minimum_ios, meta.checkpoint_sha256) == ("int8", 17, SHA)
    assert (meta.labels, meta.arch) == (checkpoint.meta.labels, checkpoint.meta.arch)
    assert "int8" in program.metadata["description"]
    counts = program.op_counts
    assert counts["constexpr_affine_dequantize"] == counts["conv"] - 1 == 36  # the first stays in fp16
    assert counts["quantize"] >= 37
    assert counts["dequantize"] >= counts["quantize"]
    size = (path / packages.WEIGHTS).stat().st_size
    assert size < 1.8 * sum(p.numel() for p in checkpoint.model.parameters())


def test_the_package_stays_close_to_its_network(checkpoint: Checkpoint, tmp_path: Path) -> None:
    quantize(checkpoint, SHA, tmp_path / "int8.mlpackage", INT8, tiny.pixels(MIN_IMAGES, seed=3).to(torch.uint8))
    program, pixels = Program.load(tmp_path / "int8.mlpackage"), tiny.pixels(64, seed=9)
    with torch.no_grad():
        expected = Deployable(checkpoint.model, checkpoint.meta.preprocessing)(pixels)
    scores = program.predict(pixels)
    assert 20 < packages.decibels(scores, expected) < 40
    assert float((scores.argmax(1) == expected.argmax(1)).double().mean()) > 0.8


def test_too_few_pictures_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{MIN_IMAGES - 1} pictures are too few"):
        quantize(checkpoint, SHA, tmp_path / "int8.mlpackage", INT8, torch.zeros(MIN_IMAGES - 1, 3, 96, 96))
    assert list(tmp_path.iterdir()) == []


DYNAMIC = {"neighbours": tiny.DYNAMIC, "clusters": tiny.CLUSTERED} | {
    name: tiny.SMALL[name] for name in ("vig", "pvig")
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DYNAMIC)
@pytest.mark.parametrize("minimum_ios", [17, 18])
def test_dynamic_graphs_and_tables_of_positions_are_quantized(name: str, minimum_ios: Any, tmp_path: Path) -> None:
    """coremltools adds to the numbers of neighbours and would quantize the sum, and has no range of a table."""
    made = tiny.checkpoint(config=DYNAMIC[name])
    pixels = tiny.pixels(MIN_IMAGES, size=made.meta.arch.resolution)
    quantize(made, SHA, tmp_path / "int8.mlpackage", INT8, pixels, minimum_ios)
    report = verify(Program.load(tmp_path / "int8.mlpackage"), made, pixels[:32])
    assert report.passed, report.divergence
    assert report.changed_percent is not None


@pytest.mark.parametrize(("name", "activation"), [("resnet10t", "relu"), ("mobilenetv2_050", "clip")])
def test_what_is_never_negative_has_all_steps(name: str, activation: str, tmp_path: Path) -> None:
    """What comes out of a relu: 0 ... 255 in place of -127 ... 127, and nothing is rounded before it."""
    made = tiny.checkpoint(config=TimmConfig(name=name, resolution=64, num_classes=10))
    pixels = tiny.pixels(MIN_IMAGES, size=64)
    quantize(made, SHA, tmp_path / "int8.mlpackage", INT8, pixels)
    program = Program.load(tmp_path / "int8.mlpackage")
    types = {info.name: info.type.dtype for info in program.operations if info.type}
    kinds = {info.name: info.op_type for info in program.operations}
    lows = dict.fromkeys(kinds, 0.0)

    def note(info: OpInfo, x: Tensor) -> None:
        lows[info.name] = min(lows[info.name], float(x.min()))

    program.predict(pixels.float(), tap=note)
    quantizations = [step for step in program.steps if step.op.name == "quantize"]
    unsigned = {step.outputs[0].inputs[0] for step in quantizations if types[step.outputs[0].name] == "uint8"}
    assert activation in {kinds[name] for name in unsigned}
    assert not any(lows[name] for name in unsigned)
    signed = {step.outputs[0].inputs[0] for step in quantizations} - unsigned
    assert signed
    assert not {kinds.get(name, name) for name in signed if not lows.get(name)}
    before = {name for step in program.steps if step.op.name == activation for name in step.outputs[0].inputs}
    assert all(kinds[name] in ("conv", "add") for name in before)
    ranges = activation_ranges(program, pixels)
    first = next(step for step in quantizations if kinds[step.outputs[0].inputs[0]] == activation)
    due = ranges[first.outputs[0].inputs[0]]["rmax"] / 255
    assert float(first.constants["scale"]) == pytest.approx(due, rel=0.02)
    stages = verify(program, made, pixels[:16]).stages
    assert (stages["scales"], stages["values"]) == (None, None)


@pytest.mark.parametrize("factor", [2e4, pytest.param(3e5, marks=pytest.mark.slow)], ids=["activations", "weights too"])
def test_what_fp16_cannot_hold_is_refused(
    factor: float, checkpoint: Checkpoint, calibration: Tensor, tmp_path: Path
) -> None:
    model = copy.deepcopy(checkpoint.model)
    for key in ("norm.weight", "norm.bias"):
        model.get_parameter(f"stages.0.0.branch.0.{key}").detach().mul_(factor)
    with pytest.raises(VigError, match="beyond fp16") as refused:
        quantize(checkpoint._replace(model=model), SHA, tmp_path / "int8.mlpackage", INT8, calibration)
    assert refused.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_branch_that_adds_next_to_nothing_does_not_make_its_sum_overflow(
    checkpoint: Checkpoint, calibration: Tensor, tmp_path: Path
) -> None:
    """coremltools computes a sum in units of one operand's scale: of the smaller one it would leave fp16's range."""
    model = copy.deepcopy(checkpoint.model)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            parameter.detach().mul_(2e-3)
    quantize(checkpoint._replace(model=model), SHA, tmp_path / "int8.mlpackage", INT8, calibration)
    program = Program.load(tmp_path / "int8.mlpackage")
    largest: dict[str, float] = {}
    program.predict(tiny.pixels(2), tap=lambda info, x: largest.update({info.name: float(x.abs().max())}))
    sums = [info.name for info in program.operations if info.op_type == "add"]
    assert sums
    assert all(largest[name] < 65504 / 2 for name in sums)

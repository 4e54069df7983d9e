"""What leaves fp16's range: found on pictures, refused by name, kept in fp32 when asked."""

from __future__ import annotations

from pathlib import Path

import packages
import pytest
import tiny
import torch
from torch import Tensor, nn

from vigcli.archs.checkpoint import Checkpoint
from vigcli.config.package import Precision
from vigcli.coreml.convert import PackageMeta, export, meta_of, to_program, write_program
from vigcli.coreml.interpreter import Program
from vigcli.coreml.ranges import FP16_MAX, MARGIN, Reach, kept_apart, reaches
from vigcli.errors import VigError
from vigcli.train.evaluate import normalized

ct = pytest.importorskip("coremltools", exc_type=ImportError)
SHA = "ab" * 32
PICTURES = tiny.pixels(5).to(torch.uint8)


@torch.no_grad()
def loud(factor: float, seed: int = 0) -> Checkpoint:
    """A graph block whose features are `factor` times as large, and its projection as much smaller: links and maxima
    scale with what they compare, so the network is the same."""
    made = tiny.checkpoint(seed)
    for name in ("norm.weight", "norm.bias"):
        made.model.get_parameter(f"stages.1.2.0.branch.1.{name}").mul_(factor)
    made.model.get_parameter("stages.1.2.0.branch.2.proj.conv.weight").div_(factor)
    return made


def test_a_network_that_stays_in_range_is_exported_as_if_nobody_had_looked(tmp_path: Path) -> None:
    made = tiny.checkpoint()
    blind, mixed = tmp_path / "blind.mlpackage", tmp_path / "mixed.mlpackage"
    export(made, SHA, blind)
    assert meta_of(export(made, SHA, mixed, "mixed", images=PICTURES)).fp32_results == ()
    assert Program.load(mixed).operations == Program.load(blind).operations


def test_overflow_is_refused_by_name(tmp_path: Path) -> None:
    made = loud(1e5)
    with pytest.raises(VigError, match=r"conv 'x_1_cast_fp16' of stages\[1\]\.blocks\[2\] reaches .*e\+05") as refused:
        export(made, SHA, tmp_path / "net.mlpackage", images=PICTURES)
    assert "on 5 pictures, beyond fp16, which ends at 65504" in str(refused.value)
    assert refused.value.hint == "vig export --precision mixed keeps 14 of 105 results in fp32."
    assert list(tmp_path.iterdir()) == []


def test_what_comes_near_the_end_of_fp16_is_refused_too(tmp_path: Path) -> None:
    """Pictures that were not run may reach further."""
    with pytest.raises(VigError, match="over half of fp16's range"):
        export(loud(7e3), SHA, tmp_path / "net.mlpackage", images=PICTURES)
    export(loud(2e3), SHA, tmp_path / "net.mlpackage", images=PICTURES)


def test_mixed_keeps_what_overflows_and_its_readers_in_fp32(tmp_path: Path) -> None:
    made = loud(1e5)
    meta = meta_of(export(made, SHA, tmp_path / "mixed.mlpackage", "mixed", images=PICTURES))
    program = Program.load(tmp_path / "mixed.mlpackage")
    assert PackageMeta.parse(meta.model_dump(mode="json")) == meta
    assert len(meta.fp32_results) == 14
    kinds = {info.name: info.op_type for info in program.operations}
    assert {kinds[name] for name in meta.fp32_results} == {"conv", "slice_by_index", "concat", "maximum", "sub"}
    halves = {info.name for info in program.operations if info.type and info.type.dtype == "fp16"}
    assert len(halves) > 90
    assert not halves & set(meta.fp32_results)
    expected = normalized(made.model, made.meta.preprocessing)(PICTURES).softmax(1)
    assert packages.relative_error(program.predict(PICTURES.float()), expected) < 5e-3
    export(made, SHA, tmp_path / "half.mlpackage")
    assert not Program.load(tmp_path / "half.mlpackage").predict(PICTURES.float()).isfinite().all()


def test_a_mixed_package_needs_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without pictures"):
        export(tiny.checkpoint(), SHA, tmp_path / "net.mlpackage", "mixed")


def test_fp32_is_always_possible(tmp_path: Path) -> None:
    assert meta_of(export(loud(1e5), SHA, tmp_path / "net.mlpackage", "fp32", images=PICTURES)).fp32_results == ()


@pytest.mark.parametrize("precision", ["fp32", "mixed"])
@torch.no_grad()
def test_what_fp32_does_not_hold_is_refused(tmp_path: Path, precision: Precision) -> None:
    made = tiny.checkpoint()
    for i in (0, 2):
        made.model.get_parameter(f"stages.2.1.branch.{i}.norm.weight").mul_(1e30)
    with pytest.raises(VigError, match=r"conv '.*' of stages\[2\]\.blocks\[1\] is not finite in fp32"):
        export(made, SHA, tmp_path / "net.mlpackage", precision, images=PICTURES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("output", "batch"), [("features", 3), ("logits", 2)])
def test_every_kind_of_package_is_looked_at(tmp_path: Path, output: str, batch: int) -> None:
    """Also with a number of pictures that fills no batch."""
    options: dict = {"output": output, "batch": batch, "input": "tensor"}
    meta = meta_of(export(loud(1e5), SHA, tmp_path / "net.mlpackage", "mixed", images=PICTURES, **options))
    assert meta.fp32_results
    values = Program.load(tmp_path / "net.mlpackage").run({"image": PICTURES[:batch].float()}).values()
    assert all(value.isfinite().all() for value in values)


class Steps(nn.Module):
    """(B, 3, 4, 4) -> the mean of squares, which is in range where the squares are not."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * x).mean((1, 2, 3)).sqrt()


def test_every_result_is_seen_on_every_picture(tmp_path: Path) -> None:
    write_program(to_program(Steps(), torch.rand(1, 3, 4, 4), "fp16", 16, inputs=[ct.TensorType("x", (1, 3, 4, 4))]),
                  tmp_path / "net.mlpackage")  # fmt: skip
    program = Program.load(tmp_path / "net.mlpackage")
    images = torch.ones(3, 3, 4, 4)
    images[1], images[0, 0, 0, 0] = -100, 300
    steps: list[tuple[int, int]] = []
    found = {reach.info.op_type: reach for reach in reaches(program, images, on_progress=lambda *at: steps.append(at))}
    assert steps == [(0, 3), (1, 3), (2, 3)]
    assert (found["mul"].low, found["mul"].high, found["mul"].largest) == (1.0, 90000.0, 90000.0)
    assert found["sqrt"].largest == pytest.approx(100)
    assert [kind for kind, reach in found.items() if reach.overflows] == ["mul"]
    assert kept_apart(program, {found["mul"].info.name}) == {found[kind].info.name for kind in ("mul", "reduce_mean")}


@pytest.mark.parametrize(("largest", "seen"), [(60, 4), (70, 8)])  # 60^2 is below the 16th part of 65,504
def test_what_is_far_from_overflow_is_looked_at_on_few_pictures(largest: float, seen: int, tmp_path: Path) -> None:
    write_program(to_program(Steps(), torch.rand(1, 3, 4, 4), "fp16", 16, inputs=[ct.TensorType("x", (1, 3, 4, 4))]),
                  tmp_path / "net.mlpackage")  # fmt: skip
    images, steps = torch.full((8, 3, 4, 4), 1.0), list[int]()
    images[2] = largest
    reaches(Program.load(tmp_path / "net.mlpackage"), images, on_progress=lambda done, total: steps.append(done))
    assert len(steps) == seen


@pytest.mark.parametrize(("low", "high", "over"), [
    (-FP16_MAX / MARGIN, 0.0, False), (-FP16_MAX / MARGIN - 16, 0.0, True), (0.0, FP16_MAX, True),
    (float("nan"), float("nan"), True), (0.0, float("inf"), True),
])  # fmt: skip
def test_the_margin(tmp_path: Path, low: float, high: float, over: bool) -> None:
    export(tiny.checkpoint(), SHA, tmp_path / "net.mlpackage")
    info = next(info for info in Program.load(tmp_path / "net.mlpackage").operations if info.op_type == "conv")
    assert Reach(info, low, high).overflows == over

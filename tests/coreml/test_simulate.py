"""The simulation of an int8 package: its scales, its weights, and what of a package it can tell to be wrong."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import pytest
import tiny
import torch
from compressed import INT8

from vigcli.archs.checkpoint import Checkpoint
from vigcli.compress.calibrate import activation_ranges
from vigcli.compress.quantize import quantize
from vigcli.config.compression import Compression
from vigcli.coreml.convert import meta_of
from vigcli.coreml.graphs import Graph
from vigcli.coreml.interpreter import OpInfo, Program
from vigcli.coreml.ops import OPS
from vigcli.coreml.simulate import Scales, Simulation, compressed_weights
from vigcli.coreml.verify import MIN_INPUTS, VerifyReport, hold, twin_of

pytest.importorskip("coremltools", exc_type=ImportError)
SHA = "ab" * 32
CALIBRATION = tiny.pixels(128, seed=2).to(torch.uint8)
PIXELS = tiny.pixels(MIN_INPUTS)


@dataclasses.dataclass
class Made:
    checkpoint: Checkpoint
    path: Path
    twin: Program

    def report(self, path: Path) -> VerifyReport:
        return hold(Program.load(path), self.twin, self.checkpoint, PIXELS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    checkpoint, path = tiny.checkpoint(), tmp_path_factory.mktemp("made") / "int8.mlpackage"
    return Made(checkpoint, path, twin_of(checkpoint, quantize(checkpoint, SHA, path, INT8, CALIBRATION)))


@pytest.fixture
def edited(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.path, tmp_path / "edited.mlpackage"))


def change_scale(path: Path, kind: str, chosen: Callable[[Program, Any], bool], factor: float) -> str:
    """Of the first operation of a kind that is chosen."""
    program = Program.load(path)
    name = next(s.outputs[0].name for s in program.steps if s.op.name == kind and chosen(program, s))

    def change(operation: Any, model: Any) -> None:
        faults.numbers(faults.own_constant(model, operation, "scale"), lambda scale: factor * scale)

    return faults.editing(path, name, change)


def readers(program: Program, name: str) -> list[str]:
    return [step.op.name for step in program.steps if name in step.outputs[0].inputs]


def test_weights_are_quantized_as_the_package_s(made: Made) -> None:
    twin, shipped = Graph(made.twin), Graph(Program.load(made.path))
    found = compressed_weights(twin, shipped, INT8)
    assert len(found) == Program.load(made.path).op_counts["conv"] - 1  # the first stays in fp16
    for (number, parameter), weight in found.items():
        stored = shipped.steps[number].constants[parameter]
        assert torch.allclose(weight, stored, rtol=2**-10, atol=0), "but for a rounding of the product"


def test_steps_are_the_ranges_in_the_checkpoint_s_units(made: Made, tmp_path: Path) -> None:
    """Through sums too, whose scales were moved."""
    program = Program.load(made.path)
    graph = Graph(program)
    scales = Scales(graph)
    assert scales.divergence is None
    quantize(made.checkpoint, SHA, tmp_path / "w8.mlpackage", Compression(weight_bits=8), minimum_ios=17)
    ranges = activation_ranges(Program.load(tmp_path / "w8.mlpackage"), CALIBRATION)
    sums = 0
    for name, (step, zero_point) in scales.steps.items():
        source = scales.sources[name]
        kind = graph.steps[graph.place[source][0]].op.name
        assert zero_point == 0
        if "concat" not in {kind, *readers(program, source)} and kind == "add":
            assert step == pytest.approx(max(map(abs, ranges[source].values())) / 127, rel=5e-3), source
            assert scales.factors[source] > 2
            sums += 1
    assert sums > 5


@pytest.mark.parametrize("kind", ["quantize", "dequantize"])
def test_a_wrong_scale_around_a_sum(kind: str, made: Made, edited: Path) -> None:
    def at_a_sum(program: Program, step: Any) -> bool:
        name = step.outputs[0].inputs[0] if kind == "quantize" else step.outputs[0].name
        sums = {info.name for info in program.operations if info.op_type == "add"}
        return name in sums if kind == "quantize" else "add" in readers(program, name)

    change_scale(edited, kind, at_a_sum, 1.03)
    found = Scales(Graph(Program.load(edited))).divergence
    assert found is not None
    assert "a scale is wrong" in found.why
    assert made.report(edited).divergence == found


def test_another_range_is_no_contradiction_but_costs_decibels(made: Made, edited: Path) -> None:
    def first(program: Program, step: Any) -> bool:
        return True

    before = made.report(made.path)
    change_scale(edited, "quantize", first, 16.0)
    change_scale(edited, "dequantize", first, 16.0)
    after = made.report(edited)
    assert after.passed
    assert before.fp32_snr_db is not None
    assert after.ops[4].fp32.db < before.ops[4].fp32.db - 15


def test_rounding_that_is_no_rounding_is_found(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    known = OPS["quantize"]

    def cut_off(input: Any, scale: Any, **options: Any) -> Any:
        return known.function(input - 0.5 * scale, scale, **options)

    monkeypatch.setitem(OPS, "quantize", dataclasses.replace(known, function=cut_off))
    found = made.report(made.path).stages["values"]
    assert found is not None
    assert found.op_type == "quantize"
    assert "steps from the value that it stands for" in found.why


def test_integers_of_its_own_would_lead_the_simulation_away(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sound computations: near ties that fp16 turns turn others, until nothing could be held to 35 dB."""
    given = Simulation.note

    def note(self: Simulation, info: OpInfo, integers: torch.Tensor) -> None:
        own = self._value(self.scales.sources[info.name]) / self.scales.steps[info.name][0]
        given(self, info, own.round().clamp(-128, 127))

    together = made.report(made.path)
    monkeypatch.setattr(Simulation, "note", note)
    apart = made.report(made.path)
    assert together.snr_db is not None
    assert together.snr_db > 60
    assert apart.snr_db is not None
    assert apart.snr_db < 20


def test_scales_of_another_zero_point(edited: Path) -> None:
    program = Program.load(edited)
    step = next(step for step in program.steps if step.op.name == "dequantize")
    step.constants["zero_point"] = torch.tensor(3)
    found = Scales(Graph(program)).divergence
    assert found is not None
    assert (found.name, found.why) == (step.outputs[0].name, "its zero point is 3, of the quantization 0")


def test_integers_that_are_none(edited: Path) -> None:
    """What does not run is named when it is run; what reads no integers is wrong before."""
    program = Program.load(edited)
    step = next(step for step in program.steps if step.op.name == "quantize")
    step.constants["output_dtype"] = "int4"
    assert Scales(Graph(program)).limits[step.outputs[0].name] == (-128, 127)
    reader = next(step for step in program.steps if step.op.name == "dequantize")
    source = next(step for step in program.steps if step.outputs[0].name == reader.outputs[0].inputs[0])
    reader.outputs = (dataclasses.replace(reader.outputs[0], inputs=source.outputs[0].inputs),)
    found = Scales(Graph(program)).divergence
    assert found is not None
    assert found.name == reader.outputs[0].name
    assert found.why.endswith("which it reads, was not quantized")


def test_without_quantization_there_is_nothing_to_follow(made: Made) -> None:
    assert meta_of(made.twin).precision == "fp32"
    scales = Scales(Graph(made.twin))
    assert not scales.steps
    assert set(scales.factors.values()) == {1.0}

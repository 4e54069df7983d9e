"""Conversions are shortened without effect: the same program, operation for operation, as by all of coremltools."""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
from pathlib import Path
from typing import Any, cast

import pytest
import tiny
import torch
from torch import nn

from vigcli.archs import build, inference_form
from vigcli.config.archs import ArchConfig, arch_config
from vigcli.coreml import convert, pipeline
from vigcli.coreml.convert import to_program, write_program
from vigcli.coreml.interpreter import Program

ct = pytest.importorskip("coremltools", exc_type=ImportError)
Builder = importlib.import_module("coremltools.converters.mil").Builder
ProgramOfMil = importlib.import_module("coremltools.converters.mil.mil.program").Program

SMALL = {"resolution": 96, "num_classes": 10}
SHORT = {f"stages[{i}].local_depth": 1 for i in range(4)}
# Every family, mixer and local update, and the options that make operations of their own.
NETWORKS: dict[str, ArchConfig] = {
    "mobilevigv2": tiny.CONFIG,
    "mobilevig": arch_config("mobilevig_ti").changed(SMALL | SHORT),
    "svga and fc": tiny.CONFIG.changed({"stages[1].mixer": "svga", "stages[1].reach": 2, "stages[3].mixer": "fc"}),
    "dagc and knn": tiny.DYNAMIC,
    "vig": arch_config("vig_ti").changed(SMALL | {"stages[0].depth": 2}),
    "pvig": arch_config("pvig_ti").changed({"num_classes": 10} | {f"stages[{i}].depth": 1 for i in range(4)}),
    "clustervig": tiny.CLUSTERED,
    "clusters of two sizes": tiny.CONFIG.changed({"stages[1].mixer": "degc", "stages[2].mixer": "degc"}),
    "edgeconv": tiny.CLUSTERED.changed({"local_update": "edgeconv", "partition": "grid", "center_tokens": True}),
    "graphsage in groups": tiny.CLUSTERED.changed({"local_update": "graphsage", "partition": "grid", "groups": 2}),
    "gin": tiny.CLUSTERED.changed({"local_update": "gin", "partition": "grid"}),
    "mobilevit": arch_config("mobilevit_xxs").changed({"num_classes": 10}),
    "mobilevitv2": arch_config("mobilevitv2_050").changed({"num_classes": 10}),
    "mobilevitv3": arch_config("mobilevitv3_xxs").changed(SMALL | {"resample": True}),
}


def operations(path: Path) -> list[Any]:
    """Every operation of a package: its kind, the type of each result, what it is computed from by position, and its
    constants as bytes."""
    program = Program.load(path)
    position: dict[str, Any] = {name: told(value) for name, value in program.constants.items()}
    position |= {feature.name: -1 for feature in program.inputs}
    found: list[Any] = []
    for step in program.steps:
        sources = {name: [position[value] for value in values] for name, values in step.variables.items()}
        constants = {name: told(value) for name, value in step.constants.items()}
        found.append((step.op.name, [result.type for result in step.outputs], sources, constants))
        position |= {result.name: (len(found), i) for i, result in enumerate(step.outputs)}
    return found


def told(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [told(one) for one in value]
    return (value.dtype, value.shape, value.numpy().tobytes()) if isinstance(value, torch.Tensor) else value


def converted(module: nn.Module, size: int, precision: Any = "fp16", minimum_ios: Any = 16) -> Any:
    given = ct.ImageType(name="image", shape=(1, 3, size, size))
    return to_program(module, torch.rand(1, 3, size, size), precision, minimum_ios, inputs=[given])


GUARD = "common::guard_negative_gather_indices"  # which neighbours never are


def unguarded(module: nn.Module) -> Any:
    passes = pipeline.pipeline(module)
    passes.remove_passes({GUARD})
    return passes


BESIDES = ("dagc and knn", "clustervig", "clusters of two sizes", "mobilevitv3")
OTHERS = [(name, *kind) for name in BESIDES for kind in (("fp32", 17), ("fp16", 18))]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision", "minimum_ios"), [*((name, "fp16", 16) for name in NETWORKS), *OTHERS])
def test_the_program_is_that_of_all_passes(
    name: str, precision: str, minimum_ios: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = NETWORKS[name]
    module = convert.Deployable(inference_form(config, build(config).eval()), convert.Preprocessing()).eval()
    assert len(pipeline.pipeline(module).passes) == len(pipeline.PASSES)
    write_program(converted(module, config.resolution, precision, minimum_ios), tmp_path / "brisk.mlpackage")
    monkeypatch.setattr(pipeline, "OURS", ())
    monkeypatch.setattr(convert, "pipeline", unguarded)
    monkeypatch.setattr(convert, "brisk", contextlib.nullcontext)
    monkeypatch.setattr(convert, "as_one_operation", lambda passes: contextlib.nullcontext())
    assert len(pipeline.pipeline(module).passes) > 3 * len(pipeline.PASSES)
    write_program(converted(module, config.resolution, precision, minimum_ios), tmp_path / "all.mlpackage")
    assert operations(tmp_path / "brisk.mlpackage") == operations(tmp_path / "all.mlpackage")


def test_what_is_not_ours_has_all_passes() -> None:
    class Other(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    everything = [name for name in ct.PassPipeline.DEFAULT.passes if name != pipeline.INEXACT]
    assert len(everything) < len(ct.PassPipeline.DEFAULT.passes)
    assert pipeline.pipeline(nn.Sequential(nn.Conv2d(3, 3, 1), Other())).passes == everything
    assert pipeline.pipeline(nn.Sequential(nn.Conv2d(3, 3, 1))).passes != everything
    assert set(pipeline.pipeline(nn.Sequential()).passes) <= set(everything)


def test_checks_are_left_out_between_passes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is replaced is private: it must be there, be told apart, and be put back."""
    checked, program = list[Any](), cast(Any, "a program")
    assert list(inspect.signature(ProgramOfMil.validate).parameters) == ["self", "check_essential_scope"]
    monkeypatch.setattr(ProgramOfMil, "validate", lambda self, check_essential_scope=None: checked.append(self))
    mine = ProgramOfMil.validate
    with pipeline.brisk():
        assert not gc.isenabled()
        ProgramOfMil.validate(program, check_essential_scope=False)
        assert not checked
    assert gc.isenabled()
    assert ProgramOfMil.validate is mine
    converted(nn.Sequential(nn.Conv2d(3, 3, 1)), 8)
    assert len(checked) == 3  # before the passes of the front end, these, and the back end's


def test_a_faulty_program_is_still_refused() -> None:
    """A value that is used before it is computed, as a faulty pass might leave it."""

    @Builder.program(input_specs=[Builder.TensorSpec(shape=(1, 3))])
    def made(x: Any) -> Any:
        return Builder.relu(x=Builder.square(x=x))

    for operation in made.functions["main"].operations:
        if operation.op_type == "square":
            operation.set_inputs(x=made.functions["main"].outputs[0])
    with pipeline.brisk(), pytest.raises(ValueError, match="not visible"):
        ct.convert(made, convert_to="mlprogram", skip_model_load=True)

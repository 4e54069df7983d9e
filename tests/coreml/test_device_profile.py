"""A package's profile on a device, from made answers: placement, cost, times, and values beside those of the
interpreter and of torch."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from vigcli.archs import build
from vigcli.archs.checkpoint import Checkpoint
from vigcli.config.archs import VARIANTS, ArchConfig
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.coreml.convert import export, meta_of
from vigcli.coreml.device import Machine, Target
from vigcli.coreml.device_profile import GROUP, DeviceProfile, Prepared, prepare, profile_on_device
from vigcli.coreml.interpreter import Program
from vigcli.coreml.references import agreement, comparable, inputs_of, interpreter_values, torch_values, worst
from vigcli.coreml.tensor_ends import write_tensor_ends
from vigcli.errors import ConfigError, UnavailableError
from vigcli.latency.protocol import Protocol

pytest.importorskip("coremltools", exc_type=ImportError)
PROTOCOL = Protocol(rounds=3, iterations=12, trim=2)
MACHINE = Machine("Mac14,2", "Apple M2", "macOS 15.1 (24B83)", "Mac14,2, Apple M2", "9.0", "Xcode 16.1", "U1")
MAC = Target("mac")
PICTURE = tiny.pixels(1)[0].byte()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    folder = tmp_path_factory.mktemp("packages")
    made = tiny.checkpoint(config=tiny.DYNAMIC)
    export(made, "ab" * 32, folder / "net.mlpackage")
    return made, folder / "net.mlpackage"


# ---------------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize("config", [tiny.CONFIG, tiny.CLUSTERED.changed({"partition": "grid"})])
def test_every_layer_and_block_of_torch_has_its_operation(config: ArchConfig, tmp_path: Path) -> None:
    made = tiny.checkpoint(config=config)
    export(made, "ab" * 32, tmp_path / "net.mlpackage", "fp32")
    program = Program.load(tmp_path / "net.mlpackage")
    inputs = inputs_of(program, PICTURE)
    ours, theirs = interpreter_values(program, inputs), torch_values(program, made, inputs)
    decibels = {name: agreement(ours[name], value).db for name, value in theirs.items()}
    assert min(db for db in decibels.values() if db is not None) > 90
    num_blocks = len(config.named_blocks())
    assert len(theirs) >= program.op_counts["conv"] + program.op_counts["linear"] + num_blocks // 2
    assert theirs[comparable(program)[-1]].sum() == pytest.approx(1, abs=1e-5), "the probabilities"


@pytest.mark.slow
@pytest.mark.parametrize("name", {config.family: name for name, config in reversed(VARIANTS.items())}.values())
def test_torch_is_found_again_in_every_family(name: str, tmp_path: Path) -> None:
    config = VARIANTS[name].changed({"num_classes": 10} | ({"partition": "grid"} if "cluster" in name else {}))
    made = Checkpoint(build(config).eval(), CheckpointMeta(arch=config))
    export(made, "ab" * 32, tmp_path / "net.mlpackage", "fp32")
    program = Program.load(tmp_path / "net.mlpackage")
    inputs = inputs_of(program, None)
    ours, theirs = interpreter_values(program, inputs), torch_values(program, made, inputs)
    assert len(theirs) >= program.op_counts["conv"] + program.op_counts["linear"]
    kinds = [info.op_type for info in program.operations]
    before_a_choice = program.operations[: kinds.index("topk") if "topk" in kinds else None]
    held = [info.name for info in before_a_choice if info.name in theirs]  # behind one, rounding may turn near ties
    assert min(agreement(ours[name], theirs[name]).db or 0 for name in held) > 60


def test_agreement_of_numbers_of_whole_numbers_and_of_none() -> None:
    x = torch.tensor([3.0, 4.0])
    assert agreement(np.array([[3.0, 4.5]], np.float16), x).db == pytest.approx(20, abs=0.01)
    assert agreement(x.numpy(), x).db == 150
    assert agreement(np.array([np.nan, 4.0]), x).db == -150
    assert agreement(np.array([6.0, 8.0]), x, up_to_a_factor=True).db == 150
    assert agreement(np.array([6.0, 9.0]), x, up_to_a_factor=True).db == pytest.approx(25.1, abs=0.01)
    assert agreement(np.array([1, 2, 3, 5]), torch.tensor([1, 2, 3, 4])).equal_percent == 75
    both = worst([agreement(x.numpy(), x), agreement(np.array([1, 2]), torch.tensor([1, 3]))])
    assert both == (150, 50)
    assert worst([]) == (None, None)


# ---------------------------------------------------------------------------------------------------- tensors


def test_a_copy_with_tensors_at_its_ends_computes_the_same(exported: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    package = exported[1]
    write_tensor_ends(package, tmp_path / "tensors.mlpackage")
    program, copy = Program.load(package), Program.load(tmp_path / "tensors.mlpackage")
    assert [feature.kind for feature in (*copy.inputs, *copy.outputs)] == ["tensor", "tensor"]
    assert [step.op.name for step in copy.steps] == [step.op.name for step in program.steps][:-1]
    inputs = inputs_of(program, PICTURE)
    values, same = interpreter_values(program, inputs), interpreter_values(copy, inputs)
    assert all(torch.equal(values[name], same[name]) for name in same)
    assert len(same) == len(values)
    write_tensor_ends(tmp_path / "tensors.mlpackage", tmp_path / "again.mlpackage")
    assert Program.load(tmp_path / "again.mlpackage").outputs == copy.outputs


# ---------------------------------------------------------------------------------------------------- a run

FAKE_WORKER = """
import json, os, signal, sys
import numpy as np
request = json.load(sys.stdin)
task, (path,) = request["task"], request["packages"]
open({calls!r}, "a").write(json.dumps(request) + "\\n")
bad = {bad!r}
if task == bad or bad in request.get("names", ()):
    {end}
with np.load({known!r}) as stored:
    known = dict(stored.items())
rounds = [[9.0] + [1 + 0.01 * i] * (request["iterations"] - 1) for i in range(request["rounds"])]
answer = {{"package": path}}
if task == "times":
    answer |= {{"rounds": rounds, "loads": [500.0] + [40.0] * (request["rounds"] - 1)}}
elif task == "placement":
    def unit(name):
        return "CPU" if {moved!r} in name else "ANE"
    answer["operations"] = [
        {{"name": name, "type": "x", "unit": unit(name), "supported": ["CPU", "ANE"], "cost": 1 / len(known)}}
        for name in [*known, "of Apple's own"]
    ]
else:
    names = request["names"]
    np.savez(request["values"], **{{n: known[n] * (1.1 if n == {off!r} else 1) for n in names if n in known}})
    answer["missing"] = []
print(json.dumps(answer), flush=True)
"""


def fake_worker(
    folder: Path, prepared: Prepared, bad: str = "", end: str = "pass", moved: str = "?", off: str = ""
) -> Sequence[str]:
    """A worker that makes times, and has the interpreter's values, of `off` ten percent too large."""
    known = interpreter_values(prepared.program, prepared.inputs)
    np.savez(folder / "known.npz", **{name: value.numpy() for name, value in known.items()})
    script = FAKE_WORKER.format(
        calls=str(folder / "calls.txt"), known=str(folder / "known.npz"), bad=bad, end=end, moved=moved, off=off
    )
    return (sys.executable, "-c", script)


def run(folder: Path, exported: tuple[Checkpoint, Path], target: Target = MAC, **fake: str) -> DeviceProfile:
    checkpoint, package = exported
    prepared = prepare(package, folder, target, PROTOCOL, PICTURE)
    worker = fake_worker(folder, prepared, **fake)
    return profile_on_device(prepared, folder, target, PROTOCOL, checkpoint, machine=MACHINE, worker=worker)


def test_a_whole_run(exported: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    topk = next(info.name for info in Program.load(exported[1]).operations if info.op_type == "topk")
    off = next(info.name for info in Program.load(exported[1]).operations if info.op_type == "conv")
    found = run(tmp_path, exported, moved=topk, off=off)
    assert found.failures == {}
    assert (found.first_load_ms, found.load_ms, found.first_inference_ms) == (500, 40, 9)
    assert found.steady is not None
    assert found.steady.ms == pytest.approx(1.01)
    operations = {op.name: op for op in found.operations}
    assert operations["of Apple's own"].block == "", "what the plan has and the program has not is told too"
    assert (operations[topk].unit, operations[topk].block) == ("CPU", "stages[2].blocks[2]")
    assert "greatest" in operations[topk].reason
    assert operations[topk].interpreter.equal_percent == 100
    assert operations[off].interpreter.db == pytest.approx(20, abs=0.1)
    assert operations[off].torch.db == pytest.approx(20, abs=0.5)
    near = [op.interpreter.db for op in found.operations if op.interpreter.db is not None and op.name != off]
    assert min(near) == 150
    assert sum(op.torch.db is not None for op in found.operations) > 30
    calls = [json.loads(line) for line in (tmp_path / "calls.txt").read_text().splitlines()]
    assert [call["task"] for call in calls[:3]] == ["times", "placement", "values"]
    assert all(len(call["packages"]) == 1 and len(call.get("names", ())) <= GROUP for call in calls)
    record = json.loads((tmp_path / "profile.json").read_text())
    num_on_ane = sum(op.unit == "ANE" for op in found.operations)
    assert record["units"] == {"ANE": num_on_ane, "CPU": 1}
    assert record["machine"]["udid"] == "", "what tells one phone from others is written nowhere"
    with (tmp_path / "operations.csv").open() as file:
        assert [row["op"] for row in csv.DictReader(file)] == [op.name for op in found.operations]
    assert not (tmp_path / "values.npz").exists()


@pytest.mark.parametrize(
    "end", ["os.abort()", "sys.exit(3)", 'print(json.dumps({"package": path, "error": "no"})); exit()']
)
def test_what_fails_costs_itself_alone(end: str, exported: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    bad = comparable(Program.load(exported[1]))[30]
    found = run(tmp_path, exported, bad=bad, end=end)
    assert list(found.failures) == [f"value of {bad}"]
    values = {op.name: op.interpreter for op in found.operations}
    lost = {name for name in comparable(Program.load(exported[1])) if values.get(name) == (None, None)}
    assert lost == {bad}
    assert found.steady is not None


@pytest.mark.parametrize("task", ["times", "placement"])
def test_without_times_or_plan_the_rest_is_found(task: str, exported: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    found = run(tmp_path, exported, bad=task, end="sys.exit(3)")
    assert "ended with 3" in found.failures[task]
    assert (found.steady is None) == (task == "times")
    assert any(op.unit for op in found.operations) == (task == "times")
    assert any(op.interpreter.db for op in found.operations)


def test_a_worker_that_can_run_nothing_stops_the_run(exported: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no iPhone"):
        run(tmp_path, exported, bad="times", end='print(json.dumps({"fatal": "no iPhone"})); exit()')


def test_an_iphone_is_given_tensors(exported: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    found = run(tmp_path, exported, Target("iphone", team="T"))
    assert found.failures == {}
    calls = [json.loads(line) for line in (tmp_path / "calls.txt").read_text().splitlines()]
    assert {Path(call["packages"][0]).name for call in calls} == {"tensors.mlpackage"}
    with np.load(tmp_path / "inputs.npz") as inputs:
        assert inputs["image"].shape == (1, 3, 96, 96)
        assert inputs["image"].dtype == np.float32
        assert (inputs["image"][0] == PICTURE.numpy()).all()
    with pytest.raises(ConfigError, match="holds a space"):
        run(tmp_path / "a folder", exported, Target("iphone", team="T"))


def test_what_would_be_run_is_written(exported: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    prepared = prepare(exported[1], tmp_path, MAC, PROTOCOL, PICTURE)
    plan = json.loads((tmp_path / "requests.json").read_text())
    assert (plan["device"], plan["rounds"], plan["iterations"]) == ("mac", 3, 12)
    names = [name for task in plan["tasks"] for name in task.get("names", ())]
    assert names == prepared.names == comparable(Program.load(exported[1]))
    assert meta_of(prepared.program).arch == tiny.DYNAMIC
    with np.load(tmp_path / "inputs.npz") as inputs:
        assert (inputs["image"] == PICTURE.permute(1, 2, 0).numpy()).all()
    drawn: Any = inputs_of(prepared.program, None)["image"]
    assert drawn.max() > 200

"""A package on a Mac or on the iPhone at it: where every operation is placed, its share of the cost, what loading, the
first inference and the steady state take, and how near each value is to its reference.

Every question is asked in a process of its own. Tested with made answers: none of it has been run on Apple hardware.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from vigcli.archs.checkpoint import Checkpoint
from vigcli.coreml.device import Machine, Target, check_can_measure, machine_of
from vigcli.coreml.device_process import WORKER, Answer, answers_of, request_of
from vigcli.coreml.device_worker import count_units
from vigcli.coreml.interpreter import Program
from vigcli.coreml.lint import RULES, Lint, lint
from vigcli.coreml.references import (
    Agreement,
    agreement,
    as_taken,
    comparable,
    inputs_of,
    interpreter_values,
    torch_values,
    worst,
)  # fmt: skip
from vigcli.coreml.tensor_ends import write_tensor_ends
from vigcli.files import replacing, write_json, write_text
from vigcli.latency.protocol import Protocol, Timing, timing
from vigcli.runs.provenance import sha256

PAGE = "docs/first_mac.md"
INPUTS_FILE, REQUESTS_FILE, VALUES_FILE = "inputs.npz", "requests.json", "values.npz"
PROFILE_FILE, OPERATIONS_FILE, TIMES_FILE = "profile.json", "operations.csv", "times.json"
TENSORS_FILE = "tensors.mlpackage"
GROUP = 25  # results that are asked for at once: a model with all of them may not load

Progress = Callable[[str, int, int], None]
Agreements = dict[str, tuple[Agreement, Agreement]]  # of each result with the interpreter's and with torch's


class OpProfile(NamedTuple):
    """An operation of the package.

    Attributes:
        unit: that CoreML's plan prefers (ANE, GPU, CPU); empty where it says nothing.
        supported: units that could run it.
        cost: its share of the estimated work, in [0, 1]; no milliseconds.
        interpreter, torch: how near its value is to theirs; empty where it was not compared.
        findings: kinds of `vigcli.coreml.lint.RULES` that apply to it.
    """

    name: str
    op_type: str
    block: str
    unit: str
    supported: tuple[str, ...]
    cost: float | None
    interpreter: Agreement
    torch: Agreement
    findings: tuple[str, ...]

    @property
    def reason(self) -> str:
        """Why it left the Neural Engine, as far as a rule knows; empty where it did not."""
        if self.unit in ("", "ANE"):
            return ""
        return next((RULES[kind].reason for kind in self.findings if RULES[kind].leaves), "no rule knows")

    def record(self) -> dict[str, Any]:
        return {
            "op": self.name, "type": self.op_type, "block": self.block, "unit": self.unit or None,
            "supported": list(self.supported), "cost": self.cost,
            **{f"interpreter_{name}": value for name, value in self.interpreter._asdict().items()},
            **{f"torch_{name}": value for name, value in self.torch._asdict().items()},
            "findings": list(self.findings), "reason": self.reason,
        }  # fmt: skip


class DeviceProfile(NamedTuple):
    """What was found of a package on a device.

    Attributes:
        first_load_ms, load_ms: of the first round, in which the compilation for the Neural Engine may be, and the
            median of the others.
        first_inference_ms: the median of each round's first one.
        steady: the protocol's trimmed mean.
        failures: by task, what went wrong; empty after a whole run.
    """

    machine: Machine
    target: Target
    protocol: Protocol
    package_sha256: str
    operations: list[OpProfile]
    first_load_ms: float | None
    load_ms: float | None
    first_inference_ms: float | None
    steady: Timing | None
    failures: dict[str, str]

    def record(self) -> dict[str, Any]:
        return {
            "machine": self.machine._replace(udid="")._asdict(), "device": self.target.kind,
            "compute_units": self.target.compute_units, "protocol": str(self.protocol),
            "package_sha256": self.package_sha256,
            "first_load_ms": self.first_load_ms, "load_ms": self.load_ms,
            "first_inference_ms": self.first_inference_ms,
            "latency_ms": self.steady and self.steady.ms, "plus_minus_ms": self.steady and self.steady.plus_minus_ms,
            "num_runs": self.steady and self.steady.num_runs,
            "units": count_units([{"unit": op.unit} for op in self.operations]),
            "failures": self.failures, "operations": [op.record() for op in self.operations],
        }  # fmt: skip


class Prepared(NamedTuple):
    """What is run, in the folder of a run.

    Attributes:
        package: the package, or for an iphone a copy of it that takes and gives tensors.
        names: the results whose values are compared.
    """

    program: Program
    package: Path
    inputs: dict[str, Tensor]
    names: list[str]


def prepare(package: Path, folder: Path, target: Target, protocol: Protocol, picture: Tensor | None) -> Prepared:
    """Write what a run needs besides the package, and what would be asked; works on any machine.

    Args:
        picture: (3, R, R) of bytes, RGB; None draws numbers, as for a package of other inputs.
    """
    program = Program.load(package)
    inputs = inputs_of(program, picture)
    run = package
    if target.kind == "iphone":
        run = folder / TENSORS_FILE
        write_tensor_ends(package, run)
    with replacing(folder / INPUTS_FILE) as temporary, temporary.open("wb") as file:
        np.savez(file, **_stored(program, inputs, target))  # type: ignore[arg-type]
    names = comparable(program)
    values = [{"task": "values", "names": group} for group in _groups(names)]
    tasks = [{"task": "times"}, {"task": "placement"}, *values]
    write_json(folder / REQUESTS_FILE, {
        "package": str(run), "sha256": sha256(run), "device": target.kind, "compute_units": target.compute_units,
        "rounds": protocol.rounds, "iterations": protocol.iterations, "tasks": tasks,
    })  # fmt: skip
    return Prepared(program, run, inputs, names)


def _stored(program: Program, inputs: Mapping[str, Tensor], target: Target) -> dict[str, np.ndarray]:
    """The inputs as the worker hands them to CoreML: pictures in bytes (H, W, 3), all else as the program takes it."""
    arrays = {}
    for feature in program.inputs:
        value = inputs[feature.name]
        if feature.kind == "image" and target.kind == "mac":
            arrays[feature.name] = value[0].permute(1, 2, 0).byte().numpy()
        else:
            arrays[feature.name] = as_taken(feature, value).numpy().astype(_DTYPES[feature.type.dtype])  # type: ignore
    return arrays


_DTYPES = {"fp16": np.float16, "fp32": np.float32, "int32": np.int32}


def _groups(names: Sequence[str]) -> list[list[str]]:
    return [list(names[start : start + GROUP]) for start in range(0, len(names), GROUP)]


def profile_on_device(
    prepared: Prepared,
    folder: Path,
    target: Target,
    protocol: Protocol,
    checkpoint: Checkpoint | None = None,
    on_progress: Progress = lambda what, done, total: None,
    machine: Machine | None = None,
    worker: Sequence[str] = WORKER,
) -> DeviceProfile:
    """Ask for everything, compare, and write `profile.json`, `operations.csv` and `times.json` to the folder.

    What fails, or ends its process, is told by `failures`, and the rest is found all the same.

    Args:
        checkpoint: what the package was made of; without it torch is not compared with.
        machine: asked of macOS and of the iPhone where None.

    Raises UnavailableError where nothing can be run at all.
    """
    if machine is None:
        check_can_measure(target, PAGE)
        machine = machine_of(target)
    asked = _Asked(prepared, folder, request_of(folder, target, machine, protocol), worker, on_progress)
    timed, placed = asked.ask("times"), asked.ask("placement")
    interpreter = interpreter_values(prepared.program, prepared.inputs)
    torch = torch_values(prepared.program, checkpoint, prepared.inputs) if checkpoint else {}
    agreements = asked.agreements(interpreter, torch)
    operations = _operations(prepared.program, lint(prepared.program), placed.get("operations", []), agreements)
    found = DeviceProfile(
        machine, target, protocol, sha256(prepared.package), operations, *_times(timed, protocol, asked.failures),
        asked.failures,
    )  # fmt: skip
    write_json(folder / PROFILE_FILE, found.record())
    write_text(folder / OPERATIONS_FILE, _csv(operations))
    write_json(folder / TIMES_FILE, timed)
    return found


class _Asked:
    """The questions of one run; each is a process, and one that fails is kept as a failure."""

    def __init__(
        self, prepared: Prepared, folder: Path, request: dict[str, Any], worker: Sequence[str], on_progress: Progress
    ):
        self.prepared, self.folder, self.worker, self.on_progress = prepared, folder, worker, on_progress
        paths = {"inputs": str((folder / INPUTS_FILE).resolve()), "values": str((folder / VALUES_FILE).resolve())}
        self.request = request | paths
        self.failures: dict[str, str] = {}
        self._num_asked = 0

    def ask(self, task: str, **more: Any) -> Answer:
        """The answer to a task; empty, and a failure, where there is none."""
        answer = self._answer(task, more)
        if "error" in answer:
            self.failures[task] = answer["error"]
            return {}
        return answer

    def _answer(self, task: str, more: Mapping[str, Any]) -> Answer:
        self.on_progress("asking CoreML", self._num_asked, 2 + len(_groups(self.prepared.names)))
        self._num_asked += 1
        request = {**self.request, "task": task, **more}
        ((_, answer),) = answers_of([str(self.prepared.package.resolve())], self.folder, request, self.worker)
        return answer

    def agreements(self, interpreter: Mapping[str, Tensor], torch: Mapping[str, Tensor]) -> Agreements:
        """How near every result is to the interpreter's and to torch's. A group that fails is asked for in halves: one
        result that CoreML cannot hand out costs itself alone."""
        found: Agreements = {}
        pending = _groups(self.prepared.names)
        while pending:
            names = pending.pop(0)
            answer = self._answer("values", {"names": names})
            if "error" in answer and len(names) > 1:
                half = len(names) // 2
                pending[:0] = [names[:half], names[half:]]
            elif "error" in answer:
                self.failures[f"value of {names[0]}"] = answer["error"]
            else:
                found |= self._read(interpreter, torch)
        (self.folder / VALUES_FILE).unlink(missing_ok=True)
        return found

    def _read(self, interpreter: Mapping[str, Tensor], torch: Mapping[str, Tensor]) -> Agreements:
        """The values that the worker wrote, held to their references; int8 moves factors that torch has not moved."""
        is_int8 = "quantize" in self.prepared.program.op_counts
        with np.load(self.folder / VALUES_FILE) as values:
            return {
                name: (_agreement(value, interpreter.get(name)), _agreement(value, torch.get(name), is_int8))
                for name, value in values.items()
            }


def _agreement(value: np.ndarray, reference: Tensor | None, up_to_a_factor: bool = False) -> Agreement:
    if reference is None or reference.numel() != value.size:
        return Agreement()
    return agreement(value, reference, up_to_a_factor)


def _operations(
    program: Program, linted: Lint, placed: Sequence[Mapping[str, Any]], agreements: Agreements
) -> list[OpProfile]:
    """Every operation of the program, and behind them those that the plan names and the program does not."""
    plan = {operation["name"]: operation for operation in placed}
    kinds: dict[str, list[str]] = {}
    for finding in linted.findings:
        kinds.setdefault(finding.name, []).append(finding.kind)
    results = {step.outputs[0].name: [info.name for info in step.outputs] for step in program.steps}
    types = {step.outputs[0].name: step.op.name for step in program.steps}
    types |= {name: operation["type"] for name, operation in plan.items() if name not in linted.op_blocks}
    nothing: Mapping[str, Any] = {}
    operations = []
    for name, op_type in types.items():
        said = plan.get(name, nothing)
        compared = [agreements[result] for result in results.get(name, ()) if result in agreements]
        interpreter, torch = (worst([pair[i] for pair in compared]) for i in (0, 1))
        operations.append(OpProfile(
            name, op_type, linted.op_blocks.get(name, ""), said.get("unit") or "", tuple(said.get("supported", ())),
            said.get("cost"), interpreter, torch, tuple(kinds.get(name, ())),
        ))  # fmt: skip
    return operations


def _times(
    timed: Answer, protocol: Protocol, failures: dict[str, str]
) -> tuple[float | None, float | None, float | None, Timing | None]:
    """First load, load, first inference and steady state, as far as they were found."""
    if not timed:
        return None, None, None, None
    loads, rounds = timed["loads"], timed["rounds"]
    try:
        steady = timing(rounds, protocol.trim)
    except ValueError as error:
        failures["times"] = str(error)
        steady = None
    return loads[0], float(np.median(loads[1:])), float(np.median([samples[0] for samples in rounds])), steady


def _csv(operations: Sequence[OpProfile]) -> str:
    text = io.StringIO()
    records = [op.record() for op in operations]
    writer = csv.DictWriter(text, list(records[0]) if records else ["op"], lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({k: " ".join(v) if isinstance(v, list) else v for k, v in record.items()})
    return text.getvalue()

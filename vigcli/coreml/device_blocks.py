"""Measuring the blocks of a plan on a Mac or on an iPhone that is attached to one, into rows of a latency table.

Tested with made timings: none of it has been run on Apple hardware.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vigcli.config.space import SearchSpace
from vigcli.coreml.chains import Progress, plan_of, write_packages
from vigcli.coreml.device import Machine, Target, check_can_measure, machine_of
from vigcli.coreml.device_process import WORKER, Answer, answers_of, request_of
from vigcli.files import write_json
from vigcli.latency.measured import MeasuredRow, write_measured
from vigcli.latency.plan import Block, Plan
from vigcli.latency.protocol import Protocol, Timing, UnresolvedError, slope, timing

MEASURED_FOLDER, ROWS_FILE, FAILURES_FILE = "measured", "rows.csv", "failures.json"


class Measured(NamedTuple):
    """Rows by block, and why the other blocks have none."""

    rows: list[MeasuredRow]
    failures: dict[str, str]


def dry_run(
    space: SearchSpace,
    folder: Path | str,
    protocol: Protocol,
    every: int = 1,
    on_progress: Progress = lambda what, done, total: None,
) -> Plan:
    """Write all packages that a measurement of the space would time, and `plan.json`; needs no Apple hardware.

    Raises UnavailableError without coremltools, VigError where the folder cannot be written.
    """
    return write_packages(plan_of(space, protocol, every), folder, on_progress)


def measure_on_device(
    plan: Plan,
    folder: Path | str,
    target: Target,
    on_progress: Progress = lambda what, done, total: None,
    machine: Machine | None = None,
    worker: Sequence[str] = WORKER,
) -> Measured:
    """Time every package of a plan that was written to `folder`, and write `rows.csv` and `failures.json` there.

    What was timed is kept as it comes, so that a run that was stopped goes on where it was: for the same package,
    protocol, units and machine. A package that fails, or that ends its process, costs its blocks alone.

    Args:
        machine: what the rows say of it; asked of macOS and of the iPhone where None.
        worker: the command of the process that times; see `vigcli.coreml.device_worker`.

    Raises UnavailableError where nothing can be timed at all.
    """
    folder = Path(folder)
    if machine is None:
        check_can_measure(target)
        machine = machine_of(target)
    of = {"protocol": plan.protocol.model_dump(), "units": target.compute_units, **machine._replace(udid="")._asdict()}
    answers = _kept(plan, folder, of)
    request = request_of(folder, target, machine, plan.protocol) | {"task": "block"}
    try:
        for name, answer in answers_of([n for n in plan.packages if n not in answers], folder, request, worker):
            answers[name] = answer | {"date": datetime.date.today().isoformat()}
            if "rounds" in answer:
                kept = {"of": of | {"sha256": plan.packages[name].sha256}, "answer": answers[name]}
                write_json(folder / MEASURED_FOLDER / f"{name}.json", kept)
            on_progress("measuring", len(answers), len(plan.packages))
    finally:
        found = rows_of(plan, answers, target, machine)
        if found.rows:
            write_measured(folder / ROWS_FILE, found.rows)
        if answers:
            write_json(folder / FAILURES_FILE, found.failures)
    return found


def _kept(plan: Plan, folder: Path, of: Mapping[str, Any]) -> dict[str, Answer]:
    """What an earlier run timed of the same packages in the same way; what cannot be read is timed again."""
    answers = {}
    for name, package in plan.packages.items():
        try:
            kept = json.loads((folder / MEASURED_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
            if kept["of"] == {**of, "sha256": package.sha256} and {"rounds", "placement", "date"} <= {*kept["answer"]}:
                answers[name] = kept["answer"]
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return answers


# ---------------------------------------------------------------------------------------------------- rows


def rows_of(plan: Plan, answers: Mapping[str, Answer], target: Target, machine: Machine) -> Measured:
    """The rows that answers of the worker give, and why the other blocks of the plan have none."""
    rows, failures = [], {}
    for signature, block in plan.blocks.items():
        try:
            rows.append(_row(plan, signature, block, answers, target, machine))
        except (_Failed, UnresolvedError) as error:
            failures[signature] = str(error)
    return Measured(rows, failures)


class _Failed(Exception):
    """Why a block has no row."""


def _row(
    plan: Plan, signature: str, block: Block, answers: Mapping[str, Answer], target: Target, machine: Machine
) -> MeasuredRow:
    few, many = (_timing(name, answers, plan.protocol) for name in (block.few, block.many))
    units = [main_unit(answers[name]["placement"]) for name in (block.few, block.many)]
    if units[0] != units[1] and all(units):
        raise _Failed(f"{block.few} runs on {units[0]} and {block.many} on {units[1]}: their difference is no block's.")
    num_few, num_many = (plan.packages[name].copies for name in (block.few, block.many))
    found = slope(few, many, num_few, num_many)
    placement = ", ".join(f"{unit} {count}" for unit, count in answers[block.many]["placement"].items())
    gmacs, depthwise_gmacs, act_mb, weight_mb, num_ops = block.features
    return MeasuredRow(
        signature=signature,
        ms=found.ms,
        plus_minus_ms=found.plus_minus_ms,
        unit="ms",
        num_runs=found.num_runs,
        few=num_few,
        many=num_many,
        few_ms=few.ms,
        many_ms=many.ms,
        device=machine.device,
        soc=machine.soc,
        os=machine.os,
        where=machine.where,
        compute_units=target.compute_units,
        precision=plan.precision,
        placement=placement or "unknown",
        protocol=str(plan.protocol),
        package_sha256=plan.packages[block.many].sha256,
        coremltools=machine.coremltools,
        xcode=machine.xcode,
        date=answers[block.many]["date"],
        gmacs=gmacs,
        depthwise_gmacs=depthwise_gmacs,
        act_mb=act_mb,
        weight_mb=weight_mb,
        num_ops=num_ops,
    )


def _timing(name: str, answers: Mapping[str, Answer], protocol: Protocol) -> Timing:
    answer = answers.get(name, {"error": "was not timed"})
    if "error" in answer:
        raise _Failed(f"{name}: {answer['error']}.")
    try:
        return timing(answer["rounds"], protocol.trim)
    except ValueError as error:
        raise _Failed(f"{name}: {error}.") from None


def main_unit(placement: Mapping[str, int]) -> str:
    """The unit that runs most of a package's operations; empty where none is known."""
    return max(placement, key=lambda unit: placement[unit], default="")

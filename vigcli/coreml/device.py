"""Measuring the blocks of a plan on a Mac or on an iPhone that is attached to one, with coremltools 9.

Written against coremltools' own signatures and tested with made timings: none of it has been run on Apple hardware.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vigcli.config.space import SearchSpace
from vigcli.coreml.apple import coremltools
from vigcli.coreml.chains import Progress, plan_of, write_packages
from vigcli.coreml.device_worker import EXPERIMENTAL, LIMIT_S
from vigcli.errors import ConfigError, UnavailableError
from vigcli.files import write_json
from vigcli.latency.measured import MeasuredRow, write_measured
from vigcli.latency.plan import Block, Plan
from vigcli.latency.protocol import Protocol, Timing, UnresolvedError, slope, timing

PAGE = "docs/measure_on_a_mac.md"
WORKER = (sys.executable, "-m", "vigcli.coreml.device_worker")
MEASURED_FOLDER, ROWS_FILE, FAILURES_FILE = "measured", "rows.csv", "failures.json"

Answer = dict[str, Any]


class Target(NamedTuple):
    """What to measure on.

    Attributes:
        compute_units: a name of `coremltools.ComputeUnit`, that CoreML may choose from.
        name: what people call the device; empty leaves it to the machine.
        team: of the Apple developer account that signs coremltools' app; for an iPhone alone.
    """

    kind: Literal["mac", "iphone"]
    compute_units: str = "ALL"
    name: str = ""
    team: str = ""


class Machine(NamedTuple):
    """The device and the Mac, as rows name them; `udid` finds an iPhone again and is written nowhere."""

    device: str
    soc: str
    os: str
    where: str
    coremltools: str
    xcode: str
    udid: str = ""


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


def check_can_measure(target: Target) -> None:
    """Raise UnavailableError on another system than macOS, and for an iPhone without a signing team."""
    if platform.system() != "Darwin":
        hint = f"Use --dry-run to write the packages here, and {PAGE} on a Mac."
        raise UnavailableError(f"--device {target.kind}: CoreML runs on macOS alone.", hint)
    if target.kind == "iphone" and not target.team:
        hint = f"Pass --team ID; {PAGE} says where it is found."
        raise UnavailableError("--device iphone: an app must be signed to run there.", hint)


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
    if target.kind == "iphone" and " " in str(folder.resolve()):
        raise ConfigError(
            f"{folder.resolve()}: holds a space.", "coremltools' build of its app breaks on one: move it."
        )
    of = {"protocol": plan.protocol.model_dump(), "units": target.compute_units, **machine._replace(udid="")._asdict()}
    answers = _kept(plan, folder, of)
    request = {
        "device": target.kind, "udid": machine.udid, "team": target.team,
        "build_folder": str((folder / "modelrunner").resolve()), "compute_units": target.compute_units,
        "rounds": plan.protocol.rounds, "iterations": plan.protocol.iterations,
    }  # fmt: skip
    try:
        for name, answer in timed([name for name in plan.packages if name not in answers], folder, request, worker):
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


def timed(
    names: Sequence[str], folder: Path, request: Mapping[str, Any], worker: Sequence[str] = WORKER
) -> Iterator[tuple[str, Answer]]:
    """(package, answer) of every package, in order; one whose process ends without an answer has its end as `error`.

    On a Mac every package has a process of its own. On an iPhone a process goes on for as long as none fails, because
    it launches an app there; a package that cannot be loaded ends that app and not the process.

    Raises UnavailableError with what the worker says where it can time nothing.
    """
    pending = list(names)
    while pending:
        batch = pending[: 1 if request["device"] == "mac" else None]
        num_before = len(pending)
        for name, answer in _ask(batch, folder, request, worker):
            pending.remove(name)
            yield name, answer
        assert len(pending) < num_before, "a process answers for one package at least"


def _ask(
    names: Sequence[str], folder: Path, request: Mapping[str, Any], worker: Sequence[str]
) -> Iterator[tuple[str, Answer]]:
    """What one process answers; at its end, if not all were answered, also for the package that it was at."""
    by_path = {str((folder / name).resolve()): name for name in names}
    failed = False
    with (
        (folder / "worker.log").open("ab") as log,
        subprocess.Popen(worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it ended at its start; how is told below
                process.stdin.write(json.dumps({**request, "packages": list(by_path)}))
                process.stdin.close()
            for line in process.stdout:
                answer = json.loads(line)
                if "fatal" in answer:
                    raise UnavailableError(f"nothing can be measured: {answer['fatal']}.", f"See {PAGE}.")
                failed = "error" in answer
                yield by_path.pop(answer.pop("package")), answer
            process.wait()
        finally:
            process.kill()  # Ctrl-C, or a fatal answer
    if by_path and not failed:
        yield next(iter(by_path.values())), {"error": _end(process.returncode)}


def _end(code: int) -> str:
    """What the end of a process without an answer means."""
    if code == -signal.SIGALRM:
        return f"took more than {LIMIT_S / 3600:g} hours"
    if code < 0:
        return f"ANE compile failed: the process that loaded it died by {signal.Signals(-code).name}"
    return f"the process that timed it ended with {code}; see worker.log"


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


# ---------------------------------------------------------------------------------------------------- machines


def machine_of(target: Target, said: Callable[[Sequence[str]], str] | None = None) -> Machine:
    """What macOS says of itself, and for an iPhone what `devicectl` says of the one that is connected.

    Raises UnavailableError where none or several are, and for an iPhone whose name is not known.
    """
    said = said or _said
    model, chip = said(("sysctl", "-n", "hw.model")), said(("sysctl", "-n", "machdep.cpu.brand_string"))
    macos = f"macOS {said(('sw_vers', '-productVersion'))} ({said(('sw_vers', '-buildVersion'))})"
    versions = version("coremltools"), said(("xcodebuild", "-version")) or "no Xcode"
    if target.kind == "mac":
        return Machine(target.name or model, chip, macos, f"{model}, {chip}", *versions)
    phone = connected_iphone()
    hardware = _hardware(said, phone.udid)
    name = target.name or str(hardware.get("marketingName", ""))
    if not name:
        raise UnavailableError("the iPhone does not say what model it is.", 'Say it: --name "iPhone 13 mini".')
    product = str(hardware.get("productType", "model not said"))
    system = f"iOS {phone.os_version} ({phone.os_build_number})"
    return Machine(name, product, system, f"{product} at a {model}, {macos}", *versions, udid=phone.udid)


def connected_iphone() -> Any:
    """The one iPhone (`remote_device.Device`) that is connected. Raises UnavailableError."""
    coremltools()
    remote = import_module(f"{EXPERIMENTAL}.remote_device")
    try:
        found = remote.Device.get_connected_devices(remote.DeviceType.IPHONE)
    except Exception as error:  # coremltools' own, of a private type: Xcode's tools are missing or refuse
        raise UnavailableError(f"Xcode's devicectl does not list devices: {error}.", f"See {PAGE}.") from error
    if len(found) != 1:
        hint = f"Attach one, unlock it, trust this Mac and turn on its developer mode: {PAGE}."
        raise UnavailableError(f"--device iphone: {len(found) or 'none'} connected.", hint)
    return found[0]


def _hardware(said: Callable[[Sequence[str]], str], udid: str) -> dict[str, Any]:
    """What `devicectl` knows of a device's hardware; coremltools keeps of it the type alone."""
    with tempfile.TemporaryDirectory(prefix="vig-") as folder:
        path = Path(folder) / "devices.json"
        said(("xcrun", "devicectl", "list", "devices", "--json-output", str(path)))
        try:
            devices = json.loads(path.read_text(encoding="utf-8"))["result"]["devices"]
            found = [d["hardwareProperties"] for d in devices if d["hardwareProperties"].get("udid") == udid]
            return dict(found[0])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}


def _said(command: Sequence[str]) -> str:
    """What a command of macOS prints, on one line; nothing where there is no such command."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return " ".join(done.stdout.split()) if done.returncode == 0 else ""

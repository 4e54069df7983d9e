"""Asking the processes that load packages, one after another, so that one which dies costs its own answer alone."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vigcli.coreml.device import PAGE, Machine, Target
from vigcli.coreml.device_worker import LIMIT_S
from vigcli.errors import ConfigError, UnavailableError
from vigcli.latency.protocol import Protocol

WORKER = (sys.executable, "-m", "vigcli.coreml.device_worker")

Answer = dict[str, Any]


def request_of(folder: Path, target: Target, machine: Machine, protocol: Protocol) -> dict[str, Any]:
    """What every request of a run says: the device, and how to time; see `vigcli.coreml.device_worker`.

    Raises ConfigError for a folder in which coremltools cannot build its app for an iPhone.
    """
    if target.kind == "iphone" and " " in str(folder.resolve()):
        raise ConfigError(
            f"{folder.resolve()}: holds a space.", "coremltools' build of its app breaks on one: move it."
        )
    return {
        "device": target.kind, "udid": machine.udid, "team": target.team,
        "build_folder": str((folder / "modelrunner").resolve()), "compute_units": target.compute_units,
        "rounds": protocol.rounds, "iterations": protocol.iterations,
    }  # fmt: skip


def answers_of(
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
    return f"the process that ran it ended with {code}; see worker.log"

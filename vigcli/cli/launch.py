"""Several processes that train together: those that a launcher has started, and `vig train --nproc`'s own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

from vigcli.cli.output import say

_GRACE_S = 15.0  # for the others, when one has ended with an error


class Place(NamedTuple):
    """This process among those of torchrun, of `vig train --nproc` or of a cluster's scheduler."""

    rank: int
    size: int
    local_rank: int


def place() -> Place:
    """As the environment says; one process of one where it says nothing."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    return Place(*(int(os.environ.get(name, default)) for name, default in zip(names, (0, 1, 0), strict=True)))


def run_processes(count: int, arguments: Sequence[str]) -> int:
    """Run `vig ARGUMENTS` in so many processes of one world, and give the exit code of the first that failed, or 0.

    Their talk is the first one's; another's is shown where it was that one which failed. Ctrl-C and SIGTERM are passed
    on, once to each, so that all of them save.
    """
    with contextlib.ExitStack() as stack:
        told = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        port = str(_free_port())
        processes = [_started(rank, count, port, arguments, told[rank]) for rank in range(count)]
        stack.enter_context(_passed_on(processes))
        failed = _first_failure(processes)
        if failed is None:
            return 0
        if failed > 0 and processes[failed].returncode != processes[0].returncode:
            told[failed].seek(0)
            say(told[failed].read().decode(errors="replace").rstrip())
        code = processes[failed].returncode
        return code if code > 0 else 128 - code


def _started(rank: int, count: int, port: str, arguments: Sequence[str], told: IO[bytes]) -> subprocess.Popen[bytes]:
    """In a session of its own: what the terminal sends to the group reaches the parent alone."""
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
    return subprocess.Popen(
        [sys.executable, "-m", "vigcli", *arguments],
        env=threads | dict(os.environ) | {name: str(value) for name, value in world.items()},
        stdin=subprocess.DEVNULL,
        stdout=None if rank == 0 else subprocess.DEVNULL,
        stderr=None if rank == 0 else told,
        start_new_session=True,
    )


@contextlib.contextmanager
def _passed_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Signals go to the processes; none of them outlives the block."""

    def pass_on(number: int, frame: Any) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all of them; once one has failed the others, which may wait for it, have a while to end."""
    failed, until = None, float("inf")
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        for rank, process in enumerate(processes):
            if failed is None and process.returncode not in (None, 0):
                failed, until = rank, time.monotonic() + _GRACE_S
        time.sleep(0.05)
    if failed is None:
        failed = next((rank for rank, process in enumerate(processes) if process.returncode), None)
    return failed


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

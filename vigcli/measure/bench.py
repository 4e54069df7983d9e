"""Milliseconds of modules on this machine's CPU: ONNX Runtime on one thread, by rounds that visit all in turn.

What is timed and what its figures are for is left to the callers (`vigcli.measure.build`).

A machine that others use too is timed by the CPU time of the calling thread, not by the clock on the wall, and by
rounds: what slows it down for seconds or minutes then meets modules of all kinds, by whom it is told and divided out.
"""

from __future__ import annotations

import functools
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from vigcli.measure.onnx import onnxruntime, to_onnx

VISIT_MS = 6.0  # a visit calls a quick module for so long, a slow one `MIN_CALLS` times, and takes the median
MIN_CALLS = 3
MAX_CALLS = 100
NEIGHBOURS = 20  # visits before and after one that tell how slow the machine was at the time
STEADYING_STEPS = 3  # the medians that visits are held to are themselves of steadied visits; then nothing moves
PROTOCOL = (
    "CPU time of one thread (time.thread_time_ns), batch 1; modules in a new random order every round, in each visit "
    f"one call unheeded, then {MIN_CALLS} or as many as take {VISIT_MS:g} ms; the machine's drift divided out, as "
    f"{2 * NEIGHBOURS + 1} visits on end tell it; median of the rounds' medians, less that of an empty session"
)

Call = Callable[[], float]
"""Runs a module once and returns the milliseconds that it took."""


@functools.cache
def _share_activations() -> None:
    """One arena for the activations of all sessions, of which one runs at a time: else each keeps one of its own."""
    runtime = onnxruntime()
    where = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
    runtime.create_and_register_allocator(where, None)


class Session:
    """A module ready to be timed: calling it runs it once and returns the milliseconds of CPU time.

    Args:
        module: in the form to be timed (deployed); (1, *in_shape) goes in.
        name: for the message when it cannot be exported.
    """

    def __init__(self, module: nn.Module, in_shape: Sequence[int], name: str):
        runtime = onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # all runs in the thread that calls
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.log_severity_level = 3  # errors alone: it warns of folded constants and unused weights
        _share_activations()
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:  # of bytes in memory it would keep a copy
            file.write(to_onnx(module, (1, *in_shape), name))
            file.flush()
            self._session = runtime.InferenceSession(file.name, options, providers=["CPUExecutionProvider"])
        image = np.random.default_rng(0).standard_normal((1, *in_shape)).astype(np.float32)
        self._feed = {self._session.get_inputs()[0].name: image}
        self._wanted = [self._session.get_outputs()[0].name]

    def __call__(self) -> float:
        start = time.thread_time_ns()
        self._session.run(self._wanted, self._feed)
        return (time.thread_time_ns() - start) / 1e6


class _Empty(nn.Module):
    """As little as a session can do: what a call costs by itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0


def empty_session() -> Session:
    """A session that computes nothing worth mentioning."""
    return Session(_Empty(), (1, 1, 1), "an empty session")


def rounds(calls: Mapping[str, Call], seed: int) -> Iterator[dict[str, float]]:
    """Endless rounds: in each every call is visited once, in a random order; yields the median milliseconds of each.

    The first call of a visit is left out: caches hold what the module before it worked on.
    """
    order, generator = sorted(calls), random.Random(seed)
    num_calls: dict[str, int] = {}
    while True:
        generator.shuffle(order)
        found = {}
        for name in order:
            first_ms = calls[name]()
            if name not in num_calls:  # the very first call also allocates: the second tells how long one takes
                first_ms = calls[name]()
                num_calls[name] = min(MAX_CALLS, max(MIN_CALLS, int(VISIT_MS / max(first_ms, 1e-3))))
            found[name] = statistics.median(calls[name]() for _ in range(num_calls[name]))
        yield found


def steadied(of_rounds: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The rounds without what slowed the machine down, or sped it up, over many visits: others' load, its clock.

    Visits stand in the order in which they were made. Each is put in relation to the median of its name; the median of
    that over the visit and `NEIGHBOURS` before and after it is how slow the machine was, and is divided out. A module
    that is slow by itself is so in every round, and stays slow.
    """
    names = sorted(of_rounds[0])
    at = {name: i for i, name in enumerate(names)}
    order = np.array([[at[name] for name in of_round] for of_round in of_rounds])  # (rounds, visits)
    ms = np.array([list(of_round.values()) for of_round in of_rounds])
    slow = np.ones_like(ms)
    for _ in range(STEADYING_STEPS):
        by_name = np.take_along_axis(ms / slow, np.argsort(order, 1), 1)
        ratio = ms / np.median(by_name, 0)[order]
        padded = np.pad(ratio, ((0, 0), (NEIGHBOURS, NEIGHBOURS)), mode="reflect")
        slow = np.median(sliding_window_view(padded, 2 * NEIGHBOURS + 1, axis=1), -1)
    found = zip(of_rounds, (ms / slow).tolist(), strict=True)
    return [dict(zip(of_round, steady, strict=True)) for of_round, steady in found]


class Timing(NamedTuple):
    """Milliseconds over rounds: their median, its standard error, and the share of it that the middle half spans."""

    ms: float
    plus_minus_ms: float
    spread_ratio: float
    num_rounds: int


def timing(of_rounds_ms: Sequence[float]) -> Timing:
    """The median of what the rounds say.

    Its standard error is 1.25 of a mean's, and a normal distribution's standard deviation is its quartiles' distance
    over 1.35, which a round that was disturbed does not move.
    """
    low, middle, high = (float(q) for q in np.quantile(of_rounds_ms, (0.25, 0.5, 0.75)))
    error = 1.2533 * (high - low) / 1.349 / len(of_rounds_ms) ** 0.5
    return Timing(middle, error, (high - low) / middle if middle else 0.0, len(of_rounds_ms))


class Machine(NamedTuple):
    """What was timed on: rows of different machines must not stand for each other."""

    cpu: str
    num_cores: int
    os: str
    tools: dict[str, str]

    def __str__(self) -> str:
        return f"{self.cpu}, {self.num_cores} cores, {self.os}"


def this_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """The machine that runs this: its CPU by the name that it gives itself, system, and versions of what times."""
    onnxruntime()
    tools = {package: version(package) for package in ("onnxruntime", "torch")}
    return Machine(_cpu_model(cpuinfo), os.cpu_count() or 1, _os_name(), tools)


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):  # not Linux
        return f"{platform.system()} {platform.release()}"


def _cpu_model(cpuinfo: Path) -> str:
    """`model name` of Linux on x86, with family, model and stepping, for some say no more than the maker's name."""
    try:
        first = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:  # not Linux
        return platform.processor() or platform.machine() or "unknown CPU"
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    name = values.get("model name") or platform.machine() or "unknown CPU"
    details = [f"{key} {values[key]}" for key in ("cpu family", "model", "stepping") if key in values]
    return f"{name} ({', '.join(details)})" if details else name

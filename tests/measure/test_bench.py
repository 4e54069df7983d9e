"""Timing by rounds, with a clock of our own; a session runs once, to see that it can."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vigcli.errors import NotMeasurableError, UnavailableError
from vigcli.measure import bench
from vigcli.measure.onnx import to_onnx


class Counted:
    """A call that takes `ms`, but the first of a visit, which takes ten times as long."""

    def __init__(self, name: str, ms: float, log: list[str]):
        self.name, self.ms, self.log = name, ms, log

    def __call__(self) -> float:
        first = not self.log or self.log[-1] != self.name
        self.log.append(self.name)
        return self.ms * (10 if first else 1)


def test_a_round_visits_each_once_and_leaves_its_first_call_out() -> None:
    log: list[str] = []
    times = {"a": 0.5, "b": 20.0, "c": 1.0}
    endless = bench.rounds({name: Counted(name, ms, log) for name, ms in times.items()}, seed=0)
    for _ in range(4):
        log.clear()
        assert next(endless) == times
        assert len([name for i, name in enumerate(log) if i == 0 or log[i - 1] != name]) == len(times)


def test_quick_calls_are_repeated_more_often_than_slow_ones() -> None:
    log: list[str] = []
    calls = {name: Counted(name, ms, log) for name, ms in {"quick": 0.001, "middle": 1.0, "slow": 50.0}.items()}
    endless = bench.rounds(calls, seed=0)
    next(endless)
    log.clear()
    next(endless)
    counts = {name: log.count(name) - 1 for name in calls}
    assert counts == {"quick": bench.MAX_CALLS, "middle": 6, "slow": bench.MIN_CALLS}


def test_orders_differ_between_rounds_and_follow_the_seed() -> None:
    def orders(seed: int) -> list[tuple[str, ...]]:
        log: list[str] = []
        endless = bench.rounds({name: Counted(name, 9.0, log) for name in "abcdef"}, seed)
        found = []
        for _ in range(3):
            log.clear()
            next(endless)
            found.append(tuple(dict.fromkeys(log)))
        return found

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)
    assert len(set(orders(1))) == 3


def test_a_disturbed_round_does_not_move_a_timing() -> None:
    calm = bench.timing([1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0])
    disturbed = bench.timing([1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 7.0])
    assert calm.ms == disturbed.ms == 1.0
    assert disturbed.plus_minus_ms == pytest.approx(calm.plus_minus_ms, abs=0.005)
    assert calm.num_rounds == 7
    assert bench.timing([2.0] * 4) == bench.Timing(2.0, 0.0, 0.0, 4)


def test_what_slows_the_machine_for_a_while_is_divided_out() -> None:
    generator = np.random.default_rng(0)
    true_ms = dict(zip(map(str, range(200)), generator.uniform(0.1, 20, 200), strict=True))
    of_rounds = []
    for _ in range(8):
        slow = np.exp(np.repeat(generator.normal(0, 0.3, 2), 100))  # two spells a round
        names = generator.permutation(list(true_ms))
        of_rounds.append({str(name): true_ms[name] * s for name, s in zip(names, slow, strict=True)})
    steady = bench.steadied(of_rounds)
    assert [list(of_round) for of_round in steady] == [list(of_round) for of_round in of_rounds]
    before, after = (
        np.array([bench.timing([of_round[n] for of_round in rounds]).ms / ms for n, ms in true_ms.items()])
        for rounds in (of_rounds, steady)
    )
    assert np.std(after / np.median(after)) < 0.25 * np.std(before / np.median(before))


@pytest.mark.parametrize("num", [1, 3, 100])
def test_a_steady_machine_is_left_as_it_is(num: int) -> None:
    of_rounds = [{str(i): 1.0 + i for i in range(num)}, {str(i): 1.0 + i for i in reversed(range(num))}]
    assert bench.steadied(of_rounds) == of_rounds


def test_more_rounds_make_the_error_smaller() -> None:
    few, many = bench.timing([1.0, 1.1, 1.2, 1.3]), bench.timing([1.0, 1.1, 1.2, 1.3] * 4)
    assert few.spread_ratio == pytest.approx(many.spread_ratio)
    assert many.plus_minus_ms == pytest.approx(few.plus_minus_ms / 2)


def test_a_session_runs() -> None:
    pytest.importorskip("onnxruntime")
    call = bench.Session(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()), (3, 8, 8), "a block")
    assert call() >= 0
    assert bench.empty_session()() >= 0


def test_what_cannot_be_exported_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svd(x).S

    with pytest.raises(NotMeasurableError, match=r"^odd 1x2x2: cannot be exported to ONNX: .*svd"):
        to_onnx(Odd(), (1, 1, 2, 2), "odd 1x2x2")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_what_times_the_hint_says_how_to_install_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnavailableError, match=f"^{package} is not installed") as error:
        bench.this_machine()
    assert error.value.exit_code == 6
    assert "pip install" in error.value.hint


@pytest.mark.parametrize(
    ("text", "cpu"),
    [
        (
            "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nstepping\t: 1\n\nprocessor\t: 1\n",
            "AMD EPYC (cpu family 26, model 2, stepping 1)",
        ),
        ("model name\t: A CPU\n", "A CPU"),
    ],
)
def test_a_cpu_is_told_by_what_it_says_of_itself(text: str, cpu: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "cpuinfo").write_text(text)
    machine = bench.this_machine(tmp_path / "cpuinfo")
    assert machine.cpu == cpu
    assert machine.num_cores >= 1
    assert set(machine.tools) == {"onnxruntime", "torch"}
    assert bench.this_machine(tmp_path / "none").cpu

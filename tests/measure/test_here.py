"""A network timed on this machine, by a clock of our own."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from tests.tiny import CONFIG
from vigcli.cli import profile
from vigcli.errors import UsageError
from vigcli.measure import here
from vigcli.measure.bench import Machine

MACHINE = Machine("A CPU", 2, "an OS", {"onnxruntime": "1", "torch": "2"})
SEEN: list[nn.Module] = []


def clock(network: nn.Module, in_shape: tuple[int, int, int], name: str = "") -> Callable[[], float]:
    """Takes 9 to 11 ms, as the rounds go by; the network must take what it is said to."""
    SEEN.append(network)
    assert network(torch.zeros(1, *in_shape)).shape == (1, 10)
    times = itertools.cycle((9.0, 10.0, 10.0, 10.0, 11.0))
    return lambda: next(times)


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "this_machine", lambda: MACHINE)
    monkeypatch.setattr(here, "Session", clock)


def test_a_network_is_timed_as_it_is_deployed() -> None:
    found = here.measure_here(CONFIG)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in SEEN[-1].modules())
    assert found.timing.ms == 10
    assert found.timing.num_rounds == here.NUM_ROUNDS
    assert str(found).startswith("10.00 ms ±")
    assert str(found).endswith("A CPU, one thread, ONNX Runtime, fp32")


def test_profile_says_it_beside_the_price() -> None:
    command = ["mobilevigv2_ti", "--num-classes", "10", "--resolution", "96", "--table", "cpu-x86", "--measure"]
    said = CliRunner().invoke(profile.command, command)
    assert said.exit_code == 0, said.exception
    assert "measured here" in said.output
    assert "\nlatency " in said.output
    record = json.loads(CliRunner().invoke(profile.command, [*command, "--json"]).stdout)
    assert record["measured_here"]["ms"] == 10
    assert record["measured_here"]["precision"] == "fp32"
    assert record["measured_here"]["machine"]["cpu"] == "A CPU"


def test_a_network_must_be_named_to_be_timed() -> None:
    assert isinstance(CliRunner().invoke(profile.command, ["--table", "cpu-x86", "--measure"]).exception, UsageError)

"""The top candidates as they are really built: counted as the search summed them up, timed by a clock of our own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from vigcli.config.archs import VARIANTS, ArchConfig
from vigcli.latency.table import load_table
from vigcli.measure import here
from vigcli.measure.bench import Machine
from vigcli.measure.count import BuiltCount
from vigcli.measure.profile import profile
from vigcli.search import built
from vigcli.search.built import build_top, top_candidates

BASE = VARIANTS["mobilevigv2_ti"].changed({
    "resolution": 96, "num_classes": 10, **{f"stages[{i}].graph_depth": 0 for i in (1, 2, 3)},
})  # fmt: skip
CPU = load_table("cpu-x86")


def candidate(depth: int) -> ArchConfig:
    return BASE.changed({"stages[0].local_depth": depth})


def network(name: str, depth: int) -> Any:
    return SimpleNamespace(name=name, config=candidate(depth), latencies=[SimpleNamespace(ms=depth / 10)])


@pytest.fixture
def result() -> Any:
    """Only what this module looks at."""
    front = tuple((depth / 10, 70.0 + depth, candidate(depth)) for depth in range(1, 9))
    return SimpleNamespace(
        best=network("found", 8), second=network("found", 7), nearest=network("mobilevigv2_ti", 2),
        front=front, tables=(load_table("iphone13-mini"),),
    )  # fmt: skip


def test_the_networks_of_the_answer_and_some_of_the_front(result: Any) -> None:
    assert list(top_candidates(result, 0)) == ["best", "second", "mobilevigv2_ti"]
    chosen = top_candidates(result, 3)
    assert list(chosen) == ["best", "second", "mobilevigv2_ti", "front 1", "front 2", "front 3"]
    assert len({config for config, _ in chosen.values()}) == 6
    assert all(10 * ms == pytest.approx(config.stage_shapes()[0].local_depth) for config, ms in chosen.values())
    result.front, result.second, result.nearest = result.front[-1:], None, result.best
    assert list(top_candidates(result, 3)) == ["best"]


def test_what_is_built_counts_as_it_was_summed_up(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = build_top(result, timed=False)
    for one in found:
        counted = profile(one.config)
        assert one.counts == (counted.params.total, counted.params.deployed, counted.macs)
        assert one.here is one.foretold is None
        assert set(one.record()) == {"label", "predicted_ms", "total", "deployed", "macs"}
    monkeypatch.setattr(built, "count_built", lambda config: BuiltCount(1, 1, 1))
    with pytest.raises(AssertionError, match="block by block"):
        build_top(result, timed=False)


def test_all_are_timed_in_the_same_rounds(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(10)

    def clock(*_: Any) -> Callable[[], float]:
        ms = float(next(ticks))
        return lambda: ms

    monkeypatch.setattr(here, "this_machine", lambda: Machine("A CPU", 2, "an OS", {}))
    monkeypatch.setattr(here, "Session", clock)
    monkeypatch.setattr(built, "load_table", {"cpu-x86": CPU}.get)
    said: list[tuple[str, int, int]] = []
    found = build_top(result, True, lambda *step: said.append(step))
    assert [one.here.timing.ms for one in found if one.here] == [10, 11, 12, 13, 14, 15]
    assert ("timing here", here.NUM_ROUNDS, here.NUM_ROUNDS) in said
    for one in found:
        assert one.foretold is not None
        assert one.foretold.device == CPU.device
        assert one.foretold.ms == pytest.approx(profile(one.config).latency(CPU).ms)
        record = one.record()
        assert record["cpu_table"] == CPU.device
        assert record["measured_here"]["machine"]["cpu"] == "A CPU"


def test_a_table_of_a_cpu_that_was_asked_for_is_the_one_beside_the_measurement(result: Any) -> None:
    mine = CPU.model_copy(update={"device": "my CPU"})
    assert built._cpu_table((result.tables[0], mine)).device == "my CPU"

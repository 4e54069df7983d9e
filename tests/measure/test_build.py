"""A measured table from a clock of our own, by which what the table must say is known."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.tiny import CLUSTERED, CONFIG
from vigcli.cli import table_build
from vigcli.config.load import dump, load
from vigcli.config.space import SearchSpace
from vigcli.config.space_blocks import space_specs
from vigcli.errors import ConfigError, Interrupted, NotMeasurableError
from vigcli.latency.interpolate import Interpolation, block_kind, features_of, left_out
from vigcli.latency.table import LatencyTable
from vigcli.latency.trace import Op, OpTrace
from vigcli.measure import bench, build, join
from vigcli.measure.bench import Machine

MACHINE = Machine("A CPU", 2, "an OS", {"onnxruntime": "1", "torch": "2"})
SPACE = SearchSpace(
    base="mobilevigv2_ti",
    genes={"stages[0].width": (16, 24, 32, 40), "stages[0].local_depth": (1, 2, 3), "stages[2].local_depth": (3, 4, 5)},
)
WIDE = SPACE.model_copy(
    update={
        "genes": {f"stages[{i}].width": tuple(range(16 << i, 65 << i, 6 << i)) for i in range(3)}
        | {"stages[3].local_depth": (0, 1), "head_width": (256, 512)}
    }
)
EMPTY_MS, FACTOR, MS_PER_MB = 0.01, 1.06, 0.1


def alone_ms(piece: build.Piece) -> float:
    """As a machine might have it: by MACs, bytes and operations."""
    gmacs, _, act_mb, weight_mb, num_ops = features_of(piece.trace)
    return 12 * gmacs + 0.2 * act_mb + 0.1 * weight_mb + 0.01 * num_ops + 0.2 * piece.entering_mb


def clock(pieces: build.Pieces) -> Callable[[], float]:
    """A chain takes less than its blocks alone, by what hands their values on; an empty call has its own cost."""
    ms = sum(map(alone_ms, pieces))
    if len(pieces) > 1:
        ms = FACTOR * ms - MS_PER_MB * sum(piece.entering_mb for piece in pieces)
    return lambda: EMPTY_MS + ms


@pytest.fixture(autouse=True)
def _few_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "VARIANTS", {"tiny": CONFIG, "clustered": CLUSTERED})


@pytest.fixture
def planned() -> build.Plan:
    return build.plan([SPACE])


def measured(planned: build.Plan, folder: Path, num_rounds: int = 3) -> LatencyTable:
    file = build.RoundsFile(folder / "rounds", planned, MACHINE)
    timings = build.measure(planned, file, num_rounds, timer=clock)
    return build.table_of(planned, timings, MACHINE, ("mine",))


# ---------------------------------------------------------------------------------------------------- the plan


def test_a_plan_has_every_block_of_space_and_networks(planned: build.Plan) -> None:
    for config in (CONFIG, CLUSTERED):
        assert {spec.signature for spec in config.blocks()} <= planned.blocks.keys()
    assert {"stem[width=40] 3x224x224", "stem[width=16] 3x224x224"} <= planned.blocks.keys()
    for pieces in planned.networks.values():
        assert {piece.spec.signature for piece in pieces} <= planned.blocks.keys()


def test_anchors_and_tests_are_of_all_sources_and_differ(planned: build.Plan) -> None:
    by_role = {
        role: [pieces for name, pieces in planned.networks.items() if name.startswith(role)]
        for role in ("anchor", "test")
    }
    assert len(set(planned.networks.values())) == len(planned.networks)
    for chains in by_role.values():
        assert len(chains) == 3 * build.NETWORKS_FROM_EACH
        assert {pieces[0].family for pieces in chains} == {"mobilevigv2", "clustervig"}


def test_a_chain_of_blocks_fits_together(planned: build.Plan) -> None:
    for pieces in planned.networks.values():
        kinds = [piece.spec.kind for piece in pieces]
        assert (kinds[0].endswith("stem"), kinds[-1]) == (True, "head")
        assert pieces[0].spec.in_shape[0] == 3


def test_a_space_of_few_or_big_networks_gives_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "VARIANTS", {})
    one = SPACE.model_copy(update={"genes": {"stages[0].width": (32,)}})
    generator = np.random.default_rng(0)
    assert len(build.random_networks([one], 4, generator)) == 1
    monkeypatch.setattr(build, "MAX_NETWORK_GMACS", 0.1)
    assert build.random_networks([SPACE], 4, generator) == []


def test_the_seed_draws_the_networks_and_no_block() -> None:
    one, other = build.plan([SPACE], seed=1), build.plan([SPACE], seed=2)
    assert one.networks == build.plan([SPACE], seed=1).networks
    assert one.networks != other.networks
    assert one.blocks == other.blocks
    assert one.digest != other.digest


@pytest.mark.parametrize("quick", [False, True])
def test_a_plan_has_the_named_networks_and_the_ends_of_each_kind(quick: bool) -> None:
    found = build.plan([WIDE], quick)
    named = {spec.signature for config in (CONFIG, CLUSTERED) for spec in config.blocks()}
    assert quick or named <= found.blocks.keys()
    everything = {s: build.Piece("mobilevigv2", spec) for s, spec in space_specs(WIDE).items()}
    for kind in {block_kind(s) for s in everything}:
        features = np.array([features_of(p.trace) for s, p in everything.items() if block_kind(s) == kind])
        kept = [s for s in found.blocks if block_kind(s) == kind]
        rows = np.array([features_of(found.blocks[s].trace) for s in kept])
        assert (rows.min(0) <= features.min(0)).all()
        assert (rows.max(0) >= features.max(0)).all()
        if kind in build.KEPT_WHOLE:
            assert len(kept) >= len(features)
        elif len(features) > 40:
            assert len(kept) < (0.6 if quick else 0.9) * len(features)


def test_a_grid_has_the_named_blocks_and_spreads_the_others() -> None:
    specs = {s: spec for s, spec in space_specs(WIDE).items() if s.startswith("downsample")}
    pieces = {s: build.Piece("mobilevigv2", spec) for s, spec in specs.items()}
    wanted = sorted(pieces)[3:5]
    kept = build._thinned(pieces, wanted, 1.5)
    assert {*wanted} <= kept.keys()
    assert len(kept) == pytest.approx(1.5 * len(pieces) ** 0.5, abs=4)
    gmacs = np.log([pieces[s].trace.macs for s in pieces])
    of_kept = np.log([piece.trace.macs for piece in kept.values()])
    assert max(np.abs(of_kept - value).min() for value in gmacs) < 0.35 * np.ptp(gmacs)


# ---------------------------------------------------------------------------------------------------- the table


def test_a_table_gives_back_what_the_clock_had(planned: build.Plan, tmp_path: Path) -> None:
    table = measured(planned, tmp_path)
    assert table.rows.keys() == planned.blocks.keys()
    for signature, piece in planned.blocks.items():
        row, expected = table.rows[signature], FACTOR * alone_ms(piece) - MS_PER_MB * piece.entering_mb
        assert row.ms == pytest.approx(expected, abs=2e-5), signature
        assert (row.kind, row.num_runs, row.where, row.plus_minus_ms) == ("measured", 3, "A CPU", 0)
    assert table.fixed_ms == EMPTY_MS
    assert (table.kind, table.precision, table.calibration) == ("measured", "fp32", None)
    judged = table.accuracy["networks"]
    assert (judged.mape_percent, judged.kendall_tau, judged.within_10_percent) == (0, 1, 100)
    assert table.interval.factor == 1.001


def test_a_table_is_read_back_as_it_was_written(planned: build.Plan, tmp_path: Path) -> None:
    table = measured(planned, tmp_path)
    (tmp_path / "mine.yaml").write_text(dump(table))
    assert load(LatencyTable, tmp_path / "mine.yaml") == table


def test_the_accuracy_is_that_of_networks_that_no_fit_has_seen(planned: build.Plan, tmp_path: Path) -> None:
    def slow_tests(pieces: build.Pieces) -> Callable[[], float]:
        tests = [chain for name, chain in planned.networks.items() if name.startswith("test")]
        call = clock(pieces)
        return (lambda: 1.25 * call()) if pieces in tests else call

    file = build.RoundsFile(tmp_path / "rounds", planned, MACHINE)
    table = build.table_of(planned, build.measure(planned, file, 3, timer=slow_tests), MACHINE, ())
    assert table.accuracy["networks"].mape_percent == pytest.approx(20, abs=0.1)
    assert table.accuracy["networks"].within_10_percent == 0
    assert table.interval.factor == pytest.approx(1.25, abs=0.002)


def test_a_quick_table_prices_what_it_left_out(planned: build.Plan, tmp_path: Path) -> None:
    table = measured(build.plan([SPACE], quick=True), tmp_path)
    left = planned.blocks.keys() - table.rows.keys()
    assert left
    errors = []
    for signature in left:
        piece = planned.blocks[signature]
        price = table.block_ms(signature, piece.trace)
        assert price.how in ("interpolated", "outside")
        errors.append(price.ms / (FACTOR * alone_ms(piece) - MS_PER_MB * piece.entering_mb) - 1)
    assert np.mean(np.abs(errors)) < 0.1


def test_an_unknown_kind_of_block_is_not_measurable(planned: build.Plan, tmp_path: Path) -> None:
    op = Op("pw", 3_000_000, 400_000, 10**8)
    with pytest.raises(NotMeasurableError, match=r"no row for made\[up=1\] 3x3x3, nor for another block of its kind"):
        measured(planned, tmp_path).block_ms("made[up=1] 3x3x3", OpTrace((op,), (op,), 1))


def test_a_block_keeps_some_milliseconds() -> None:
    found = join.Join(1.0, 0.1, 0.0, {"graph mgc": 0.3})
    assert found.row_ms("head", 1.0, 2.0) == pytest.approx(0.8)
    assert found.row_ms("head", 1.0, 50.0) == join.LEAST_SHARE
    assert found.row_ms("graph mgc", 1.0, 2.0) == pytest.approx(0.8 + 0.3 * join.FIRST_MS)
    assert found.row_ms("graph mgc", 0.05, 0.0) == pytest.approx(1.3 * 0.05)


def _chains(share_of: dict[str, float], count: int = 40, noise: float = 0.0) -> list[join.Chain]:
    """Networks of blocks of some kinds, which take so much of their first milliseconds more than alone."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(count):
        kinds = generator.choice(list(share_of), generator.integers(5, 30)).tolist()
        blocks = [join.BlockAlone(kind, *map(float, generator.uniform(0.02, (1.0, 0.5)))) for kind in kinds]
        whole = sum(
            1.05 * b.alone_ms - 0.2 * b.entering_mb + share_of[b.kind] * join.first_ms(b.alone_ms) for b in blocks
        )
        found.append(join.Chain(whole * float(np.exp(noise * generator.standard_normal())), tuple(blocks)))
    return found


def test_a_join_finds_what_blocks_take_besides() -> None:
    same = join.fit_join(_chains(dict.fromkeys("abc", 0.4)))
    assert (same.factor, same.ms_per_mb, same.share) == pytest.approx((1.05, 0.2, 0.4))
    assert same.share_of_kind == pytest.approx(dict.fromkeys("abc", 0.4))
    differing = join.fit_join(_chains({"a": 0.1, "b": 0.4, "c": 0.9}, noise=0.01))
    assert differing.share_of_kind["a"] < differing.share_of_kind["b"] < differing.share_of_kind["c"]
    assert differing.factor == pytest.approx(1.05, abs=0.1)


def test_a_join_that_nothing_explains_is_refused() -> None:
    chains = [chain._replace(whole_ms=3 * chain.whole_ms) for chain in _chains({"a": 0.0})]
    with pytest.raises(ConfigError, match="the timings are disturbed"):
        join.fit_join(chains)


@pytest.mark.parametrize("num", [2, 10, 40])
def test_an_interval_covers_what_it_says(num: int) -> None:
    generator = np.random.default_rng(num)
    measured_ms = generator.uniform(5, 50, num)
    predicted = measured_ms * np.exp(generator.normal(0, 0.05, num))
    found = join.interval(list(predicted), list(measured_ms))
    off = np.abs(np.log(predicted / measured_ms))
    assert found.coverage_percent == pytest.approx(100 * (off <= np.log(found.factor)).mean(), abs=0.1)
    assert found.coverage_percent >= 90


# ---------------------------------------------------------------------------------------------------- interpolation


def _trace(size: float) -> OpTrace:
    op = Op("pw", int(1e6 * size), int(4e5 * size), int(1e8 * size))
    return OpTrace((op,), (op,), 1)


ROWS = {f"block {i}": (0.5 * i**1.2, features_of(_trace(i))) for i in (1, 2, 4, 8, 16)}


def test_interpolation_goes_through_rows_and_monotone_between() -> None:
    found = Interpolation(ROWS)
    for signature, (ms, _) in ROWS.items():
        price = found.price("block x", _trace(int(signature.split()[1])))
        assert price is not None
        assert price.ms == pytest.approx(ms, rel=5e-3)  # timings are no more exact
    prices = [found.price("block x", _trace(size)) for size in np.linspace(1, 16, 40)]
    ms = [price.ms for price in prices if price is not None]
    assert len(ms) == 40
    assert all(later >= 0.97 * earlier for earlier, later in itertools.pairwise(ms))
    assert {price.how for price in prices if price is not None} == {"interpolated"}


def test_beyond_the_rows_is_marked_and_another_kind_is_unknown() -> None:
    found = Interpolation(ROWS)
    outside = found.price("block x", _trace(40))
    assert outside is not None
    assert outside.how == "outside"
    assert found.price("other x", _trace(4)) is None


def test_a_row_that_is_left_out_is_told_by_the_others_alone() -> None:
    changed = ROWS | {"block 4": (1e3, ROWS["block 4"][1]), "lone 1": ROWS["block 1"]}
    assert left_out(changed)["block 4"] == left_out(ROWS)["block 4"]
    assert left_out(changed).keys() == ROWS.keys()


# ---------------------------------------------------------------------------------------------------- going on


def test_a_build_that_was_stopped_goes_on(planned: build.Plan, tmp_path: Path) -> None:
    file = build.RoundsFile(tmp_path / "rounds", planned, MACHINE)

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("rounds", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.measure(planned, file, 5, timer=clock, on_progress=stop)
    with (tmp_path / "rounds").open("a") as text:
        text.write('{"(empty)": 0.0')  # a round that was being written
    again = build.RoundsFile(tmp_path / "rounds", planned, MACHINE)
    assert again.rounds == file.rounds
    assert len(again.rounds) == 2
    timings = build.measure(planned, again, 5, timer=clock)
    assert {found.num_rounds for found in timings.values()} == {5}
    assert len((tmp_path / "rounds").read_text().splitlines()) == 6
    whole = build.measure(planned, build.RoundsFile(tmp_path / "whole", planned, MACHINE), 5, timer=clock)
    assert {name: found.ms for name, found in timings.items()} == pytest.approx(
        {name: found.ms for name, found in whole.items()}
    )


def test_what_is_measured_already_is_not_measured_again(planned: build.Plan, tmp_path: Path) -> None:
    measured(planned, tmp_path)

    def never(pieces: build.Pieces) -> Callable[[], float]:
        raise AssertionError("was timed again")

    build.measure(planned, build.RoundsFile(tmp_path / "rounds", planned, MACHINE), 3, timer=never)


@pytest.mark.parametrize("other", ["plan", "machine", "text"])
def test_rounds_of_something_else_are_refused(other: str, planned: build.Plan, tmp_path: Path) -> None:
    measured(planned, tmp_path)
    if other == "text":
        (tmp_path / "rounds").write_text("what is this?\n")
    wanted = build.plan([SPACE], quick=True) if other == "plan" else planned
    machine = MACHINE._replace(cpu="Another") if other == "machine" else MACHINE
    with pytest.raises(ConfigError, match="does not hold rounds of this plan on this machine") as error:
        build.RoundsFile(tmp_path / "rounds", wanted, machine)
    assert "Delete it" in error.value.hint


def test_a_block_that_cannot_be_timed_leaves_no_file(planned: build.Plan, tmp_path: Path) -> None:
    def broken(pieces: build.Pieces) -> Callable[[], float]:
        raise NotMeasurableError("graph: cannot be exported to ONNX: no", "")

    with pytest.raises(NotMeasurableError, match="cannot be exported"):
        build.measure(planned, build.RoundsFile(tmp_path / "rounds", planned, MACHINE), 3, timer=broken)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def _own_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "this_machine", lambda: MACHINE)
    monkeypatch.setattr(build.measure, "__defaults__", (0, clock, build.measure.__defaults__[-1]))  # type: ignore[index]
    (tmp_path / "space.yaml").write_text(dump(SPACE))


@pytest.mark.usefixtures("_own_clock")
def test_the_command_writes_a_table_and_says_how_accurate_it_is(tmp_path: Path) -> None:
    result = CliRunner().invoke(table_build.build, ["space.yaml", "-o", "mine.yaml", "--rounds", "3"])
    assert result.exit_code == 0, result.exception
    assert re.search(r"whole networks, not seen before +6 +0\.00 +100 +1\.000", result.output)
    assert "Next:  vig profile mobilevigv2_s --table mine.yaml" in result.output
    assert load(LatencyTable, tmp_path / "mine.yaml").aliases == ("mine",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "space.yaml"]


@pytest.mark.usefixtures("_own_clock")
def test_a_dry_run_does_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(table_build.build, ["space.yaml", "--quick", "--dry-run", "--json"])
    assert result.exit_code == 0, result.exception
    record = json.loads(result.stdout)
    assert (record["num_rounds"], record["rounds_done"], record["output"]) == (table_build.QUICK_ROUNDS, 0, "cpu.yaml")
    assert record["num_blocks"] == len(build.plan([SPACE], quick=True).blocks)
    assert "Would time" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


@pytest.mark.usefixtures("_own_clock")
def test_a_stopped_command_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    appended = build.RoundsFile.append

    def stop_after(file: build.RoundsFile, of_round: dict[str, float]) -> None:
        appended(file, of_round)
        raise KeyboardInterrupt

    command = ["space.yaml", "--rounds", "3"]
    monkeypatch.setattr(build.RoundsFile, "append", stop_after)
    stopped = CliRunner().invoke(table_build.build, command)
    assert isinstance(stopped.exception, Interrupted)
    assert str(stopped.exception) == "stopped after 1 of 3 rounds."
    monkeypatch.setattr(build.RoundsFile, "append", appended)
    result = CliRunner().invoke(table_build.build, command)
    assert "3 rounds (1 done)" in result.stderr
    assert load(LatencyTable, tmp_path / "cpu.yaml").rows

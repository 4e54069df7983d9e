"""The arithmetic of a measurement, on made timings whose truth is known, and the file of rows that comes of it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vigcli.config.archs import VARIANTS
from vigcli.errors import ConfigError, NotMeasurableError
from vigcli.latency.measured import MeasuredRow, read_measured, table_rows, write_measured
from vigcli.latency.protocol import Protocol, Timing, UnresolvedError, slope, timing, trimmed_mean
from vigcli.latency.table import LatencyTable, Row

DISPATCH_MS = 0.5


def made_rounds(work_ms: float, seed: int, rounds: int = 20, iterations: int = 50) -> list[list[float]]:
    """Rounds of inferences of a dispatch and some work, with a slow first one, jitter that is never negative, now and
    then an interruption, and a drift from round to round."""
    generator = np.random.default_rng(seed)
    times = DISPATCH_MS + work_ms + generator.exponential(0.01, (rounds, iterations))
    times += 0.002 * generator.standard_normal((rounds, 1))
    times[generator.random(times.shape) < 0.05] += 2.0
    times[:, 0] = 30.0
    return times.tolist()


# ---------------------------------------------------------------------------------------------------- means


def test_a_trimmed_mean_drops_the_first_and_the_extremes() -> None:
    assert trimmed_mean([100.0, 1.0, 9.0, 4.0, 5.0, 6.0], low=1, high=1) == 5.0
    assert trimmed_mean([100.0, 1.0, 9.0, 4.0, 5.0, 6.0], low=0, high=0) == 5.0
    assert trimmed_mean([7.0, *[1.0] * 10, *[2.0] * 29, *[50.0] * 10]) == 2.0


@pytest.mark.parametrize(
    "samples", [[], [1.0], [1.0] * 21, [1.0] * 30 + [0.0], [1.0] * 30 + [-1.0], [1.0, np.nan] * 30]
)
def test_samples_that_give_no_mean(samples: list[float]) -> None:
    with pytest.raises(ValueError, match=r"inference|inferences"):
        trimmed_mean(samples)


def test_the_error_is_that_of_the_mean_of_rounds() -> None:
    rounds = [[9.0] + [value] * 4 for value in (1.0, 2.0, 3.0)]
    assert timing(rounds, trim=1) == (2.0, pytest.approx(1 / np.sqrt(3)), 6)
    with pytest.raises(ValueError, match="1 round has no spread"):
        timing(rounds[:1], trim=1)


def test_the_standard_error_covers_the_truth_as_often_as_it_should() -> None:
    errors = [timing(made_rounds(0.1, seed)) for seed in range(200)]
    centre = np.mean([error.ms for error in errors])
    covered = np.mean([abs(error.ms - centre) <= error.plus_minus_ms for error in errors])
    assert 0.58 < covered < 0.77  # 66 % of a t distribution with 19 degrees of freedom


@pytest.mark.parametrize("bad", [{"rounds": 1}, {"trim": 25}, {"iterations": 21}, {"trim": -1}, {"rounds": 2.5}])
def test_a_protocol_that_leaves_nothing_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Protocol.parse(bad)
    assert Protocol.parse({"iterations": 22}).trim == 10


# ---------------------------------------------------------------------------------------------------- slopes


@pytest.mark.parametrize("block_ms", [0.02, 0.1, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_the_slope_of_two_chains_is_the_block_without_the_dispatch(block_ms: float, seed: int) -> None:
    few, many = (timing(made_rounds(copies * block_ms, seed + 10 * copies)) for copies in (4, 8))
    found = slope(few, many, 4, 8)
    assert found.ms == pytest.approx(block_ms, rel=0.01 if block_ms >= 0.1 else 0.05)
    assert abs(found.ms - block_ms) < 4 * found.plus_minus_ms
    assert found.num_runs == 2 * 20 * 29
    assert few.ms / 4 > block_ms + DISPATCH_MS / 4, "a chain alone carries the dispatch"


def test_the_error_of_a_slope_is_shared_by_its_copies() -> None:
    assert slope(Timing(1.0, 0.03, 5), Timing(2.0, 0.04, 6), 4, 8) == (0.25, pytest.approx(0.0125), 11)
    assert slope(Timing(1.0, 0.03, 5), Timing(2.0, 0.04, 6), 0, 1) == (1.0, pytest.approx(0.05), 11)


@pytest.mark.parametrize("many_ms", [0.9, 1.0, 1.04, 1.049])
def test_a_block_within_its_error_is_refused(many_ms: float) -> None:
    with pytest.raises(UnresolvedError, match="within its error") as error:
        slope(Timing(1.0, 0.03, 5), Timing(many_ms, 0.04, 5), 4, 8)
    assert isinstance(error.value, NotMeasurableError)
    assert error.value.hint


@pytest.mark.parametrize("copies", [(4, 4), (8, 4), (-1, 2)])
def test_copies_that_give_no_slope(copies: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="give no slope"):
        slope(Timing(1.0, 0.0, 5), Timing(2.0, 0.0, 5), *copies)


def test_what_handing_out_costs_cancels_along_a_network() -> None:
    """Blocks that change the shape are timed behind a partner; their sum is off by the network's ends alone."""
    out = {"image": 0.03, "a": 0.08, "b": 0.02, "logits": 0.001}
    true = {("image", "a"): 0.2, ("a", "b"): 0.15, ("b", "logits"): 0.05}
    total = 0.0
    for (taken, given_), ms in true.items():
        partner = Timing(DISPATCH_MS + 0.07 + out[taken], 0.0, 1)
        total += slope(partner, Timing(DISPATCH_MS + 0.07 + ms + out[given_], 0.0, 1), 0, 1).ms
    assert total == pytest.approx(sum(true.values()) + out["logits"] - out["image"])


# ---------------------------------------------------------------------------------------------------- the file

ROW = MeasuredRow(
    signature="graph[reach=2] 8x12x12", ms=0.125, plus_minus_ms=0.001, unit="ms", num_runs=1160, few=4, many=8,
    few_ms=1.0, many_ms=1.5, device="iPhone 13 mini", soc="iPhone14,4", os="iOS 17.1 (21B74)",
    where="iPhone14,4 at a Mac14,2", compute_units="ALL", precision="fp16", placement="ANE 40, CPU 1",
    protocol=str(Protocol()), package_sha256="ab" * 32, coremltools="9.0", xcode="Xcode 16.1", date="2026-01-31",
    gmacs=0.1, depthwise_gmacs=0.0, act_mb=1.5, weight_mb=0.2, num_ops=12.0,
)  # fmt: skip


def table() -> LatencyTable:
    return LatencyTable.parse({
        "format": 2, "unit": "ms", "device": "iPhone 13 mini", "aliases": ["iphone13-mini"], "soc": "A15",
        "os": "iOS 16", "runtime": "CoreML", "compute_unit": "ALL (Neural Engine preferred)", "precision": "fp16",
        "protocol": "p", "source": "s",
        "date": "2026-01-01", "tools": {"vig": "0"}, "kind": "measured", "fixed_ms": 0.5,
        "interval": {"factor": 1.1, "coverage_percent": 80.0}, "accuracy": {}, "calibration": None, "num_rows": 1,
        "rows": {"x 1x1x1": {"ms": 1.0, "plus_minus_ms": 0.1, "kind": "measured", "num_runs": 3, "where": "there"}},
    })  # fmt: skip


def test_rows_come_back_from_their_file_as_rows_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = [ROW, ROW._replace(signature='odd[a="b, c"] 1x1x1', ms=1 / 3, device="iphone13-MINI")]
    write_measured(path, rows)
    assert read_measured(path) == [rows[0], rows[1]._replace(ms=0.333333)]
    found = table_rows(path, table())
    assert found[ROW.signature] == Row(
        ms=0.125, plus_minus_ms=0.001, kind="measured", num_runs=1160, placement="ANE 40, CPU 1",
        where="iPhone14,4 at a Mac14,2; iOS 17.1 (21B74); 2026-01-31", features=ROW.features,
    )  # fmt: skip
    joined = table().with_rows(found)
    assert joined.num_rows == 3
    assert joined.rows["x 1x1x1"] == table().rows["x 1x1x1"]


def test_blocks_of_every_family_have_signatures_that_are_read(tmp_path: Path) -> None:
    signatures = sorted({spec.signature for config in VARIANTS.values() for spec in config.blocks()})
    write_measured(tmp_path / "rows.csv", [ROW._replace(signature=signature) for signature in signatures])
    assert [row.signature for row in read_measured(tmp_path / "rows.csv")] == signatures


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ms": "-0.1"}, "ms = '-0.1' is no number above 0"),
        ({"ms": "0"}, "is no number above 0"),
        ({"ms": "nan"}, "is no number above 0"),
        ({"ms": "inf"}, "is no number above 0"),
        ({"ms": "20000"}, "milliseconds are meant"),
        ({"ms": ""}, "is empty"),
        ({"ms": "1 ms"}, "is no number above 0"),
        ({"unit": "us"}, "unit = 'us' is none of ms"),
        ({"plus_minus_ms": "-1"}, "is no number from 0 on"),
        ({"num_runs": "0"}, "is no whole number from 1 on"),
        ({"many": "4"}, "is not above few"),
        ({"few": "1.5"}, "is no whole number from 0 on"),
        ({"compute_units": "NPU"}, "is none of ALL"),
        ({"precision": "fp8"}, "is none of fp16"),
        ({"package_sha256": "abc"}, "does not match"),
        ({"date": "31.1.2026"}, "does not match"),
        ({"signature": "graph 8x12"}, "does not match"),
        ({"signature": "../x"}, "does not match"),
        ({"where": " "}, "where = ' ' is empty"),
    ],
)
def test_a_value_that_is_none_is_named_with_its_line(change: dict[str, str], why: str, tmp_path: Path) -> None:
    write_cells(path := tmp_path / "rows.csv", [cells_of(ROW), cells_of(ROW) | {"signature": "y 1x1x1"} | change])
    with pytest.raises(ConfigError, match=rf"rows\.csv:3: .*{why}") as error:
        read_measured(path)
    assert error.value.hint


@pytest.mark.parametrize("column", MeasuredRow._fields)
def test_a_missing_column_is_named(column: str, tmp_path: Path) -> None:
    cells = {name: cell for name, cell in cells_of(ROW).items() if name != column}
    write_cells(path := tmp_path / "rows.csv", [cells])
    with pytest.raises(ConfigError, match=rf"rows\.csv:2: there is no column '{column}'"):
        read_measured(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"device": "Mac14,2"}, "measured on Mac14,2, and the table is of iPhone 13 mini"),
        ({"compute_units": "CPU_ONLY"}, "measured on CPU_ONLY, and the table is of ALL"),
        ({"precision": "fp32"}, "measured on fp32, and the table is of fp16"),
    ],
)
def test_rows_of_another_device_are_kept_out_of_a_table(change: dict[str, str], why: str, tmp_path: Path) -> None:
    write_cells(path := tmp_path / "rows.csv", [cells_of(ROW) | change])
    with pytest.raises(ConfigError, match=rf"rows\.csv:2: {why}"):
        table_rows(path, table())


def test_a_block_that_stands_twice_and_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with pytest.raises(ConfigError, match="no such file of rows"):
        read_measured(path)
    write_measured(path, [ROW, ROW])
    with pytest.raises(ConfigError, match=r"rows\.csv:3: .* stands in line 2 already"):
        read_measured(path)
    for text in ("", ",".join(MeasuredRow._fields) + "\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="holds no rows"):
            read_measured(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="damaged"):
        read_measured(path)
    write_measured(path, [ROW])
    path.write_text(path.read_text().rstrip() + ",extra\n")
    with pytest.raises(ConfigError, match=r"rows\.csv:2: has more cells"):
        read_measured(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(column=st.sampled_from(MeasuredRow._fields), cell=st.text(max_size=20))
def test_any_cell_is_read_or_refused(column: str, cell: str, tmp_path: Path) -> None:
    write_cells(path := tmp_path / "rows.csv", [cells_of(ROW) | {column: cell}])
    try:
        (row,) = read_measured(path)
    except ConfigError:
        return
    assert 0 < row.ms <= 10_000
    assert row.few < row.many
    assert row.table_row.kind == "measured"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
def test_any_file_is_read_or_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        read_measured(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ms=st.floats(1e-5, 1e4),
    runs=st.integers(1, 10**9),
    text=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).filter(str.strip),
)
def test_any_row_survives_its_file(ms: float, runs: int, text: str, tmp_path: Path) -> None:
    row = ROW._replace(ms=ms, num_runs=runs, where=text, placement=text)
    write_measured(tmp_path / "rows.csv", [row])
    (found,) = read_measured(tmp_path / "rows.csv")
    assert found == row._replace(ms=pytest.approx(ms, abs=6e-7))


def cells_of(row: MeasuredRow) -> dict[str, str]:
    return {name: str(cell) for name, cell in row._asdict().items()}


def write_cells(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)

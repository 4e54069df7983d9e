"""`vig table build --device mac` where nothing can be measured, and `vig table add`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vigcli.config.load import dump
from vigcli.latency.measured import MeasuredRow, write_measured
from vigcli.latency.table import LatencyTable, load_table

Vig = Callable[..., str]

OLD, NEW = "stem[width=16] 3x224x224", "graph[reach=2] 8x12x12"
SHIPPED_ROW = {"ms": 0.2, "plus_minus_ms": 0.01, "kind": "measured", "num_runs": 3, "where": "there"}
TABLE = {
    "format": 2, "unit": "ms", "device": "iPhone 13 mini", "soc": "A15", "os": "iOS 16", "runtime": "CoreML",
    "compute_unit": "ALL (Neural Engine preferred)", "precision": "fp16", "protocol": "p", "source": "s",
    "date": "2026-01-01", "tools": {"vig": "0"}, "kind": "measured", "fixed_ms": 0.5,
    "interval": {"factor": 1.1, "coverage_percent": 80.0}, "accuracy": {}, "calibration": None, "num_rows": 2,
    "rows": {OLD: SHIPPED_ROW, "head[width=16] 8x7x7": SHIPPED_ROW},
}  # fmt: skip


def row(signature: str, **changed: object) -> MeasuredRow:
    sound = MeasuredRow(
        signature=signature, ms=0.125, plus_minus_ms=0.001, unit="ms", num_runs=1160, few=4, many=8, few_ms=1.0,
        many_ms=1.5, device="iPhone 13 mini", soc="iPhone14,4", os="iOS 17.1 (21B74)", where="iPhone14,4",
        compute_units="ALL", precision="fp16", placement="ANE 40", protocol="20 rounds", package_sha256="ab" * 32,
        coremltools="9.0", xcode="Xcode 16.1", date="2026-01-31", gmacs=0.1, depthwise_gmacs=0.0, act_mb=1.5,
        weight_mb=0.2, num_ops=12.0,
    )  # fmt: skip
    return sound._replace(**changed)  # type: ignore[arg-type]


@pytest.fixture
def _table(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(dump(LatencyTable.parse(TABLE)))


@pytest.mark.usefixtures("_table")
def test_rows_are_added_and_replaced_and_the_others_stay(
    vig: Vig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_measured(tmp_path / "rows.csv", [row(OLD), row(NEW)])
    answer = json.loads(vig("table", "add", "old.yaml", "rows.csv", "-o", "new.yaml", "--json"))
    assert answer == {
        "path": "new.yaml", "num_new": 1, "num_replaced": 1, "num_rows": 3, "num_measured": 3, "measured_percent": 100,
    }  # fmt: skip
    old, new = load_table(tmp_path / "old.yaml"), load_table(tmp_path / "new.yaml")
    assert new.rows.keys() == old.rows.keys() | {NEW}
    assert new.rows["head[width=16] 8x7x7"] == old.rows["head[width=16] 8x7x7"]
    assert (new.rows[OLD].ms, new.rows[NEW].num_runs) == (0.125, 1160)
    assert new.model_copy(update={"rows": old.rows, "num_rows": 2}) == old


@pytest.mark.usefixtures("_table")
@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"unit": "us"}, "rows.csv:2: unit = 'us' is none of ms"),
        ({"ms": -1.0}, "rows.csv:2: ms = '-1.0' is no number above 0"),
        ({"device": "Mac14,2"}, "rows.csv:2: measured on Mac14,2, and the table is of iPhone 13 mini"),
    ],
)
def test_rows_that_are_none_leave_no_table(
    changed: dict[str, object], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from vigcli.cli.main import main

    monkeypatch.chdir(tmp_path)
    write_measured(tmp_path / "rows.csv", [row(OLD, **changed)])
    with pytest.raises(SystemExit) as stop:
        main(["table", "add", "old.yaml", "rows.csv", "-o", "new.yaml"])
    assert stop.value.code == 3
    error, hint = capsys.readouterr().err.strip().split("\n")
    assert why in error
    assert hint.startswith("Hint:  ")
    assert not (tmp_path / "new.yaml").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="here it measures")
@pytest.mark.parametrize("device", ["mac", "iphone"])
def test_nothing_is_measured_off_a_mac(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("coremltools", exc_type=ImportError)
    from vigcli.cli.main import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["table", "build", "--device", device])
    assert stop.value.code == 6
    assert capsys.readouterr().err == (
        f"Error: --device {device}: CoreML runs on macOS alone.\n"
        "Hint:  Use --dry-run to write the packages here, and docs/measure_on_a_mac.md on a Mac.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_iphone_needs_a_team(monkeypatch: pytest.MonkeyPatch, vig: Vig) -> None:
    pytest.importorskip("coremltools", exc_type=ImportError)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    vig("table", "build", "--device", "iphone", code=6)


def test_a_dry_run_writes_what_would_be_measured_and_is_taken_up_again(vig: Vig, tmp_path: Path) -> None:
    pytest.importorskip("coremltools", exc_type=ImportError)
    line = ("table", "build", "--device", "mac", "--dry-run", "--every", "500", "-o", "out", "--json")
    answer = json.loads(vig(*line))
    assert (answer["num_blocks"], answer["num_packages"], answer["num_inferences"]) == (2, 4, 4 * 20 * 50)
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert sorted(plan["packages"]) == sorted(path.name for path in (tmp_path / "out").glob("*.mlpackage"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert json.loads(vig(*line)) == answer
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    vig(*line[:6], "3", *line[7:], code=2)
    assert "--device mac --units ALL --every 500" in vig(*line[:-1])

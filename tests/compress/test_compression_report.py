"""Packages side by side: read from runs, in order, as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vigcli.compress.report import draw_front, found_runs, front, read_rows, report_page
from vigcli.errors import ConfigError, VigError

RECORD: dict[str, Any] = {
    "network": "mobilevigv2_ti", "num_images": 319, "size_bytes": 5_000_000, "size_bytes_fp16": 10_000_000,
    "top1_percent_fp32": 70.0, "top1_percent_fp16": 70.1, "top1_percent_package": 69.5,
    "difference_points_95": [-0.5, -1.5, 0.5], "agreement_percent": 97.2, "agreement_percent_fp16": 99.7,
    "snr_db": 25.04, "simulated_db": 60.0, "seconds": 31.4, "latency_ms_fp16": 0.92, "latency_ms": None,
    "compression": {"weight_bits": 8, "activation_bits": 8, "calibration": "percentile", "num_images": 256},
}  # fmt: skip
SMALLER = RECORD | {
    "size_bytes": 2_500_000, "top1_percent_package": 60.0, "difference_points_95": [-10.0, -12.0, -8.0],
    "compression": {"weight_bits": 4},
}  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, record in (("0001-quantize", SMALLER), ("0002-quantize", RECORD)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "quantize.json").write_text(json.dumps(record))
    return tmp_path


def test_rows_are_of_every_run_from_large_to_small(runs: Path) -> None:
    rows = read_rows(found_runs(runs))
    assert list(rows) == ["mobilevigv2_ti"]
    assert [row.method for row in rows["mobilevigv2_ti"]] == ["fp16", "int8", "w4"]
    assert read_rows([runs / "0002-quantize"])["mobilevigv2_ti"] == rows["mobilevigv2_ti"][:2]
    fp16, int8, _ = rows["mobilevigv2_ti"]
    assert fp16.difference is None
    assert int8.cells(fp16.size_bytes) == (
        "int8", "5.00", "2.00", "69.5", "-0.5 (-1.5 to +0.5)", "97.2", "25.0", "31", "not known",
    )  # fmt: skip


def test_the_front_leaves_out_what_is_beaten(runs: Path) -> None:
    fp16, int8, w4 = read_rows(found_runs(runs))["mobilevigv2_ti"]
    assert front([fp16, int8, w4]) == [w4, int8, fp16]
    assert front([fp16, int8._replace(top1_percent=50.0), w4]) == [w4, fp16]


def test_the_page_shows_every_package(runs: Path) -> None:
    rows = read_rows(found_runs(runs))
    page = report_page(rows)
    assert page.count("<svg") == 1
    assert "2 compressed packages of mobilevigv2_ti" in page
    for text in ("int8", "w4", "-10.0 (-12.0 to -8.0)", "not known", "97.2"):
        assert f">{text}<" in page
    assert "never compared with Apple" in page
    assert draw_front("mobilevigv2_ti", rows["mobilevigv2_ti"]).count("size, MB") == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"compression": {"weight_bits": 8}}'])
def test_what_is_no_result_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "quantize.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="is no result of vig quantize"):
        read_rows([file])
    with pytest.raises(VigError, match="holds no result"):
        found_runs(tmp_path)

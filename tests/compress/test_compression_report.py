"""Packages side by side: read from runs, in blocks of those that may be compared, as a page."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vigcli.compress.report import Row, draw_front, front, label_places, label_size, read_blocks, report_page
from vigcli.errors import ConfigError

INT8: dict[str, Any] = {"weight_bits": 8, "activation_bits": 8, "calibration": "percentile", "num_images": 256}
OLD: dict[str, Any] = {  # as vig wrote it before it noted checkpoint, data and table
    "checkpoint": "runs/0001-train/checkpoint.safetensors",
    "network": "mobilevigv2_ti", "num_images": 319, "size_bytes": 5_000_000, "size_bytes_fp16": 10_000_000,
    "top1_percent_fp32": 70.0, "top1_percent_fp16": 70.1, "top1_percent_package": 69.5, "minimum_ios": 17,
    "difference_points_95": [-0.5, -1.5, 0.5], "agreement_percent": 97.2, "agreement_percent_fp16": 99.7,
    "snr_db": 25.04, "simulated_db": 60.0, "seconds": 31.4, "latency_ms_fp16": 0.92, "latency_ms": None,
    "compression": INT8,
}  # fmt: skip
RECORD = OLD | {
    "checkpoint_sha256": "abcdef0123456789", "data": "emoji10", "first_layers": ["first"],
    "latency_table": "iphone13-mini", "latency_device": "iPhone 13 mini", "latency_kind": "calibrated",
    "latency_accuracy": "calibrated, not measured", "latency_outside_fit": ["weights"],
}  # fmt: skip
SMALLER = RECORD | {
    "size_bytes": 2_500_000, "top1_percent_package": 60.0, "difference_points_95": [-10.0, -12.0, -8.0],
    "compression": {"weight_bits": 4}, "minimum_ios": 16,
}  # fmt: skip
Write = Callable[..., list[Path]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def runs(*records: dict[str, Any]) -> list[Path]:
        folders = [tmp_path / "runs" / f"{i:04d}-quantize" for i in range(1, len(records) + 1)]
        for folder, record in zip(folders, records, strict=True):
            folder.mkdir(parents=True)
            (folder / "quantize.json").write_text(json.dumps(record))
        return folders

    return runs


def test_every_run_has_a_row(write: Write) -> None:
    mixed = INT8 | {"kept": ["first", "worst", "second"], "max_drop_points": 0.5}
    trained = INT8 | {"calibration": None, "qat": True, "num_images": 0}
    others: list[dict[str, Any]] = [{"calibration": "error"}, {"calibration": "minmax"}, {"num_images": 512}]
    compressions = [INT8, *(INT8 | other for other in others), mixed, trained, trained]
    runs = write(SMALLER, *(RECORD | {"compression": compression} for compression in compressions))
    (block,) = read_blocks(runs)
    fp32, fp16, *own = block.rows
    assert (fp32.package, fp32.top1_percent, fp32.size_bytes) == ("fp32", 70.0, None)
    assert (fp16.package, fp16.top1_percent, fp16.minimum_ios, fp16.difference) == ("fp16", 70.1, 16, None)
    assert [(row.run, row.package, row.minimum_ios, row.calibration, row.num_kept) for row in own] == [
        ("0002-quantize", "int8", 17, "percentile, 256 pictures", 0),
        ("0003-quantize", "int8", 17, "error, 256 pictures", 0),
        ("0004-quantize", "int8", 17, "minmax, 256 pictures", 0),
        ("0005-quantize", "int8", 17, "percentile, 512 pictures", 0),
        ("0006-quantize", "int8-mixed", 17, "percentile, 256 pictures", 2),
        ("0007-quantize", "int8-qat", 17, "trained", 0),
        ("0008-quantize", "int8-qat", 17, "trained", 0),
        ("0001-quantize", "w4", 16, None, 0),
    ]
    assert own[0].cells == (
        "0002-quantize", "int8", 17, "percentile, 256 pictures", 0, "5.00", "2.00", "69.5", "-0.5 (-1.5 to +0.5)",
        "97.2", "25.0", "31", "not known",
    )  # fmt: skip
    assert fp16.cells[-1] == "0.920 *"
    assert "outside what the table was fitted to (weights)" in block.doubts


@pytest.mark.parametrize(
    "other",
    [
        {"checkpoint_sha256": "0123"},
        {"data": "/photos"},
        {"num_images": 20},
        {"latency_table": "cpu-x86", "latency_device": "a computer"},
        {"latency_ms_fp16": None},
        {"network": "vig_ti"},
    ],
)
def test_only_what_may_be_compared_is_in_one_block(other: dict[str, Any], write: Write) -> None:
    renamed = {"checkpoint": "copy.safetensors"}  # the hash tells
    blocks = read_blocks(write(RECORD, SMALLER | other, SMALLER | renamed, RECORD | other))
    assert [[run for run, _ in block.runs] for block in blocks] == [
        ["0001-quantize", "0003-quantize"],
        ["0002-quantize", "0004-quantize"],
    ]
    assert [[row.package for row in block.rows] for block in blocks] == [["fp32", "fp16", "int8", "w4"]] * 2


def test_fp16_packages_of_two_ios_that_differ_are_two(write: Write) -> None:
    (block,) = read_blocks(write(RECORD, SMALLER | {"minimum_ios": 18, "size_bytes_fp16": 10_000_100}))
    assert [(row.package, row.minimum_ios) for row in block.rows[1:3]] == [("fp16", 17), ("fp16", 18)]


def test_older_runs_are_read(write: Write) -> None:
    first, second = write(OLD, RECORD | {"latency_outside_fit": []})
    (block,) = read_blocks([first])
    assert "(hash not noted); measured on 319 pictures of data that was not noted; table not noted" in block.about
    assert block.columns[-1] == "ms, device not noted"
    (first / "run.yaml").write_text("parents: [abcdef0123456789]")
    assert "(abcdef01)" in read_blocks([first])[0].about
    assert len(read_blocks([first, second])) == 2
    mixed = OLD | {"compression": INT8 | {"kept": ["a", "b"], "max_drop_points": 1.0}}
    (first / "quantize.json").write_text(json.dumps(mixed))
    assert read_blocks([first])[0].rows[-1].num_kept is None


def test_the_front_leaves_out_what_is_beaten(write: Write) -> None:
    ((fp32, fp16, int8, w4),) = [block.rows for block in read_blocks(write(RECORD, SMALLER))]
    assert front([fp32, fp16, int8, w4]) == [w4, int8, fp16]
    assert front([fp16, int8._replace(top1_percent=50.0), w4]) == [w4, fp16]


def test_the_page_shows_every_package(write: Write) -> None:
    blocks = read_blocks(write(RECORD, SMALLER, SMALLER | {"num_images": 20}))
    page = report_page(blocks)
    assert page.count("<svg") == page.count("<h2>") == 2
    assert "3 compressed packages of mobilevigv2_ti," in page
    for text in ("int8", "w4", "fp32", "-10.0 (-12.0 to -8.0)", "not known", "97.2", "0.920 *", "seconds to make",
                 "ms, iPhone 13 mini, calibrated", "0001-quantize", "percentile, 256 pictures"):  # fmt: skip
        assert f">{text}<" in page
    about = (
        "Checkpoint runs/0001-train/checkpoint.safetensors (abcdef01); measured on 20 pictures of emoji10; "
        "table iphone13-mini: iPhone 13 mini, calibrated, not measured."
    )
    assert about in page
    assert "never compared with Apple" in page


def test_labels_do_not_cover_each_other() -> None:
    near = [Row("int8", 69.0 + i % 3 / 100, size_bytes=5_000_000 + i) for i in range(24)]
    drawn = draw_front([Row("fp32", 70.0), *near, Row("fp16", 70.0, size_bytes=10_000_000)])
    found = re.findall(r'<text style="font-size: 7px[^>]*? x="([\d.]+)" y="([\d.]+)"[^>]*>(\d+)</text>', drawn)
    assert [name for *_, name in found] == [str(i) for i in range(1, 26)]
    for (ax, ay, a), (bx, by, b) in itertools.combinations(found, 2):
        apart = abs(float(ax) - float(bx)), abs(float(ay) - float(by))
        width = 0.6 * 7 * (len(a) + len(b)) / 2
        assert apart[0] >= width or apart[1] >= 7, (a, b)


def test_a_label_without_room_is_left_out() -> None:
    names = ["1", "2", "3", "4", "5", "6", "7", "8"]
    low, high = (0.0, 0.0), (30.0, 14.0)
    places = label_places(names, [(15.0, 7.0)] * len(names), low, high)
    assert None in places
    for name, place in zip(names, places, strict=True):
        for i in (0, 1) if place else ():
            assert place is not None
            assert low[i] <= place[i] - label_size(name)[i] / 2
            assert place[i] + label_size(name)[i] / 2 <= high[i]


def test_a_folder_of_runs_is_all_of_them(write: Write, vig: Callable[..., str]) -> None:
    runs = write(RECORD, SMALLER)
    (runs[0].parent / "0003-train").mkdir()
    assert read_blocks([runs[0].parent]) == read_blocks(runs)
    assert read_blocks([runs[0], runs[0] / "quantize.json", runs[0].parent]) == read_blocks(runs)
    shown = vig("report", "compress", "runs")
    assert vig("report", "compress") == shown
    assert "0001-quantize" in shown
    assert Path("compress.html").read_text() == report_page(read_blocks(runs))
    (block,) = json.loads(vig("report", "compress", "--json"))
    assert block["checkpoint_sha256"] == "abcdef0123456789"
    assert [row["run"] for row in block["rows"]] == [None, None, "0001-quantize", "0002-quantize"]


def test_a_package_is_refused_with_what_to_name(write: Write) -> None:
    (run,) = write(RECORD)
    with pytest.raises(ConfigError, match="is a package, not a run") as error:
        read_blocks([run / "int8.mlpackage"])
    assert f"{run}/quantize.json" in error.value.hint


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 100_000, '{"compression": {"weight_bits": 8}}',
     *(json.dumps(RECORD | wrong) for wrong in (
         {"size_bytes": 0}, {"size_bytes": "5"}, {"size_bytes": 10**400}, {"top1_percent_fp32": float("nan")},
         {"difference_points_95": [1.0, 2.0, 3.0]}, {"difference_points_95": [1.0]}, {"network": 3},
         {"latency_outside_fit": [1]}, {"compression": None},
     ))],
)  # fmt: skip
def test_what_is_no_result_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "quantize.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="is no result of vig quantize") as error:
        read_blocks([file])
    assert error.value.hint
    file.unlink()
    with pytest.raises(ConfigError, match="holds no result"):
        read_blocks([tmp_path])

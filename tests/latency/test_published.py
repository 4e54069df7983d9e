"""Published CSV files are not trusted: each damage is told with file and line."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from vigcli.errors import ConfigError
from vigcli.latency.published import load_published
from vigcli.paths import builtin_folder

LATENCIES, OPS = "published_latencies.csv", "published_network_ops.csv.gz"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(builtin_folder("table") / "published", tmp_path / "published")
    return tmp_path / "published"


def replace_in_line(path: Path, line: int, old: str, new: str) -> None:
    packed = path.suffix == ".gz"
    raw = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    lines = raw.decode().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new)
    text = "".join(lines).encode()
    path.write_bytes(gzip.compress(text) if packed else text)


@pytest.mark.parametrize(
    ("name", "line", "old", "new", "complaint"),
    [
        (LATENCIES, 1, "latency_ms", "ms", ":2: there is no column 'latency_ms'"),
        (LATENCIES, 2, ",0.8,", ",-0.8,", ":2: latency_ms = '-0.8' is no number above 0"),
        (LATENCIES, 2, ",0.8,", ",nan,", ":2: latency_ms = 'nan' is no number above 0"),
        (LATENCIES, 2, ",0.8,", ",fast,", ":2: latency_ms = 'fast' is no number above 0"),
        (LATENCIES, 2, "timm:", "timm:no_", ":2: builder = .* has no ops"),
        (LATENCIES, 3, "256,iPhone 13 mini", "224.5,iPhone 13 mini", ":3: resolution = '224.5' is no whole number"),
        (LATENCIES, 2, "\n", ",more\n", ":2: has more cells than the header"),
        (OPS, 1, "act_MB", "act", ":2: there is no column 'act_MB'"),
        (OPS, 2, ",F0,", ",F7,", ":2: fusion = 'F7' is none of F0, F2"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    name: str, line: int, old: str, new: str, complaint: str, folder: Path
) -> None:
    replace_in_line(folder / name, line, old, new)
    with pytest.raises(ConfigError, match=f"{name}{complaint}"):
        load_published(folder)


def test_a_file_without_rows_is_refused(folder: Path) -> None:
    path = folder / LATENCIES
    path.write_text(path.read_text().partition("\n")[0] + "\n")
    with pytest.raises(ConfigError, match="holds no rows"):
        load_published(folder)


def test_a_file_that_was_cut_off_is_damaged(folder: Path) -> None:
    path = folder / OPS
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ConfigError, match=rf"{OPS}:\d+: the file is damaged"):
        load_published(folder)

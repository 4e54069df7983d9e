"""The wheel carries what a checkout has beside the package."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vigcli.paths import KINDS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked where no checkout is near."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_built_in_files_travel(installed: Path) -> None:
    for folder in KINDS.values():
        ours = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file()}
        theirs = installed / "vigcli" / "builtin" / folder
        assert {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()} == ours
    assert (installed / "vigcli" / "data" / "emoji10.zip").is_file()
    assert (installed / "vigcli" / "data" / "NOTICE").is_file()


def test_the_unpacked_wheel_finds_them(installed: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-m", "vigcli", "check", "mobilevigv2.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 3, result.stderr  # `check` takes a file of the user's: a built-in one is copied first
    copied = subprocess.run(
        [sys.executable, "-P", "-m", "vigcli", "cp", "mobilevigv2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert copied.returncode == 0, copied.stderr
    assert (tmp_path / "mobilevigv2.yaml").read_text() == (ROOT / "search_spaces" / "mobilevigv2.yaml").read_text()

"""Writing leaves the old file or the whole new one, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vigcli.errors import VigError
from vigcli.files import replacing, write_json, write_text


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_and_its_folders_are_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b" / "x.json", {"é": [1]})
    assert below(tmp_path) == ["a", "a/b", "a/b/x.json"]
    write_text(tmp_path / ("n" * 255), "the longest name there is")


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "package") as temporary:
            temporary.mkdir(0o700)
            (temporary / "x").touch(0o600)
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("package", "package/x")]
    assert modes == [0o750, 0o640]
    assert below(tmp_path) == ["package", "package/x"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    write_text(tmp_path / "x", "old")

    def fail() -> None:
        with replacing(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(VigError if isinstance(error, OSError) else type(error)):
        fail()
    assert (tmp_path / "x").read_text() == "old"
    assert below(tmp_path) == ["x"]


def test_a_failure_leaves_no_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), replacing(tmp_path / "a" / "b" / "x"):
        raise ValueError("x")
    assert below(tmp_path) == []


def test_what_cannot_be_json_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x", float("nan"))
    assert below(tmp_path) == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    (tmp_path / "p").mkdir()
    write_text(tmp_path / "p" / "old", "")
    if fails:
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        with replacing(tmp_path / "p") as temporary:
            temporary.mkdir()
            (temporary / "new").touch()
    except KeyboardInterrupt:
        assert fails
    assert below(tmp_path) == ["p", "p/old" if fails else "p/new"]


def test_only_like_replaces_like(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(VigError, match="a folder or a device stands there"):
            write_text(tmp_path / name, "x")
    write_text(tmp_path / "file", "x")
    for path in (tmp_path / "file" / "x", Path("/proc/nothing/x")):
        with pytest.raises(VigError, match="cannot be written"):
            write_text(path, "x")
    assert below(tmp_path) == ["file", "folder", "pipe"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    write_text(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "old")
    code = (
        "import resource, sys\nfrom vigcli.files import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"write_text({str(tmp_path / 'x')!r}, 'x' * 5000)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "VigError" in ended.stderr
    assert "File too large" in ended.stderr
    assert (tmp_path / "x").read_text() == "old"
    assert below(tmp_path) == ["x"]


def test_a_signal_in_the_middle_leaves_whole_files(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom vigcli.files import write_text\nprint('on', flush=True)\n"
        f"while True:\n    for c in 'ab':\n        write_text({str(tmp_path / 'x')!r}, c * 200_000)\n"
    )
    for wait in (0.05, 0.11):
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(wait)
            writer.send_signal(signal.SIGINT)
            writer.wait(20)
        text = (tmp_path / "x").read_text()
        assert len(text) == 200_000
        assert len(set(text)) == 1

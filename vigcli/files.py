"""Writing that leaves either the old file or the whole new one, never half of it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vigcli.errors import VigError


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`, renamed over it when the block ends well and removed when it does not.

    The block may create a file or a folder there; a link is written through. Raises VigError where the disk is full
    or may not be written, and where something else than a file or a folder of the same kind stands.
    """
    target = Path(os.path.realpath(path))
    try:
        with (
            made_folder(target.parent) as parent,
            tempfile.TemporaryDirectory(prefix=".vig-", dir=parent, ignore_cleanup_errors=True) as folder,
        ):
            temporary, aside = Path(folder) / target.name, Path(folder) / "replaced"
            usual = _usual_mode(aside)
            yield temporary
            _open_to_others(temporary, usual)
            if temporary.is_file():
                with temporary.open("rb") as written:
                    os.fsync(written.fileno())
            _put(temporary, target, aside)
    except OSError as error:
        raise VigError(
            f"{path}: cannot be written: {error.strerror or error}.",
            "Free disk space or choose another place with -o; nothing was left half-written.",
        ) from error


def _usual_mode(path: Path) -> int:
    """What the umask makes of a new folder; none is left at `path`."""
    path.mkdir()
    mode = stat.S_IMODE(path.stat().st_mode)
    path.rmdir()
    return mode


def _open_to_others(path: Path, mode: int) -> None:
    """Let read who the umask lets: libraries make for their owner alone what they write."""
    for file in (path, *path.rglob("*")):
        if file.is_dir() or file.is_file():
            file.chmod(file.stat().st_mode | (mode if file.is_dir() else mode & 0o666))


def _put(new: Path, target: Path, aside: Path) -> None:
    """Rename `new` to `target`; a folder there is put aside, because none can be renamed over one that holds files."""
    if target.exists() and not (target.is_file() and new.is_file()) and not (target.is_dir() and new.is_dir()):
        raise OSError(errno.EEXIST, "a folder or a device stands there")
    try:
        if target.is_dir():
            os.rename(target, aside)
        os.replace(new, target)
    except BaseException:
        if aside.exists() and not target.exists():
            os.rename(aside, target)
        raise


@contextlib.contextmanager
def made_folder(path: Path) -> Iterator[Path]:
    """Make a folder and those above it; those that were made and are still empty at the end are removed again.

    Raises OSError.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield path
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


KINDS = {  # by the end of a name
    ".mlpackage": "a CoreML package",
    ".mlmodel": "a CoreML model in one file",
    ".onnx": "an ONNX file",
    ".safetensors": "a file of weights",
    ".yaml": "a YAML file",
}


def kind_of(path: Path) -> str:
    """What something that exists is, told by its name."""
    return KINDS.get(path.suffix.lower()) or ("a folder" if path.is_dir() else "a file of another kind")


def bytes_on_disk(path: Path) -> int:
    """The size of a file, or of all files in a folder, such as a package."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")

"""Run directories: `runs/0007-train/`, numbered, each with a `run.yaml` that says how it came about."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vigcli.config.load import dump_yaml
from vigcli.errors import ConfigError, UsageError, VigError
from vigcli.files import made_folder, write_text

RUN_FILE = "run.yaml"
RECIPE_FILE = "recipe.yaml"
OPTIONS_FILE = "options.json"  # what a command was asked for, so that going on needs nothing else
_NUMBERED = re.compile(r"(\d{4,})-.+", re.ASCII)


@contextlib.contextmanager
def new_run(job: str, folder: Path | str | None = None, root: Path | str = "runs") -> Iterator[Path]:
    """Make a run directory: `folder`, or the next number under `root`; one that comes to hold no result goes again.

    Raises UsageError when `folder` holds files already, VigError when the disk refuses.
    """
    with contextlib.ExitStack() as stack:
        try:
            if folder is not None:
                run = stack.enter_context(made_folder(Path(folder)))
                check_empty(run)
                if not os.access(run, os.W_OK):
                    raise PermissionError(errno.EACCES, "it may not be written")
            else:
                run = _next_number(stack.enter_context(made_folder(Path(root))), job)
        except OSError as error:
            where = folder if folder is not None else root
            what = error.strerror or error
            raise VigError(f"{where}: cannot make a run directory: {what}.", "Choose another with -o.") from error
        try:
            yield run
        except BaseException:
            if {path.name for path in run.iterdir()} <= {
                RUN_FILE,
                RECIPE_FILE,
                OPTIONS_FILE,
            }:  # how it began, and no result
                for path in run.iterdir():
                    path.unlink()
            raise
        finally:
            if folder is None:
                with contextlib.suppress(OSError):
                    run.rmdir()


def check_empty(folder: Path) -> None:
    """Raise UsageError for a folder that holds files already; one that is not there holds none."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder}: is not empty.", "Choose a new folder with -o, or --resume a run.")


def _next_number(root: Path, job: str) -> Path:
    number = 1 + max((int(match[1]) for match in map(_NUMBERED.fullmatch, os.listdir(root)) if match), default=0)
    while True:  # another process may take the number first
        path = root / f"{number:04d}-{job}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


def write_run_file(run: Path, record: Mapping[str, Any]) -> None:
    """Write a run's `run.yaml`."""
    write_text(run / RUN_FILE, dump_yaml(dict(record)))


def newest(patterns: Iterable[str], what: str, hint: str, root: Path | str = "runs") -> Path:
    """The newest file or package under `root` that one of `patterns` matches. Raises ConfigError when there is none."""
    found = [path for pattern in patterns for path in Path(root).glob(pattern)]
    if not found:
        raise ConfigError(f"{root}/: holds no {what}.", hint)
    return max(found, key=lambda path: (path.stat().st_mtime_ns, str(path)))

"""Run directories: `runs/0007-train/`, numbered, each with a `run.yaml` that says how it came about."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vigcli.config.load import dump_yaml
from vigcli.errors import ConfigError, UsageError, VigError
from vigcli.files import write_text

RUN_FILE = "run.yaml"
RECIPE_FILE = "recipe.yaml"
_NUMBERED = re.compile(r"(\d{4,})-(\w+)")


def new_run(job: str, folder: Path | str | None = None, root: Path | str = "runs") -> Path:
    """Make and return a new run directory: `folder`, or the next number under `root`.

    Raises UsageError when `folder` holds files already, VigError when the disk refuses.
    """
    try:
        if folder is not None:
            path = Path(folder)
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise UsageError(f"{path}: is not empty.", "Choose a new folder with -o, or --resume a run.")
            return path
        root = Path(root)
        root.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(match[1]) for match in map(_NUMBERED.fullmatch, os.listdir(root)) if match), default=0)
        while True:  # another process may take the number first
            path = root / f"{number:04d}-{job}"
            try:
                path.mkdir()
                return path
            except FileExistsError:
                number += 1
    except OSError as error:
        where = folder if folder is not None else root
        raise VigError(f"{where}: cannot make a run directory: {error.strerror}.", "Choose another with -o.") from error


def write_run_file(run: Path, record: Mapping[str, Any]) -> None:
    """Write a run's `run.yaml`."""
    write_text(run / RUN_FILE, dump_yaml(dict(record)))


def newest(names: Iterable[str], what: str, hint: str, root: Path | str = "runs") -> Path:
    """The newest file or package called one of `names` in any run. Raises ConfigError when there is none."""
    found = [path for name in names for path in Path(root).glob(f"*/{name}")]
    if not found:
        raise ConfigError(f"{root}/: no run holds a {what}.", hint)
    return max(found, key=lambda path: (path.stat().st_mtime_ns, str(path)))

"""Where a result comes from: command line, versions, seed, hashes."""

from __future__ import annotations

import datetime
import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vigcli import __version__

_PACKAGES = ("torch", "timm", "numpy", "coremltools", "safetensors")


def provenance(argv: Sequence[str], seed: int, config_text: str = "", parents: Sequence[str] = ()) -> dict[str, Any]:
    """What one needs to repeat a run: `argv`, versions, seed, the hash of the configuration, hashes of the parents."""
    return {
        "argv": list(argv),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "config_sha256": hashlib.sha256(config_text.encode()).hexdigest(),
        "parents": list(parents),
        "versions": {"vig": __version__, "python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def sha256(path: Path | str) -> str:
    """The hash of a file, or of a folder's files and their names."""
    path, digest = Path(path), hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(str(file.relative_to(path)).encode() if path.is_dir() else b"")
            digest.update(file.read_bytes())
    return digest.hexdigest()

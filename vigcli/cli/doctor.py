"""`vig doctor`: what works on this machine; one block to paste into an issue."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from vigcli import __version__
from vigcli.cli.options import json_option
from vigcli.cli.output import emit_json, fields
from vigcli.paths import KINDS, builtin_names
from vigcli.units import format_bytes

_EXTRAS = {
    "coremltools": "export, verify, quantize",
    "matplotlib": "pictures",
    "scipy": "vig table fit",
    "torch-pruning": "vig prune",
    "onnxruntime": "not used yet",
    "pymoo": "benchmarks/search.py",
    "nni": "not used yet",
}


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Say what works on this machine, what needs a Mac, and which versions are installed.

    Example:  vig doctor
    """
    mac = sys.platform == "darwin"
    found: dict[str, Any] = {
        "vig": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": _version("torch"),
        "timm": _version("timm"),
        **{name: f"{_version(name)} ({use})" for name, use in _EXTRAS.items()},
        "device": _device(),
        "CoreML runtime": "here" if mac else "not here: packages run in vig's interpreter; predict needs a Mac",
        "free disk": format_bytes(shutil.disk_usage(".").free),
        **{f"{kind}s": ", ".join(builtin_names(kind)) for kind in KINDS},
    }
    if as_json:
        emit_json(found)
    else:
        fields(list(found.items()))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _device() -> str:
    from vigcli.cli.load import picked_device

    return picked_device("auto")

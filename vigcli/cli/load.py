"""From what a user typed to a typed object, the same way in every command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vigcli.config.archs import AnyArch, arch_config
from vigcli.config.load import apply_settings, parse_as


def arch_with(
    name: str, settings: Sequence[str] = (), resolution: int | None = None, num_classes: int | None = None
) -> AnyArch:
    """The configuration of a named network with `--set`, `--resolution` and `--num-classes` applied."""
    config = arch_config(name)
    data = config.model_dump(mode="json")
    data.update({"resolution": resolution} if resolution else {})
    data.update({"num_classes": num_classes} if num_classes else {})
    apply_settings(data, settings)
    return parse_as(type(config), data, name)


def newest_checkpoint(path: str | None) -> Path:
    """The checkpoint that a user named (a file or a run directory), else the newest of any run."""
    from vigcli.runs.rundir import newest

    if path is None:
        return newest(["checkpoint.safetensors"], "checkpoint", "Train one first: vig train RECIPE.")
    return Path(path) / "checkpoint.safetensors" if Path(path).is_dir() else Path(path)

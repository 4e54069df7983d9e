"""Going on with a job that was stopped: it keeps what it was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vigcli.errors import ConfigError, UsageError
from vigcli.runs.rundir import OPTIONS_FILE


def kept_options(context: click.Context, run: Path, options: dict[str, Any], job: str) -> dict[str, Any]:
    """The options that a run was begun with. Raises UsageError for others beside them."""
    source = click.core.ParameterSource.DEFAULT
    if any(context.get_parameter_source(name) != source for name in (*options, "output")):
        raise UsageError("a resumed run keeps its options and its folder.", "Start a new one to change them.")
    file = run / OPTIONS_FILE
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"{run}: holds nothing to resume.", f"Name a folder that `vig {job}` began.") from None
    except ValueError:
        kept = None
    if not isinstance(kept, dict) or kept.keys() != options.keys():
        raise ConfigError(f"{file}: is not what this vig wrote.", f"Start anew with `vig {job}`.")
    return kept

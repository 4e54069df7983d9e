"""`vig cp`: a built-in file to start from."""

from __future__ import annotations

from pathlib import Path

import click

from vigcli.cli.output import say
from vigcli.errors import ConfigError, UsageError, did_you_mean
from vigcli.files import write_text
from vigcli.paths import KINDS, builtin_folder, builtin_names


@click.command()
@click.argument("name")
@click.argument("target", type=click.Path(), required=False)
@click.option("--force", is_flag=True, help="Replace TARGET if it exists.")
def command(name: str, target: str | None, force: bool) -> None:
    """Copy the built-in search space, latency table or recipe NAME to TARGET (default: NAME.yaml here).

    Example:  vig cp v2_s my_recipe.yaml
    """
    stem = Path(name).stem
    sources = [builtin_folder(kind) / f"{stem}.yaml" for kind in KINDS]
    source = next((path for path in sources if path.is_file()), None)
    if source is None:
        known = [known for kind in KINDS for known in builtin_names(kind)]
        raise ConfigError(f"'{name}' is no built-in file.", did_you_mean(stem, known))
    path = Path(target or source.name)
    if path.is_dir():
        path = path / source.name
    if path.exists() and not force:
        raise UsageError(f"{path}: exists already.", "Choose another name, or --force.")
    write_text(path, source.read_text(encoding="utf-8"))
    say(f"Wrote {path}.")

"""`vig cp`: a built-in file to start from."""

from __future__ import annotations

from pathlib import Path

import click

from vigcli.cli.options import json_option
from vigcli.cli.output import emit_json, say
from vigcli.config.archs import VARIANTS
from vigcli.errors import ConfigError, UsageError, did_you_mean
from vigcli.files import write_text
from vigcli.paths import KINDS, builtin_folder, builtin_names, find_builtin


@click.command()
@click.argument("name")
@click.argument("target", type=click.Path(), required=False)
@click.option("--force", is_flag=True, help="Replace TARGET if it exists.")
@json_option
def command(name: str, target: str | None, force: bool, as_json: bool) -> None:
    """Copy the built-in search space, latency table or recipe NAME to TARGET (default: NAME.yaml here).

    A recipe that builds on others is copied with all their values, so that it stands alone.

    Example:  vig cp v2_s my_recipe.yaml
    """
    source = next((path for kind in KINDS if (path := find_builtin(kind, name)) is not None), None)
    if source is None:
        if name in VARIANTS:
            raise ConfigError(f"'{name}' is a network, not a file.", f"Write it with: vig build {name} -o FILE")
        known = [known for kind in KINDS for known in builtin_names(kind)]
        raise ConfigError(f"'{name}' is no built-in file.", did_you_mean(Path(name).stem, known))
    path = Path(target or source.name)
    if path.is_dir():
        path = path / source.name
    if path.exists() and not force:
        raise UsageError(f"{path}: exists already.", "Choose another name, or --force.")
    write_text(path, _text(source))
    say(f"Wrote {path}.")
    if as_json:
        emit_json({"name": name, "source": str(source), "path": str(path)})


def _text(source: Path) -> str:
    if source.parent != builtin_folder("recipe"):
        return source.read_text(encoding="utf-8")
    from vigcli.config.recipe_file import whole_text

    return whole_text(source)

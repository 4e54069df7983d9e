"""`vig ls`: what can be named."""

from __future__ import annotations

import click

from vigcli.cli.options import json_option
from vigcli.cli.output import emit_json, table
from vigcli.paths import builtin_folder, builtin_names

KINDS = ("archs", "spaces", "tables", "recipes")


@click.command()
@click.argument("kind", metavar="[KIND]", type=click.Choice(KINDS), required=False)
@json_option
def command(kind: str | None, as_json: bool) -> None:
    """List networks, search spaces, latency tables and recipes, or those of one KIND: archs, spaces, tables, recipes.

    Example:  vig ls recipes
    """
    found = {name: _entries(name) for name in ([kind] if kind else KINDS)}
    if as_json:
        emit_json(found)
        return
    table(("kind", "name", "what it is"), [(k, name, what) for k in found for name, what in found[k].items()])


def _entries(kind: str) -> dict[str, str]:
    if kind == "archs":
        from vigcli.config.archs import PUBLISHED, VARIANTS

        return {
            name: f"{config.family}, {config.resolution} px; published: {PUBLISHED[name].source}"
            for name, config in VARIANTS.items()
        }
    singular = kind.removesuffix("s")
    return {name: _first_comment(singular, name) for name in builtin_names(singular)}


def _first_comment(kind: str, name: str) -> str:
    """The first line of a built-in file says what it is."""
    with (builtin_folder(kind) / f"{name}.yaml").open(encoding="utf-8") as file:
        return file.readline().strip().removeprefix("# ")

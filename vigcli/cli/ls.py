"""`vig ls`: what can be named."""

from __future__ import annotations

from typing import Any

import click

from vigcli.cli.options import json_option
from vigcli.cli.output import emit_json, say, table
from vigcli.errors import UsageError
from vigcli.paths import builtin_folder, builtin_names
from vigcli.units import format_many

KINDS = ("archs", "spaces", "tables", "recipes", "paths")


@click.command()
@click.argument("kind", metavar="[KIND]", type=click.Choice(KINDS), required=False)
@click.argument("name", metavar="[NAME]", required=False)
@json_option
def command(kind: str | None, name: str | None, as_json: bool) -> None:
    """List networks, search spaces, latency tables and recipes, or those of one KIND: archs, spaces, tables, recipes.

    The KIND paths lists all that can be set in the network NAME: for --set, and as genes of a search space.

    Example:  vig ls paths mobilevigv2_s
    """
    if (kind == "paths") != (name is not None):
        raise UsageError("a NAME goes with paths, and paths with a NAME.", "Example: vig ls paths mobilevigv2_s")
    if name is not None:
        _paths(name, as_json)
        return
    found = {each: _entries(each) for each in ([kind] if kind else KINDS[:-1])}
    if as_json:
        emit_json(found)
        return
    if kind == "recipes":
        _recipes()
        return
    table(("kind", "name", "what it is"), [(k, entry, what) for k in found for entry, what in found[k].items()])


def _entries(kind: str) -> dict[str, str]:
    if kind == "archs":
        from vigcli.config.archs import PUBLISHED, VARIANTS

        return {
            name: f"{config.family}, {config.resolution} px; published: {PUBLISHED[name].source}"
            for name, config in VARIANTS.items()
        }
    if kind == "recipes":
        from vigcli.config.recipe_list import glances

        return {each.name: f"{each.title}{f'; top-1 % {each.top1}' if each.top1 else ''}" for each in glances()}
    singular = kind.removesuffix("s")
    entries = {name: _first_comment(singular, name) for name in builtin_names(singular)}
    return {name: f"{what} {_size_of(name)}" for name, what in entries.items()} if kind == "spaces" else entries


def _recipes() -> None:
    """What tells them apart, and the accuracy to expect."""
    from vigcli.config.recipe_list import glances

    rows = [(r.name, r.network, r.resolution, r.epochs, r.batch_size, r.top1, r.teacher) for r in glances()]
    table(("recipe", "network", "px", "epochs", "batch", "top-1 %", "teacher"), rows)
    say("A published top-1 was not reproduced here. The file tells cost and needs: vig cp NAME")


def _size_of(space: str) -> str:
    """Of a built-in space: how many networks, and how many published ones are among them."""
    from vigcli.cli.check import space_records

    records = space_records(builtin_folder("space") / f"{space}.yaml")
    size, inside = sum(r["size"] for r in records), sum(len(r["published_inside"]) for r in records)
    return f"{format_many(size)} networks, {inside} of them published."


def _first_comment(kind: str, name: str) -> str:
    """The first line of a built-in file says what it is."""
    with (builtin_folder(kind) / f"{name}.yaml").open(encoding="utf-8") as file:
        return file.readline().strip().removeprefix("# ")


def _paths(name: str, as_json: bool) -> None:
    from vigcli.config.archs import arch_config
    from vigcli.config.fields import describe

    found = describe(arch_config(name))
    if as_json:
        emit_json([field._asdict() for field in found])
        return
    table(("path", "value", "allowed", "what it is"), [_row(field) for field in found])
    say("[i] counts from 0: stages[0].width. Ranges are of each field; which go together is checked when they are set.")


def _row(field: Any) -> tuple[str, str, str, str]:
    values = field.value if field.path.count("[i]") else [field.value]
    shown = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
    return field.path, " ".join(shown), field.allowed, field.what

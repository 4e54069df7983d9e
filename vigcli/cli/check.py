"""`vig check`: is a file valid?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vigcli.cli.options import json_option
from vigcli.cli.output import emit_json, say, table
from vigcli.config.load import Strict, read_yaml
from vigcli.errors import UsageError
from vigcli.units import format_many

SCHEMAS = ("recipe", "space", "table")


def space_records(path: Path | str) -> list[dict[str, Any]]:
    """Name, size, base and published networks of a space, or of every member of a mixed one."""
    from vigcli.config.space import load_spaces, variants_inside

    return [
        {"space": s.name, "size": s.size, "base": s.base, "published_inside": list(variants_inside(s))}
        for s in load_spaces(path)
    ]


def _load(kind: str, path: str) -> None:
    from vigcli.config.recipe import load_recipe
    from vigcli.latency.table import load_table

    loaders: dict[str, Callable[[str], Strict]] = {"recipe": load_recipe, "table": load_table}
    loaders[kind](path)


def _model(kind: str) -> type[Strict]:
    from vigcli.config.recipe import Recipe
    from vigcli.config.space import SearchSpace
    from vigcli.latency.table import LatencyTable

    models: dict[str, type[Strict]] = {"recipe": Recipe, "space": SearchSpace, "table": LatencyTable}
    return models[kind]


@click.command()
@click.argument("file", required=False, type=click.Path())
@click.option("--schema", type=click.Choice(SCHEMAS), help="Print the JSON Schema of a kind of file, for editors.")
@json_option
def command(file: str | None, schema: str | None, as_json: bool) -> None:
    """Validate FILE (a recipe, search space, latency table, checkpoint or CoreML package) and say what it is.

    Example:  vig check my_recipe.yaml
    """
    if schema is not None:
        emit_json(_model(schema).model_json_schema())
        return
    if file is None:
        raise UsageError("nothing to check.", "Name a file, or --schema recipe.")
    if Path(file).suffix == ".safetensors":
        from vigcli.archs.checkpoint import load_checkpoint

        load_checkpoint(file)
        kind = "checkpoint"
    elif Path(file).suffix == ".mlpackage":
        from vigcli.coreml.convert import package_meta

        package_meta(file)
        kind = "package"
    elif (kind := _kind(file)) != "space":
        _load(kind, file)
    about: dict[str, Any] = {}
    if kind == "space":
        about["spaces"] = space_records(file)
        if not as_json:
            rows = [
                (r["space"], format_many(r["size"]), r["base"], ", ".join(r["published_inside"]) or "none")
                for r in about["spaces"]
            ]
            table(("space", "networks", "base", "published networks inside"), rows)
    say(f"{file}: a valid {kind}.")
    if as_json:
        emit_json({"file": file, "kind": kind, "valid": True, **about})


def _kind(file: str) -> str:
    """What a YAML file means to be, by the keys that only one kind has."""
    data, _ = read_yaml(file)
    keys = set(data) if isinstance(data, dict) else set()
    for kind, marks in (("table", {"device", "model"}), ("space", {"genes", "base", "spaces"})):
        if keys & marks:
            return kind
    return "recipe"

"""`vig check`: is a file valid?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vigcli.cli.options import json_option
from vigcli.cli.output import emit_json, say, table
from vigcli.config.load import Strict, read_yaml
from vigcli.errors import UsageError
from vigcli.registry import resolve
from vigcli.units import format_many

SCHEMAS = ("recipe", "space", "table")
_READERS = {  # resolved on use: a table is read without torch
    "table": "vigcli.latency.table:load_table",
    "checkpoint": "vigcli.archs.checkpoint:load_checkpoint",
    "package": "vigcli.coreml.convert:package_meta",
}


def space_records(path: Path | str) -> list[dict[str, Any]]:
    """Name, size, base and published networks of a space, or of every member of a mixed one."""
    from vigcli.config.space import load_spaces, variants_inside

    return [
        {"space": s.name, "size": s.size, "base": s.base, "published_inside": list(variants_inside(s))}
        for s in load_spaces(path)
    ]


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

    Of a recipe all values are shown, with those of its base and the defaults.

    Example:  vig check my_recipe.yaml
    """
    if schema is not None:
        emit_json(_model(schema).model_json_schema())
        return
    if file is None:
        raise UsageError("nothing to check.", "Name a file, or --schema recipe.")
    kind = _kind(file)
    about = _checked(kind, file)
    if not as_json:
        _show(kind, about)
    say(f"{file}: a valid {kind}.")
    if as_json:
        emit_json({"file": file, "kind": kind, "valid": True, **about})


def _kind(file: str) -> str:
    """What a file means to be: a YAML file by the keys that only one kind has."""
    if (suffix := Path(file).suffix) in (".safetensors", ".mlpackage"):
        return "checkpoint" if suffix == ".safetensors" else "package"
    data, _ = read_yaml(file)
    keys = set(data) if isinstance(data, dict) else set()
    for kind, marks in (("table", {"device", "model"}), ("space", {"genes", "spaces", "trained_shapes"})):
        if keys & marks:
            return kind
    return "recipe"


def _checked(kind: str, file: str) -> dict[str, Any]:
    """What is to be told of a file that is sound. Raises ConfigError for one that is not."""
    if kind == "space":
        return {"spaces": space_records(file)}
    if kind == "recipe":
        from vigcli.config.recipe import load_recipe

        return {"recipe": load_recipe(file).model_dump(mode="json")}
    resolve(_READERS[kind])(file)
    return {}


def _show(kind: str, about: dict[str, Any]) -> None:
    if kind == "recipe":
        from vigcli.config.load import dump_yaml

        click.echo(dump_yaml(about["recipe"]), nl=False)
    elif kind == "space":
        rows = [
            (r["space"], format_many(r["size"]), r["base"], ", ".join(r["published_inside"]) or "none")
            for r in about["spaces"]
        ]
        table(("space", "networks", "base", "published networks inside"), rows)

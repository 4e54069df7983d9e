"""What `vig search` was asked for, from what was typed to typed objects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vigcli.errors import UsageError
from vigcli.units import parse_bytes, parse_count, parse_latency_ms

if TYPE_CHECKING:
    from vigcli.config.archs import ArchConfig
    from vigcli.config.recipe import Recipe
    from vigcli.config.space import SearchSpace
    from vigcli.latency.table import LatencyTable
    from vigcli.search.columns import Limits
    from vigcli.search.job import Settings

RISKS = {"low": -1.0, "even": 0.0, "high": 1.0}


class Asked(NamedTuple):
    """What a user asked for, loaded."""

    spaces: list[SearchSpace]
    tables: list[LatencyTable]
    settings: Settings
    recipe: Recipe
    files: dict[str, Path]


def asked_for(
    *,
    space_name: str,
    budget: str | None,
    table_names: tuple[str, ...],
    max_params: str | None,
    max_macs: str | None,
    max_size: str | None,
    max_memory: str | None,
    risk: str,
    engine: str,
    num_candidates: int | None,
    exact: bool,
    resolution: int | None,
    num_classes: int | None,
    recipe_name: str | None,
    seed: int,
    jobs: int,
    **_: Any,
) -> Asked:
    if budget is None:
        raise UsageError("a budget is needed.", "Give it with its unit: vig search --budget 1.0ms.")
    budget_ms = parse_latency_ms(budget)
    limits = _limits(max_params, max_macs, max_size, max_memory)
    from vigcli.config.recipe import load_recipe
    from vigcli.latency.table import find_table
    from vigcli.paths import find_file
    from vigcli.search.engines import DEFAULT_CANDIDATES
    from vigcli.search.job import Settings

    spaces, start, space_file = _spaces(space_name)
    found = [find_table(name) for name in dict.fromkeys(table_names)]
    recipe_file = find_file("recipe", recipe_name or ("emoji10" if num_classes == 10 else "v2_s"))
    files = {"space": space_file, "recipe": recipe_file}
    files |= {f"table {table.device}": file for file, table in found}
    settings = Settings(
        budget_ms, limits, start, RISKS[risk], resolution, num_classes, engine,
        num_candidates or DEFAULT_CANDIDATES[engine], exact, seed, jobs,
    )  # fmt: skip
    return Asked(spaces, [table for _, table in found], settings, load_recipe(recipe_file), files)


def _spaces(name: str) -> tuple[list[SearchSpace], ArchConfig | None, Path]:
    """The spaces that a name means, the user's own network where it is a checkpoint, and the file it was read from."""
    from vigcli.cli.load import picked_checkpoint
    from vigcli.config.space import load_spaces, space_for
    from vigcli.paths import find_file

    if name.endswith(".safetensors") or Path(name).is_dir():
        from vigcli.archs.checkpoint import read_meta

        path = picked_checkpoint(name)
        config = read_meta(path).arch
        return [space_for(config)], config, path
    path = find_file("space", name)
    return list(load_spaces(path)), None, path


def _limits(params: str | None, macs: str | None, size: str | None, memory: str | None) -> Limits:
    given = {
        "params": parse_count(params) if params else None,
        "macs": parse_count(macs) if macs else None,
        "size_mb": parse_bytes(size) / 1e6 if size else None,
        "memory_mb": parse_bytes(memory) / 1e6 if memory else None,
    }
    from vigcli.search.columns import Limits

    return Limits(**{name: value for name, value in given.items() if value is not None})

"""What a search leaves behind: the recipe of its network, the front, its picture, and a report to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vigcli.config.archs import ArchConfig
from vigcli.config.load import dump
from vigcli.config.recipe import Recipe
from vigcli.files import write_json, write_text
from vigcli.runs.rundir import RECIPE_FILE
from vigcli.search.job import SearchResult
from vigcli.search.page import report_page
from vigcli.search.pictures import draw_front

REPORT_FILE = "report.html"


def save(
    result: SearchResult,
    recipe: Recipe,
    comment: str,
    run: Path,
    record: Mapping[str, Any] | None = None,
    files: Mapping[str, Path | str] | None = None,
) -> dict[str, Any]:
    """Write `recipe.yaml` (the recipe with the network found), `front.json`, `front.png`, `front.svg`, `report.html`.

    Args:
        record: provenance, for the report.
        files: what the search read, by what it is (`space`, `table`, `recipe`), for the report.

    Returns the summary. Raises UnavailableError without matplotlib.
    """
    summary = {
        "budget_ms": result.budget_ms,
        "best": result.best.as_json(),
        "second": result.second and result.second.as_json(),
        "nearest_published": result.nearest.as_json(),
        "start": result.start and result.start.as_json(),
        "doubtful": [network.as_json() for network in result.doubtful],
        "limits": result.limits,
        "num_evaluated": result.num_evaluated,
        "num_feasible": result.num_feasible,
        "space_size": result.space_size,
        "random_best_top1_percent": max((round(score, 2) for _, score in result.random_front), default=None),
        "beats_random": result.beats_random,
        "chosen": result.choices,
        "kept_genes": list(result.kept),
        "undecided_genes": list(result.undecided),
        "effects": [effect._asdict() for effect in result.best.effects],
        "exact": [exact.as_json() for exact in result.exact],
        "genes_judged_by_ablations": list(result.by_ablations),
        "built": [one.record() for one in result.built],
        "run": str(run),
    }
    front = [
        {"latency_ms": round(ms, 4), "top1_percent": round(score, 3), "arch": config.model_dump(mode="json")}
        for ms, score, config in result.front
    ]
    save_recipe(recipe, result.best.config, comment, run)
    write_json(run / "front.json", {**summary, "front": front})
    picture = draw_front(result, run / "front.png")
    write_text(run / "front.svg", picture)
    write_text(run / REPORT_FILE, report_page(result, picture, record or {}, files or {}))
    return summary


def save_recipe(recipe: Recipe, config: ArchConfig, comment: str, run: Path) -> None:
    """Write `recipe.yaml`: the recipe with a network that was found."""
    found = recipe.with_network(config)
    if not getattr(config, "distilled", False):
        found = found.model_copy(update={"distillation": None})  # no head is there for the teacher's answer
    write_text(run / RECIPE_FILE, f"# {comment}\n{dump(found)}")

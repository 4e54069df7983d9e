"""`vig search`: the best network under a latency budget."""

from __future__ import annotations

import sys
import time

import click

from vigcli.cli.options import (
    dry_run_option,
    json_option,
    num_classes_option,
    output_option,
    resolution_option,
    seed_option,
    table_option,
)
from vigcli.cli.output import emit_json, progress, say, table
from vigcli.units import format_count, format_duration, parse_latency_ms


@click.command()
@click.argument("space_name", metavar="[SPACE]", default="mobilevigv2")
@click.option("--budget", required=True, metavar="MS", help="Latency with its unit: 1.0ms, 900us.")
@table_option
@resolution_option
@num_classes_option
@click.option("--recipe", "recipe_name", metavar="RECIPE", help="Recipe that the found network gets; default: emoji10 for ten classes, else v2_s.")  # fmt: skip
@seed_option
@output_option
@dry_run_option
@json_option
def command(
    space_name: str,
    budget: str,
    table_name: str,
    resolution: int | None,
    num_classes: int | None,
    recipe_name: str | None,
    seed: int,
    output: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Find the best network of SPACE (default: mobilevigv2) under a latency budget, without data or GPU.

    Example:  vig search --budget 1.0ms
    """
    budget_ms = parse_latency_ms(budget)
    from vigcli.config.load import dump
    from vigcli.config.recipe import load_recipe
    from vigcli.config.space import load_space
    from vigcli.files import write_json, write_text
    from vigcli.latency.table import load_table
    from vigcli.paths import find_file
    from vigcli.runs.provenance import provenance, sha256
    from vigcli.runs.rundir import new_run, write_run_file

    space_file = find_file("space", space_name)
    space, latency_table = load_space(space_file), load_table(table_name)
    recipe_file = find_file("recipe", recipe_name or ("emoji10" if num_classes == 10 else "v2_s"))
    recipe = load_recipe(recipe_file)
    if dry_run:
        say(f"Would search {space_file} ({space.size:.2e} networks) under {budget_ms:g} ms on {latency_table.device},")
        say(f"evaluate about 40,000 networks in half a minute, and write {output or 'a new run in runs/'}.")
        return
    from vigcli.search.job import search
    from vigcli.search.report import draw_front

    start = time.monotonic()
    with progress() as advance:
        result = search(
            space, latency_table, budget_ms,
            resolution=resolution, num_classes=num_classes, seed=seed, on_progress=advance,
        )  # fmt: skip
    found = recipe.model_copy(
        update={
            "arch": result.best.config,
            "resolution": result.best.config.resolution,
            "num_classes": result.best.config.num_classes,
        }
    )
    run = new_run("search", output)
    front = [
        {"latency_ms": round(ms, 4), "top1_percent": round(score, 3), "arch": config.model_dump(mode="json")}
        for ms, score, config in result.front
    ]
    answer = {
        "budget_ms": budget_ms,
        "space": str(space_file),
        "space_size": result.space_size,
        "num_evaluated": result.num_evaluated,
        "best": result.best.as_json(),
        "nearest_published": result.nearest.as_json(),
        "beats_random": result.beats_random,
        "random_best_top1_percent": round(max((s for _, s in result.random_front), default=0.0), 2) or None,
        "kept_genes": list(result.kept),
        "run": str(run),
    }
    write_text(
        run / "recipe.yaml",
        f"# Found by `vig search --budget {budget}`; the rest is {recipe_file.stem}.\n" + dump(found),
    )
    write_json(run / "front.json", {**answer, "front": front})
    draw_front(result, budget_ms, run / "front.png")
    parents = [sha256(space_file), sha256(recipe_file)]
    write_run_file(run, provenance(sys.argv, seed, space.model_dump_json(), parents))
    if as_json:
        emit_json(answer)
        return
    rows = []
    for label, network in (("best found", result.best), ("nearest published", result.nearest)):
        name = network.name if network.name != "found" else _shape(network.config)
        rows.append((
            label, name, format_count(network.params.inference), format_count(network.macs),
            f"{network.latency.ms:.2f} ({network.latency.low_ms:.2f} to {network.latency.high_ms:.2f})",
            f"{network.top1_percent:.1f} ±1.3",
        ))  # fmt: skip
    px = result.best.config.resolution
    table(
        ("", "network", "params", "MACs", "ms calibrated (81 %)", "top-1 % predicted (90 %)"),
        rows,
        title=f"{latency_table.device}, {latency_table.os}, fp16, {px} px, {result.best.config.num_classes} classes",
    )
    for network in (result.best, result.nearest):
        if network.latency.outside:
            say(
                f"{network.name}: OUTSIDE the fitted range ({', '.join(network.latency.outside)}): do not trust its price."
            )
    say(f"Milliseconds were not measured: {latency_table.held_out['network'].mape_percent} % mean error on held-out networks, "
        f"{latency_table.held_out['family'].mape_percent} % on held-out families; measure the winner on a phone.")  # fmt: skip
    say("top-1 is what the score expects after 300 epochs of ImageNet-1k with distillation; it does not see "
        f"{', '.join(result.kept) or 'the kind of graph'}: kept as published.")  # fmt: skip
    chance = answer["random_best_top1_percent"]
    versus = f"{chance} % for the best of as many random ones" if chance else "as many random ones found nothing"
    say(
        f"{result.num_evaluated:,} of {result.space_size:.1e} networks in {format_duration(time.monotonic() - start)}; {versus}."
    )
    if not result.beats_random:
        say("The evolution did NOT beat random search here.")
    say(f"Wrote {run}/recipe.yaml, front.json, front.png.")
    click.echo(f"Next:  vig train {run}/recipe.yaml")


def _shape(config) -> str:  # type: ignore[no-untyped-def]
    """Depths and widths of the stages in short: 2+0/4+3/12+3/4+2 x 24/48/128/224."""
    depths = "/".join(f"{s.depth - s.graph_depth}+{s.graph_depth}" for s in config.stage_shapes())
    return f"{depths} x {'/'.join(str(s.width) for s in config.stage_shapes())}"

"""`vig search`: the best network under a latency budget."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from vigcli.latency.table import LatencyTable
    from vigcli.search.job import SearchResult


@click.command()
@click.argument("space_name", metavar="[SPACE]", default="mobilevigv2")
@click.option("--budget", required=True, metavar="MS", help="Latency with its unit: 1.0ms, 900us.")
@table_option
@resolution_option
@num_classes_option
@click.option(
    "--recipe",
    "recipe_name",
    metavar="RECIPE",
    help="Recipe for the found network; default: emoji10 for ten classes, else v2_s.",
)
@click.option(
    "--measure", is_flag=True, help="Time the top candidates on this machine's CPU too, as fp32 on one thread."
)
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
    measure: bool,
    seed: int,
    output: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Find the best network of SPACE (default: mobilevigv2) under a latency budget, without data or GPU.

    Example:  vig search --budget 1.0ms
    """
    budget_ms = parse_latency_ms(budget)
    from vigcli.config.recipe import load_recipe
    from vigcli.config.space import load_space
    from vigcli.latency.table import find_table
    from vigcli.paths import find_file
    from vigcli.runs.provenance import provenance, sha256
    from vigcli.runs.rundir import RECIPE_FILE, new_run, write_run_file

    space_file = find_file("space", space_name)
    space, (table_file, latency_table) = load_space(space_file), find_table(table_name)
    recipe_file = find_file("recipe", recipe_name or ("emoji10" if num_classes == 10 else "v2_s"))
    recipe = load_recipe(recipe_file)
    if dry_run:
        say(f"Would search {space_file} ({space.size:.2e} networks) under {budget_ms:g} ms on {latency_table.device},")
        say(f"evaluate about 40,000 networks in half a minute, and write {output or 'a new run in runs/'}.")
        if as_json:
            emit_json({
                "space": str(space_file), "space_size": space.size, "budget_ms": budget_ms,
                "device": latency_table.device, "recipe": str(recipe_file), "seed": seed, "output": output,
            })  # fmt: skip
        return
    from vigcli.search.built import build_top
    from vigcli.search.job import search
    from vigcli.search.report import REPORT_FILE, save

    start = time.monotonic()
    with new_run("search", output) as run:
        with progress() as advance:
            result = search(
                space, latency_table, budget_ms,
                resolution=resolution, num_classes=num_classes, seed=seed, on_progress=advance,
            )  # fmt: skip
            result = replace(result, built=build_top(result, measure, advance))
        comment = f"Found by `vig {shlex.join(sys.argv[1:])}`; what is not arch is {recipe_file.stem}'s."
        files = {"space": space_file, "table": table_file, "recipe": recipe_file}
        record = provenance(sys.argv, seed, space.model_dump_json(), [sha256(file) for file in files.values()])
        answer = save(result, recipe, comment, run, record, files)
        write_run_file(run, record)
    if as_json:
        emit_json(answer)
        return
    _print(result, latency_table)
    say(f"Searched in {format_duration(time.monotonic() - start)}; wrote {run}/{RECIPE_FILE} and {REPORT_FILE}.")
    data = " --data PATH" if recipe.data.source == "folder" else ""
    click.echo(f"Next:  vig train {run}/{RECIPE_FILE}{data}")


def _print(result: SearchResult, latency_table: LatencyTable) -> None:
    from vigcli.latency.table import distinguishable
    from vigcli.search.page import shape_text
    from vigcli.search.score import ERROR_POINTS, TIE_POINTS

    rows = []
    for label, network in (("best found", result.best), ("nearest published", result.nearest)):
        latency = network.latency
        rows.append((
            label, network.name if network.name != "found" else shape_text(network.config),
            format_count(network.params.inference), format_count(network.macs),
            f"{latency.ms:.2f} ({latency.low_ms:.2f} to {latency.high_ms:.2f}){' *' if latency.outside else ''}",
            f"{network.top1_percent:.1f} ±{ERROR_POINTS}",
        ))  # fmt: skip
    config = result.best.config
    kind, coverage = result.best.latency.kind, f"{latency_table.interval.coverage_percent:g} %"
    table(
        (
            "",
            "network: depths of each stage x widths",
            "params",
            "MACs",
            f"ms {kind} ({coverage})",
            "top-1 % predicted (90 %)",
        ),
        rows,
        title=f"{latency_table.device}, {latency_table.os}, {latency_table.precision}, {config.resolution} px, "
        f"{config.num_classes} classes",
    )
    if result.choices:
        chosen = ", ".join(f"{path}={str(value).lower()}" for path, value in result.choices.items())
        click.echo(f"chosen besides: {chosen}")
    for network in (result.best, result.nearest):
        if network.latency.outside:
            outside = ", ".join(network.latency.outside)
            say(f"* {network.name}: OUTSIDE the fitted range ({outside}): do not trust its price.")
    say(f"ms: {latency_table.error_text}. Measure the winner on the device.")
    distillation = "with distillation" if getattr(config, "distilled", False) else "without distillation"
    say(f"top-1: what the score expects of 300 epochs of ImageNet-1k {distillation}, not of the data you train on.")
    if result.judged_by_size:
        say(f"The score knows {', '.join(result.judged_by_size)} by parameters and MACs alone: doubt its choice there.")
    if result.kept:
        say(f"Neither sees {', '.join(result.kept)}: kept as published.")
    gap = result.best.top1_percent - result.nearest.top1_percent
    ranked = distinguishable(result.best.latency.ms, result.nearest.latency.ms)
    if abs(gap) < TIE_POINTS and not ranked and result.nearest.latency.ms <= result.budget_ms:
        say(f"A tie: less than {TIE_POINTS} points and 10 % of latency apart, which neither can tell.")
    chance = max((score for _, score in result.random_front), default=None)
    versus = f"the best of as many random ones scores {chance:.1f} %" if chance else "as many random ones found none"
    size = f"{result.space_size:,}" if result.space_size < 1e6 else f"{result.space_size:.1e}"
    say(f"{result.num_evaluated:,} evaluations in a space of {size} networks; {versus}.")
    if not result.beats_random:
        small = "; so small a space both exhaust" if result.space_size < result.num_evaluated else ""
        say(f"The evolution did NOT beat random search here{small}.")

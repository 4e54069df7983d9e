"""`vig search`: the best network under a latency budget."""

from __future__ import annotations

import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from vigcli.cli.options import (
    Integer,
    dry_run_option,
    json_option,
    num_classes_option,
    output_option,
    resolution_option,
    seed_option,
    tables_option,
)
from vigcli.cli.output import emit_json, progress, say, table
from vigcli.units import format_bytes, format_count, format_duration, parse_bytes, parse_count, parse_latency_ms

if TYPE_CHECKING:
    from vigcli.config.archs import ArchConfig
    from vigcli.config.space import SearchSpace
    from vigcli.search.encoding import Limits
    from vigcli.search.job import Network, SearchResult

RISKS = {"low": -1.0, "even": 0.0, "high": 1.0}


@click.command()
@click.argument("space_name", metavar="[SPACE]", default="mobilevigv2")
@click.option("--budget", required=True, metavar="MS", help="Latency with its unit: 1.0ms, 900us.")
@tables_option
@click.option("--max-params", metavar="N", help="Parameters at inference: 7.5M.")
@click.option("--max-macs", metavar="N", help="MACs: 900M, 1.2G.")
@click.option("--max-size", metavar="SIZE", help="Weights in fp16: 12MB.")
@click.option("--max-memory", metavar="SIZE", help="fp16 activations in memory at once: 4MB.")
@click.option(
    "--risk",
    type=click.Choice(tuple(RISKS)),
    default="even",
    show_default=True,
    help="What must keep the budget: the upper end of the price's interval (low), the price, or the lower end (high).",
)
@click.option(
    "--candidates",
    "num_candidates",
    type=Integer(1000, 100_000_000),
    default=200_000,
    show_default=True,
    metavar="N",
    help="Networks to price and score.",
)
@resolution_option
@num_classes_option
@click.option(
    "--recipe",
    "recipe_name",
    metavar="RECIPE",
    help="Recipe for the found network; default: emoji10 for ten classes, else v2_s.",
)
@seed_option
@output_option
@dry_run_option
@json_option
def command(
    space_name: str,
    budget: str,
    table_names: tuple[str, ...],
    max_params: str | None,
    max_macs: str | None,
    max_size: str | None,
    max_memory: str | None,
    risk: str,
    num_candidates: int,
    resolution: int | None,
    num_classes: int | None,
    recipe_name: str | None,
    seed: int,
    output: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Find the best network of SPACE (default: mobilevigv2) under a latency budget, without data or GPU.

    SPACE is a built-in space, a file of your own, or a checkpoint: then the space of its family, around it.

    Example:  vig search --budget 1.0ms
    """
    budget_ms = parse_latency_ms(budget)
    from vigcli.config.recipe import load_recipe
    from vigcli.latency.table import load_table
    from vigcli.paths import find_file
    from vigcli.runs.provenance import provenance, sha256
    from vigcli.runs.rundir import RECIPE_FILE, new_run, write_run_file

    spaces, start, space_file = _spaces(space_name)
    limits = _limits(max_params, max_macs, max_size, max_memory)
    tables = [load_table(name) for name in dict.fromkeys(table_names)]
    recipe_file = find_file("recipe", recipe_name or ("emoji10" if num_classes == 10 else "v2_s"))
    recipe = load_recipe(recipe_file)
    if dry_run:
        size = sum(space.size for space in spaces)
        devices = ", ".join(t.device for t in tables)
        say(f"Would search {space_file} ({size:.2e} networks) under {budget_ms:g} ms on {devices},")
        say(f"price and score {num_candidates:,} networks, and write {output or 'a new run in runs/'}.")
        if as_json:
            emit_json({
                "space": str(space_file), "space_size": size, "budget_ms": budget_ms,
                "devices": [t.device for t in tables], "num_candidates": num_candidates, "recipe": str(recipe_file),
                "seed": seed, "output": output,
            })  # fmt: skip
        return
    from vigcli.search.job import search
    from vigcli.search.report import save

    began = time.monotonic()
    with new_run("search", output) as run:
        with progress() as advance:
            result = search(
                spaces, tables, budget_ms, limits=limits, start=start, risk=RISKS[risk], resolution=resolution,
                num_classes=num_classes, num_candidates=num_candidates, seed=seed, on_progress=advance,
            )  # fmt: skip
        comment = f"Found by `vig {shlex.join(sys.argv[1:])}`; what is not arch is {recipe_file.stem}'s."
        answer = save(result, recipe, comment, run)
        parents = [sha256(space_file), sha256(recipe_file)]
        config = "\n".join(space.model_dump_json() for space in spaces)
        write_run_file(run, provenance(sys.argv, seed, config, parents))
    if as_json:
        emit_json(answer)
        return
    _print(result)
    say(f"Searched in {format_duration(time.monotonic() - began)}; wrote {run}/{RECIPE_FILE}, front.json, front.png.")
    data = " --data PATH" if recipe.data.source == "folder" else ""
    click.echo(f"Next:  vig train {run}/{RECIPE_FILE}{data}")


def _spaces(name: str) -> tuple[list[SearchSpace], ArchConfig | None, Any]:
    """The spaces that a name means, the user's own network where it is a checkpoint, and the file it was read from."""
    from pathlib import Path

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
    from vigcli.search.encoding import Limits

    given = {
        "params": parse_count(params) if params else None,
        "macs": parse_count(macs) if macs else None,
        "size_mb": parse_bytes(size) / 1e6 if size else None,
        "memory_mb": parse_bytes(memory) / 1e6 if memory else None,
    }
    return Limits(**{name: value for name, value in given.items() if value is not None})


def _print(result: SearchResult) -> None:
    from vigcli.search.score import load_score

    known = (
        ("best found", result.best),
        ("second", result.second),
        ("nearest published", result.nearest),
        ("yours", result.start),
    )
    error = load_score().interval(result.best.config.family).points_90
    rows = []
    for label, network in known:
        if network is not None:
            latencies = [
                f"{e.ms:.2f} ({e.low_ms:.2f} to {e.high_ms:.2f}){' *' if e.outside else ''}" for e in network.latencies
            ]
            rows.append((
                label, _named(network), format_count(network.params.inference), format_count(network.macs),
                format_bytes(network.size_bytes), *latencies, f"{network.top1_percent:.1f} ±{error:.1f}",
            ))  # fmt: skip
    config, kind = result.best.config, result.best.latency.kind
    coverage = f"{result.interval.coverage_percent:g} %"
    prices = [f"ms {kind} ({coverage})"] if len(result.tables) == 1 else [f"ms {t.device}" for t in result.tables]
    devices = "; ".join(f"{t.device}, {t.os}, {t.precision}" for t in result.tables)
    table(
        (
            "", "network: depths of each stage x widths", "params", "MACs", "fp16 weights", *prices,
            "top-1 % predicted (90 %)",
        ),
        rows,
        title=f"{devices}; {config.resolution} px, {config.num_classes} classes",
    )  # fmt: skip
    if result.choices:
        chosen = ", ".join(f"{path}={str(value).lower()}" for path, value in result.choices.items())
        click.echo(f"chosen besides: {chosen}")
    _explain(result)


def _explain(result: SearchResult) -> None:
    """What is to be known before the answer is believed."""
    best, nearest = result.best, result.nearest
    for network in (best, nearest):
        if network.latency.outside:
            outside = ", ".join(network.latency.outside)
            say(f"* {network.name}: OUTSIDE the fitted range ({outside}): do not trust its price.")
    for latency_table in result.tables:
        say(f"ms, {latency_table.device}: {latency_table.error_text}. Measure the winner on the device.")
    distillation = "with distillation" if getattr(best.config, "distilled", False) else "without distillation"
    say(f"top-1: what the score expects of 300 epochs of ImageNet-1k {distillation}, not of the data you train on.")
    for effect in best.effects:
        say(f"In it: {effect.points:+.2f} points for {effect.path}={effect.value} ({effect.source}).")
    if result.judged_by_size:
        say(f"The score knows {', '.join(result.judged_by_size)} by parameters and MACs alone: doubt its choice there.")
    if result.kept:
        say(f"Neither sees {', '.join(result.kept)}: kept as published.")
    if result.undecided:
        say(f"Undecided without data: {', '.join(result.undecided)}: kept as published.")
    for label, other in (("second", result.second), ("nearest published", nearest)):
        if other is not None and other.config != best.config and not result.tells_apart(other):
            gap, ms = best.top1_percent - other.top1_percent, best.latency.ms / other.latency.ms - 1
            say(f"Best and {label} cannot be told apart: {gap:+.2f} points and {100 * ms:+.0f} % of latency.")
    if result.apart:
        ms, score, _ = result.apart[-1]
        say(f"Kept apart, shape never trained: the score would go to {score:.1f} % at {ms:.2f} ms there.")
    chance = max((score for _, score in result.random_front), default=None)
    versus = f"the best of as many random ones scores {chance:.1f} %" if chance else "as many random ones found none"
    size = f"{result.space_size:,}" if result.space_size < 1e6 else f"{result.space_size:.1e}"
    say(f"{result.num_evaluated:,} evaluations in a space of {size} networks; {versus}.")
    if not result.beats_random:
        small = "; so small a space both exhaust" if result.space_size < result.num_evaluated else ""
        say(f"The evolution did NOT beat random search here{small}.")


def _named(network: Network) -> str:
    return _shape(network.config) if network.name in ("found", "yours") else network.name


def _shape(config: ArchConfig) -> str:
    """Depths N+M and widths of the stages in short: 2+0/4+3/12+3/4+2 x 24/48/128/224."""
    depths = "/".join(f"{s.local_depth}+{s.global_depth}" for s in config.stage_shapes())
    return f"{depths} x {'/'.join(str(s.width) for s in config.stage_shapes())}"

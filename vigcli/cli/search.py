"""`vig search`: the best network under a latency budget."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
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
from vigcli.cli.output import emit_json, progress, say
from vigcli.cli.resuming import kept_options
from vigcli.cli.search_options import RISKS, Asked, asked_for
from vigcli.cli.search_print import print_answer, print_resolution
from vigcli.cli.stopping import stop_on_signal
from vigcli.errors import Interrupted
from vigcli.runs.rundir import OPTIONS_FILE
from vigcli.units import format_duration

if TYPE_CHECKING:
    from vigcli.search.job import SearchResult
    from vigcli.search.measured import Resolution

PROXIES_ON = 16  # candidates of the front that a proxy looks at


@click.command()
@click.argument("space_name", metavar="[SPACE]", default="mobilevigv2")
@click.option("--budget", metavar="MS", help="Latency with its unit: 1.0ms, 900us.")
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
    "--engine",
    type=click.Choice(("vig", "nsga2", "nni")),
    default="vig",
    show_default=True,
    help="What looks through the space: vig's own evolution, pymoo's NSGA-II, NNI's regularized evolution.",
)
@click.option(
    "--candidates",
    "num_candidates",
    type=Integer(1000, 100_000_000),
    metavar="N",
    help="Networks to price and score; default: 200000, with nni 40000.",
)
@click.option("--exact", is_flag=True, help="Also prove which network has the greatest predicted top-1.")
@click.option("--proxy", type=click.Choice(("zico", "naswot")), help="Score top candidates without training, too.")
@click.option("--measure", is_flag=True, help="Time the top candidates on this machine's CPU, beside the prediction.")
@click.option(
    "--data", metavar="DIR", help="Train the top candidates shortly on these pictures (train/ and val/), or on emoji10."
)
@click.option(
    "--top", type=Integer(1, 64), default=8, show_default=True, metavar="N", help="Of --data: who is trained."
)
@click.option(
    "--epochs", type=Integer(1, 1000), default=4, show_default=True, metavar="N", help="Of --data: for the last ones."
)
@click.option("--images", type=Integer(2, 100_000_000), metavar="N", help="Of --data: pictures an epoch; default 2000.")
@resolution_option
@num_classes_option
@click.option(
    "--recipe",
    "recipe_name",
    metavar="RECIPE",
    help="Recipe for the found network; default: emoji10 for ten classes, else v2_s.",
)
@seed_option
@click.option("--jobs", type=Integer(1, 256), default=1, show_default=True, metavar="N", help="Threads.")
@click.option("--resume", type=click.Path(), metavar="RUN_DIR", help="Go on with a search that was stopped.")
@output_option
@dry_run_option
@json_option
@click.pass_context
def command(
    context: click.Context, resume: str | None, output: str | None, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Find the best network of SPACE (default: mobilevigv2) under a latency budget, without data or GPU.

    SPACE is a built-in space, a file of your own, or a checkpoint: then the space of its family, around it.

    Example:  vig search --budget 1.0ms
    """
    if resume is not None:
        options = kept_options(context, Path(resume), options, "search")
    asked = asked_for(**options)
    if dry_run:
        _plan(asked, output, as_json)
        return
    from vigcli.files import write_json
    from vigcli.runs.provenance import provenance, sha256
    from vigcli.runs.rundir import RECIPE_FILE, new_run, write_run_file
    from vigcli.search.built import build_top
    from vigcli.search.history import HISTORY_FILE
    from vigcli.search.job import search
    from vigcli.search.report import REPORT_FILE, save

    began = time.monotonic()
    config = "\n".join(space.model_dump_json() for space in asked.spaces)
    parents = [sha256(file) for file in asked.files.values()]
    record = provenance(sys.argv, asked.settings.seed, config, parents)
    with contextlib.nullcontext(Path(resume)) if resume is not None else new_run("search", output) as run:
        had_ended = (run / REPORT_FILE).is_file()
        if resume is None:
            write_json(run / OPTIONS_FILE, options)
        try:
            with progress() as advance:
                result = search(
                    asked.spaces, asked.tables, asked.settings, run, resume=resume is not None, on_progress=advance
                )
                result = replace(result, built=build_top(result, options["measure"], advance))
        except KeyboardInterrupt:
            if any(run.rglob(HISTORY_FILE)):
                hint = f"Go on with: vig search --resume {run}"
                raise Interrupted("stopped; the state is saved.", hint) from None
            raise
        comment = f"Found by `vig {shlex.join(sys.argv[1:])}`; what is not arch is {asked.files['recipe'].stem}'s."
        proxies = _proxied(result, options["proxy"], asked.settings.seed) if options["proxy"] else None
        answer = save(result, asked.recipe, comment, run, record, asked.files)
        write_run_file(run, record)
        resolution = _resolved(result, asked, options, run) if options["data"] else None
        if resolution is not None:
            answer["resolution"] = resolution.as_json()
    if as_json:
        emit_json({**answer, "proxy": proxies})
        return
    print_answer(result, proxies)
    if resolution is not None:
        print_resolution(resolution)
    done = "The search had ended; read again" if had_ended else "Searched"
    say(f"{done} in {format_duration(time.monotonic() - began)}; wrote {run}/{RECIPE_FILE} and {REPORT_FILE}.")
    data = " --data PATH" if asked.recipe.data.source == "folder" else ""
    click.echo(f"Next:  vig train {run}/{RECIPE_FILE}{data}")


def _plan(asked: Asked, output: str | None, as_json: bool) -> None:
    size = sum(space.size for space in asked.spaces)
    settings, devices = asked.settings, [table.device for table in asked.tables]
    say(f"Would search {asked.files['space']} ({size:.2e} networks) under {settings.budget_ms:g} ms")
    say(f"on {', '.join(devices)}: price and score {settings.num_candidates:,} networks with {settings.engine},")
    say(f"and write {output or 'a new run in runs/'}.")
    if as_json:
        emit_json({
            "space": str(asked.files["space"]), "space_size": size, "budget_ms": settings.budget_ms,
            "devices": devices, "limits": settings.limits.texts(), "engine": settings.engine,
            "num_candidates": settings.num_candidates, "recipe": str(asked.files["recipe"]), "seed": settings.seed,
            "output": output,
        })  # fmt: skip


def _proxied(result: SearchResult, name: str, seed: int) -> dict[str, Any]:
    """What a proxy says of the networks of the answer and of the top of the front; it orders nothing."""
    from vigcli.search.proxies import note, proxy_scores

    named = dict(result.candidates(PROXIES_ON))
    named.setdefault(result.nearest.name, result.nearest.config)
    start = time.process_time()
    with progress() as advance:
        scores = proxy_scores(name, list(named.values()), seed, advance)
    text = note(name, len(named), time.process_time() - start)
    return {"name": name, "scores": dict(zip(named, scores, strict=True)), "note": text}


def _resolved(result: SearchResult, asked: Asked, options: dict[str, Any], run: Path) -> Resolution:
    """The top candidates trained shortly; the winner takes the place of the predicted best in the recipe."""
    from vigcli.config.recipe import load_recipe
    from vigcli.paths import find_file
    from vigcli.search.contest import RECIPE, contest_of, contestants_of
    from vigcli.search.report import save_recipe
    from vigcli.search.resolve import resolve

    networks = contestants_of(result, asked.spaces, options["top"])
    recipe = load_recipe(find_file("recipe", options["recipe_name"] or RECIPE))
    contest = contest_of(
        networks, result.nearest, recipe, options["data"], epochs=options["epochs"], images=options["images"],
        resolution=options["resolution"], seed=options["seed"],
    )  # fmt: skip
    say(f"{contest.budget_text} About {format_duration(contest.predicted_seconds())} here.")
    with progress() as advance, stop_on_signal() as should_stop:
        resolution = resolve(contest, run, on_progress=advance, should_stop=should_stop)
    if not resolution.finished:
        print_resolution(resolution)
        raise Interrupted("stopped; what was trained so far is kept.", f"Go on: vig search --resume {run}")
    if resolution.winner is not None:
        assert resolution.winner.place is not None
        winner = networks[resolution.winner.place].config
        save_recipe(asked.recipe, winner, f"Of {len(networks)} candidates the best on {options['data']}.", run)
    return resolution

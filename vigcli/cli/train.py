"""`vig train`: a recipe in, a checkpoint out."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import click

from vigcli.cli.options import dry_run_option, json_option, output_option, recipe_set_option
from vigcli.cli.output import emit_json, fields, progress, say, table
from vigcli.cli.stopping import stop_on_signal
from vigcli.errors import Interrupted, UsageError


@click.command()
@click.argument("recipe_name", metavar="[RECIPE]", required=False)
@click.option("--data", "data_root", type=click.Path(), help="Folder with train/ and val/, one folder a class in each.")
@click.option("--teacher-weights", type=click.Path(), help="Weights of the recipe's teacher (.safetensors or .pth).")
@click.option("--resume", type=click.Path(), metavar="RUN_DIR", help="Go on with a run that was stopped.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps, or auto.")
@recipe_set_option
@output_option
@dry_run_option
@json_option
def command(
    recipe_name: str | None,
    data_root: str | None,
    teacher_weights: str | None,
    resume: str | None,
    device: str,
    settings: tuple[str, ...],
    output: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train the network of RECIPE (a file, or a name of `vig ls recipes`).

    Example:  vig train recipes/v2_s.yaml --data /path/to/imagenet
    """
    from vigcli.cli.load import check_memory, picked_device
    from vigcli.config.load import dump
    from vigcli.config.recipe import load_recipe
    from vigcli.files import write_text
    from vigcli.paths import find_file
    from vigcli.runs.rundir import RECIPE_FILE, new_run, write_run_file

    if (recipe_name is None) == (resume is None):
        raise UsageError(
            "either a recipe or a run to resume is needed.", "vig train RECIPE, or vig train --resume RUN."
        )
    if resume is not None and (settings or output):
        raise UsageError("a resumed run keeps its recipe and its folder.", "Start a new run to change them.")
    file = find_file("recipe", recipe_name) if recipe_name is not None else Path(str(resume)) / RECIPE_FILE
    recipe = load_recipe(file, settings)
    # Into the recipe that the run keeps, so that --resume needs neither again.
    if data_root is not None:
        recipe = recipe.changed({"data.source": "folder", "data.root": str(Path(data_root).resolve())})
    if teacher_weights is not None:
        recipe = recipe.changed({"distillation.weights": str(Path(teacher_weights).resolve())})
    if dry_run:
        _plan(recipe, as_json)
        return
    from vigcli.measure.count import count_params
    from vigcli.runs.provenance import provenance, sha256
    from vigcli.train.curves import curves
    from vigcli.train.data import open_data
    from vigcli.train.loop import train
    from vigcli.train.objective import load_teacher

    check_memory(str(file), count_params(recipe.arch_config()).total)
    device = picked_device(device)
    for split in ("train", "val"):
        open_data(recipe.data, split)  # a missing folder or teacher ends here, before a run directory is made
    if recipe.distillation is not None and recipe.distillation.weights is None:
        load_teacher(recipe.distillation, recipe, device)
    record = provenance(sys.argv, recipe.seed, recipe.model_dump_json(), [sha256(file)])
    with contextlib.nullcontext(Path(resume)) if resume is not None else new_run("train", output) as run:
        if resume is None:
            write_text(run / RECIPE_FILE, dump(recipe))
            write_run_file(run, record)
        say(f"Training {_name(recipe)} at {recipe.resolution} px, {recipe.num_classes} classes, on {device}, in {run}.")
        with progress() as advance, stop_on_signal() as should_stop:

            def on_event(event: Any) -> None:
                note = f"epoch {event.epoch + 1}/{recipe.epochs}  loss {event.loss:.3f}"
                advance("step", event.step, event.total_steps, f"{note}  {event.images_per_s:.0f} images/s")
                if event.val_top1_percent is not None and not as_json:
                    top1 = f"val top-1 {event.val_top1_percent:.1f} %"
                    say(f"epoch {event.epoch + 1}: train loss {event.loss:.3f}, {top1}")

            result = train(
                recipe, run, on_event=on_event, should_stop=should_stop, provenance=record, device=device,
                resume=resume is not None,
            )  # fmt: skip
        if not result.finished:
            raise Interrupted(
                f"stopped at step {result.step}; the state is saved.", f"Go on with: vig train --resume {run}"
            )
        curves(result.history, run / "curves.png")
    _report(result, recipe, run, as_json)


def _name(recipe: Any) -> str:
    from vigcli.config.archs import variant_name

    if isinstance(recipe.arch, str):
        return recipe.arch
    return variant_name(recipe.arch_config()) or "the recipe's own network"


def _plan(recipe: Any, as_json: bool) -> None:
    """The resolved job, without touching data or weights where they are not at hand."""
    from vigcli.config.load import dump
    from vigcli.errors import UnavailableError
    from vigcli.measure.profile import profile
    from vigcli.train.data import open_data
    from vigcli.train.schedule import plan

    try:
        num_train, found = len(open_data(recipe.data, "train")), ""
    except UnavailableError as error:
        num_train, found = 1_281_167, f"not at hand ({error}); counted as ImageNet-1k"
    counted = profile(recipe.arch_config())
    steps = plan(recipe, num_train)
    job = {"images": num_train, "data": found or "found", **steps, "params": counted.params.total, "macs": counted.macs}
    if as_json:
        emit_json({"recipe": recipe.model_dump(mode="json"), "plan": job})
        return
    click.echo(dump(recipe))
    fields(
        [
            (key, f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else value)
            for key, value in job.items()
        ]
    )


def _report(result: Any, recipe: Any, run: Path, as_json: bool) -> None:
    last = result.history[-1]
    evaluation = result.evaluation
    low, high = evaluation.interval_percent() if evaluation is not None else (None, None)
    if as_json:
        emit_json({"run": str(run), "checkpoint": str(result.checkpoint), "history": list(result.history)})
        return
    table(
        ("epoch", "train loss", "val top-1 %", "lr", "images/s"),
        [
            (r["epoch"] + 1, f"{r['train_loss']:.3f}", f"{r['val_top1_percent']:.1f}", f"{r['lr']:.1e}",
             f"{r['images_per_s']:.0f}")
            for r in result.history
        ],
    )  # fmt: skip
    if evaluation is not None:
        say(
            f"top-1 {last['val_top1_percent']:.1f} % of {evaluation.num_images} validation pictures, measured "
            f"(95 % interval {low:.1f} to {high:.1f}); last epoch, not the best."
        )
    say(f"Wrote {result.checkpoint}, history.json, curves.png.")
    click.echo("Next:  vig export" if _chooses_links(recipe) else "Next:  vig quantize --int8")


def _chooses_links(recipe: Any) -> bool:
    """Whether links depend on the picture, by a top-k: such a network is not quantized."""
    from vigcli.measure.profile import profile

    return any(op.mark == "topk" for block in profile(recipe.arch_config()).blocks for op in block.trace.ops)

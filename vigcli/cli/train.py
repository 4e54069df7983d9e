"""`vig train`: a recipe in, a checkpoint out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from vigcli.cli.options import Integer, dry_run_option, json_option, output_option, recipe_set_option
from vigcli.cli.output import emit_json, fields, figure, progress, say, table
from vigcli.cli.stopping import stop_on_signal
from vigcli.errors import ConfigError, Interrupted, UnavailableError, UsageError

_REPEATED_WITHIN_S = 5.0  # a launcher repeats a signal that the terminal has sent to all


@click.command()
@click.argument("recipe_name", metavar="[RECIPE]", required=False)
@click.option(
    "--data",
    "data_root",
    type=click.Path(),
    help="Where train and val are: class folders, zips, tars, ..., or emoji10.",
)
@click.option("--teacher-weights", type=click.Path(), help="Weights of the recipe's teacher (.safetensors or .pth).")
@click.option("--resume", type=click.Path(), metavar="RUN_DIR", help="Go on with a run that was stopped.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps, or auto.")
@click.option("--nproc", type=Integer(1, 64), default=1, metavar="N", help="Processes that train together, one a GPU.")
@click.option("--tensorboard", is_flag=True, help="Also write what `tensorboard --logdir RUN` shows.")
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
    nproc: int,
    tensorboard: bool,
    settings: tuple[str, ...],
    output: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train the network of RECIPE (a file, or a name of `vig ls recipes`).

    Example:  vig train recipes/v2_s.yaml --data /path/to/imagenet

    On several machines, the same under torchrun:  torchrun ... -m vigcli train RECIPE
    """
    from vigcli.cli.launch import place, run_processes
    from vigcli.cli.load import checkpoint_settings, data_changes
    from vigcli.config.recipe import load_recipe
    from vigcli.paths import find_file
    from vigcli.runs.rundir import RECIPE_FILE

    if (recipe_name is None) == (resume is None):
        raise UsageError(
            "either a recipe or a run to resume is needed.", "vig train RECIPE, or vig train --resume RUN."
        )
    if resume is not None and (settings or output):
        raise UsageError("a resumed run keeps its recipe and its folder.", "Start a new run to change them.")
    file = find_file("recipe", recipe_name) if recipe_name is not None else Path(str(resume)) / RECIPE_FILE
    if resume is not None and not file.is_file():
        raise ConfigError(f"{resume}: is no folder of a training run.", "Name one, such as runs/0002-train.")
    recipe = load_recipe(file, checkpoint_settings(settings))
    # Into the recipe that the run keeps, so that --resume needs neither again.
    if data_root is not None:
        recipe = recipe.changed(data_changes(data_root))
    if teacher_weights is not None:
        recipe = recipe.changed({"distillation.weights": str(Path(teacher_weights).resolve())})
    if dry_run:
        _plan(recipe, as_json)
        return
    here = place()
    size = max(nproc, here.size)
    device = _own_device(device, nproc, here)
    _check(recipe, str(file), size, resume is not None)
    if nproc > 1 and here.size == 1:
        if code := run_processes(nproc, sys.argv[1:]):
            raise click.exceptions.Exit(code)
        return
    _train(recipe, file, resume, output, device, tensorboard, as_json)


def _own_device(device: str, nproc: int, here: Any) -> str:
    """This process's device: of several on a machine each has a GPU of its own."""
    from vigcli.cli.load import picked_device

    device = picked_device(device)
    if max(nproc, here.size) == 1 or device == "cpu":
        return device
    if device != "cuda":
        what = f"--device {device}: several processes train on cpu, or on cuda with a GPU for each."
        raise UnavailableError(what, "--device cpu, or leave --nproc out.")
    import torch

    wanted, there = max(nproc, here.local_rank + 1), torch.cuda.device_count()
    if wanted > there:
        what = f"{wanted} processes want a GPU each, and this machine has {there}."
        raise UnavailableError(what, f"--nproc {there}, or --device cpu.")
    return f"cuda:{here.local_rank}"


def _check(recipe: Any, name: str, size: int, resume: bool) -> None:
    """Complains of all that can be known before a run directory is made."""
    from vigcli.cli.load import check_memory
    from vigcli.measure.count import count_params
    from vigcli.train.check import check
    from vigcli.train.data import check_classes, num_workers, open_data
    from vigcli.train.objective import load_teacher
    from vigcli.train.sampler import Sampler
    from vigcli.train.start import check_weights

    check_memory(name, count_params(recipe.arch_config()).total)
    num_workers(recipe.data, size)
    pictures, val = (open_data(recipe.data, split) for split in ("train", "val"))
    check_classes(pictures, recipe.num_classes)
    check_classes(val, recipe.num_classes, pictures.labels)
    check(recipe, Sampler(recipe, len(pictures), recipe.accumulate * size).total_steps)
    if recipe.distillation is not None:
        load_teacher(recipe, pictures.labels, "cpu")
    if not resume and recipe.weights is not None:
        if not Path(recipe.weights).is_file():
            raise UnavailableError(f"{recipe.weights}: no such file of weights.", "Check the recipe's weights.")
        check_weights(recipe.weights, recipe.arch_config())


def _train(
    recipe: Any, file: Path, resume: str | None, output: str | None, device: str, tensorboard: bool, as_json: bool
) -> None:
    """This process's part of the training."""
    from vigcli.cli.launch import place
    from vigcli.runs.provenance import provenance, sha256
    from vigcli.train.distributed import joined
    from vigcli.train.loop import train

    rank, size, _ = place()
    record = provenance(sys.argv, recipe.seed, recipe.model_dump_json(), [sha256(file)])
    with (
        stop_on_signal(_REPEATED_WITHIN_S if size > 1 else 0.0, quiet=rank > 0) as should_stop,
        joined(rank, size, device) as world,
        _run_folder(world, recipe, record, resume, output) as run,
        progress() as advance,
    ):
        watch = _watcher(recipe, run, advance, as_json, tensorboard) if world.leads else _nothing
        if world.leads:
            processes = f", {size} processes" if size > 1 else ""
            what = f"Training {_name(recipe)} at {recipe.resolution} px, {recipe.num_classes} classes"
            say(f"{what}, on {device}{processes}, in {run}.")
        result = train(
            recipe, run, on_event=watch, on_notice=say, should_stop=should_stop, provenance=record, device=device,
            world=world, resume=resume is not None,
        )  # fmt: skip
        if not result.finished:
            again = f"vig train --resume {run}{f' --nproc {size}' if size > 1 else ''}"
            raise Interrupted(f"stopped at step {result.step}; the state is saved.", f"Go on with: {again}")
        if world.leads:
            _draw(result, run)
    if rank == 0:
        _report(result, recipe, run, as_json)


@contextlib.contextmanager
def _run_folder(world: Any, recipe: Any, record: Any, resume: str | None, output: str | None) -> Iterator[Path]:
    """The leader makes it, the others are told."""
    from vigcli.config.load import dump
    from vigcli.files import write_text
    from vigcli.runs.rundir import RECIPE_FILE, new_run, write_run_file

    if resume is not None:
        yield Path(resume)
    elif not world.leads:
        yield Path(world.from_leader(""))
    else:
        with new_run("train", output) as run:
            write_text(run / RECIPE_FILE, dump(recipe))
            write_run_file(run, record)
            yield Path(world.from_leader(str(run)))


def _watcher(recipe: Any, run: Path, advance: Any, as_json: bool, tensorboard: bool) -> Callable[[Any], None]:
    """What shows the events of a run."""
    from vigcli.train.log import TensorBoard

    board = TensorBoard(run) if tensorboard else None

    def watch(event: Any) -> None:
        note = f"epoch {event.epoch + 1}/{recipe.epochs}  loss {event.loss:.3f}"
        advance("step", event.step, event.total_steps, f"{note}  {event.images_per_s:.0f} images/s")
        if board is not None:
            board.write(event)
        if event.val_top1_percent is not None and not as_json:
            top1 = f"val top-1 {event.val_top1_percent:.1f} %"
            say(f"epoch {event.epoch + 1}: train loss {event.loss:.3f}, {top1}")

    return watch


def _nothing(event: Any) -> None:
    pass


def _draw(result: Any, run: Path) -> None:
    from vigcli.train.curves import confusion, curves

    curves(result.history, run / "curves.png")
    if result.evaluation is not None:
        confusion(result.evaluation, result.labels, run / "confusion.png")


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
    fields([(key, figure(value)) for key, value in job.items()])


def _report(result: Any, recipe: Any, run: Path, as_json: bool) -> None:
    last = result.history[-1]
    evaluation = result.evaluation
    low, high = evaluation.interval_percent() if evaluation is not None else (None, None)
    if as_json:
        emit_json({"run": str(run), "checkpoint": str(result.checkpoint), "history": list(result.history),
                   "damaged": list(result.damaged)})  # fmt: skip
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
    if result.damaged:
        say(f"{len(result.damaged)} damaged pictures were left out: {', '.join(result.damaged)}.")
    say(f"Wrote {result.checkpoint}, history.json, log.jsonl, curves.png, confusion.png.")
    is_found = result.checkpoint.parent.parent == Path("runs")  # by commands that name none
    click.echo(f"Next:  vig quantize {'' if is_found else f'{result.checkpoint} '}--int8")

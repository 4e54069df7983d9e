"""`vig prune`: a network brought under a budget by removing channels, and what that cost in accuracy."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vigcli.cli.options import Integer, dry_run_option, json_option, output_option, recipe_set_option, table_option
from vigcli.cli.output import emit_json, progress, say
from vigcli.cli.prune_options import CRITERIA, Asked, asked_for
from vigcli.cli.resuming import kept_options
from vigcli.cli.stopping import stop_on_signal
from vigcli.errors import Interrupted, UnavailableError
from vigcli.runs.rundir import OPTIONS_FILE

if TYPE_CHECKING:
    from vigcli.compress.analyze import Sensitivity
    from vigcli.train.evaluate import Evaluation

ANALYZED_IMAGES = 2048  # of the validation pictures, evenly spread: every group asks for three rounds of them
REPORT_FILE, SENSITIVITY_FILE, PICTURE_FILE = "prune.json", "sensitivity.json", "sensitivity.png"


@click.command()
@click.argument("checkpoint_name", metavar="[CHECKPOINT]", required=False)
@click.option("--budget", metavar="MS", help="Latency with its unit: 0.8ms, 900us.")
@click.option("--macs", metavar="SHARE", type=float, help="Of the network's MACs, that may stay: 0.5.")
@click.option("--params", metavar="SHARE", type=float, help="Of the network's deployed parameters: 0.5.")
@table_option
@click.option(
    "--criterion",
    type=click.Choice(CRITERIA),
    help="What tells how important a channel is; default: taylor, without pictures magnitude.",
)
@click.option("--analyze", is_flag=True, help="Prune nothing: measure accuracy against ratio, group by group.")
@click.option("--recipe", "recipe_name", metavar="RECIPE", help="Fine-tune by this recipe; default: no fine-tuning.")
@recipe_set_option
@click.option(
    "--steps",
    type=Integer(1, 100),
    default=1,
    show_default=True,
    metavar="N",
    help="Prune in so many steps, with fine-tuning after each.",
)
@click.option(
    "--data", "data_root", type=click.Path(), help="Where train and val are, or emoji10; default: the checkpoint's."
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps, or auto.")
@click.option("--resume", type=click.Path(), metavar="RUN_DIR", help="Go on with a pruning that was stopped.")
@output_option
@dry_run_option
@json_option
@click.pass_context
def command(
    context: click.Context, resume: str | None, output: str | None, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Remove channels of CHECKPOINT (default: the newest) until it meets a budget: where they cost most and do least.

    With --recipe the smaller network is fine-tuned, taught by the one that it was.

    Example:  vig prune runs/0001-train --budget 0.8ms --recipe emoji10
    """
    if resume is not None:
        options = kept_options(context, Path(resume), options, "prune")
        if (Path(resume) / REPORT_FILE).is_file():
            say(f"It had ended; what it found is in {Path(resume) / REPORT_FILE}.")
            return
    asked = asked_for(**options)
    if options["analyze"]:
        _analyze(asked, output, dry_run, as_json)
    elif asked.cost.of(asked.before) <= (asked.limit or 0):
        _already(asked, as_json)
    elif dry_run:
        _plan(asked, as_json)
    else:
        options["checkpoint_name"] = str(asked.path.resolve())  # when it is resumed, the newest may be another one
        _prune(asked, options, resume, output, as_json)


def _already(asked: Asked, as_json: bool) -> None:
    assert asked.limit is not None
    whole = asked.cost.of(asked.before)
    say(f"It has {asked.cost.text(whole)}, and {asked.cost.text(asked.limit)} are allowed: nothing was pruned.")
    if asked.recipe is not None:
        say(f"Nor was it trained. It is with {_fine_tuning(asked.path)}")
    if as_json:
        emit_json({"checkpoint": str(asked.path), "already_within": True, "cost": whole, "limit": asked.limit})


def _plan(asked: Asked, as_json: bool) -> None:
    """What one step would remove."""
    from vigcli.cli.prune_print import figures, print_figures, print_groups
    from vigcli.compress.prune import plan
    from vigcli.measure.profile import profile

    assert asked.limit is not None
    with progress() as advance:
        found = plan(asked.checkpoint, asked.request, asked.limit, advance)
    answer = figures(asked, profile(found.pruner.config(found.allocation.kept))) | {"groups": found.groups}
    if as_json:
        emit_json(answer)
        return
    print_figures(asked, answer)
    print_groups(answer["groups"])
    say("Nothing was written.")


def _prune(asked: Asked, options: dict[str, Any], resume: str | None, output: str | None, as_json: bool) -> None:
    from vigcli.cli.prune_print import accuracy, print_figures, print_groups
    from vigcli.compress.prune import prune
    from vigcli.files import write_json
    from vigcli.runs.provenance import provenance, sha256
    from vigcli.runs.rundir import new_run, write_run_file

    digest, meta = sha256(asked.path), asked.checkpoint.meta
    record = provenance(sys.argv, asked.recipe.seed if asked.recipe else 0, meta.arch.model_dump_json(), [digest])
    record |= {"imported": meta.provenance["imported"]} if "imported" in meta.provenance else {}
    with (
        contextlib.nullcontext(Path(resume)) if resume is not None else new_run("prune", output) as run,
        stop_on_signal() if asked.recipe is not None else contextlib.nullcontext(lambda: False) as should_stop,
        progress() as advance,
    ):
        if resume is None:
            write_json(run / OPTIONS_FILE, options)
            write_run_file(run, record)
        path = prune(
            asked.path, asked.request, run, record, digest, on_progress=advance, on_event=_watcher(asked, advance),
            should_stop=should_stop, device=asked.device,
        )  # fmt: skip
        if path is None:
            raise Interrupted("stopped; the state is saved.", f"Go on with: vig prune --resume {run}")
        answer, pruned = _costs(asked, path)
        measured = _measured(asked, pruned, advance)
        answer |= accuracy(measured)
        write_json(run / REPORT_FILE, answer)
    if as_json:
        emit_json(answer)
        return
    print_figures(asked, answer, measured)
    print_groups(answer["groups"])
    say(f"Wrote {path} and {REPORT_FILE}.")
    if asked.recipe is None:
        click.echo(f"Next:  {_fine_tuning(path)}")
    else:
        click.echo(f"Next:  vig quantize {path} --int8")


def _fine_tuning(path: Path) -> str:
    return f"vig train RECIPE --set arch={path} --set weights={path}"


def _costs(asked: Asked, path: Path) -> tuple[dict[str, Any], Any]:
    """What the pruned network of a checkpoint costs beside the whole one, and itself."""
    from vigcli.archs.checkpoint import load_checkpoint
    from vigcli.cli.prune_print import figures
    from vigcli.compress.prune import RECORD
    from vigcli.measure.profile import profile

    model, meta = load_checkpoint(path)
    answer = {"checkpoint": str(path), "parent": str(asked.path), **figures(asked, profile(meta.arch))}
    return answer | {"groups": meta.provenance[RECORD]}, model


def _watcher(asked: Asked, advance: Any) -> Callable[[int, Any], None]:
    """What shows the fine-tuning."""

    def watch(step: int, event: Any) -> None:
        assert asked.recipe is not None
        epoch, speed = f"epoch {event.epoch + 1}/{asked.recipe.epochs}", f"{event.images_per_s:.0f} images/s"
        what = f"fine-tuning {step} of {asked.steps}: step"
        advance(what, event.step, event.total_steps, f"{epoch}  loss {event.loss:.3f}  {speed}")
        if event.val_top1_percent is not None:
            say(f"fine-tuning {step} of {asked.steps}, epoch {event.epoch + 1}: top-1 {event.val_top1_percent:.1f} %")

    return watch


def _pictures(asked: Asked, limit: int | None = None) -> Iterable[tuple[Any, Any]]:
    """Validation pictures as the network takes them."""
    from vigcli.train.data import eval_batches, open_data

    assert asked.data is not None
    meta = asked.checkpoint.meta
    return eval_batches(open_data(asked.data, "val"), meta.preprocessing, meta.arch.resolution, limit=limit)


def _evaluated(
    asked: Asked, model: Any, batches: Iterable[tuple[Any, Any]], on_images: Callable[[int], None] = lambda done: None
) -> Evaluation:
    """A network on pictures."""
    from vigcli.train.evaluate import evaluate, normalized

    return evaluate(normalized(model.to(asked.device), asked.checkpoint.meta.preprocessing), batches, on_images)


def _measured(asked: Asked, pruned: Any, advance: Any) -> tuple[Evaluation, Evaluation] | None:
    """The network before and after, on the validation pictures where they are at hand."""
    if asked.data is None:
        return None
    from vigcli.train.data import open_data

    total = len(open_data(asked.data, "val"))

    def of(what: str, model: Any) -> Evaluation:
        return _evaluated(asked, model, _pictures(asked), lambda done: advance(f"{what}: images", done, total))

    return of("before", asked.checkpoint.model), of("after", pruned)


# ---------------------------------------------------------------------------------------------------- analysis


def _analyze(asked: Asked, output: str | None, dry_run: bool, as_json: bool) -> None:
    """Every group cut by itself."""
    if asked.data is None:
        raise UnavailableError("--analyze measures accuracy, and has no pictures.", "Pass --data FOLDER.")
    from vigcli.cli.prune_print import print_sensitivity
    from vigcli.compress.analyze import draw
    from vigcli.compress.groups import Pruner
    from vigcli.files import write_json
    from vigcli.runs.provenance import provenance, sha256
    from vigcli.runs.rundir import new_run, write_run_file

    meta = asked.checkpoint.meta
    pruner = Pruner(asked.checkpoint.model, meta.arch)
    if dry_run:
        say(f"Would cut {len(pruner.groups)} groups of channels, each at three ratios, and measure top-1 each time.")
        if as_json:
            emit_json({"checkpoint": str(asked.path), "num_groups": len(pruner.groups)})
        return
    with new_run("analyze", output) as run:
        found, whole = _sensitivity(asked, pruner)
        draw(found, whole.top1_percent, asked.criterion, run / PICTURE_FILE)
        answer = {
            "checkpoint": str(asked.path),
            "num_images": whole.num_images,
            "top1_percent": whole.top1_percent,
            "latency_ms": asked.cost.of(asked.before),
            "criterion": asked.criterion,
            "groups": [{**one._asdict(), "cuts": [cut and cut._asdict() for cut in one.cuts]} for one in found],
        }
        write_json(run / SENSITIVITY_FILE, answer)
        write_run_file(run, provenance(sys.argv, 0, meta.arch.model_dump_json(), [sha256(asked.path)]))
    if as_json:
        emit_json(answer)
        return
    print_sensitivity(asked, found, whole)
    say(f"Wrote {run / SENSITIVITY_FILE} and {PICTURE_FILE}.")
    click.echo(f"Next:  vig prune {asked.path} --budget MS")


def _sensitivity(asked: Asked, pruner: Any) -> tuple[list[Sensitivity], Evaluation]:
    """What every group's cuts leave, and the whole network on the same pictures."""
    from vigcli.compress.analyze import analyze
    from vigcli.compress.prune import scored

    pictures = list(_pictures(asked, ANALYZED_IMAGES))
    importance = scored(pruner, asked.checkpoint, asked.criterion, asked.data)

    def top1_percent(model: Any) -> float:
        return _evaluated(asked, model, pictures).top1_percent

    with progress() as advance:
        found = analyze(pruner, importance, asked.cost, asked.cost.of(asked.before), top1_percent, advance)
    return found, _evaluated(asked, asked.checkpoint.model, pictures)

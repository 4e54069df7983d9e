"""`vig eval`: top-1 and top-5 of packages, ONNX files and checkpoints, alone or side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vigcli.cli.options import Integer, json_option
from vigcli.cli.output import Progress, emit_json, progress, say, table
from vigcli.cli.subject import check_weights, open_subject, subject_options

if TYPE_CHECKING:
    from vigcli.coreml.runtime import Runner
    from vigcli.train.data import Pictures
    from vigcli.train.evaluate import Evaluation

TOP = 5
CLASSES, PAIRS = 20, 10  # rows to print; --json has all


class Measured(NamedTuple):
    """A subject and how it did.

    Attributes:
        classes: names; those of the pictures come first, in their order.
    """

    runner: Runner
    classes: tuple[str, ...]
    evaluation: Evaluation


@click.command()
@click.argument("subjects", nargs=-1)
@click.option(
    "--data", "data_root", type=click.Path(), help="Where val is: class folders, a zip, a tar, ...; default: emoji10."
)
@click.option("--limit", type=Integer(1), metavar="N", help="So many pictures, evenly spread; default: all.")
@subject_options
@json_option
def command(
    subjects: tuple[str, ...],
    data_root: str | None,
    limit: int | None,
    runtime: str,
    device: str,
    weights: str | None,
    as_json: bool,
) -> None:
    """Measure the top-1 and top-5 of SUBJECTS (default: the newest of runs/) on the pictures of val/.

    A SUBJECT is a CoreML package, an ONNX file of `vig export`, a checkpoint, a run directory or timm:NAME. Several are
    compared on the same pictures: how often they agree, and the difference to the first with its interval.

    Example:  vig eval runs/0001-train runs/0002-quantize/int8.mlpackage
    """
    from vigcli.config.recipe import Data
    from vigcli.train.data import num_workers, open_data
    from vigcli.train.evaluate import class_order

    check_weights(subjects, weights)
    data = Data(source="emoji10", workers=0) if data_root in (None, "emoji10") else Data(root=data_root)
    val = open_data(data, "val")
    runners = [open_subject(name, runtime, device, weights) for name in subjects or (None,)]
    orders = [class_order(val.name, val.labels, runner.labels, runner.num_classes) for runner in runners]
    with progress() as advance:
        measured = [
            _measured(runner, order, val, limit, num_workers(data), advance)
            for runner, order in zip(runners, orders, strict=True)
        ]
    if as_json:
        emit_json({"data": val.name, "num_images": measured[0].evaluation.num_images,
                   "subjects": [_record(m, measured[0]) for m in measured]})  # fmt: skip
        return
    _print_totals(measured, val)
    click.echo()
    _print_classes(measured, val.labels)
    if len(measured) == 1:
        _print_confusions(measured[0])


def _measured(
    runner: Runner, order: list[int], val: Pictures, limit: int | None, workers: int, advance: Progress
) -> Measured:
    """A subject run over the pictures, whose classes are its own in that order."""
    from vigcli.train.data import eval_batches
    from vigcli.train.evaluate import evaluate

    total = min(limit or len(val), len(val))
    say(f"Taking {runner.name} on {total:,} pictures of {val.name}: {runner.preparation}.")
    say(f"ran by: {runner.ran_by}")
    if not runner.labels:
        say("Its classes have no names: taken in the order of the folders' names.")
    advance(f"{runner.name}: images", 0, total)
    batches = eval_batches(
        val, runner.preprocessing, runner.resolution, batch_size=runner.batch_size, workers=workers, limit=limit
    )
    evaluation = evaluate(
        lambda pixels: runner(pixels)[:, order], batches, lambda done: advance(f"{runner.name}: images", done, total)
    )
    names = runner.labels or val.labels
    return Measured(runner, tuple(names[place] for place in order), evaluation)


def _print_totals(measured: Sequence[Measured], val: Pictures) -> None:
    first = measured[0]
    columns = ["", "top-1 % (95 %)", f"top-{TOP} % (95 %)", "images/s"]
    if len(measured) > 1:
        columns += ["agreement %", "points against the first (95 %)"]
    rows = []
    for m in measured:
        row = [m.runner.name, _share(m.evaluation, 1), _share(m.evaluation, TOP), f"{m.evaluation.images_per_s:.1f}"]
        if len(measured) > 1:
            agreement, gap = _versus(m, first)
            row += [f"{agreement:.1f}", "" if m is first else f"{gap.points:+.1f} ({gap.low:+.1f} to {gap.high:+.1f})"]
        rows.append(row)
    table(columns, rows, title=f"{first.evaluation.num_images:,} pictures of {val.name}, measured")
    say("images/s: of the prediction alone, on this machine; no phone's.")


def _print_classes(measured: Sequence[Measured], labels: Sequence[str]) -> None:
    """Top-1 by class, the worst of the first subject first."""
    by_class = [m.evaluation.by_class() for m in measured]
    worst = sorted(by_class[0], key=lambda c: (by_class[0][c].mean(), c))
    rows = [
        (labels[c], len(by_class[0][c]), *(_interval(int(found[c].sum()), len(found[c])) for found in by_class))
        for c in worst[:CLASSES]
    ]
    heads = ["top-1 % (95 %)"] if len(measured) == 1 else [m.runner.name for m in measured]
    more = f", the {CLASSES} worst of {len(worst)}" if len(worst) > CLASSES else ""
    table(("class", "pictures", *heads), rows, title=f"top-1 % (95 %) by class{more}")


def _print_confusions(measured: Measured) -> None:
    pairs = measured.evaluation.confusions()
    if pairs:
        click.echo()
        names = measured.classes
        rows = [(names[c], names[taken], count) for c, taken, count in pairs[:PAIRS]]
        table(("class", "taken for", "pictures"), rows, title="Most often confused")


def _share(evaluation: Evaluation, top: int) -> str:
    return _interval(evaluation.num_correct(top), evaluation.num_images)


def _interval(num_correct: int, num_images: int) -> str:
    from vigcli.train.intervals import wilson_percent

    low, high = wilson_percent(num_correct, num_images)
    return f"{100 * num_correct / num_images:.1f} ({low:.1f} to {high:.1f})"


def _versus(m: Measured, first: Measured) -> tuple[float, Any]:
    """How often a subject answers as the first does, and the difference of their top-1."""
    from vigcli.train.intervals import paired_difference

    same = [m.classes[a] == first.classes[b] for a, b in zip(
        m.evaluation.predictions.tolist(), first.evaluation.predictions.tolist(), strict=True)]  # fmt: skip
    return 100 * sum(same) / len(same), paired_difference(m.evaluation.right, first.evaluation.right)


def _record(m: Measured, first: Measured) -> dict[str, Any]:
    from vigcli.train.intervals import wilson_percent

    evaluation, names = m.evaluation, m.classes
    agreement, gap = _versus(m, first)
    classes = [
        {"label": names[c], "num_images": len(right), "top1_percent": round(100 * float(right.mean()), 2),
         "top1_interval_95": _rounded(wilson_percent(int(right.sum()), len(right)))}
        for c, right in evaluation.by_class().items()
    ]  # fmt: skip
    record = {
        "subject": m.runner.name,
        "ran_by": m.runner.ran_by,
        "preprocessing": m.runner.preprocessing.model_dump(mode="json"),
        "preprocessing_is_a_guess": m.runner.is_guess,
        "top1_percent": round(evaluation.top1_percent, 2),
        "top1_interval_95": _rounded(evaluation.interval_percent()),
        "top5_percent": round(evaluation.top_percent(TOP), 2),
        "top5_interval_95": _rounded(evaluation.interval_percent(TOP)),
        "images_per_s": round(evaluation.images_per_s, 2),
        "classes": classes,
        "confusions": [[names[c], names[taken], count] for c, taken, count in evaluation.confusions()],
    }
    if m is not first:
        record |= {"agreement_percent": round(agreement, 2), "difference_points_95": _rounded(gap)}
    return record


def _rounded(figures: Sequence[float]) -> list[float]:
    return [round(figure, 2) for figure in figures]

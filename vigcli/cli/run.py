"""`vig run`: what a package, an ONNX file or a checkpoint sees in pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vigcli.cli.options import Integer, json_option
from vigcli.cli.output import emit_json, progress, say, table
from vigcli.cli.subject import check_weights, is_subject, open_subject, subject_options
from vigcli.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from vigcli.coreml.runtime import Runner


@click.command()
@click.argument("names", metavar="[SUBJECT] PICTURE...", nargs=-1, required=True)
@click.option("--top", type=Integer(1), default=5, show_default=True, metavar="N", help="Classes to print, at most.")
@subject_options
@json_option
def command(names: tuple[str, ...], top: int, runtime: str, device: str, weights: str | None, as_json: bool) -> None:
    """Run a package on pictures, or on folders of them, and print the likeliest classes.

    SUBJECT is a CoreML package, an ONNX file of `vig export`, a checkpoint, a run directory or timm:NAME; default: the
    newest of runs/. A picture is turned as its EXIF orientation says and prepared as the package says.

    Example:  vig run runs/0003-export/fp16.mlpackage cat.jpg
    """
    from vigcli.train.pictures import picture_files

    subject = names[0] if is_subject(names[0]) else None
    check_weights(names[:1], weights)
    if len(names) == 1 and subject is not None:
        raise UsageError(f"no picture to run {subject} on is named.", f"vig run {subject} PICTURE...")
    if subject is None:
        _check_picture(Path(names[0]))
    files = picture_files(names[subject is not None :])
    runner = open_subject(subject, runtime, device, weights)
    say(f"Taking {runner.name} on {len(files):,} picture{'s' * (len(files) > 1)}: {runner.preparation}.")
    say(f"ran by: {runner.ran_by}")
    records, unreadable = [], []
    with progress() as advance:
        advance("pictures", 0, len(files))
        for done, (file, found) in enumerate(_answers(runner, files, top), 1):
            advance("pictures", done, len(files))
            if isinstance(found, ConfigError):
                unreadable.append(found)
            else:
                records.append({"picture": str(file), "top": found})
    if as_json:
        emit_json({"subject": runner.name, "ran_by": runner.ran_by, "preprocessing_is_a_guess": runner.is_guess,
                   "pictures": records})  # fmt: skip
    elif records:
        rows = [(r["picture"], c["label"], f"{c[runner.number]:.4f}") for r in records for c in r["top"]]
        table(("picture", "class", runner.number), rows)
    if len(files) == 1 and unreadable:
        raise unreadable[0]
    if unreadable:
        for error in unreadable:
            say(str(error))
        raise ConfigError(f"{len(unreadable)} of {len(files)} pictures cannot be read.", unreadable[0].hint)


def _check_picture(path: Path) -> None:
    """Raise UsageError for the first name where it can be neither what is run nor a picture, as of a typing error."""
    from vigcli.train.pictures import is_picture, read_picture

    if path.is_dir() or is_picture(path.name) or path.suffix.lower() in (".heic", ".heif"):
        return
    try:
        read_picture(path, str(path))
    except ConfigError:
        what = "is neither a picture nor" if path.exists() else "does not exist: it is no picture, and not"
        hint = "First what to run, a .mlpackage, .onnx or .safetensors, then pictures; or pictures alone."
        raise UsageError(f"{path}: {what} what could be run on one.", hint) from None


def _answers(runner: Runner, files: Sequence[Path], top: int) -> Iterator[tuple[Path, Any]]:
    """The likeliest classes of every picture in turn, or the error of one that cannot be read."""
    import torch

    from vigcli.train.evaluate import scores_of
    from vigcli.train.pictures import read_picture
    from vigcli.train.preprocess import eval_transform

    transform = eval_transform(runner.preprocessing, runner.resolution)

    def pixels_of(file: Path) -> Any:
        try:
            return transform(read_picture(file, str(file)))
        except ConfigError as error:
            return error

    for start in range(0, len(files), runner.batch_size):
        some = files[start : start + runner.batch_size]
        given = [pixels_of(file) for file in some]
        whole = [pixels for pixels in given if not isinstance(pixels, ConfigError)]
        found = iter(_top(runner, scores_of(runner, torch.stack(whole)), top)) if whole else iter(())
        for file, pixels in zip(some, given, strict=True):
            yield file, pixels if isinstance(pixels, ConfigError) else next(found)


def _top(runner: Runner, scores: Tensor, top: int) -> list[list[dict[str, Any]]]:
    """For every picture its classes, the likeliest first."""
    values = scores.softmax(1) if runner.scores == "logits" else scores
    best = values.sort(dim=1, descending=True, stable=True)
    return [
        [
            {"class": place, "label": runner.class_names[place], runner.number: value}
            for value, place in zip(row_values[:top], row_places[:top], strict=True)
        ]
        for row_values, row_places in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]

"""What `vig quantize` does besides compressing: `--qat` trains first, `--max-drop` chooses what stays in fp16."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigcli.cli.output import Progress, say
from vigcli.cli.stopping import stop_on_signal
from vigcli.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from vigcli.archs.checkpoint import Checkpoint
    from vigcli.cli.quantize import Job
    from vigcli.compress.calibrate import Ranges
    from vigcli.compress.quantize import Source
    from vigcli.config.compression import Compression
    from vigcli.config.recipe import Recipe

GIVEN = {"arch": "the network", "resolution": "the resolution", "num_classes": "the number of classes",
         "data": "what it learns from", "weights": "where it starts"}  # fmt: skip
DECIDING_PICTURES = 512  # of training, on which --max-drop is held


def qat_recipe_of(job: Job, name: str | None, settings: tuple[str, ...]) -> Recipe:
    """What --qat trains by: a recipe's steps with the checkpoint's network and pictures."""
    from vigcli.compress.qat import QAT_RECIPE, qat_recipe
    from vigcli.config.recipe import load_recipe
    from vigcli.paths import builtin_folder, find_file

    for setting in settings:
        part = re.split(r"[.=\[]", setting.strip(), maxsplit=1)[0]
        if part in GIVEN:
            raise UsageError(
                f"--set {setting}: {GIVEN[part]} is the checkpoint's.", "Leave it out; train another with vig train."
            )
    file = find_file("recipe", name) if name else builtin_folder("recipe") / QAT_RECIPE
    return qat_recipe(load_recipe(file, settings), job.path, job.checkpoint.meta, job.data)


def trained(
    job: Job, source: Source, pixels: Tensor, run: Path, device: str, record: dict[str, Any], advance: Progress
) -> Path:
    """The checkpoint that --qat makes, in the run. Raises Interrupted where the user stopped it."""
    from vigcli.compress.qat import calibrated_roundings, train_quantized
    from vigcli.config.load import dump
    from vigcli.files import write_text
    from vigcli.runs.rundir import RECIPE_FILE
    from vigcli.train.state import STATE_FILE

    recipe = job.recipe
    assert recipe is not None
    roundings = calibrated_roundings(job.checkpoint, source, job.compression, pixels, None, advance)
    write_text(run / RECIPE_FILE, dump(recipe))
    resume = (run / STATE_FILE).is_file()
    say(f"Training in the package's place, on {device}; epochs: {recipe.epochs}.")

    def watch(event: Any) -> None:
        advance("step", event.step, event.total_steps, f"loss {event.loss:.4f}  {event.images_per_s:.0f} images/s")
        if event.val_top1_percent is not None:
            say(f"epoch {event.epoch + 1}: loss {event.loss:.4f}, val top-1 {event.val_top1_percent:.1f} %, rounded")

    with stop_on_signal() as should_stop:
        result = train_quantized(
            recipe, roundings, run, record, on_event=watch, on_notice=say, should_stop=should_stop, device=device,
            resume=resume,
        )  # fmt: skip
    if not result.finished or result.checkpoint is None:
        raise Interrupted(f"stopped at step {result.step} of the training.", f"Go on with: vig quantize --resume {run}")
    return result.checkpoint


def settled(
    job: Job, checkpoint: Checkpoint, source: Source, pixels: Tensor, advance: Progress
) -> tuple[Compression, Ranges | None]:
    """The compression with what stays in fp16, and its ranges where they are known already."""
    from vigcli.compress.qat import trained_ranges
    from vigcli.compress.sensitivity import mixed
    from vigcli.train.data import load_split

    compression, meta = job.shipped, checkpoint.meta
    ranges = trained_ranges(meta, source) if compression.qat else None
    if job.max_drop is None:
        return compression, ranges
    deciding = load_split(job.data, "train", meta.preprocessing, meta.arch.resolution, limit=DECIDING_PICTURES)
    compression, ranges, kept = mixed(
        checkpoint, source, compression, pixels, ranges, deciding, job.max_drop, advance, job.checkpoint
    )
    what = f"{kept.num_kept} of {len(kept.harms)} operations stay in fp16"
    moves = "drops" if kept.drop_points >= 0 else "rises"
    say(f"{what}: top-1 then {moves} by {abs(kept.drop_points):.2f} points on {len(deciding[0])} training pictures.")
    return compression, ranges

"""The multi-scale sampler against the standard one: updates per epoch, pictures and time.

First what the paper's setting asks for (MobileViT, arXiv:2110.02178: ImageNet-1k, 1024 pictures a step at 256 px, and
the five resolutions of Section 4.1), counted; then a small network on emoji10 at smaller sides, trained and timed, the
two samplers taking turns. Validation is left out of the time.

    python benchmarks/samplers.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from typing import Any

from vigcli.config.recipe import Recipe
from vigcli.train.loop import train
from vigcli.train.sampler import Sampler

IMAGENET = 1_281_167
PAPER = {"arch": "mobilevit_xxs", "resolution": 256, "batch_size": 1024, "epochs": 300}
SMALL = {"arch": "mobilevitv2_050", "resolution": 128, "batch_size": 32, "epochs": 1, "num_classes": 10,
         "data": {"source": "emoji10", "workers": 0}}  # fmt: skip
SCALES = {"paper": (160, 192, 256, 288, 320), "small": (64, 128, 192)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, help="only so many of each turn")
    options = parser.parse_args()
    standard, scaled = (Sampler(recipe(PAPER, scales), IMAGENET) for scales in ((), SCALES["paper"]))
    print("| setting | sampler | pictures a step | updates per epoch | s per epoch | images/s |")
    print("|---|---|---|---|---|---|")
    for name, sampler in (("standard", standard), ("multi-scale", scaled)):
        print(f"| paper | {name} | {sizes(sampler)} | {sampler.steps_per_epoch:.0f} | not run here | |")
    seconds: dict[str, list[float]] = {"standard": [], "multi-scale": []}
    figures: dict[str, tuple[Sampler, float]] = {}
    for turn in range(options.turns):
        for name, scales in (("standard", ()), ("multi-scale", SCALES["small"])):
            asked = recipe(SMALL | {"seed": turn}, scales)
            sampler = Sampler(asked, 1278)
            took, images = epoch(asked, options.steps)
            print(f"{name}: {images} pictures in {took:.1f} s", file=sys.stderr, flush=True)
            seconds[name].append(took)
            figures[name] = sampler, images
    for name, (sampler, images) in figures.items():
        took = statistics.median(seconds[name])
        cells = "emoji10", name, sizes(sampler), f"{sampler.steps_per_epoch:.0f}", f"{took:.1f}", f"{images / took:.0f}"
        print(f"| {' | '.join(cells)} |")


def recipe(plain: dict[str, Any], scales: tuple[int, ...]) -> Recipe:
    return Recipe.parse(plain | {"optimizer": {"lr": 1e-3}, "schedule": {"warmup_epochs": 0}, "multiscale": scales})


def sizes(sampler: Sampler) -> str:
    return ", ".join(f"{size} at {resolution} px" for resolution, size in sorted(sampler.sizes.items()))


def epoch(asked: Recipe, steps: int | None) -> tuple[float, int]:
    """(seconds of the steps, pictures) of one epoch."""
    done: list[Any] = []
    with tempfile.TemporaryDirectory() as run:
        train(
            asked, run, on_event=done.append, provenance={"argv": sys.argv},
            should_stop=lambda: len(done) >= (steps or len(done) + 1),
        )  # fmt: skip
    last = [event for event in done if event.val_top1_percent is None][-1]
    sampler = Sampler(asked, 1278)
    images = sum(sampler.size_of(step) for step in range(last.step))
    return images / last.images_per_s, images


if __name__ == "__main__":
    main()

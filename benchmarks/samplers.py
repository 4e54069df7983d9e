"""The multi-scale sampler against the standard one: updates per epoch, pictures and time.

First what the paper's setting asks for (MobileViT, arXiv:2110.02178: ImageNet-1k, 1024 pictures a step at 256 px, and
the five resolutions of Section 4.1), counted; then a small network on emoji10 at smaller sides, trained and timed, the
two samplers taking turns. The time is the CPU's, with the reading of pictures and without validation; medians.

    python benchmarks/samplers.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from typing import Any

from vigcli.config.recipe import Recipe
from vigcli.train.loop import TrainEvent, train
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
    print("| setting | sampler | pictures a step | updates per epoch | CPU s per epoch | CPU ms an image |")
    print("|---|---|---|---|---|---|")
    for name, sampler in (("standard", standard), ("multi-scale", scaled)):
        print(f"| paper | {name} | {sizes(sampler)} | {sampler.steps_per_epoch:.0f} | not run here | |")
    turns: dict[str, list[tuple[float, int]]] = {"standard": [], "multi-scale": []}
    samplers: dict[str, Sampler] = {}
    for turn in range(options.turns):
        for name, scales in (("standard", ()), ("multi-scale", SCALES["small"])):
            asked = recipe(SMALL | {"seed": turn}, scales)
            samplers[name] = Sampler(recipe(SMALL | {"epochs": 300}, scales), 1278)  # for the mean of many epochs
            turns[name].append(epoch(asked, options.steps))
            took, images = turns[name][-1]
            print(f"{name}: {images} pictures in {took:.1f} s of CPU", file=sys.stderr, flush=True)
    for name, sampler in samplers.items():
        took = statistics.median(took for took, _ in turns[name])
        each = statistics.median(1e3 * took / images for took, images in turns[name])
        cells = "emoji10", name, sizes(sampler), f"{sampler.steps_per_epoch:.0f}", f"{took:.1f}", f"{each:.1f}"
        print(f"| {' | '.join(cells)} |")


def recipe(plain: dict[str, Any], scales: tuple[int, ...]) -> Recipe:
    return Recipe.parse(plain | {"optimizer": {"lr": 1e-3}, "schedule": {"warmup_epochs": 0}, "multiscale": scales})


def sizes(sampler: Sampler) -> str:
    return ", ".join(f"{size} at {resolution} px" for resolution, size in sorted(sampler.sizes.items()))


def epoch(asked: Recipe, steps: int | None) -> tuple[float, int]:
    """(CPU seconds of the steps, pictures) of one epoch."""
    clock: list[float] = []

    def on_event(event: TrainEvent) -> None:
        if event.val_top1_percent is None:
            clock.append(time.process_time())

    def should_stop() -> bool:
        if not clock:
            clock.append(time.process_time())  # the first step begins
        return len(clock) > (steps or len(clock))

    with tempfile.TemporaryDirectory() as run:
        train(asked, run, on_event=on_event, provenance={"argv": sys.argv}, should_stop=should_stop)
    sampler = Sampler(asked, 1278)
    return clock[-1] - clock[0], sum(sampler.size_of(step) for step in range(len(clock) - 1))


if __name__ == "__main__":
    main()

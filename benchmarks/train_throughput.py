"""Our training loop against timm's: the same network, pictures and settings, pictures a second and CPU time.

timm's train.py is no part of its wheel or its source package on PyPI, so timm's side here is its library: dataset,
loader with prefetcher, mixup, optimizer, schedule and average as the installed version makes them, in the order of
forward, backward, step, average and schedule, with the loss read at every step, as the script does.

Each side is a process of its own, and they take turns step by step, one waiting while another works, so that what else
the machine does meets all alike: a ratio is the median over pairs of steps, with a 95 % interval of that median.
Without workers a step reads its pictures itself. CPU time is that of the process and its workers (read from /proc). The
last row is what our loader gives when nothing is trained.

    python benchmarks/train_throughput.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Figures = NDArray[np.float64]

NETWORK, RESOLUTION, BATCH, CLASSES, SMOOTHING = "mobilevitv2_050", 96, 32, 10, 0.1
AUGMENT = {"scale": (0.08, 1.0), "rand_augment": "rand-m7-inc1", "erase": 0.25, "mixup": 0.8, "cutmix": 1.0}
# m7: at the strongest magnitude timm posterizes to 0 bits, which newer versions of Pillow refuse.
LR, DECAY, EMA, SKIPPED, MOST_STEPS = 1e-3, 0.05, 0.999, 5, 110


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="that are timed, after five that are not")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps > MOST_STEPS:
        parser.error(f"--steps: at most {MOST_STEPS}, lest an epoch end")
    if options.one:
        SIDES[options.one](options)
        return
    with tempfile.TemporaryDirectory() as folder:
        options.data = unpacked(Path(folder))
        show(measured(options), options)


def unpacked(folder: Path) -> Path:
    """emoji10 as class folders of PNG, which both sides read; every training picture thrice, so that no epoch ends."""
    from vigcli.config.recipe import Data
    from vigcli.train.data import open_data

    for split, copies in (("train", 3), ("val", 1)):
        pictures = open_data(Data(source="emoji10"), split)
        for i in range(len(pictures) * copies):
            image, target = pictures[i % len(pictures)]
            path = folder / split / pictures.labels[target] / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return folder


def measured(options: argparse.Namespace) -> dict[str, Figures]:
    """Seconds of wall and CPU of every timed step (steps, 2), by side."""
    own = [sys.executable, __file__, "--data", options.data, "--steps", options.steps, "--workers", options.workers]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with contextlib.ExitStack() as stack:
        sides = {
            name: stack.enter_context(subprocess.Popen([*map(str, own), "--one", name], **pipes)) for name in SIDES
        }
        for process in sides.values():
            stack.callback(process.kill)
        steps: dict[str, list[list[float]]] = {name: [] for name in SIDES}
        for step in range(SKIPPED + options.steps):
            for name in sides if step % 2 else reversed(sides):
                print("go", file=sides[name].stdin)
                steps[name].append(json.loads(sides[name].stdout.readline()))  # type: ignore[union-attr]
            print(f"step {step + 1}", file=sys.stderr, flush=True)
    return {name: np.array(figures[SKIPPED:]) for name, figures in steps.items()}


class Turns:
    """A side's clock: tells how long a step took, and waits until the next may begin."""

    def __init__(self) -> None:
        self.cpu = self._cpu_s()
        self.wait()

    def wait(self) -> None:
        sys.stdin.readline()
        self.start = time.perf_counter()

    def done(self) -> None:
        """A step has ended."""
        wall, cpu = time.perf_counter() - self.start, self._cpu_s()
        print(json.dumps([wall, cpu - self.cpu]), flush=True)
        self.cpu = cpu
        self.wait()

    def _cpu_s(self) -> float:
        workers = (Path(f"/proc/{worker.pid}/stat") for worker in multiprocessing.active_children())
        ticks = sum(sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13])) for stat in workers)
        return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def ours(options: argparse.Namespace) -> None:
    from vigcli.train.loop import train

    turns = Turns()
    with tempfile.TemporaryDirectory() as run:
        train(
            recipe(options), run, on_event=lambda _: turns.done(), provenance={"argv": sys.argv}, should_stop=bool,
        )  # fmt: skip


def loader(options: argparse.Namespace) -> None:
    from vigcli.train.data import open_data, train_batches
    from vigcli.train.sampler import Sampler

    asked = recipe(options)
    pictures, turns = open_data(asked.data, "train"), Turns()
    for _ in train_batches(asked, pictures, Sampler(asked, len(pictures)), workers=options.workers):
        turns.done()


def recipe(options: argparse.Namespace) -> Any:
    from vigcli.config.recipe import Recipe

    return Recipe.parse({
        "arch": {"family": "timm", "name": NETWORK, "resolution": RESOLUTION, "num_classes": CLASSES},
        "data": {"source": "folder", "root": str(options.data), "workers": options.workers},
        "epochs": 100, "batch_size": BATCH, "optimizer": {"name": "adamw", "lr": LR, "weight_decay": DECAY},
        "schedule": {"warmup_epochs": 0}, "augment": AUGMENT, "label_smoothing": SMOOTHING, "ema_decay": EMA,
    })  # fmt: skip


def timms(options: argparse.Namespace) -> None:
    """What train.py does with timm's parts."""
    import timm
    import torch
    from timm.data import FastCollateMixup, create_dataset, create_loader
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import ModelEmaV3

    torch.manual_seed(0)
    device = torch.device("cpu")
    model = timm.create_model(NETWORK, num_classes=CLASSES).to(memory_format=torch.channels_last).train()
    optimizer = create_optimizer_v2(model, "adamw", lr=LR, weight_decay=DECAY)
    average = ModelEmaV3(model, decay=EMA)
    mixup = FastCollateMixup(AUGMENT["mixup"], AUGMENT["cutmix"], label_smoothing=SMOOTHING, num_classes=CLASSES)
    batches = create_loader(
        create_dataset("", root=str(options.data / "train"), split="train", is_training=True),
        (3, RESOLUTION, RESOLUTION), BATCH, is_training=True, re_prob=AUGMENT["erase"], re_mode="pixel",
        scale=AUGMENT["scale"], auto_augment=AUGMENT["rand_augment"], color_jitter=0.0, interpolation="bicubic",
        num_workers=options.workers, collate_fn=mixup, device=device, use_prefetcher=True,
    )  # fmt: skip
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=100, min_lr=1e-5, updates_per_epoch=len(batches))
    criterion, turns, step = SoftTargetCrossEntropy(), Turns(), 0
    while True:
        for x, target in batches:
            loss = criterion(model(x.contiguous(memory_format=torch.channels_last)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update(model, step=step)
            scheduler.step_update(num_updates=step, metric=loss.item())
            step += 1
            turns.done()


SIDES: dict[str, Callable[[argparse.Namespace], None]] = {"ours": ours, "timm": timms, "loader": loader}


def show(figures: dict[str, Figures], options: argparse.Namespace) -> None:
    import timm

    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"timm {timm.__version__}, {NETWORK} at {RESOLUTION} px, batch {BATCH}, {options.workers} workers, "
          f"{threads} threads, {options.steps} steps; medians\n")  # fmt: skip
    print("| loop | images/s | CPU ms an image |\n|---|---|---|")
    for name, steps in figures.items():
        wall, cpu = np.median(steps, 0)
        print(f"| {name} | {BATCH / wall:.1f} | {1e3 * cpu / BATCH:.2f} |")
    for what, ratios in zip(("images/s", "CPU time"), (figures["timm"] / figures["ours"]).T, strict=True):
        drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
        low, high = np.percentile(np.median(drawn, 1), (2.5, 97.5))
        print(f"\n{what}: ours {np.median(ratios):.3f} times as good ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()

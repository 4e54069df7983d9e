"""Our training loop against timm's: the same network, pictures and settings, pictures a second and CPU time.

timm's train.py is no part of its wheel or its source package on PyPI, so timm's side here is its library: dataset,
loader with prefetcher, mixup, optimizer, schedule and average as the installed version makes them, in the order of
forward, backward, step, average and schedule, with the loss read at every step, as the script does.

The two take turns, each in a process of its own; both figures are those of the steps after the first five. CPU time is
that of the process and its workers (read from /proc), and hardly hangs on what else the machine does. The last row is
what our loader gives when nothing is trained.

    python benchmarks/train_throughput.py
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NETWORK, RESOLUTION, BATCH, CLASSES, SMOOTHING = "mobilevitv2_050", 96, 32, 10, 0.1
AUGMENT = {"scale": (0.08, 1.0), "rand_augment": "rand-m7-inc1", "erase": 0.25, "mixup": 0.8, "cutmix": 1.0}
# m7: at the strongest magnitude timm posterizes to 0 bits, which newer versions of Pillow refuse.
LR, DECAY, EMA, SKIPPED = 1e-3, 0.05, 0.999, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=35, help="of each turn, the first five of which are not timed")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(SIDES[options.one](options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.data = unpacked(Path(folder))
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
        for turn in range(options.turns):
            for name in SIDES if turn % 2 else reversed(SIDES):
                figures[name].append(measured(name, options))
    show(figures, options)


def unpacked(folder: Path) -> Path:
    """emoji10 as class folders of PNG, which both sides read."""
    from vigcli.config.recipe import Data
    from vigcli.train.data import open_data

    for split in ("train", "val"):
        pictures = open_data(Data(source="emoji10"), split)
        for i in range(len(pictures)):
            image, target = pictures[i]
            path = folder / split / pictures.labels[target] / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return folder


def measured(name: str, options: argparse.Namespace) -> dict[str, float]:
    """A side's turn."""
    own = [sys.executable, __file__, "--one", name, "--data", options.data, "--steps", options.steps]
    own += ["--workers", options.workers]
    done = subprocess.run([*map(str, own)], check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    print(f"{name:<7} {figures['images_per_s']:.1f} images/s  {figures['cpu_ms']:.2f} ms", file=sys.stderr, flush=True)
    return figures


class Clock(list[tuple[float, float]]):
    """The end of every step: seconds of the wall, and of CPU in this process and its workers."""

    def tick(self) -> None:
        workers = sum(_cpu_s(worker.pid) for worker in multiprocessing.active_children())
        self.append((time.perf_counter(), time.process_time() + workers))

    def figures(self) -> dict[str, float]:
        (start, cpu_start), (end, cpu_end) = self[SKIPPED - 1], self[-1]
        images = BATCH * (len(self) - SKIPPED)
        return {"images_per_s": images / (end - start), "cpu_ms": 1e3 * (cpu_end - cpu_start) / images}


def _cpu_s(pid: int | None) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def ours(options: argparse.Namespace) -> dict[str, float]:
    from vigcli.train.loop import train

    clock = Clock()
    with tempfile.TemporaryDirectory() as run:
        train(
            recipe(options), run, on_event=lambda _: clock.tick(), provenance={"argv": sys.argv},
            should_stop=lambda: len(clock) >= options.steps,
        )  # fmt: skip
    return clock.figures()


def loader(options: argparse.Namespace) -> dict[str, float]:
    from vigcli.train.data import open_data, train_batches
    from vigcli.train.sampler import Sampler

    asked = recipe(options)
    pictures, clock = open_data(asked.data, "train"), Clock()
    for _ in train_batches(asked, pictures, Sampler(asked, len(pictures)), workers=options.workers):
        clock.tick()
        if len(clock) == options.steps:
            return clock.figures()
    raise ValueError("too many steps")


def recipe(options: argparse.Namespace) -> Any:
    from vigcli.config.recipe import Recipe

    return Recipe.parse({
        "arch": {"family": "timm", "name": NETWORK, "resolution": RESOLUTION, "num_classes": CLASSES},
        "data": {"source": "folder", "root": str(options.data), "workers": options.workers},
        "epochs": 100, "batch_size": BATCH, "optimizer": {"name": "adamw", "lr": LR, "weight_decay": DECAY},
        "schedule": {"warmup_epochs": 0}, "augment": AUGMENT, "label_smoothing": SMOOTHING, "ema_decay": EMA,
    })  # fmt: skip


def timms(options: argparse.Namespace) -> dict[str, float]:
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
    criterion, clock = SoftTargetCrossEntropy(), Clock()
    while True:
        for x, target in batches:
            loss = criterion(model(x.contiguous(memory_format=torch.channels_last)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update(model, step=len(clock))
            scheduler.step_update(num_updates=len(clock), metric=loss.item())
            clock.tick()
            if len(clock) == options.steps:
                return clock.figures()


SIDES: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {"ours": ours, "timm": timms, "loader": loader}


def show(figures: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    import timm

    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"timm {timm.__version__}, {NETWORK} at {RESOLUTION} px, batch {BATCH}, {options.workers} worker, "
          f"{threads} threads, {options.turns} turns of {options.steps} steps; medians\n")  # fmt: skip
    print("| loop | images/s | lowest to highest | CPU ms an image | lowest to highest |\n|---|---|---|---|---|")
    for name, turns in figures.items():
        cells = [f"{statistics.median(v):.{digits}f} | {min(v):.{digits}f} to {max(v):.{digits}f}" for v, digits in (
            ([turn["images_per_s"] for turn in turns], 1), ([turn["cpu_ms"] for turn in turns], 2))]  # fmt: skip
        print(f"| {name} | {' | '.join(cells)} |")
    for what, key, (a, b) in (("images/s", "images_per_s", ("ours", "timm")), ("CPU time", "cpu_ms", ("timm", "ours"))):
        ratios = [x[key] / y[key] for x, y in zip(figures[a], figures[b], strict=True)]
        print(f"\n{what}: ours {statistics.median(ratios):.2f} times as good, turn by turn "
              f"{min(ratios):.2f} to {max(ratios):.2f}")  # fmt: skip


if __name__ == "__main__":
    main()

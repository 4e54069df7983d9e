"""Pictures as batches; where the pictures lie is `readers.py`'s matter, what is done with a batch the loop's.

The augmentation of a picture is a function of (seed, epoch, index, draw), so that neither the number of worker
processes nor an interruption changes a training run.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from vigcli.config.recipe import Data, Preprocessing, Recipe
from vigcli.errors import ConfigError
from vigcli.train.distributed import ALONE, World
from vigcli.train.preprocess import Transform, eval_transform
from vigcli.train.readers import EMBEDDED, Pictures, open_data, spread
from vigcli.train.sampler import Draw, Sampler, part_of
from vigcli.train.seeds import reseed

__all__ = [
    "EMBEDDED", "Batch", "Batches", "Damaged", "Pictures", "check_classes", "eval_batches", "load_split", "num_workers",
    "open_data", "spread", "train_batches",
]  # fmt: skip

Batches = Iterator[tuple[Tensor, Tensor]]


def check_classes(pictures: Pictures, num_classes: int, labels: Sequence[str] = ()) -> None:
    """Raises ConfigError when the pictures' classes are not `num_classes`, or not `labels` where those are known."""
    if len(pictures.labels) < 2:
        what = f"{pictures.name}: holds one class alone, '{pictures.labels[0]}': there is nothing to tell apart."
        raise ConfigError(what, "Add a folder of pictures of another class.")
    if len(pictures.labels) != num_classes:
        raise ConfigError(
            f"{pictures.name}: holds {len(pictures.labels)} classes, but the network has {num_classes}.",
            f"Train with --set num_classes={len(pictures.labels)}, or choose other data with --data.",
        )
    if labels and tuple(labels) != pictures.labels:
        missing, strange = (sorted({*a} - {*b})[:3] for a, b in ((labels, pictures.labels), (pictures.labels, labels)))
        told = [f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("unknown", strange)) if names]
        what = f"{pictures.name}: its classes are not the expected ones ({'; '.join(told) or 'in another order'})."
        raise ConfigError(what, "Name the folder of every class as the network, or the other split, does.")


def num_workers(data: Data, world_size: int = 1) -> int:
    """Processes that decode, for each that trains. Raises ConfigError for more than the machine has cores for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if data.workers is None:
        return min(8, cores // world_size)
    if data.workers * world_size > cores:
        each = f" for each of {world_size} processes" if world_size > 1 else ""
        what = f"data.workers: {data.workers}{each} are more than this machine's {cores} cores."
        raise ConfigError(what, f"--set data.workers={cores // world_size}, or leave it out.")
    return data.workers


# ---------------------------------------------------------------------------------------------------- batches


class Batch(NamedTuple):
    """A process's part of a step: normalized pictures (B, 3, R, R), classes (B,), and what was drawn for them."""

    x: Tensor
    target: Tensor
    draws: tuple[Draw, ...]


class Damaged:
    """The damaged pictures that were met, each counted once.

    Attributes:
        names: of them, in the order in which they were met.
    """

    def __init__(self, limit: int, on_notice: Callable[[str], None] = lambda text: None):
        self.limit, self.on_notice = limit, on_notice
        self.names: list[str] = []

    def add(self, found: Iterable[tuple[str, ConfigError]]) -> None:
        """Raises ConfigError where there are more than the limit."""
        for name, error in found:
            if name in self.names:
                continue
            self.names.append(name)
            self.check(error)
            self.on_notice(f"{str(error).rstrip('.')}; left out, {len(self.names)} of {self.limit} allowed.")

    def check(self, last: ConfigError | None = None) -> None:
        """Raises ConfigError where there are more than the limit."""
        if len(self.names) > self.limit:
            what = str(last).rstrip(".") if last is not None else f"{self.names[-1]}: cannot be read as a picture"
            others = f"; {len(self.names) - 1} before it were left out" if len(self.names) > 1 else ""
            more = " data.max_corrupt says how many may be left out." if self.limit else ""
            raise ConfigError(f"{what}{others}.", f"Replace or remove it.{more}")


class _Augmented(Dataset[Any]):
    """Draw -> ((3, R, R), class), and the damaged pictures in whose place the next one that can be read was taken."""

    def __init__(self, pictures: Pictures, recipe: Recipe):
        from vigcli.train.augment import train_transform  # with timm, whose import takes seconds

        self.pictures, self.seed, self.tries = pictures, recipe.seed, min(recipe.data.max_corrupt + 1, len(pictures))
        self.transforms = {
            resolution: train_transform(recipe.augment, recipe.preprocessing, resolution)
            for resolution in recipe.multiscale or (recipe.resolution,)
        }

    def __getitem__(self, draw: Draw) -> Any:
        damaged: list[Any] = []
        for i in range(self.tries):
            index = (draw.picture + i) % len(self.pictures)
            try:
                image, target = self.pictures[index]
            except ConfigError as error:
                damaged.append((self.pictures.file(index), error))
                continue
            reseed(self.seed, "picture", draw.epoch, draw.picture, draw.repeat)
            return (self.transforms[draw.resolution](image), target), draw, damaged
        return None, draw, damaged


class _Evaluated(Dataset[Any]):
    """index -> (uint8 (3, R, R), class), or None and the damaged picture."""

    def __init__(self, pictures: Pictures, transform: Transform):
        self.pictures, self.transform = pictures, transform

    def __getitem__(self, index: int) -> Any:
        try:
            image, target = self.pictures[index]
        except ConfigError as error:
            return None, index, [(self.pictures.file(index), error)]
        return (self.transform(image), target), index, []


def train_batches(
    recipe: Recipe,
    pictures: Pictures,
    sampler: Sampler,
    start: int = 0,
    until_epoch: int | None = None,
    *,
    world: World = ALONE,
    workers: int = 0,
    damaged: Damaged | None = None,
    pin: bool = False,
) -> Iterator[Batch]:
    """This process's micro-batches from step `start` on, `recipe.accumulate` a step, to the end of an epoch.

    One set of workers serves them all, so that none waits at the end of an epoch. Without workers the global random
    states change.
    """
    parts = recipe.accumulate * world.size
    keys = (
        part_of(step, micro * world.size + world.rank, parts)
        for step in sampler.from_step(start, recipe.epochs if until_epoch is None else until_epoch)
        for micro in range(recipe.accumulate)
    )
    damaged = damaged or Damaged(recipe.data.max_corrupt)
    for batch, draws in _load(_Augmented(pictures, recipe), keys, workers, damaged, pin):
        if batch is None or len(batch[0]) < len(draws):
            raise ConfigError(f"{pictures.name}: no picture can be read.", "Make or copy the files again.")
        yield Batch(batch[0], batch[1], draws)


def eval_batches(
    pictures: Pictures,
    preprocessing: Preprocessing,
    resolution: int,
    *,
    batch_size: int = 64,
    workers: int = 0,
    limit: int | None = None,
    world: World = ALONE,
    damaged: Damaged | None = None,
) -> Batches:
    """Batches in order for evaluation: uint8 pixels (B, 3, R, R), classes (B,).

    `limit` takes so many pictures, evenly spread, so that they are of all classes; every process of `world` has its
    part of them. A damaged picture is an error, unless `damaged` counts it: then it is left out.
    """
    order = spread(len(pictures), limit)
    order = order[len(order) * world.rank // world.size : len(order) * (world.rank + 1) // world.size]
    keys = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    dataset = _Evaluated(pictures, eval_transform(preprocessing, resolution))
    for batch, _ in _load(dataset, keys, min(workers, len(keys)), damaged or Damaged(0)):
        if batch is not None:
            yield batch


def load_split(
    data: Data, split: str, preprocessing: Preprocessing, resolution: int, limit: int | None = None
) -> tuple[Tensor, Tensor]:
    """A whole split, or `limit` pictures of it, in memory: uint8 pixels (N, 3, R, R), classes (N,)."""
    batches = list(eval_batches(open_data(data, split), preprocessing, resolution, limit=limit))
    return torch.cat([pixels for pixels, _ in batches]), torch.cat([labels for _, labels in batches])


def _load(
    dataset: Dataset[Any], keys: Iterable[list[Any]], workers: int, damaged: Damaged, pin: bool = False
) -> Iterator[Any]:
    loader = DataLoader(
        dataset,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_leave_signals_to_the_parent,
        generator=torch.Generator(),  # or it would draw from the global state
        pin_memory=pin,
    )
    for batch, drawn, found in loader:
        damaged.add(found)
        yield batch, drawn


def _collate(samples: list[Any]) -> Any:
    """Errors travel as values: a DataLoader would rebuild them from a traceback and lose message and hint."""
    good = [sample for sample, _, _ in samples if sample is not None]
    damaged = [entry for _, _, found in samples for entry in found]
    return default_collate(good) if good else None, tuple(draw for _, draw, _ in samples), damaged


def _leave_signals_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler would outlive the fork

"""Which pictures a step sees, at which resolution, and which a process of them; how they are read is left to `data.py`.

All of it is a function of the recipe, the number of pictures, the epoch and the step: the same in every process, and
known beforehand for the whole run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeVar

import torch

from vigcli.config.recipe import Recipe
from vigcli.errors import ConfigError
from vigcli.train.seeds import derived_seed

T = TypeVar("T")


class Draw(NamedTuple):
    """A picture as a step draws it: one that an epoch draws several times is augmented anew each time."""

    epoch: int
    picture: int
    repeat: int
    resolution: int


class Sampler:
    """The steps of a whole run.

    Standard: every step takes `batch_size` pictures at the recipe's resolution R. Multi-scale (MobileViT,
    arXiv:2110.02178, Section 3.2): every step draws a resolution r and takes batch_size R^2 / r^2 pictures, so that all
    steps cost about the same. In both the last pictures of an epoch that fill no batch wait for another epoch's order,
    and a set smaller than a batch is one step an epoch.

    With repeated augmentation (arXiv:1902.05509) an epoch has the same length but fewer different pictures.
    """

    def __init__(self, recipe: Recipe, num_train: int, parts: int = 1):
        """`parts`: into how many a step is divided, processes times micro-batches.

        Raises ConfigError where pictures are too few for a step, or a step for its parts.
        """
        self.recipe, self.num_train = recipe, num_train
        resolutions = recipe.multiscale or (recipe.resolution,)
        self.sizes = {resolution: self._size(resolution) for resolution in resolutions}
        smallest = min(self.sizes.values())
        if smallest < 2 * parts:
            what = f"{smallest} pictures a step are too few for {parts} processes or micro-batches"
            if parts == 1:
                what = "one picture is too few for a step"
            raise ConfigError(f"{what}: batch norm needs two in each.", "Raise batch_size, or add pictures.")
        self._resolutions = [self._drawn(epoch) for epoch in range(recipe.epochs)]
        self.starts = [0, *accumulate(map(len, self._resolutions))]

    def _size(self, resolution: int) -> int:
        """Pictures of a step at this resolution; even where mixup pairs them."""
        recipe = self.recipe
        if recipe.augment.mixes and recipe.batch_size % 2:
            raise ConfigError(f"batch_size: {recipe.batch_size} is odd, but mixup pairs pictures.", "Make it even.")
        size = min(round(recipe.batch_size * recipe.resolution**2 / resolution**2), self.num_train)
        return size - size % 2 if recipe.augment.mixes else size

    def _drawn(self, epoch: int) -> list[int]:
        """The resolutions of an epoch's steps."""
        if len(self.sizes) == 1:
            ((resolution, size),) = self.sizes.items()
            return [resolution] * (self.num_train // size)
        generator = torch.Generator().manual_seed(derived_seed(self.recipe.seed, "resolution", epoch))
        most = self.num_train // min(self.sizes.values()) + 1
        choices = list(self.sizes)
        drawn = [choices[i] for i in torch.randint(len(choices), (most,), generator=generator).tolist()]
        used = accumulate(self.sizes[resolution] for resolution in drawn)
        fitting = [r for r, pictures in zip(drawn, used, strict=True) if pictures <= self.num_train]
        return fitting or drawn[:1]

    @property
    def total_steps(self) -> int:
        return self.starts[-1]

    @property
    def steps_per_epoch(self) -> float:
        """On average, where resolutions are drawn."""
        return self.total_steps / self.recipe.epochs

    @property
    def total_images(self) -> int:
        return sum(self.sizes[resolution] for epoch in self._resolutions for resolution in epoch)

    def size_of(self, step: int) -> int:
        """Pictures of a step of the run, in all processes."""
        epoch = bisect_right(self.starts, step) - 1
        return self.sizes[self._resolutions[epoch][step - self.starts[epoch]]]

    def epoch(self, epoch: int) -> list[list[Draw]]:
        """The steps of an epoch."""
        resolutions, repeats = self._resolutions[epoch], self.recipe.augment.repeats
        generator = torch.Generator().manual_seed(derived_seed(self.recipe.seed, "order", epoch))
        order = torch.randperm(self.num_train, generator=generator).repeat_interleave(repeats).tolist()
        steps, place = [], 0
        for resolution in resolutions:
            end = place + self.sizes[resolution]
            steps.append([Draw(epoch, order[i], i % repeats, resolution) for i in range(place, end)])
            place = end
        return steps

    def from_step(self, start: int, until_epoch: int) -> Iterator[list[Draw]]:
        """The steps of the run from `start` on until an epoch has ended."""
        for epoch in range(until_epoch):
            if start < self.starts[epoch + 1]:
                yield from self.epoch(epoch)[max(0, start - self.starts[epoch]) :]


def part_of(step: Sequence[T], part: int, parts: int) -> list[T]:
    """A step's part, of nearly equal ones.

    Pictures i and B - 1 - i stay together in mirrored places: mixup, which mixes them, then does the same in the parts
    as in the whole.
    """
    half = len(step) // 2
    start, end = part * half // parts, (part + 1) * half // parts
    middle = list(step[half : len(step) - half]) if part == parts - 1 else []
    return [*step[start:end], *middle, *step[len(step) - end : len(step) - start]]


def steps_per_epoch(recipe: Recipe, num_train: int) -> tuple[int, int]:
    """(steps, pictures a step) of the standard sampler. Raises ConfigError where no batch can be made."""
    sampler = Sampler(recipe.model_copy(update={"epochs": 1, "multiscale": ()}), num_train)
    return sampler.total_steps, sampler.sizes[recipe.resolution]

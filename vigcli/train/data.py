"""Pictures as batches: the embedded zip and ImageNet-like folders; what is done with a batch is the loop's matter.

The augmentation of a picture is a function of (seed, epoch, index, draw) and the order of an epoch one of
(seed, epoch), so that neither the number of worker processes nor an interruption changes a training run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import signal
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import RandAugment, posterize
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from vigcli.config.recipe import Augment, Data, Preprocessing, Recipe
from vigcli.errors import ConfigError, UnavailableError, VigError
from vigcli.paths import embedded
from vigcli.train.pictures import is_picture, read_picture

EMBEDDED = "emoji10"
_PASS_DATA = "Pass --data /path/to/imagenet (with train/ and val/)."
Batches = Iterator[tuple[Tensor, Tensor]]
Transform = Callable[[Image.Image], Tensor]


# ---------------------------------------------------------------------------------------------------- pictures


class Pictures(Dataset[tuple[Image.Image, int]]):
    """One split: item i is (RGB picture, index of its class).

    Attributes:
        labels: class names, sorted; their places are the indices of the logits.
        name: where the pictures are, for messages.
    """

    def __init__(self, name: str, members: Sequence[tuple[str, str]], contents: dict[str, bytes] | None = None):
        """`members` are (class, file) pairs; `contents` holds the files of a zip, None where they are on disk."""
        self.name = name
        self.labels = tuple(sorted({label for label, _ in members}))
        places = {label: i for i, label in enumerate(self.labels)}
        self.targets = [places[label] for label, _ in members]
        self._files = [file for _, file in members]
        self._contents = contents

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file = self._files[index]
        if self._contents is None:
            return read_picture(file, file), self.targets[index]
        return read_picture(io.BytesIO(self._contents[file]), f"{self.name}:{file}"), self.targets[index]

    def part(self, limit: int | None) -> Pictures:
        """So many of the pictures, evenly spread. Raises ConfigError where they would not be of all classes."""
        places = spread(len(self), limit)
        members = [(self.labels[self.targets[i]], self._files[i]) for i in places]
        part = Pictures(self.name, members, self._contents)
        if part.labels != self.labels:
            what = f"{self.name}: {limit} pictures are too few for its {len(self.labels)} classes."
            raise ConfigError(what, "Take more of them.")
        return part


def spread(count: int, limit: int | None) -> list[int]:
    """The places of `limit` items among `count`, evenly spread; of all where there are no more."""
    taken = count if limit is None else min(limit, count)
    return [i * count // taken for i in range(taken)]


def open_data(data: Data, split: str) -> Pictures:
    """The pictures of a split, `train` or `val`.

    Raises UnavailableError when the folder or its split is missing, ConfigError when they hold no class folders.
    """
    if data.source == EMBEDDED:
        if data.root is not None:
            hint = "Pass --set data.source=folder as well, or leave --data out."
            raise ConfigError(f"data.root is {data.root}, but data.source is {EMBEDDED}.", hint)
        return _open_zip(embedded(f"{EMBEDDED}.zip"), split)
    if data.root is None:
        raise UnavailableError("The recipe's pictures are in a folder, and none was named.", _PASS_DATA)
    folder = Path(data.root) / split
    if not folder.is_dir():
        raise UnavailableError(f"{folder}: no such folder.", _PASS_DATA)
    return _open_folder(folder)


def _open_zip(path: Path, split: str) -> Pictures:
    """Held in memory: it is small, and open files do not survive the start of a worker process."""
    try:
        with zipfile.ZipFile(path) as file:
            names = sorted(name for name in file.namelist() if name.startswith(f"{split}/") and is_picture(name))
            contents = {name: file.read(name) for name in names}
    except (OSError, zipfile.BadZipFile) as error:
        raise UnavailableError(f"{path}: the embedded pictures cannot be read.", "Install vig again.") from error
    return Pictures(path.name, [(name.split("/")[1], name) for name in names], contents)


def _open_folder(folder: Path) -> Pictures:
    members: list[tuple[str, str]] = []
    try:
        classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
        for label in classes:
            files = sorted(
                os.path.join(place, name)
                for place, _, names in os.walk(folder / label, followlinks=True)
                for name in names
                if is_picture(name)
            )
            if not files:
                raise ConfigError(f"{folder / label}: holds no picture.", "Remove the folder or fill it.")
            members += [(label, file) for file in files]
    except OSError as error:
        raise UnavailableError(f"{error.filename or folder}: cannot be read: {error.strerror}.", _PASS_DATA) from error
    if not members:
        raise ConfigError(f"{folder}: holds no class folders.", "Sort the pictures as CLASS/NAME.jpg.")
    return Pictures(str(folder), members)


def check_classes(pictures: Pictures, num_classes: int, labels: Sequence[str] = ()) -> None:
    """Raises ConfigError when the pictures' classes are not `num_classes`, or not `labels` where those are known."""
    if len(pictures.labels) != num_classes:
        raise ConfigError(
            f"{pictures.name}: holds {len(pictures.labels)} classes, but the network has {num_classes}.",
            f"Train with --set num_classes={len(pictures.labels)}, or choose other data with --data.",
        )
    if labels and tuple(labels) != pictures.labels:
        strange = sorted(set(labels) ^ set(pictures.labels))[:3]
        raise ConfigError(f"{pictures.name}: its classes differ from the expected ones ({', '.join(strange)}).",
                          "Give every class the same folder name in train/ and val/.")  # fmt: skip


# ---------------------------------------------------------------------------------------------------- transforms


def eval_transform(preprocessing: Preprocessing, resolution: int, normalize: bool = True) -> Transform:
    """Picture -> (3, R, R): resized, cropped, normalized, in the network's order; uint8 RGB without `normalize`."""
    transform = create_transform(
        resolution,
        crop_pct=preprocessing.crop_ratio,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        normalize=normalize,
    )
    return _in_order(transform, preprocessing) if normalize else transform


def train_transform(augment: Augment, preprocessing: Preprocessing, resolution: int) -> Transform:
    """Picture -> (3, R, R), augmented at random and normalized. timm leaves colour jitter out beside RandAugment."""
    transform = create_transform(
        resolution,
        is_training=True,
        scale=augment.scale,
        hflip=augment.horizontal_flip,
        color_jitter=augment.color_jitter or None,  # type: ignore[arg-type]
        auto_augment=augment.rand_augment,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        re_prob=augment.erase,
        re_mode="pixel",
    )
    for part in transform.transforms:
        for operation in part.ops if isinstance(part, RandAugment) else ():
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterize
    return _in_order(transform, preprocessing)


def _in_order(transform: Any, preprocessing: Preprocessing) -> Transform:
    if preprocessing.channels == "BGR":
        transform.transforms.append(_reversed)
    return transform


def _reversed(x: Tensor) -> Tensor:
    return x.flip(-3)


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm's, for 0 bits too: its strongest magnitude asks for them, and newer versions of Pillow refuse."""
    return posterize(image, bits, **options) if bits else Image.new(image.mode, image.size)


def eval_pixels(images: Sequence[Image.Image], preprocessing: Preprocessing, resolution: int) -> Tensor:
    """Pictures as uint8 (B, 3, R, R) before normalization: what an exported package takes."""
    transform = eval_transform(preprocessing, resolution, normalize=False)
    return torch.stack([transform(image) for image in images])


def normalize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 RGB (B, 3, R, R) as the network's float input, bit for bit what `eval_transform` gives."""
    mean, std = (pixels.new_tensor(value, dtype=torch.float32)[:, None, None] for value in _statistics(preprocessing))
    x = pixels.float().div_(255).sub_(mean).div_(std)
    return _reversed(x) if preprocessing.channels == "BGR" else x


def _statistics(preprocessing: Preprocessing) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return preprocessing.mean, preprocessing.std


# ---------------------------------------------------------------------------------------------------- randomness


def derived_seed(*key: int | str) -> int:
    """A seed of 32 bits that is a function of the key, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest())


@contextlib.contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """The CPU's global random states (Python, numpy, torch) set by the key, and restored afterwards.

    timm's and torchvision's augmentations draw from all three, and take no generator.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = derived_seed(*key)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


# ---------------------------------------------------------------------------------------------------- batches


def steps_per_epoch(recipe: Recipe, num_train: int) -> tuple[int, int]:
    """(steps, pictures a step): the last pictures that fill no batch wait for another epoch's order.

    A set smaller than a batch is one step an epoch. Raises ConfigError where no batch can be made.
    """
    size = min(recipe.batch_size, num_train)
    if recipe.augment.mixup or recipe.augment.cutmix:
        if recipe.batch_size % 2:
            raise ConfigError(f"batch_size: {recipe.batch_size} is odd, but mixup pairs pictures.", "Make it even.")
        size -= size % 2
    if size < 2:
        raise ConfigError("Batch norm needs two pictures a step at least.", "Raise batch_size or add pictures.")
    return num_train // size, size


def epoch_batches(recipe: Recipe, num_train: int, epoch: int) -> list[list[tuple[int, int, int]]]:
    """The batches of an epoch as (epoch, index, draw): a picture that is drawn several times is augmented anew.

    With repeated augmentation (arXiv:1902.05509) an epoch has the same length but fewer different pictures.
    """
    steps, size = steps_per_epoch(recipe, num_train)
    repeats = recipe.augment.repeats
    generator = torch.Generator().manual_seed(derived_seed(recipe.seed, "order", epoch))
    order = torch.randperm(num_train, generator=generator).repeat_interleave(repeats)[: steps * size].tolist()
    keys = [(epoch, index, place % repeats) for place, index in enumerate(order)]
    return [keys[i * size : (i + 1) * size] for i in range(steps)]


class _Augmented(Dataset[Any]):
    """(epoch, index, draw) -> ((3, R, R), class)."""

    def __init__(self, pictures: Pictures, transform: Transform, seed: int):
        self.pictures, self.transform, self.seed = pictures, transform, seed

    def __getitem__(self, key: tuple[int, int, int]) -> Any:
        try:
            image, target = self.pictures[key[1]]
            with seeded(self.seed, "picture", *key):
                return self.transform(image), target
        except VigError as error:
            return error


class _Evaluated(Dataset[Any]):
    """index -> (uint8 (3, R, R), class)."""

    def __init__(self, pictures: Pictures, transform: Transform):
        self.pictures, self.transform = pictures, transform

    def __getitem__(self, index: int) -> Any:
        try:
            image, target = self.pictures[index]
            return self.transform(image), target
        except VigError as error:
            return error


def train_batches(recipe: Recipe, pictures: Pictures, epoch: int, start: int = 0) -> Batches:
    """Batches of an epoch from step `start` on: normalized (B, 3, R, R), classes (B,)."""
    transform = train_transform(recipe.augment, recipe.preprocessing, recipe.resolution)
    keys = epoch_batches(recipe, len(pictures), epoch)[start:]
    return _load(_Augmented(pictures, transform, recipe.seed), keys, recipe.data.workers)


def eval_batches(
    pictures: Pictures,
    preprocessing: Preprocessing,
    resolution: int,
    *,
    batch_size: int = 64,
    workers: int = 0,
    limit: int | None = None,
) -> Batches:
    """Batches in order for evaluation: uint8 pixels (B, 3, R, R), classes (B,).

    `limit` takes so many pictures, evenly spread, so that they are of all classes.
    """
    order = spread(len(pictures), limit)
    keys = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return _load(_Evaluated(pictures, eval_transform(preprocessing, resolution, normalize=False)), keys, workers)


def load_split(
    data: Data, split: str, preprocessing: Preprocessing, resolution: int, limit: int | None = None
) -> tuple[Tensor, Tensor]:
    """A whole split, or `limit` pictures of it, in memory: uint8 pixels (N, 3, R, R), classes (N,)."""
    batches = list(eval_batches(open_data(data, split), preprocessing, resolution, limit=limit))
    return torch.cat([pixels for pixels, _ in batches]), torch.cat([labels for _, labels in batches])


def _load(dataset: Dataset[Any], keys: list[list[Any]], workers: int) -> Batches:
    loader = DataLoader(
        dataset,
        batch_sampler=keys,
        num_workers=min(workers, len(keys)),
        collate_fn=_collate,
        worker_init_fn=_leave_signals_to_the_parent,
        generator=torch.Generator(),  # or it would draw from the global state
    )
    for batch in loader:
        if isinstance(batch, VigError):
            raise batch
        yield batch


def _collate(samples: list[Any]) -> Any:
    """Errors travel as values: a DataLoader would rebuild them from a traceback and lose message and hint."""
    return next((sample for sample in samples if isinstance(sample, VigError)), None) or default_collate(samples)


def _leave_signals_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler would outlive the fork

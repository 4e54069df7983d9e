"""Pictures: what is read, what is refused, and what a picture's augmentation depends on."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from vigcli.config.recipe import Augment, Data, Preprocessing, Recipe
from vigcli.errors import ConfigError, UnavailableError
from vigcli.train import readers
from vigcli.train.augment import train_transform
from vigcli.train.data import (
    Batch,
    Pictures,
    check_classes,
    eval_batches,
    load_split,
    open_data,
    train_batches,
)
from vigcli.train.preprocess import eval_pixels, normalize
from vigcli.train.sampler import Sampler, steps_per_epoch
from vigcli.train.seeds import reseed

EMOJI = Data(source="emoji10", workers=0)
PREPROCESSING = Preprocessing()


def recipe(**changes: object) -> Recipe:
    plain = {"arch": "mobilevigv2_ti", "resolution": 96, "num_classes": 10, "epochs": 2, "batch_size": 8,
             "data": {"source": "emoji10", "workers": 0}, "optimizer": {"lr": 1e-3}, "schedule": {"warmup_epochs": 1},
             "augment": {"rand_augment": "rand-m9-mstd0.5-inc1", "erase": 0.5}}  # fmt: skip
    return Recipe.parse(plain | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, three pictures each of other sizes and formats; one lies deeper."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            for i, name in enumerate(("a.JPEG", "b.png", "deep/c.webp")):
                path = tmp_path / split / label / name
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = generator.integers(0, 256, (50 + 40 * i, 120, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path, path.suffix[1:])
        (tmp_path / split / "cat" / "notes.txt").write_text("no picture")
        (tmp_path / split / "cat" / "._a.jpg").write_text("no picture either")
    return tmp_path


def test_a_part_is_evenly_spread_and_of_all_classes(folder: Path) -> None:
    pictures = open_data(folder_data(folder), "train")
    part = pictures.part(4)
    assert part.targets == [0, 0, 1, 1]
    assert [part[i][0].size for i in range(4)] == [pictures[i][0].size for i in (0, 1, 3, 4)]
    assert pictures.part(None).targets == pictures.part(99).targets == pictures.targets
    with pytest.raises(ConfigError, match="1 pictures are too few for its 2 classes"):
        pictures.part(1)


def batches(recipe: Recipe, pictures: Pictures, **options: int) -> Iterator[Batch]:
    return train_batches(recipe, pictures, Sampler(recipe, len(pictures)), **options)


def folder_data(root: Path, workers: int = 0) -> Data:
    return Data(root=str(root), workers=workers)


def test_embedded_pictures_are_all_there() -> None:
    train, val = open_data(EMOJI, "train"), open_data(EMOJI, "val")
    assert (len(train), len(val)) == (1278, 319)
    assert train.labels == val.labels == tuple(sorted(train.labels))
    check_classes(train, 10)
    image, target = train[0]
    assert image.mode == "RGB"
    assert train.labels[target] == "animal"


def test_folder_is_read_as_imagenet(folder: Path) -> None:
    pictures = open_data(folder_data(folder), "train")
    assert pictures.labels == ("cat", "dog")
    assert len(pictures) == 6
    assert [pictures[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]


def test_no_root_and_a_missing_split_say_what_to_pass(folder: Path) -> None:
    with pytest.raises(UnavailableError) as missing:
        open_data(Data(), "train")
    assert "--data /path/to/imagenet" in missing.value.hint
    with pytest.raises(UnavailableError, match="test: no such folder") as missing:
        open_data(folder_data(folder), "test")
    assert "train/ and val/" in missing.value.hint


def test_a_folder_for_the_embedded_set_is_not_ignored(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.source"):
        open_data(Data(source="emoji10", root=str(folder)), "train")


def test_pictures_outside_class_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "a.png").touch()
    with pytest.raises(ConfigError, match="no class folders"):
        open_data(folder_data(tmp_path), "val")
    (tmp_path / "val" / "cat").mkdir()
    with pytest.raises(ConfigError, match="cat: holds no picture"):
        open_data(folder_data(tmp_path), "val")


def test_classes_are_checked(folder: Path) -> None:
    pictures = open_data(folder_data(folder), "val")
    with pytest.raises(ConfigError, match="holds 2 classes, but the network has 10") as mismatch:
        check_classes(pictures, 10)
    assert "num_classes=2" in mismatch.value.hint
    with pytest.raises(ConfigError, match="missing: wolf; unknown: dog"):
        check_classes(pictures, 2, ("cat", "wolf"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_picture_is_named(folder: Path, workers: int) -> None:
    path = folder / "val" / "dog" / "b.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ConfigError, match=r"dog/b\.png: cannot be read as a picture") as corrupt:
        list(eval_batches(open_data(folder_data(folder), "val"), PREPROCESSING, 32, batch_size=2, workers=workers))
    assert "Replace or remove" in corrupt.value.hint
    assert "Traceback" not in str(corrupt.value)


@pytest.mark.parametrize("content", [b"", b"text", b"RIFF\x10\x00\x00\x00WEBPVP8 "])
def test_what_is_no_picture_is_refused(folder: Path, content: bytes) -> None:
    (folder / "val" / "cat" / "a.JPEG").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read as a picture"):
        open_data(folder_data(folder), "val")[0]


def test_a_corrupt_member_of_the_zip_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "emoji10.zip", "w") as file:
        file.writestr("train/food/0001.webp", b"RIFF")
    monkeypatch.setattr(readers, "embedded", lambda name: tmp_path / name)
    with pytest.raises(ConfigError, match=r"^emoji10\.zip:train/food/0001\.webp: "):
        open_data(EMOJI, "train")[0]
    (tmp_path / "emoji10.zip").write_bytes(b"PK")
    with pytest.raises(UnavailableError, match="cannot be read as a zip"):
        open_data(EMOJI, "train")


def test_decompression_bombs_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = open_data(folder_data(folder), "val")
    for limit in (5000, 1000):  # PIL warns above the limit and fails above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ConfigError, match="cannot be read as a picture"):
            pictures[0]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(97, 64), (64, 301), (50, 50), (1, 1), (33, 5)])
@pytest.mark.parametrize(("crop_ratio", "resolution"), [(0.875, 96), (1.0, 50), (0.9, 33)])
def test_pixels_are_timms_bit_for_bit(
    interpolation: str, size: tuple[int, int], crop_ratio: float, resolution: int
) -> None:
    preprocessing = Preprocessing(
        interpolation=interpolation, crop_ratio=crop_ratio, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    pixels = eval_pixels([image], preprocessing, resolution)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (1, 3, resolution, resolution)
    named = {"interpolation": interpolation, "crop_pct": crop_ratio, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    expected = create_transform(resolution, **named)(image)
    assert torch.equal(normalize(pixels, preprocessing)[0], expected)


def test_batches_of_evaluation_are_its_pixels(folder: Path) -> None:
    pictures = open_data(folder_data(folder), "val")
    pixels = eval_pixels([pictures[i][0] for i in range(len(pictures))], PREPROCESSING, 96)
    batches = list(eval_batches(pictures, PREPROCESSING, 96, batch_size=4))
    assert [len(labels) for _, labels in batches] == [4, 2]
    assert torch.equal(torch.cat([x for x, _ in batches]), pixels)


def test_channels_are_put_in_the_order_of_the_network(folder: Path) -> None:
    """Mean and deviation are of red, green and blue in either order; the pixels themselves stay RGB."""
    rgb, bgr = (Preprocessing(mean=(0.1, 0.2, 0.3), channels=channels) for channels in ("RGB", "BGR"))
    pictures = open_data(folder_data(folder), "val")
    (pixels, _), (same, _) = (next(eval_batches(pictures, p, 96)) for p in (rgb, bgr))
    assert torch.equal(pixels, same)
    assert torch.equal(normalize(pixels, bgr), normalize(pixels, rgb).flip(1))
    reseed(0)
    x = train_transform(Augment(), rgb, 96)(pictures[0][0])
    reseed(0)
    assert torch.equal(train_transform(Augment(), bgr, 96)(pictures[0][0]), x.flip(0))


def test_evaluation_resizes_the_shorter_side_and_crops_the_centre() -> None:
    ramp = np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (50, 1, 3))  # grows to the right
    pixels = eval_pixels([Image.fromarray(ramp)], Preprocessing(crop_ratio=1.0), 50)[0]
    assert torch.equal(pixels, torch.arange(25, 75, dtype=torch.uint8).expand(3, 50, 50))


def test_a_limit_takes_pictures_of_all_classes() -> None:
    pixels, labels = load_split(EMOJI, "val", PREPROCESSING, 32, limit=60)
    assert pixels.shape == (60, 3, 32, 32)
    assert len(labels.unique()) == 10
    assert len(load_split(EMOJI, "val", PREPROCESSING, 32, limit=10**6)[1]) == 319


def test_augmentation_depends_on_neither_workers_nor_start_nor_global_state() -> None:
    pictures = open_data(EMOJI, "train")
    few = recipe(batch_size=400)
    whole = list(batches(few, pictures))
    random.seed(5)
    torch.manual_seed(5)
    for workers in (0, 2):
        for batch, same in zip(batches(few, pictures, start=2, workers=workers), whole[2:], strict=True):
            assert torch.equal(batch.x, same.x)
            assert torch.equal(batch.target, same.target)
            assert batch.draws == same.draws
    assert not torch.equal(whole[0].x, whole[3].x)


def test_an_epoch_draws_every_picture_once_in_an_order_of_its_own() -> None:
    epochs = [[draw.picture for step in Sampler(recipe(), 40).epoch(epoch) for draw in step] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(40))
    assert epochs[0] != epochs[1]
    first, again, other = (Sampler(recipe(seed=seed), 40).epoch(0) for seed in (0, 0, 1))
    assert first == again != other


def test_repeated_augmentation_draws_a_picture_anew_each_time() -> None:
    draws = [draw for step in Sampler(recipe(augment={"repeats": 3}), 40).epoch(0) for draw in step]
    assert len(draws) == len(set(draws)) == 40
    assert len({draw.picture for draw in draws}) == 14


def test_steps_of_small_sets() -> None:
    assert steps_per_epoch(recipe(), 47) == (5, 8)
    assert steps_per_epoch(recipe(), 5) == (1, 5)
    assert steps_per_epoch(recipe(augment={"mixup": 0.5}), 5) == (1, 4)
    with pytest.raises(ConfigError, match="is odd"):
        steps_per_epoch(recipe(batch_size=7, augment={"cutmix": 1.0}), 50)
    with pytest.raises(ConfigError, match="one picture is too few"):
        steps_per_epoch(recipe(), 1)


def test_training_transform_without_chance_shows_the_whole_picture() -> None:
    transform = train_transform(Augment(scale=(1.0, 1.0), horizontal_flip=0.0), PREPROCESSING, 32)
    assert transform(Image.new("RGB", (64, 64), (255, 0, 0))).shape == (3, 32, 32)


def test_the_strongest_posterize_is_black() -> None:
    transform = train_transform(Augment(rand_augment="rand-m10-inc1"), PREPROCESSING, 32)
    (randaugment,) = (part for part in transform.transforms if hasattr(part, "ops"))
    (operation,) = (operation for operation in randaugment.ops if operation.name == "PosterizeIncreasing")
    operation.prob = 1.0
    assert operation(Image.new("RGB", (8, 8), (255, 255, 255))).getextrema() == ((0, 0),) * 3

"""Pictures augmented at random, by timm's transforms."""

from __future__ import annotations

from typing import Any

from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import RandAugment, posterize
from timm.data.random_erasing import RandomErasing

from vigcli.config.recipe import Augment, Preprocessing
from vigcli.train.preprocess import Transform, normalizer


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
        mean=preprocessing.mean,  # the colour that RandAugment fills with
        normalize=False,  # timm's takes more copies
    )
    for part in transform.transforms:
        for operation in part.ops if isinstance(part, RandAugment) else ():
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterize
    transform.transforms.append(normalizer(preprocessing))
    if augment.erase:
        transform.transforms.append(RandomErasing(augment.erase, mode="pixel", device="cpu"))
    return transform


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm's, for 0 bits too: its strongest magnitude asks for them, and newer versions of Pillow refuse."""
    return posterize(image, bits, **options) if bits else Image.new(image.mode, image.size)

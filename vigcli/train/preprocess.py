"""What is done with a picture before a network: resized, cropped, normalized, its channels put in order.

As timm and torchvision do it, bit for bit, without them: their imports take longer than a network takes to load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vigcli.config.recipe import Preprocessing

Transform = Callable[[Any], Tensor]


def eval_transform(preprocessing: Preprocessing, resolution: int) -> Transform:
    """RGB picture -> uint8 (3, R, R): its shorter side resized, the centre cropped."""
    resample = Image.Resampling[preprocessing.interpolation.upper()]
    return partial(_cropped, short=preprocessing.short_side(resolution), size=resolution, resample=resample)


def _cropped(image: Image.Image, short: int, size: int, resample: Image.Resampling) -> Tensor:
    width, height = (int(short * side / min(image.size)) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.resize((width, height), resample).crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def eval_pixels(images: Sequence[Image.Image], preprocessing: Preprocessing, resolution: int) -> Tensor:
    """Pictures as uint8 (B, 3, R, R) before normalization: what an exported package takes."""
    transform = eval_transform(preprocessing, resolution)
    return torch.stack([transform(image) for image in images])


def normalize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 RGB (B, 3, R, R) as the network's float input."""
    return normalizer(preprocessing, pixels.device)(pixels)


def normalizer(preprocessing: Preprocessing, device: torch.device | str = "cpu") -> Transform:
    """The function that does it, for pixels ([B,] 3, R, R) on a device; it can be sent to another process."""
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    return partial(_normalized, mean=mean, std=std, is_bgr=preprocessing.channels == "BGR")


def _normalized(pixels: Tensor, mean: Tensor, std: Tensor, is_bgr: bool) -> Tensor:
    x = pixels.float().div_(255).sub_(mean).div_(std)
    return x.flip(-3) if is_bgr else x

"""Picture files as upright RGB pictures of eight bits, the same for training, measuring and `vig run`.

A picture is turned as its EXIF orientation says: so a person sees it, and so an app hands it to Vision. timm and
torchvision leave it as it was stored. An alpha channel is left out, as they do; of an animation the first picture is
taken.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from vigcli.errors import ConfigError

EXTENSIONS = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_ORIENTATION_TAG = 0x0112
_TURNS = {  # EXIF's orientation, and what makes the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_picture(source: Path | str | io.BytesIO, name: str) -> Image.Image:
    """A picture file as RGB. Raises ConfigError for one that is damaged, unreadable or absurdly large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF, odd palettes: the picture is read all the same
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                image.load()  # of a TIFF Pillow itself turns it, and says so
                return _upright(_eight_bits(image), _orientation(image)).convert("RGB")
    except Exception as error:  # PIL's decoders raise nearly anything for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "of no known format"
        hint = "Replace or remove this file."
        if name.lower().endswith((".heic", ".heif")):
            reason, hint = "HEIC is not read", "Save it as JPEG or PNG."
        raise ConfigError(f"{name}: cannot be read as a picture ({reason}).", hint) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grayscale picture of 16 bits by its upper eight: PIL would cut every value off at 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("the range of its values is not known")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF of a picture that is whole
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def picture_files(names: Sequence[str]) -> list[Path]:
    """The files that names mean: a folder stands for the pictures in it and below, in order.

    Raises ConfigError for a name without a file, and for a folder without pictures.
    """
    files: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and is_picture(file.name))
            if not inside:
                raise ConfigError(f"{path}: holds no picture.", f"Looked for {', '.join(sorted(EXTENSIONS))}.")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise ConfigError(f"{path}: no such picture.", "Check the path.")
    return files


def is_picture(name: str) -> bool:
    """Whether a file is taken for a picture by its name."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not os.path.basename(name).startswith(".")

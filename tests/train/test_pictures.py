"""Pictures of every kind become upright RGB of eight bits; what is damaged is named."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vigcli.errors import ConfigError
from vigcli.train.pictures import picture_files, read_picture

CORNERS = np.zeros((16, 24, 3), np.uint8)
CORNERS[:8, :12], CORNERS[:8, 12:], CORNERS[8:, :12] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
PICTURE = Image.fromarray(CORNERS)


def stored(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_a_picture_is_upright(value: int, kind: str) -> None:
    """By the reading of Pillow's own `exif_transpose`."""
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    file = stored(PICTURE, kind, exif=orientation(value), **options)
    found = np.asarray(read_picture(file, "x"), int)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)), int)
    assert np.array_equal(found, expected)
    assert found.shape == ((24, 16, 3) if value >= 5 else (16, 24, 3))


DAMAGED = [
    b"Exif\0\0" + b"garbage" * 3,
    b"x",
    b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
    orientation(6)[:-9],
    orientation(99),
]


@pytest.mark.parametrize("exif", DAMAGED)
def test_damaged_exif_spoils_no_picture(exif: bytes, recwarn: pytest.WarningsRecorder) -> None:
    assert read_picture(stored(PICTURE, "JPEG", exif=exif), "x").size == PICTURE.size
    assert not recwarn.list


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    image = read_picture(stored(Image.fromarray(RAMP).convert(mode), kind), "x")
    assert image.mode == "RGB"
    if mode != "1":
        assert np.abs(np.asarray(image, int) - RAMP[..., None]).max() <= 3


def test_alpha_is_left_out() -> None:
    clear = PICTURE.copy()
    clear.putalpha(0)
    assert np.array_equal(np.asarray(read_picture(stored(clear, "PNG"), "x")), CORNERS)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_range(kind: str) -> None:
    wide = Image.fromarray(RAMP.astype(np.uint16) * 257)
    found = np.asarray(read_picture(stored(wide, kind, exif=orientation(1)), "x"))
    assert np.array_equal(found, np.repeat(RAMP[..., None], 3, 2))


def test_sixteen_bits_are_turned() -> None:
    wide = Image.fromarray(np.zeros((16, 24), np.uint16))
    assert read_picture(stored(wide, "PNG", exif=orientation(6)), "x").size == (16, 24)


def test_numbers_without_a_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"x\.tif: cannot be read as a picture \(the range of its values"):
        read_picture(stored(Image.new("F", (4, 4)), "TIFF"), "x.tif")


def test_of_an_animation_the_first_picture_is_taken() -> None:
    file = stored(PICTURE, "GIF", save_all=True, append_images=[Image.new("RGB", PICTURE.size)])
    assert np.array_equal(np.asarray(read_picture(file, "x")), CORNERS)


@pytest.mark.parametrize(
    ("content", "name"), [(b"", "a.png"), (b"no picture", "b.jpg"), (stored(PICTURE, "PNG").getvalue()[:60], "c.png")]
)
def test_what_is_no_picture_is_named(content: bytes, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: cannot be read as a picture") as refused:
        read_picture(io.BytesIO(content), name)
    assert "Replace" in refused.value.hint
    assert " object at" not in str(refused.value)
    assert "_io." not in str(refused.value)


def test_heic_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="HEIC is not read") as refused:
        read_picture(io.BytesIO(b"\0\0\0\x18ftypheic"), "IMG_1.HEIC")
    assert "JPEG" in refused.value.hint


def test_a_folder_stands_for_its_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "deep/er/c.webp", ".hidden.png", "notes.txt", "z.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    names = [str(tmp_path / "z.gif"), str(tmp_path)]
    found = [file.relative_to(tmp_path).as_posix() for file in picture_files(names)]
    assert found == ["z.gif", "a.JPG", "b.png", "deep/er/c.webp"]
    with pytest.raises(ConfigError, match="empty: holds no picture"):
        picture_files([str(tmp_path / "empty")])
    with pytest.raises(ConfigError, match=r"none\.png: no such picture"):
        picture_files([str(tmp_path / "none.png")])

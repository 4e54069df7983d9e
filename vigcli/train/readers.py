"""Where pictures lie: class folders, zips, tars, WebDataset shards, Hugging Face datasets, and the embedded set.

What lies at a place is seen from it, so that nobody has to say so. Every kind gives random access: the order of a run
is then its seed's alone, whatever the number of workers, and a run goes on in the middle of an epoch. For that reason
shards are indexed here rather than streamed by timm's reader, whose order hangs on the workers and which leaves damaged
pictures out without a word. Tars of class folders and Hugging Face datasets are read by timm.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image
from torch.utils.data import Dataset

from vigcli.config.recipe import Data
from vigcli.errors import ConfigError, UnavailableError
from vigcli.paths import embedded
from vigcli.train.pictures import EXTENSIONS, is_picture, read_picture

EMBEDDED = "emoji10"
SPLITS = {"train": ("train",), "val": ("val", "validation")}  # and what a split is called on the disk
_PASS_DATA = "Pass --data /path/to/imagenet (with train/ and val/)."


class Member(NamedTuple):
    """A picture: its class, its name for messages, and what `read` of its place finds it by."""

    label: str
    name: str
    key: Any


Members = Sequence[Member]
Read = Callable[[Any], BinaryIO]


class Pictures(Dataset[tuple[Image.Image, int]]):
    """One split: item i is (RGB picture, index of its class).

    Attributes:
        name: where the pictures are, for messages.
        labels: class names, sorted; their places are the indices of the logits.
        targets: the class index of every picture.
    """

    def __init__(self, name: str, members: Members, read: Read):
        self.name = name
        self.labels = tuple(sorted({member.label for member in members}))
        places = {label: i for i, label in enumerate(self.labels)}
        self.targets = [places[member.label] for member in members]
        self._members, self._read = members, read

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Raises ConfigError for a picture that is damaged."""
        member = self._members[index]
        with self._read(member.key) as file:
            return read_picture(file, member.name), self.targets[index]  # type: ignore[arg-type]

    def file(self, index: int) -> str:
        """The name of a picture."""
        return self._members[index].name

    def part(self, limit: int | None) -> Pictures:
        """So many of the pictures, evenly spread. Raises ConfigError where they would not be of all classes."""
        part = Pictures(self.name, [self._members[i] for i in spread(len(self), limit)], self._read)
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

    Raises UnavailableError when the place or its split is missing, ConfigError when it holds no pictures of classes.
    """
    if data.source == EMBEDDED:
        if data.root is not None:
            hint = "Pass --set data.source=folder as well, or leave --data out."
            raise ConfigError(f"data.root is {data.root}, but data.source is {EMBEDDED}.", hint)
        return _zip(embedded(f"{EMBEDDED}.zip"), split)
    if data.root is None:
        raise UnavailableError("The recipe's pictures are in a folder, and none was named.", _PASS_DATA)
    root = Path(data.root)
    try:
        pictures = next(_found(root, split), None)
    except OSError as error:
        raise UnavailableError(f"{error.filename or root}: cannot be read: {error.strerror}.", _PASS_DATA) from error
    if pictures is None:
        is_inside = root.is_file() or root.name in {name for names in SPLITS.values() for name in names}
        hint = f"Name the folder above: --data {root.parent}" if is_inside else _PASS_DATA
        raise UnavailableError(f"{root / split}: no such folder, zip, tar, shards or dataset.", hint)
    return pictures


def _found(root: Path, split: str) -> Iterator[Pictures]:
    """The split in each form in which it lies there."""
    names = SPLITS.get(split, (split,))
    for name in names:
        folder = root / name
        if folder.is_dir():
            yield _tars(folder, shards) if (shards := sorted(folder.glob("*.tar"))) else _folder(folder)
        if (file := root / f"{name}.zip").is_file():
            yield _zip(file, name)
        if (file := root / f"{name}.tar").is_file():
            yield _tars(file, [file])
        if shards := sorted(root.glob(f"*{name}-*.tar")):
            yield _shards(root / name, shards)
    if _is_dataset(root):
        yield _hugging_face(root, names)


# ---------------------------------------------------------------------------------------------------- kinds


def _folder(folder: Path) -> Pictures:
    """CLASS/.../NAME.jpg as torchvision reads it; timm would take the innermost folder for the class."""
    members: list[Member] = []
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
        members += [Member(label, file, file) for file in files]
    return _pictures(str(folder), members, _opened)


def _pictures(name: str, members: Members, read: Read) -> Pictures:
    if not members:
        raise ConfigError(f"{name}: holds no class folders.", "Sort the pictures as CLASS/NAME.jpg.")
    return Pictures(name, members, read)


def _opened(path: str) -> BinaryIO:
    return open(path, "rb")


class _ZipFile:
    """Reads members of a zip; every process opens it for itself, because two that share a file share its position."""

    def __init__(self, path: Path):
        self.path = path
        self.process = 0
        self.file: zipfile.ZipFile | None = None

    def __call__(self, name: str) -> BinaryIO:
        if self.file is None or self.process != os.getpid():
            self.process, self.file = os.getpid(), zipfile.ZipFile(self.path)
        return io.BytesIO(self.file.read(name))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "process": 0, "file": None}


def _zip(path: Path, split: str) -> Pictures:
    """CLASS/NAME.jpg, or SPLIT/CLASS/NAME.jpg, in a zip."""
    try:
        with zipfile.ZipFile(path) as file:
            names = sorted(name for name in file.namelist() if is_picture(name))
    except (OSError, zipfile.BadZipFile) as error:
        raise UnavailableError(f"{path}: cannot be read as a zip ({error}).", "Make or copy it again.") from error
    inside = [name for name in names if name.startswith(f"{split}/")] or names
    members = [Member(label, f"{path.name}:{name}", name) for name in inside if (label := _class_of(name, split))]
    return _pictures(path.name, members, _ZipFile(path))


def _class_of(name: str, split: str) -> str:
    """`cat` of `cat/1.jpg` and `train/cat/1.jpg`; nothing of a picture that lies in no folder."""
    folders = name.removeprefix("./").removeprefix(f"{split}/").split("/")[:-1]
    return folders[0] if folders else ""


def _tars(place: Path, files: Sequence[Path]) -> Pictures:
    """Shards, told by the .cls or .json beside the pictures; else class folders in a tar, or a tar for each class."""
    with _readable(files[0]), tarfile.open(files[0]) as tar:
        kinds = {os.path.splitext(info.name)[1] for info, _ in zip(tar, range(64), strict=False)}
    if kinds & {".cls", ".json"}:
        return _shards(place, files)
    from timm.data.readers.reader_image_in_tar import ReaderImageInTar

    with _readable(place):  # opened anew for every picture: processes must not share a file's position
        reader = ReaderImageInTar(str(place), cache_tarfiles=False, cache_tarinfo=False)
    classes = {index: label for label, index in reader.class_name_to_idx.items()}
    members = [
        Member(classes[int(target)], f"{reader.samples[i][1] or place.name}:{reader.filename(i)}", i)
        for i, target in enumerate(reader.targets)
    ]
    return _pictures(str(place), members, _Timm(reader))


class _Timm:
    """A picture by its place in a reader of timm."""

    def __init__(self, reader: Any):
        self.reader = reader

    def __call__(self, index: int) -> BinaryIO:
        return self.reader[index][0]


def _shards(place: Path, files: Sequence[Path]) -> Pictures:
    """WebDataset: NAME.jpg with NAME.cls (a class's number or name) or NAME.json (with `label`) in tars."""
    members = [member for file in files for member in _samples(file)]
    width = max((len(member.label) for member in members if member.label.isdigit()), default=0)
    numbered = [member._replace(label=member.label.zfill(width)) for member in members]  # numbers sort as text
    return _pictures(str(place), numbered, _part_of_file)


def _samples(shard: Path) -> Iterator[Member]:
    """Raises ConfigError for a picture without a class."""
    pictures: dict[str, tarfile.TarInfo] = {}
    classes: dict[str, str] = {}
    with _readable(shard), tarfile.open(shard, "r:") as tar:
        for info in tar:
            folder, _, name = info.name.rpartition("/")
            stem, _, kind = name.partition(".")
            key = f"{folder}/{stem}"
            if info.isfile() and f".{kind.lower()}" in EXTENSIONS:
                pictures[key] = info
            elif kind in ("cls", "json"):
                classes[key] = _label(tar.extractfile(info).read(), kind)  # type: ignore[union-attr]
    for key, info in pictures.items():
        if key not in classes:
            raise ConfigError(f"{shard}:{info.name}: has no class.", "Put a .cls beside every picture of a shard.")
        yield Member(classes[key], f"{shard.name}:{info.name}", (str(shard), info.offset_data, info.size))


def _label(content: bytes, kind: str) -> str:
    text = content.decode().strip()
    return str(json.loads(text)["label"]) if kind == "json" else text


def _part_of_file(key: tuple[str, int, int]) -> BinaryIO:
    path, offset, size = key
    with open(path, "rb") as file:
        file.seek(offset)
        return io.BytesIO(file.read(size))


def _is_dataset(root: Path) -> bool:
    """Whether a folder holds what Hugging Face's `datasets` writes or downloads."""
    return root.is_dir() and any(any(root.glob(kind)) for kind in ("*.parquet", "data/*.parquet", "*.arrow"))


def _hugging_face(root: Path, names: Sequence[str]) -> Pictures:
    """A dataset with the columns `image` and `label`, from the disk: nothing is fetched."""
    try:
        import datasets
        from timm.data.readers.reader_hfds import ReaderHfds
    except ImportError as error:
        what = f"{root}: a Hugging Face dataset needs the package datasets."
        raise UnavailableError(what, "pip install 'vig[datasets]'") from error
    try:
        datasets.disable_progress_bars()
        split = next(name for name in datasets.get_dataset_split_names(str(root)) if name in names)
        reader = ReaderHfds(str(root), split=split)
        targets = list(reader.iter_targets())
    except Exception as error:  # the library raises nearly anything
        reason = " ".join(str(error).split())[:120] or "no such split"
        hint = "It needs the splits train and validation, with the columns image and label."
        raise ConfigError(f"{root}: its split {names[-1]} cannot be read ({reason}).", hint) from error
    labels = {index: label for label, index in reader.class_to_idx.items()}
    width = len(str(max(targets, default=0)))  # numbers sort as text
    members = [
        Member(labels.get(target, str(target).zfill(width)), f"{root.name}:{split}[{i}]", i)
        for i, target in enumerate(targets)
    ]
    return _pictures(str(root), members, _Timm(reader))


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns the complaints of a damaged tar into a ConfigError."""
    try:
        yield
    except (tarfile.TarError, ValueError, KeyError, EOFError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ConfigError(f"{path}: cannot be read ({reason}).", "Make or copy it again.") from error

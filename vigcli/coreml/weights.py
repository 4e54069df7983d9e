"""Reads the weight files of a package: blobs of bytes, each behind a header; what the bytes mean is left to
`vigcli.coreml.ops.const`.

Source: StorageFormat.hpp and BlobDataType.hpp in mlmodel/src/MILBlob/Blob of https://github.com/apple/coremltools; the
codes from 8 on are those that the writer of coremltools 9 puts down. No size and no place is believed before the file
is known to hold it, so what is read never exceeds what lies on the disk.
"""

from __future__ import annotations

import struct
from pathlib import Path, PurePosixPath
from typing import BinaryIO

PREFIX = "@model_path/"
SENTINEL = 0xDEADBEEF
HEADER = struct.Struct("<IIQQQ")  # sentinel, code of the type, bytes, where they start, bits of padding
BLOB_TYPES = {
    1: "fp16",
    2: "fp32",
    3: "uint8",
    4: "int8",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}


class WeightFiles:
    """The blobs of a package, each read when a constant names it.

    Args:
        folder: where the model's file is; `@model_path` stands for it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._paths: dict[str, Path] = {}
        self._left: dict[Path, int] = {}  # bytes of a file that no constant has taken yet
        self._taken: set[tuple[Path, int]] = set()

    def read(self, location: str, offset: int, dtype: str, size_bytes: int) -> bytes:
        """The bytes of one blob. Raises ValueError where the file has no such blob of that type and size."""
        if location not in self._paths:
            self._paths[location] = self._path(location)
        path = self._paths[location]
        with path.open("rb") as file:
            file_size = file.seek(0, 2)
            start = self._start(file, file_size, offset, dtype, size_bytes)
            self._account(path, offset, file_size, size_bytes)
            file.seek(start)
            content = file.read(size_bytes)
        if len(content) != size_bytes:
            raise ValueError(f"{path.name} ends inside the numbers at byte {start}")
        return content

    def _path(self, location: str) -> Path:
        """The file that a constant names; never outside the model's folder, not even by a link."""
        inside = PurePosixPath(location.removeprefix(PREFIX))
        if not location.startswith(PREFIX) or inside.is_absolute() or ".." in inside.parts or "\0" in location:
            raise ValueError(f"the weight file '{location}' is not inside the package")
        path = self.folder / inside
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"the weight file '{location}' leads outside the package")
        if not path.is_file():
            raise ValueError(f"{inside} is missing")
        return path

    def _start(self, file: BinaryIO, file_size: int, offset: int, dtype: str, size_bytes: int) -> int:
        """Where the bytes of a blob start, once its header agrees with what is due."""
        if offset + HEADER.size > file_size:
            raise ValueError(f"its weight file ends at byte {file_size}, before the numbers at {offset}")
        file.seek(offset)
        sentinel, code, stored_bytes, start, _ = HEADER.unpack(file.read(HEADER.size))
        if sentinel != SENTINEL:
            raise ValueError(f"its weight file holds no numbers at byte {offset}")
        if BLOB_TYPES.get(code) != dtype:
            stored = BLOB_TYPES.get(code, f"type {code}")
            raise ValueError(f"its weight file holds {stored} at byte {offset}, not {dtype}")
        if stored_bytes != size_bytes:
            raise ValueError(f"its weight file holds {stored_bytes} bytes at byte {offset} where {size_bytes} are due")
        if start + size_bytes > file_size:
            raise ValueError(f"its weight file ends at byte {file_size}, inside the numbers at {start}")
        return int(start)

    def _account(self, path: Path, offset: int, file_size: int, size_bytes: int) -> None:
        """Blobs do not overlap, so together they are no larger than their file."""
        if (path, offset) in self._taken:
            return
        self._taken.add((path, offset))
        self._left[path] = self._left.get(path, file_size) - size_bytes
        if self._left[path] < 0:
            raise ValueError(f"the constants claim more than the {file_size} bytes of their weight file")

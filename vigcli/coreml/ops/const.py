"""`const`: the types and values of a program's messages as torch tensors, numbers from the weight file included.

The messages come from a file that anybody may have written: every size is checked before it is believed, and a
ValueError says what does not fit.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# The numbers that MIL.proto gives to its types.
TYPE_NAMES = {
    1: "bool",
    2: "string",
    10: "fp16",
    11: "fp32",
    12: "fp64",
    21: "int8",
    22: "int16",
    23: "int32",
    24: "int64",
    25: "int4",
    31: "uint8",
    32: "uint16",
    33: "uint32",
    34: "uint64",
    35: "uint4",
    36: "uint2",
    37: "uint1",
    38: "uint6",
    39: "uint3",
}
NUMPY_TYPES = {
    "bool": np.bool_,
    "fp16": np.float16,
    "fp32": np.float32,
    "fp64": np.float64,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
}
PACKED_BITS = {"uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6, "int4": 4}
WIDE_INTEGERS = ("int64", "uint32", "uint64")
BLOB_SENTINEL = 0xDEADBEEF
BLOB_HEADER = struct.Struct("<IIQQ")  # sentinel, type, bytes, offset of the data


@dataclass(frozen=True)
class TensorType:
    """An element type by its MIL name, and a shape; None is a dimension that only the input decides."""

    dtype: str
    shape: tuple[int | None, ...]

    @classmethod
    def of(cls, message: Any) -> TensorType | None:
        """The type of a tensor or a scalar; None for lists and dictionaries."""
        if message.WhichOneof("type") != "tensorType":
            return None
        tensor = message.tensorType
        if tensor.dataType not in TYPE_NAMES:
            raise ValueError(f"unknown element type {tensor.dataType}")
        sizes = (d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
        return cls(TYPE_NAMES[tensor.dataType], tuple(sizes))

    @property
    def num_elements(self) -> int:
        if None in self.shape:
            raise ValueError("a constant has an open shape")
        return math.prod(size for size in self.shape if size is not None)

    @property
    def size_bytes(self) -> int:
        bits = PACKED_BITS.get(self.dtype) or 8 * np.dtype(NUMPY_TYPES[self.dtype]).itemsize
        return -(-self.num_elements * bits // 8)


class WeightFiles:
    """The blobs of a package's weights folder; a file is read when the first constant names it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._contents: dict[str, bytes] = {}

    def read(self, location: str, offset: int, size_bytes: int) -> bytes:
        name = location.rsplit("/", 1)[-1]
        if name not in self._contents:
            path = self.folder / name
            if not path.is_file():
                raise ValueError(f"weights/{name} is missing")
            self._contents[name] = path.read_bytes()
        content = self._contents[name]
        if offset + BLOB_HEADER.size > len(content):
            raise ValueError(f"weights/{name} ends at byte {len(content)}, before the numbers at {offset}")
        sentinel, _, stored_bytes, start = BLOB_HEADER.unpack_from(content, offset)
        if sentinel != BLOB_SENTINEL:
            raise ValueError(f"weights/{name} holds no numbers at byte {offset}")
        if stored_bytes != size_bytes:
            raise ValueError(f"weights/{name} holds {stored_bytes} bytes at byte {offset} where {size_bytes} are due")
        if start + size_bytes > len(content):
            raise ValueError(f"weights/{name} ends at byte {len(content)}, inside the numbers at {start}")
        return content[start : start + size_bytes]


def decode(message: Any, weights: WeightFiles) -> Any:
    """A value: a tensor, a string, or a list of such."""
    if message.type.WhichOneof("type") == "listType":
        return [decode(element, weights) for element in message.immediateValue.list.values]
    type_ = TensorType.of(message.type)
    if type_ is None:
        raise ValueError(f"a constant of type {message.type.WhichOneof('type')}")
    if message.WhichOneof("value") == "blobFileValue":
        if type_.dtype == "string":
            raise ValueError("strings in a weight file")
        blob = message.blobFileValue
        return _from_bytes(weights.read(blob.fileName, blob.offset, type_.size_bytes), type_)
    return _from_message(message.immediateValue.tensor, type_)


def _from_message(tensor: Any, type_: TensorType) -> Any:
    field = tensor.WhichOneof("value")
    values: Any = getattr(tensor, field).values if field else []
    if field == "bytes":
        return _from_bytes(values, type_)
    if len(values) != type_.num_elements:
        raise ValueError(f"{len(values)} values where {type_.num_elements} are due")
    if type_.dtype == "string":
        return list(values) if type_.shape else str(values[0])
    if type_.dtype not in NUMPY_TYPES:
        raise ValueError(f"{type_.dtype} values that are not packed")
    return _to_torch(np.asarray(values, NUMPY_TYPES[type_.dtype]), type_)


def _from_bytes(content: bytes, type_: TensorType) -> Tensor:
    if type_.dtype == "string" or len(content) != type_.size_bytes:
        raise ValueError(f"{len(content)} bytes do not make {type_.dtype} of shape {list(type_.shape)}")
    if type_.dtype not in PACKED_BITS:
        return _to_torch(np.frombuffer(content, NUMPY_TYPES[type_.dtype]), type_)
    num_bits = PACKED_BITS[type_.dtype]
    numbers = unpack_bits(np.frombuffer(content, np.uint8), num_bits, type_.num_elements)
    if type_.dtype == "int4":
        numbers = np.where(numbers >= 8, numbers - 16, numbers)
    return _to_torch(numbers, type_)


def unpack_bits(packed: np.ndarray, num_bits: int, count: int) -> np.ndarray:
    """Unsigned numbers of num_bits each, stored lowest bit first and across bytes."""
    if packed.size * 8 < count * num_bits:
        raise ValueError(f"{packed.size} bytes do not hold {count} numbers of {num_bits} bits")
    bits = np.unpackbits(packed, bitorder="little", count=count * num_bits)
    return (bits.reshape(count, num_bits) * (1 << np.arange(num_bits))).sum(1)


def _to_torch(numbers: np.ndarray, type_: TensorType) -> Tensor:
    """Floats as float32 and integers as int32 (int64 where they may not fit)."""
    kind: Any = np.int64 if type_.dtype in WIDE_INTEGERS else np.int32
    if type_.dtype == "bool":
        kind = np.bool_
    elif type_.dtype.startswith("fp"):
        kind = np.float32
    return torch.from_numpy(numbers.astype(kind)).reshape([size for size in type_.shape if size is not None])

"""`const`: the types and values of a program's messages as torch tensors, numbers from the weight files included.

The messages come from a file that anybody may have written: every size is checked before it is believed, and a
ValueError says what does not fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vigcli.coreml.messages import DATA_TYPES, TensorValue, Value, ValueType, given
from vigcli.coreml.weights import WeightFiles

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
# The lists of a message in which numbers of a type may stand; all others stand in `bytes`.
LISTS = {
    "bool": ("bools",),
    "string": ("strings",),
    "fp32": ("floats",),
    "fp64": ("doubles",),
    "int64": ("long_ints",),
    "uint64": ("long_ints",),
    "int32": ("ints",),
    "int16": ("ints", "bytes"),
    "uint16": ("ints", "bytes"),
}
LARGEST = 2**27  # numbers in a tensor, half a GB: far more than a network of images has


@dataclass(frozen=True)
class TensorType:
    """An element type by its MIL name, and a shape; None is a dimension that only the input decides."""

    dtype: str
    shape: tuple[int | None, ...]

    @classmethod
    def of(cls, message: ValueType | None) -> TensorType | None:
        """The type of a tensor or a scalar; None for lists and dictionaries. Raises ValueError for huge ones."""
        tensor = message.tensor_type if message else None
        if tensor is None:
            return None
        if tensor.data_type not in DATA_TYPES:
            raise ValueError(f"unknown element type {tensor.data_type}")
        if tensor.rank != len(tensor.dimensions):
            raise ValueError(f"{len(tensor.dimensions)} dimensions where {tensor.rank} are due")
        shape = tuple(d.constant.size if d.constant else None for d in tensor.dimensions)
        if math.prod(size for size in shape if size) > LARGEST:
            raise ValueError(f"a tensor of {' x '.join(map(str, shape))} is too large")
        return cls(DATA_TYPES[tensor.data_type], shape)

    @property
    def sizes(self) -> list[int]:
        """The shape of a constant, which has no open dimension."""
        if None in self.shape:
            raise ValueError("a constant has an open shape")
        return [size for size in self.shape if size is not None]

    @property
    def num_elements(self) -> int:
        return math.prod(self.sizes)

    @property
    def size_bytes(self) -> int:
        bits = PACKED_BITS.get(self.dtype) or 8 * np.dtype(NUMPY_TYPES[self.dtype]).itemsize
        return -(-self.num_elements * bits // 8)


class Decoder:
    """Turns the values of a program into tensors, strings and lists; what constants share is read once."""

    def __init__(self, weights: WeightFiles):
        self.weights = weights
        self._blobs: dict[tuple[str, int, str], Tensor] = {}

    def value(self, message: Value) -> Any:
        """A tensor, a string, or a list of such. Raises ValueError."""
        kind = given(message.type) if message.type else None
        if kind == "list_type" and message.immediate_value and message.immediate_value.list:
            return [self.value(element) for element in message.immediate_value.list.values]
        type_ = TensorType.of(message.type)
        if type_ is None:
            raise ValueError(f"a constant is a {kind or 'value'} without a type that is known")
        if message.blob_file_value:
            return self._blob(message.blob_file_value.file_name, message.blob_file_value.offset, type_)
        tensor = message.immediate_value.tensor if message.immediate_value else None
        return _immediate(tensor or _NOTHING, type_)

    def _blob(self, location: str, offset: int, type_: TensorType) -> Tensor:
        if type_.dtype == "string":
            raise ValueError("strings in a weight file")
        key = (location, offset, type_.dtype)
        if key not in self._blobs or self._blobs[key].numel() != type_.num_elements:
            content = self.weights.read(location, offset, type_.dtype, type_.size_bytes)
            self._blobs[key] = _from_bytes(content, type_)
        return self._blobs[key].reshape(type_.sizes)


_NOTHING = TensorValue(*[None] * 7)


def _immediate(tensor: TensorValue, type_: TensorType) -> Any:
    place = given(tensor)
    values: Any = getattr(tensor, place).values if place else []
    if values and place not in LISTS.get(type_.dtype, ("bytes",)):
        raise ValueError(f"{type_.dtype} values among {place}")
    if place == "bytes":
        return _from_bytes(values, type_)
    if len(values) != type_.num_elements:
        raise ValueError(f"{len(values)} values where {type_.num_elements} are due")
    if type_.dtype == "string":
        return list(values) if type_.shape else str(values[0])
    return _to_torch(np.asarray(values, NUMPY_TYPES.get(type_.dtype, np.uint8)), type_)


def _from_bytes(content: bytes, type_: TensorType) -> Tensor:
    if type_.dtype == "string" or len(content) != type_.size_bytes:
        raise ValueError(f"{len(content)} bytes do not make {type_.dtype} of shape {list(type_.shape)}")
    if type_.dtype not in PACKED_BITS:
        return _to_torch(np.frombuffer(content, np.dtype(NUMPY_TYPES[type_.dtype]).newbyteorder("<")), type_)
    num_bits = PACKED_BITS[type_.dtype]
    numbers = unpack_bits(np.frombuffer(content, np.uint8), num_bits, type_.num_elements)
    if type_.dtype == "int4":
        numbers = np.where(numbers >= 8, numbers - 16, numbers)
    return _to_torch(numbers, type_)


def unpack_bits(packed: np.ndarray, num_bits: int, count: int) -> np.ndarray:
    """Unsigned numbers of num_bits each, stored lowest bit first and across bytes."""
    if packed.size * 8 < count * num_bits:
        raise ValueError(f"{packed.size} bytes do not hold {count} numbers of {num_bits} bits")
    bits = np.unpackbits(packed, bitorder="little", count=count * num_bits).reshape(count, num_bits)
    numbers = np.zeros(count, np.int32)
    for i in range(num_bits):
        numbers |= bits[:, i].astype(np.int32) << i
    return numbers


def _to_torch(numbers: np.ndarray, type_: TensorType) -> Tensor:
    """Floats as float32 and integers as int32 (int64 where they may not fit)."""
    kind: Any = np.int64 if type_.dtype in WIDE_INTEGERS else np.int32
    if type_.dtype == "bool":
        kind = np.bool_
    elif type_.dtype.startswith("fp"):
        kind = np.float32
    return torch.from_numpy(numbers.astype(kind)).reshape(type_.sizes)

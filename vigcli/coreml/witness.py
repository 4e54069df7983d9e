"""A second reading of a package, by coremltools' protobuf classes and its reader of weight files, so that a mistake of
our own reader cannot hide: both must see the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vigcli.coreml.apple import coremltools
from vigcli.coreml.messages import Model, Operation, Value
from vigcli.coreml.ops.const import PACKED_BITS, Decoder, TensorType
from vigcli.coreml.package import DAMAGE, REEXPORT_HINT, find_model, read_package, shown
from vigcli.coreml.weights import PREFIX, WeightFiles
from vigcli.coreml.wire import Field, fields_of, is_message
from vigcli.errors import ConfigError

# What coremltools' reader of weight files calls fp16 and fp32; the other types have the same names.
READERS = {"fp32": "float"}


def read_with_coremltools(path: Path | str) -> Model:
    """The model of a package as coremltools' protobuf classes read it. Raises ConfigError for a damaged one."""
    path = Path(path)
    model_path = find_model(path)
    message = coremltools().proto.Model_pb2.Model()
    from google.protobuf.message import DecodeError  # comes with coremltools

    try:
        message.ParseFromString(model_path.read_bytes())
    except DecodeError as error:
        raise ConfigError(f"{path}: its {model_path.name} is damaged.", REEXPORT_HINT) from error
    model: Model = transcribe(Model, message)
    return model


def compare_readings(path: Path | str) -> str | None:
    """The first thing that the two readers see apart in a package, or None; and all numbers of its weight files.

    Raises ConfigError for a package that our own reader refuses, UnavailableError without coremltools.
    """
    path = Path(path)
    files = read_package(path)
    found = difference(files.model, read_with_coremltools(path))
    if found:
        return found
    try:
        return _weights_apart(find_model(path).parent, files.block.operations, files.weights)
    except DAMAGE as error:
        raise ConfigError(f"{path}: its weights are damaged: {shown(error)}.", REEXPORT_HINT) from error


# ------------------------------------------------------------------------------------------------ messages


def transcribe(kind: Any, message: Any) -> Any:
    """A message of coremltools as one of ours, by the names of its fields; our own reader goes by their numbers."""
    theirs = {_plain(field.name): field.name for field in message.DESCRIPTOR.fields}
    return kind(**{field.name: _field(field, message, theirs[_plain(field.name)]) for field in fields_of(kind)})


def _field(field: Field, message: Any, name: str) -> Any:
    if field.holds == "one" and (field.union or is_message(field.type)) and not message.HasField(name):
        return None
    value = getattr(message, name)
    if field.holds == "many":
        return [_one(field, element) for element in value]
    if field.holds == "map":
        return {key: _one(field, value[key]) for key in value}
    return _one(field, value)


def _one(field: Field, value: Any) -> Any:
    return transcribe(field.type, value) if is_message(field.type) else value


def _plain(name: str) -> str:
    """blockSpecializations and block_specializations are one name."""
    return name.replace("_", "").lower()


def difference(ours: Any, theirs: Any, place: str = "model") -> str | None:
    """Where two readings of a message differ first, and how; None where they agree."""
    if type(ours) is not type(theirs):
        return f"{place}: {type(ours).__name__} or {type(theirs).__name__}"
    if ours == theirs:
        return None
    parts: Iterator[tuple[str, Any, Any]]
    if dataclasses.is_dataclass(ours):
        names = [field.name for field in dataclasses.fields(ours)]
        parts = ((f"{place}.{name}", getattr(ours, name), getattr(theirs, name)) for name in names)
    elif isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return f"{place}: only one has {shown(min(ours.keys() ^ theirs.keys()))}"
        parts = ((f"{place}[{shown(key)}]", ours[key], theirs[key]) for key in ours)
    elif isinstance(ours, list):
        if len(ours) != len(theirs):
            return f"{place}: {len(ours)} or {len(theirs)} elements"
        parts = ((f"{place}[{i}]", *pair) for i, pair in enumerate(zip(ours, theirs, strict=True)))
    else:
        both_nan = ours != ours and theirs != theirs
        return None if both_nan else f"{place}: {shown(repr(ours))} or {shown(repr(theirs))}"
    return next(filter(None, (difference(a, b, where) for where, a, b in parts)), None)


# ------------------------------------------------------------------------------------------------ weights


def _weights_apart(folder: Path, operations: list[Operation], weights: WeightFiles) -> str | None:
    """The first constant in a weight file that coremltools reads otherwise."""
    from coremltools.libmilstoragepython import _BlobStorageReader

    decoder, readers = Decoder(weights), {}
    for name, value in _blobs(operations):
        blob, type_ = value.blob_file_value, TensorType.of(value.type)
        assert blob is not None
        assert type_ is not None
        ours = decoder.value(value).numpy()
        if blob.file_name not in readers:
            readers[blob.file_name] = _BlobStorageReader(str(folder / blob.file_name.removeprefix(PREFIX)))
        read = getattr(readers[blob.file_name], f"read_{READERS.get(type_.dtype, type_.dtype)}_data")
        theirs = np.asarray(read(blob.offset))
        if type_.dtype == "fp16":
            theirs = theirs.view(np.float16)
        if type_.dtype in PACKED_BITS:
            theirs = theirs.astype(np.int32)
        if not np.array_equal(
            ours.reshape(-1), theirs.astype(ours.dtype).reshape(-1), equal_nan=ours.dtype.kind == "f"
        ):
            return f"const '{shown(name)}': its numbers in the weight file"
    return None


def _blobs(operations: list[Operation]) -> Iterator[tuple[str, Value]]:
    """Every value that stands in a weight file, with the name of what it belongs to."""
    for operation in operations:
        for output in operation.outputs[:1]:
            values = [*operation.attributes.values()]
            values += [b.value for argument in operation.inputs.values() for b in argument.arguments if b.value]
            yield from ((output.name, value) for value in values if value.blob_file_value)

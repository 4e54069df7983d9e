"""Our reader of protobuf against Google's: numbers of fields, every message that can be drawn, damaged bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vigcli.coreml import messages
from vigcli.coreml.apple import coremltools
from vigcli.coreml.messages import Empty, Model
from vigcli.coreml.wire import (
    DEEPEST,
    SCALARS,
    Field,
    Int32,
    UInt64,
    WireError,
    at,
    bare,
    field_numbers,
    fields_of,
    is_message,
    read,
)
from vigcli.coreml.witness import transcribe

pytest.importorskip("coremltools", exc_type=ImportError)
# Protobuf's own names: 1 double, 2 float, 3 int64, 4 uint64, 5 int32, 8 bool, 9 string, 12 bytes, 13 uint32, 14 enum.
THEIR_TYPES = {1: "<d", 2: "<f", 3: "int64", 4: "uint64", 5: "int32", 8: "bool", 9: "str", 12: "bytes", 14: "int32"}


def descriptor(kind: type) -> Any:
    proto = coremltools().proto
    if kind is Model:
        return proto.Model_pb2.Model.DESCRIPTOR
    return next(found for found in _all_descriptors() if found.name == kind.__name__)


def _all_descriptors() -> list[Any]:
    """Every message that a model may have inside, but for models of other kinds."""
    found: dict[str, Any] = {}
    pending = [coremltools().proto.Model_pb2.Model.DESCRIPTOR]
    while pending:
        current = pending.pop()
        if current.full_name in found:
            continue
        found[current.full_name] = current
        inside = [field for field in current.fields if field.message_type]
        if current.name == "Model":
            inside = [field for field in inside if field.name in ("description", "mlProgram")]
        pending += [field.message_type for field in inside]
    return list(found.values())


def ours() -> list[type]:
    declared = [kind for kind in vars(messages).values() if is_message(kind) and kind is not Empty]
    assert len(declared) > 40
    return declared


@pytest.mark.parametrize("kind", ours(), ids=lambda kind: kind.__name__)
def test_the_fields_are_those_of_coremltools(kind: type) -> None:
    """Names, numbers, types, repetition and unions; and none is forgotten."""
    theirs = {field.number: field for field in descriptor(kind).fields}
    if kind is Model:  # other kinds of models are told by their numbers alone
        theirs = {n: f for n, f in theirs.items() if not f.containing_oneof or f.name == "mlProgram"}
    assert {field.number for field in fields_of(kind)} == theirs.keys()
    for field in fields_of(kind):
        their = theirs[field.number]
        assert field.name.replace("_", "") == their.name.replace("_", "").lower()
        is_map = bool(their.message_type and their.message_type.GetOptions().map_entry)
        assert field.holds == ("map" if is_map else "many" if their.is_repeated else "one")
        assert bool(field.union) == bool(their.containing_oneof) or kind is Model
        value = their.message_type.fields_by_name["value"] if is_map else their
        if is_message(field.type):
            assert field.type is Empty or field.type.__name__ == value.message_type.name
        else:
            name = field.type.__name__ if field.type in (str, bytes, bool) else field.type.__metadata__[0]
            assert name == THEIR_TYPES[value.type]


def test_the_other_kinds_of_models_are_those_of_coremltools() -> None:
    from vigcli.coreml.package import OTHER_MODELS

    kinds = coremltools().proto.Model_pb2.Model.DESCRIPTOR.oneofs_by_name["Type"].fields
    assert {field.number: field.name for field in kinds if field.name != "mlProgram"} == OTHER_MODELS


def test_the_element_types_are_those_of_coremltools() -> None:
    theirs = {v.number: v.name for v in coremltools().proto.MIL_pb2.DESCRIPTOR.enum_types_by_name["DataType"].values}
    assert theirs.keys() - messages.DATA_TYPES.keys() == {0, 13, 40, 41}  # none, bfloat16 and two of 8 bits
    for number, name in messages.DATA_TYPES.items():
        assert theirs[number].lower().replace("float", "fp") == name


# ------------------------------------------------------------------------------------------------ every message


def scalars(type_: Any) -> st.SearchStrategy[Any]:
    if type_ is str:
        return st.text(max_size=5)
    if type_ is bytes:
        return st.binary(max_size=5)
    if bare(type_) is float:
        return st.floats(width=32 if type_.__metadata__[0] == "<f" else 64, allow_nan=False)
    low, high = SCALARS["bool" if type_ is bool else type_.__metadata__[0]]
    return st.integers(low, high - 1).map(bare(type_))


@st.composite
def drawn(draw: st.DrawFn, kind: type, depth: int = 0) -> Any:
    """A message of ours with anything in it that protobuf can hold."""
    values: dict[str, Any] = {field.name: field.unset() for field in fields_of(kind)}
    room = 3 if depth < 12 else 0
    for field in draw(st.lists(st.sampled_from(fields_of(kind) or (None,)), max_size=room, unique=True)):
        if field is None or (field.union and any(values[f.name] is not None for f in _union(kind, field))):
            continue
        one = drawn(field.type, depth + 1) if is_message(field.type) else scalars(field.type)
        if field.holds == "map":
            values[field.name] = draw(st.dictionaries(st.text(max_size=4), one, max_size=2))
        else:
            values[field.name] = draw(st.lists(one, max_size=3) if field.holds == "many" else one)
    return kind(**values)


def _union(kind: type, field: Field) -> list[Field]:
    return [other for other in fields_of(kind) if other.union == field.union]


def fill(message: Any, value: Any) -> Any:
    """The same message among Google's classes."""
    theirs = {field.name.lower().replace("_", ""): field.name for field in message.DESCRIPTOR.fields}
    for field in fields_of(type(value)):
        name, content = theirs[field.name.replace("_", "")], getattr(value, field.name)
        if content is None:
            continue
        if field.holds == "map":
            for key, element in content.items():
                if is_message(field.type):
                    fill(getattr(message, name)[key], element)
                else:
                    getattr(message, name)[key] = element
        elif not is_message(field.type):
            getattr(message, name).extend(content) if field.holds == "many" else setattr(message, name, content)
        elif field.holds == "many":
            for element in content:
                fill(getattr(message, name).add(), element)
        else:
            getattr(message, name).SetInParent()
            fill(getattr(message, name), content)
    return message


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn(Model))
def test_what_google_writes_is_read_as_it_was_meant(model: Model) -> None:
    message = fill(coremltools().proto.Model_pb2.Model(), model)
    assert read(Model, message.SerializeToString()) == model
    assert transcribe(Model, message) == model


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn(Model), st.data())
def test_damaged_bytes_are_refused_or_read_as_google_does(model: Model, data: st.DataObject) -> None:
    from google.protobuf.message import DecodeError

    content = bytearray(fill(coremltools().proto.Model_pb2.Model(), model).SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        seen = read(Model, damaged)
    except WireError:
        return
    message = coremltools().proto.Model_pb2.Model()
    try:
        message.ParseFromString(damaged)
    except DecodeError:  # inside what we do not read
        return
    assert transcribe(Model, message) == seen or repr(transcribe(Model, message)) == repr(seen)  # repr: not a number


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_bytes_at_random(content: bytes) -> None:
    for look in (lambda: read(Model, content), lambda: field_numbers(content)):
        with contextlib.suppress(WireError):
            look()


# ------------------------------------------------------------------------------------------------ what is refused


@dataclass
class Leaf:
    number: Int32 = at(1)
    offset: UInt64 = at(2)
    name: str | None = at(3, "what")
    flag: bool | None = at(4, "what")
    numbers: list[Int32] = at(5)
    leaf: Leaf | None = at(6)
    by_name: dict[str, Leaf] = at(7)


def leaf(**values: Any) -> Leaf:
    return Leaf(**{**{field.name: field.unset() for field in fields_of(Leaf)}, **values})


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"", {}),
        (b"\x08\x96\x01", {"number": 150}),
        (b"\x08" + b"\xff" * 9 + b"\x01", {"number": -1}),
        (b"\x08\x80\x80\x00", {"number": 0}),  # longer than it needs to be
        (b"\x10" + b"\xff" * 9 + b"\x01", {"offset": 2**64 - 1}),
        (b"\x2a\x03\x01\x96\x01", {"numbers": [1, 150]}),  # packed
        (b"\x28\x01\x28\x02", {"numbers": [1, 2]}),  # one by one
        (b"\x28\x01\x2a\x01\x02", {"numbers": [1, 2]}),  # both
        (b"\x1a\x00", {"name": ""}),  # a member of a union is set even if it is empty
        (b"\x20\x00", {"flag": False}),
        (b"\x3a\x05\x0a\x01x\x12\x00", {"by_name": {"x": leaf()}}),
        (b"\x3a\x03\x0a\x01x", {"by_name": {"x": leaf()}}),  # an entry without a value
        (b"\x40\x05\x4a\x01!\x55\0\0\0\0\x59\0\0\0\0\0\0\0\0", {}),  # fields that nobody declared
    ],
)
def test_reads(content: bytes, value: dict[str, Any]) -> None:
    assert read(Leaf, content) == leaf(**value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\x08", "does not end"),
        (b"\x08\x96", "does not end"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "does not end"),
        (b"\x08" + b"\xff" * 9 + b"\x7f", "does not end"),  # more than 64 bits
        (b"\x08\xff\xff\xff\xff\x0f", "4294967295 is no int32"),
        (b"\x20\x02", "2 is no bool"),
        (b"\x08\x01\x08\x02", "field 1 is given twice"),
        (b"\x32\x00\x32\x00", "field 6 is given twice"),
        (b"\x1a\x01x\x20\x01", "two of name, flag"),
        (b"\x3a\x03\x0a\x01x" * 2, "'x' is given twice"),
        (b"\x0a\x00", "field 1 has wire type 2"),
        (b"\x1a\x05abc", "5 bytes are due at byte 2, 3 are there"),
        (b"\x1a" + b"\xff" * 9 + b"\x01", "18446744073709551615 bytes are due"),
        (b"\x1a\x02\xff\xfe", "not UTF-8"),
        (b"\x2a\x01\x96", "does not end"),
        (b"\x00\x01", "no field has the tag 0"),
        (b"\x43", "wire type 3"),  # groups, which protobuf has given up
        (b"\x46", "wire type 6"),
        (b"\x55\x00", "does not end"),
    ],
)
def test_refuses(content: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why):
        read(Leaf, content)


def nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        size = bytearray()
        left = len(content)
        while left >= 0x80:
            size.append(left & 0x7F | 0x80)
            left >>= 7
        content = b"\x32" + bytes([*size, left]) + content
    return content


def test_refuses_messages_that_never_end() -> None:
    assert read(Leaf, nested(DEEPEST)).leaf is not None
    for depth in (DEEPEST + 1, 10_000):
        with pytest.raises(WireError, match="nested deeper than"):
            read(Leaf, nested(depth))


def test_numbers_of_fixed_size() -> None:
    numbers = [0.0, -1.5, 3.4e38, float("inf")]
    packed = struct.pack("<4f", *numbers)
    floats = read(messages.RepeatedFloats, b"\x0a\x10" + packed)
    assert [struct.pack("<f", value) for value in floats.values] == [struct.pack("<f", value) for value in numbers]
    one_by_one = b"".join(b"\x0d" + packed[i : i + 4] for i in range(0, 16, 4))
    assert read(messages.RepeatedFloats, one_by_one) == floats
    with pytest.raises(WireError, match="does not end"):
        read(messages.RepeatedFloats, b"\x0a\x03" + packed[:3])


def test_every_field_has_a_number_of_its_own() -> None:
    for kind in ours():
        numbers = [field.metadata["number"] for field in dataclasses.fields(kind)]
        assert len({*numbers}) == len(numbers)

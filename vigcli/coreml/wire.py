"""Protobuf's wire format (https://protobuf.dev/programming-guides/encoding): bytes to objects of classes that number
their fields; what the fields mean is left to `vigcli.coreml.messages`.

It refuses what two readers could read differently: a field that is given twice, two members of a union, a known field
of another wire type, a number that its type cannot hold. No writer of packages does so.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Callable
from types import NoneType
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from vigcli.coreml.garbage import uncollected

M = TypeVar("M")

Int32 = Annotated[int, "int32"]
Int64 = Annotated[int, "int64"]
UInt64 = Annotated[int, "uint64"]
Float = Annotated[float, "<f"]
Double = Annotated[float, "<d"]

DEEPEST = 60  # messages inside messages; packages have about 20, protobuf's own readers stop at 100
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
LAST_TAG = 2**32
SCALARS = {"int32": (-(2**31), 2**31), "int64": (-(2**63), 2**63), "uint64": (0, 2**64), "bool": (0, 2)}


class WireError(ValueError):
    """Bytes that are no message of the kind that was asked for."""


def at(number: int, union: str = "") -> Any:
    """The number of a field of a message; of the fields of one union at most one is set, the others are None."""
    return dataclasses.field(metadata={"number": number, "union": union})


def read(kind: type[M], content: bytes) -> M:
    """The message of a kind, a dataclass whose fields are declared by `at`. Raises WireError."""
    with uncollected():
        return _read(kind, content, 0, len(content), 0)


def field_numbers(content: bytes) -> list[int]:
    """The numbers of the fields of a message, whatever it is; nothing inside them is read. Raises WireError."""
    numbers = []
    position = 0
    while position < len(content):
        tag, position = _tag(content, position, len(content))
        position = _skip(content, position, len(content), tag)
        numbers.append(tag >> 3)
    return numbers


# ------------------------------------------------------------------------------------------------ layouts


class Kind(NamedTuple):
    """How one value of a field is read: its wire type, and a function of (content, start, end, depth), or of the
    number for a varint."""

    wire: int
    take: Callable[..., Any]


class Field(NamedTuple):
    """A field of a message, as its declaration says."""

    name: str
    number: int
    union: str
    holds: str  # one, many, map
    type: Any  # of one value: a scalar or a message
    kind: Kind

    def unset(self) -> Any:
        """What a field has that is not given: protobuf's defaults; None for a message or a member of a union."""
        if self.holds != "one":
            return [] if self.holds == "many" else {}
        return None if self.union or is_message(self.type) else bare(self.type)()


def is_message(type_: Any) -> bool:
    return dataclasses.is_dataclass(type_)


def bare(type_: Any) -> Any:
    """int of Int32, float of Float."""
    return get_args(type_)[0] if get_origin(type_) is Annotated else type_


@functools.cache
def fields_of(kind: type) -> tuple[Field, ...]:
    """The fields of a message, in the order of their declaration."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(_field(declared, hints[declared.name]) for declared in dataclasses.fields(kind))


def _field(declared: dataclasses.Field[Any], hint: Any) -> Field:
    holds, type_ = "one", hint
    if get_origin(hint) is list:
        holds, type_ = "many", get_args(hint)[0]
    elif get_origin(hint) is dict:
        holds, type_ = "map", get_args(hint)[1]
    elif NoneType in get_args(hint):
        type_ = next(part for part in get_args(hint) if part is not NoneType)
    number, union = declared.metadata["number"], declared.metadata["union"]
    kind = _map_entry(type_) if holds == "map" else _kind(type_)
    return Field(declared.name, number, union, holds, type_, kind)


def _kind(type_: Any) -> Kind:
    if is_message(type_):
        return Kind(LENGTH, functools.partial(_read, type_))
    if type_ in (str, bytes):
        return Kind(LENGTH, _text if type_ is str else _bytes)
    name = "bool" if type_ is bool else get_args(type_)[1]
    if name in SCALARS:
        return Kind(VARINT, functools.partial(_scalar, name, bare(type_)))
    return Kind(FIXED32 if name == "<f" else FIXED64, functools.partial(_fixed, struct.Struct(name)))


def _map_entry(type_: Any) -> Kind:
    """A map is a list of messages of a key and a value."""
    entry = dataclasses.make_dataclass("Entry", [("key", str, at(1)), ("value", type_, at(2))])
    return Kind(LENGTH, functools.partial(_read, entry))


@functools.cache
def _layout(kind: type) -> tuple[dict[int, tuple[Field, bool]], frozenset[int], tuple[tuple[str, ...], ...]]:
    """What `_read` looks up: (field, whether packed) by tag, the numbers of the fields, the unions."""
    tags = {}
    unions: dict[str, list[str]] = {}
    for field in fields_of(kind):
        tags[field.number << 3 | field.kind.wire] = (field, False)
        if field.holds == "many" and field.kind.wire != LENGTH:
            tags[field.number << 3 | LENGTH] = (field, True)
        if field.union:
            unions.setdefault(field.union, []).append(field.name)
    numbers = frozenset(field.number for field in fields_of(kind))
    return tags, numbers, tuple(map(tuple, unions.values()))


# ------------------------------------------------------------------------------------------------ reading


def _read(kind: Any, content: bytes, position: int, end: int, depth: int) -> Any:
    """The message in content[position:end]."""
    if depth > DEEPEST:
        raise WireError(f"messages are nested deeper than {DEEPEST} at byte {position}")
    tags, numbers, unions = _layout(kind)
    values: dict[str, Any] = {}
    while position < end:
        start = position
        tag, position = _tag(content, position, end)
        found = tags.get(tag)
        if found is None:
            if tag >> 3 in numbers:
                raise WireError(f"{kind.__name__}: field {tag >> 3} has wire type {tag & 7} at byte {start}")
            position = _skip(content, position, end, tag)
            continue
        field, packed = found
        read_one = _packed if packed else _value
        value, position = read_one(field.kind, content, position, end, depth)
        if packed:
            values.setdefault(field.name, []).extend(value)
        elif field.holds == "many":
            values.setdefault(field.name, []).append(value)
        elif field.holds == "map":
            _put(values.setdefault(field.name, {}), value, field, start)
        elif field.name in values:
            raise WireError(f"{kind.__name__}: field {field.number} is given twice at byte {start}")
        else:
            values[field.name] = value
    for union in unions:
        if sum(name in values for name in union) > 1:
            raise WireError(f"{kind.__name__}: two of {', '.join(union)} are given before byte {end}")
    return _complete(kind, values, len(numbers))


def _complete(kind: Any, values: dict[str, Any], count: int) -> Any:
    """The message, with the defaults of the fields that are not given."""
    if len(values) < count:
        for field in fields_of(kind):
            if field.name not in values:
                values[field.name] = field.unset()
    return kind(**values)


def _put(entries: dict[str, Any], entry: Any, field: Field, start: int) -> None:
    if entry.key in entries:
        raise WireError(f"{field.name}: '{entry.key}' is given twice at byte {start}")
    if entry.value is None:  # an entry without one has an empty message
        entry.value = read(field.type, b"")
    entries[entry.key] = entry.value


def _value(kind: Kind, content: bytes, position: int, end: int, depth: int) -> tuple[Any, int]:
    """One value, and the position behind it."""
    if kind.wire == LENGTH:
        stop, position = _extent(content, position, end)
        return kind.take(content, position, stop, depth + 1), stop
    if kind.wire == VARINT:
        number, position = _varint(content, position, end)
        return kind.take(number), position
    stop = position + (4 if kind.wire == FIXED32 else 8)
    return kind.take(content, position, stop, end), stop


def _packed(kind: Kind, content: bytes, position: int, end: int, depth: int) -> tuple[list[Any], int]:
    """All numbers of a list that has one tag, and the position behind them."""
    stop, position = _extent(content, position, end)
    values = []
    while position < stop:
        value, position = _value(kind, content, position, stop, depth)
        values.append(value)
    return values, stop


def _tag(content: bytes, position: int, end: int) -> tuple[int, int]:
    tag, behind = _varint(content, position, end)
    if not 8 <= tag < LAST_TAG:
        raise WireError(f"no field has the tag {tag} at byte {position}")
    return tag, behind


def _varint(content: bytes, position: int, end: int) -> tuple[int, int]:
    """An unsigned number of up to 64 bits, seven in a byte, the lowest first."""
    if position < end and content[position] < 0x80:  # most are
        return content[position], position + 1
    number = shift = 0
    while position < end and shift < 70:
        byte = content[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if number >= 2**64:
                break
            return number, position
        shift += 7
    raise WireError(f"a number does not end before byte {position}")


def _extent(content: bytes, position: int, end: int) -> tuple[int, int]:
    """(end, start) of what a length precedes."""
    size, position = _varint(content, position, end)
    if size > end - position:
        raise WireError(f"{size} bytes are due at byte {position}, {end - position} are there")
    return position + size, position


def _skip(content: bytes, position: int, end: int, tag: int) -> int:
    """The position behind a field that is not read."""
    wire = tag & 7
    if wire == VARINT:
        return _varint(content, position, end)[1]
    if wire == LENGTH:
        return _extent(content, position, end)[0]
    if wire not in (FIXED32, FIXED64):
        raise WireError(f"field {tag >> 3} has wire type {wire} before byte {position}")
    position += 4 if wire == FIXED32 else 8
    if position > end:
        raise WireError(f"a number does not end before byte {end}")
    return position


def _scalar(name: str, type_: Callable[[int], Any], number: int) -> Any:
    low, high = SCALARS[name]
    if low < 0 and number >= 2**63:  # negative numbers are stored in 64 bits
        number -= 2**64
    if not low <= number < high:
        raise WireError(f"{number} is no {name}")
    return type_(number)


def _fixed(form: struct.Struct, content: bytes, start: int, stop: int, end: int) -> float:
    if stop > end:
        raise WireError(f"a number does not end before byte {end}")
    return float(form.unpack_from(content, start)[0])


def _text(content: bytes, start: int, stop: int, _: int) -> str:
    try:
        return content[start:stop].decode()
    except UnicodeDecodeError as error:
        raise WireError(f"the text at byte {start} is not UTF-8") from error


def _bytes(content: bytes, start: int, stop: int, _: int) -> bytes:
    return content[start:stop]

"""YAML to frozen pydantic models and back, with `file:line: path` in every complaint.

One path grammar, `stages[0].width`, serves `--set`, search-space keys and error messages. YAML is untrusted: no tags
that build objects, no aliases, no duplicate keys, and a size limit.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from vigcli.config.yaml_nodes import Dumper, composed
from vigcli.errors import ConfigError, UsageError, did_you_mean

MAX_YAML_BYTES = 1_000_000
Location = tuple[str | int, ...]
Places = dict[Location, str]
"""Where each key and item stands, as `file:line`."""
T = TypeVar("T", bound="Strict")


class Strict(pydantic.BaseModel):
    """A frozen configuration: unknown keys, wrong types and non-finite numbers are refused, nothing is coerced.

    The text under a field is its description, in the JSON Schema too.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def parse(cls: type[T], data: Any) -> T:
        """Validate plain data (mappings, lists, scalars). Raises pydantic.ValidationError.

        By way of JSON: there the strict mode takes an array for a tuple, but still no "3" for a 3.
        """
        return cls.model_validate_json(json.dumps(data))

    def changed(self: T, overrides: Mapping[str, Any]) -> T:
        """A validated copy with `{path: value}` replaced. Raises ConfigError naming the path."""
        data = self.model_dump(mode="json")
        for path, value in overrides.items():
            set_path(data, path, value)
        return parse_as(type(self), data)


# ---------------------------------------------------------------------------------------------------- paths


def split_path(path: str) -> Location:
    """`stages[0].width` as ('stages', 0, 'width'). Raises UsageError when it is not a path."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\[\d{1,6}\])*(\.[A-Za-z_]\w*(\[\d{1,6}\])*)*", path, re.ASCII):
        raise UsageError(f"'{path}' is not a path.", "Write it like stages[0].width.")
    return tuple(int(part) if part.isdigit() else part for part in re.findall(r"\w+", path))


def join_path(location: Iterable[str | int]) -> str:
    """('stages', 0, 'width') as `stages[0].width`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def get_path(data: Any, path: str) -> Any:
    """The value that a path names in plain data. Raises ConfigError with the known keys."""
    for i, part in enumerate(location := split_path(path)):
        _check_part(data, location, i, path)
        data = data[part]
    return data


def set_path(data: Any, path: str, value: Any) -> None:
    """Replace the value that a path names in plain data; the last key may be new, and is judged when validated."""
    location = split_path(path)
    for i, part in enumerate(location[:-1]):
        _check_part(data, location, i, path)
        data = data[part]
    if isinstance(location[-1], int) or not isinstance(data, dict):
        _check_part(data, location, len(location) - 1, path)
    data[location[-1]] = value


def _check_part(data: Any, location: Location, i: int, path: str) -> None:
    """Raise ConfigError unless `data`, where the first `i` parts of a path lead, has the next part."""
    part, where = location[i], join_path(location[:i]) or "the top"
    if isinstance(part, int) and isinstance(data, list):
        if part >= len(data):
            raise ConfigError(f"{path}: {where} has only {len(data)}.", f"Count from 0 to {len(data) - 1}.")
    elif not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else "a single value"
        raise ConfigError(f"{path}: {where} is {kind}.", "Write the path like stages[0].width.")
    elif part not in data:
        raise ConfigError(f"{path}: no such key.", did_you_mean(str(part), data))


def apply_settings(data: Any, settings: Sequence[str]) -> None:
    """Apply `--set path=value` items to plain data in place; values are read as YAML."""
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: no '=' in it.", "Write --set stages[0].width=48.")
        value, _ = parse_yaml(text, f"--set {path}")
        try:
            set_path(data, path.strip(), value)
        except ConfigError as error:
            raise ConfigError(f"--set {error}", error.hint) from None


# ---------------------------------------------------------------------------------------------------- YAML


def parse_yaml(text: str, name: str) -> tuple[Any, Places]:
    """YAML text as plain data, with the place of every key and item.

    Raises ConfigError with `name:line` for a syntax error, a duplicate key, an alias or a foreign tag.
    """
    places: Places = {}

    def plain(node: yaml.Node, location: Location) -> Any:
        places.setdefault(location, f"{name}:{node.start_mark.line + 1}")
        if isinstance(node, yaml.SequenceNode):
            return [plain(item, (*location, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            result: dict[str, Any] = {}
            for key_node, value_node in node.value:
                where = f"{name}:{key_node.start_mark.line + 1}"
                if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
                    raise ConfigError(f"{where}: a key must be a plain word.", "Write key: value.")
                key = checked(key_node, key_node.value)
                if key in result:
                    path = join_path((*location, key))
                    raise ConfigError(f"{where}: {path}: this key stands twice.", "Keep one of the two.")
                places[(*location, key)] = where
                result[key] = plain(value_node, (*location, key))
            return result
        return checked(node, None)

    def checked(node: yaml.Node, text: str | None) -> Any:
        """A scalar's value, or `text` in its stead. Escapes can write what no file name or JSON text can hold."""
        try:
            value = loader.construct_object(node) if text is None else text
            if isinstance(value, str) and b"\0" in value.encode():
                raise ValueError("a NUL")
        except (yaml.YAMLError, ValueError) as error:
            where = f"{name}:{node.start_mark.line + 1}"
            raise ConfigError(f"{where}: cannot read '{str(node.value)[:40]}'.", "Use plain YAML values.") from error
        return value

    try:
        loader, node = composed(text, name)
        return (plain(node, ()) if node is not None else None), places
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark is not None else name
        problem = getattr(error, "problem", None) or getattr(error, "reason", "not YAML")
        raise ConfigError(f"{where}: {problem}.", "Check the YAML syntax.") from error


def read_text(path: Path | str) -> str:
    """A user's text file as UTF-8. Raises ConfigError when it is missing, too large or not text."""
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe would wait for a writer, a device never end
        raise ConfigError(f"{path}: is a folder or a device.", "Name a file.")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_YAML_BYTES + 1)
        if len(raw) > MAX_YAML_BYTES:
            size = f"{MAX_YAML_BYTES // 1_000_000} MB"
            raise ConfigError(f"{path}: larger than {size}.", "This is no configuration file.")
        return raw.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text.", "Save it as UTF-8, if it is a text.") from error


def read_yaml(path: Path | str) -> tuple[Any, Places]:
    """A YAML file as plain data, with the place of every key and item. Raises ConfigError where it holds nothing."""
    data, places = parse_yaml(read_text(path), str(path))
    if data is None:
        raise ConfigError(f"{path}: is empty.", "`vig cp` gives a file to start from.")
    return data, places


def load(model: type[T], path: Path | str, settings: Sequence[str] = ()) -> T:
    """A configuration file as a validated model, `--set` items applied. Raises ConfigError with file:line.

    The file must be valid by itself: then a complaint is either the file's, with its line, or that of `--set`.
    """
    data, places = read_yaml(path)
    return parse_settings(model, data, settings, str(path), places)


def parse_settings(model: type[T], data: Any, settings: Sequence[str], name: str, places: Mapping[Location, str]) -> T:
    """Plain data as a validated model, then with `--set` items applied."""
    config = parse_as(model, data, name, places)
    if settings:
        apply_settings(data, settings)
        config = parse_as(model, data, "--set")
    return config


def parse_as(model: type[T], data: Any, name: str = "", places: Mapping[Location, str] | None = None) -> T:
    """Plain data as a validated model; pydantic's complaint becomes one ConfigError."""
    try:
        return model.parse(data)
    except pydantic.ValidationError as error:
        raise explain(error, model, name, places or {}) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name or model.__name__}: {error}.", "Use plain values.") from None


def dump(config: Strict) -> str:
    """A configuration as YAML that `load` reads back to an equal one."""
    return dump_yaml(config.model_dump(mode="json"))


def dump_yaml(data: Any) -> str:
    """Plain data as YAML that `parse_yaml` reads back to equal data."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)


# ---------------------------------------------------------------------------------------------------- complaints


def explain(
    error: pydantic.ValidationError, model: type[Strict], name: str, places: Mapping[Location, str]
) -> ConfigError:
    """The first of pydantic's complaints as one sentence with file, line, path and a hint."""
    complaints = error.errors(include_url=False)
    # A misspelt key is also a missing one: the key that stands in the file tells more.
    complaint = next((c for c in complaints if c["type"] == "extra_forbidden"), complaints[0])
    location, fields = _resolve(model, complaint["loc"])
    path = join_path(location)
    place = next((places[location[:n]] for n in range(len(location), -1, -1) if location[:n] in places), name)
    where = ": ".join(part for part in (place, path) if part)
    what, hint = _sentence(complaint, location, fields)
    others = {c["loc"] for c in complaints} - {complaint["loc"][:n] for n in range(len(complaint["loc"]) + 1)}
    more = f" (and {len(others)} more)" if others else ""  # what holds the culprit is not another
    return ConfigError(f"{where}: {what}{more}." if where else f"{what}{more}.", hint)


def _sentence(complaint: Any, location: Location, fields: Sequence[str]) -> tuple[str, str]:
    kind, context = complaint["type"], complaint.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key", did_you_mean(str(location[-1]), fields)
    if kind == "missing":
        return "this key is missing", "Add it, or start from a built-in file with `vig cp`."
    if kind == "value_error":
        what, _, hint = str(context.get("error", complaint["msg"])).partition("\n")
        return what.rstrip("."), hint
    if kind in ("literal_error", "enum"):
        return f"must be {context['expected']}, not {_show(complaint['input'])}", "Choose one of these."
    if kind == "union_tag_invalid":
        return f"unknown {context['discriminator']}", f"Known: {context['expected_tags']}."
    if kind == "union_tag_not_found":
        return f"{context['discriminator']} is missing", "Say which kind it is."
    if kind in ("too_short", "too_long"):
        bound = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return f"must have {bound} items, not {context['actual_length']}", "Add or remove some."
    if kind == "string_pattern_mismatch":
        return f"{_show(complaint['input'])} does not match {context['pattern']}", "Check the spelling."
    if kind == "json_invalid":
        return "holds text or nesting that cannot be read", "Use plain values."
    text, hint = _EXPECTED.get(kind, (complaint["msg"].removeprefix("Input should be "), "Change the value."))
    return f"must be {text}, not {_show(complaint['input'])}", hint


_EXPECTED = {  # pydantic's kinds of complaints: what was expected, and how one writes it
    "int_type": ("an integer", "Write a whole number, without quotes."),
    "int_from_float": ("an integer", "Write a whole number."),
    "float_type": ("a number", "Write a number, without quotes."),
    "bool_type": ("true or false", "Write true or false, without quotes."),
    "string_type": ("text", "Write text; in quotes where it looks like a number."),
    "string_too_short": ("text", "Write what it is."),
    "tuple_type": ("a list", "Write [a, b]."),
    "dict_type": ("a mapping", "Write key: value."),
    "model_type": ("a mapping", "Write key: value."),
    "model_attributes_type": ("a mapping", "Write key: value."),
}


def _show(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def _resolve(model: Any, loc: Sequence[str | int]) -> tuple[Location, list[str]]:
    """Pydantic's location without the union tags it slips in, and the fields known at its last key."""
    location: list[str | int] = []
    fields: list[str] = []
    for part in loc:
        model, members = _unwrap(model)
        fields = list(model.model_fields) if _is_model(model) else []
        if members and part in members:
            model = members[part]
            continue
        if part == "[key]":  # the key before it is what is wrong
            continue
        location.append(part)
        if _is_model(model):
            field = model.model_fields.get(part)
            model = field.annotation if field is not None else None
        else:
            arguments = typing.get_args(model)
            model = arguments[-1 if typing.get_origin(model) is dict else 0] if arguments else None
    return tuple(location), fields


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, pydantic.BaseModel)


def _unwrap(model: Any) -> tuple[Any, dict[Any, Any]]:
    """A type without Annotated and `| None`; a union's members by the tag that pydantic puts into locations."""
    while typing.get_origin(model) is typing.Annotated:
        model = typing.get_args(model)[0]
    if typing.get_origin(model) in (typing.Union, types.UnionType):
        members = [m for m in typing.get_args(model) if m is not type(None)]
        if len(members) == 1:
            return _unwrap(members[0])
        return members[0], {_union_tag(member): member for member in members}
    return model, {}


def _union_tag(member: Any) -> str:
    """What pydantic calls a member of a union in a location."""
    for mark in typing.get_args(member)[1:] if typing.get_origin(member) is typing.Annotated else ():
        if isinstance(mark, pydantic.Tag):
            return mark.tag
    if _is_model(member) and "family" in member.model_fields:
        return member.model_fields["family"].default
    return getattr(member, "__name__", str(member))

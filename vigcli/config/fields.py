"""What can be set in a configuration: its paths with their values, ranges and texts, from the fields themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vigcli.config.load import Strict


class FieldText(NamedTuple):
    """What a field is: `stages[i].width` stands for the fields of that name in a list, and has a list of values."""

    path: str
    value: Any
    allowed: str
    what: str


def describe(config: Strict, prefix: str = "") -> list[FieldText]:
    """Every path of a configuration that can be set, with its value, range and text."""
    schema = type(config).model_json_schema()["properties"]
    data, found = config.model_dump(mode="json"), []
    for key, field in type(config).model_fields.items():
        value = getattr(config, key)
        if "const" in schema[key] or isinstance(value, Mapping):
            continue
        what = " ".join((field.description or "").split())
        items = value if isinstance(value, tuple) and value and isinstance(value[0], Strict) else ()
        if not items:
            found.append(FieldText(f"{prefix}{key}", data[key], _allowed(schema[key]), what))
            continue
        for first, *others in zip(*(describe(item, f"{prefix}{key}[i].") for item in items), strict=True):
            found.append(first._replace(value=[first.value, *(other.value for other in others)]))
    return found


def _allowed(schema: Mapping[str, Any]) -> str:
    """The values of a field from its JSON Schema: `1 to 64`, `mgc, svga`."""
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    low, high = schema.get("minimum"), schema.get("maximum", schema.get("exclusiveMaximum"))
    if high is not None:
        return f"{low} to {'below ' if 'maximum' not in schema else ''}{high}"
    return {"boolean": "true, false", "string": "text"}.get(schema.get("type", ""), schema.get("type", "any"))

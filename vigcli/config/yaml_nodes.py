"""YAML text to nodes and plain data to text: no tags that build objects, no aliases, the scalars of YAML 1.2.

What nodes mean, and where they stand, is told in `vigcli.config.load`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from vigcli.errors import ConfigError

_MAX_DEPTH = 40

# The scalars of the YAML 1.2 core schema: `3e-4` is a number, `010`, `12:30`, `off` and `2024-01-01` are words.
_SCALARS = {
    "bool": (r"(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "null": (r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "int": (r"[-+]?(0|[1-9][0-9]*)$", "-+0123456789"),
    "float": (
        r"([-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        "-+0123456789.",
    ),
}


_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in (*_SCALARS, "str", "seq", "map")}


class _SafeComposer(Composer):
    """Composes without aliases, foreign tags and deep nesting."""

    depth = 0
    name: str
    peek_event: Callable[[], Any]

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        where = f"{self.name}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise ConfigError(f"{where}: aliases are not read.", "Write the value out.")
        if self.depth > _MAX_DEPTH:
            raise ConfigError(f"{where}: nested too deep.", f"At most {_MAX_DEPTH} levels.")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None and node.tag not in _PLAIN_TAGS:
            raise ConfigError(f"{where}: the tag {event.tag} is not read.", "Use plain YAML values.")
        return node


class _Loader(_SafeComposer, yaml.SafeLoader):
    """The safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML wants it on the class)


_LOADERS: list[Any] = [_Loader]
if yaml.__with_libyaml__:
    from yaml._yaml import CParser

    class _FastLoader(_SafeComposer, CParser, SafeConstructor, Resolver):
        """`_Loader` by libyaml: a table of a thousand rows in a quarter of the time, with other complaints."""

        yaml_implicit_resolvers = {}  # noqa: RUF012

        def __init__(self, text: str):
            CParser.__init__(self, text)
            Composer.__init__(self)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)

    _LOADERS.insert(0, _FastLoader)


class Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would take for something else than text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML wants it on the class)


for _tag, (_regexp, _first) in _SCALARS.items():
    for _class in (*_LOADERS, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_regexp), list(_first))


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """In double quotes with escapes where it is not printable: PyYAML would write U+0085 raw, and read a line end."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


Dumper.add_representer(str, _text)


def composed(text: str, name: str) -> tuple[Any, yaml.Node | None]:
    """What makes values of nodes, and the node of the whole text. What libyaml refuses PyYAML reads again: its
    complaints are then the same everywhere."""
    for number, kind in enumerate(_LOADERS, 1):
        loader = kind(text)
        loader.name = name
        try:
            return loader, loader.get_single_node()
        except yaml.YAMLError:
            if number == len(_LOADERS):
                raise
        finally:
            loader.dispose()
    raise AssertionError("no loader")

"""A recipe as a file: the files that it builds on, and what its header says; what its values must be is `recipe`'s.

`base: NAME` takes the values of another recipe first: one beside the file, or a built-in one. Mappings are merged key
by key; a network (`arch`), a list or a single value replaces what the base has. Recipes are untrusted: a base is a name
and no path, it cannot lead back to itself, and there are few of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from vigcli.config.load import Places, dump_yaml, read_text, read_yaml
from vigcli.errors import ConfigError, did_you_mean
from vigcli.paths import builtin_folder

MAX_FILES = 8  # a recipe, its base, the base's base ...
_WHOLE = ("arch",)  # a network is taken as it stands: fields of two families do not mix


class Layers(NamedTuple):
    """The values of a recipe and of all that it builds on, merged.

    Attributes:
        data: plain data without `base`.
        places: where each key and item stands, in whichever file.
        files: the recipe's own first, then its base, ...
    """

    data: Any
    places: Places
    files: tuple[Path, ...]


def read_layers(path: Path | str) -> Layers:
    """A recipe file with its bases. Raises ConfigError with file:line."""
    return _read(Path(path), ())


def _read(path: Path, above: tuple[Path, ...]) -> Layers:
    data, places = read_yaml(path)
    files = (*above, path)
    if not isinstance(data, dict) or "base" not in data:
        return Layers(data, places, files)
    where, name = f"{places[('base',)]}: base", data.pop("base")
    base = _find(path, name, where)
    if any(base.samefile(file) for file in files):
        raise ConfigError(f"{where}: {base.name} builds on itself.", "Break the circle: leave one `base` out.")
    if len(files) >= MAX_FILES:
        raise ConfigError(f"{where}: more than {MAX_FILES} recipes build on each other.", "Merge some of them.")
    below = _read(base, files)
    if not isinstance(below.data, dict):
        raise ConfigError(f"{where}: {base.name} is no recipe.", "Name a recipe.")
    return Layers(_merged(below.data, data), below.places | places, below.files)


def _find(path: Path, name: Any, where: str) -> Path:
    """The recipe that `base` names. A built-in one that was copied under its own name can still build on it."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name):
        hint = "Write a file's name alone: of a recipe beside this one, or of a built-in one."
        raise ConfigError(f"{where}: '{str(name)[:40]}' is no name of a recipe.", hint)
    folders = path.parent, builtin_folder("recipe")
    beside, builtin = (folder / f"{name.removesuffix('.yaml')}.yaml" for folder in folders)
    if beside.is_file() and not (beside.samefile(path) and builtin.is_file()):
        return beside
    if builtin.is_file():
        return builtin
    known = {file.stem for folder in folders for file in folder.glob("*.yaml")} - {path.stem}
    hint = did_you_mean(builtin.stem, sorted(known)) or "`vig ls recipes` lists the built-in ones."
    raise ConfigError(f"{where}: no recipe '{name}' beside this one, and no built-in one.", hint)


def _merged(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {k: v if k in _WHOLE else _merged(below.get(k), v) for k, v in above.items()}


# ---------------------------------------------------------------------------------------------------- headers


class Header(NamedTuple):
    """The comment on top of a recipe: `Expected: ...` and the like by their words, lines joined."""

    title: str
    command: str
    notes: dict[str, str]


def read_header(path: Path | str) -> Header:
    """What a recipe says of itself, without reading its values."""
    lines = _comments(read_text(path))
    command = next((line.strip() for line in lines if line.startswith("   vig ")), "")
    notes: dict[str, str] = {}
    word = ""
    for line in lines[1:]:
        if found := re.match(r" ([A-Z][a-z]+): +(.*)", line):
            word, notes[found[1]] = found[1], found[2]
        elif word and line.startswith("  "):
            notes[word] += f" {line.strip()}"
        else:
            word = ""
    return Header(lines[0].strip().removesuffix(".") if lines else "", command, notes)


def _comments(text: str) -> list[str]:
    """The lines on top of a file that are comments, without their marks."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:])
    return lines


def whole_text(path: Path | str) -> str:
    """A recipe that needs no other file: its text, or all values under the headers of the files that it is made of."""
    layers = read_layers(path)
    if len(layers.files) == 1:
        return read_text(path)
    headers = [*map(_header_text, layers.files), "# All values of these files are written out here."]
    return "\n#\n".join(headers) + f"\n\n{dump_yaml(layers.data)}"


def _header_text(path: Path) -> str:
    return "\n".join(f"#{line}" for line in _comments(read_text(path)))

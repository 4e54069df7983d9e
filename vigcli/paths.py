"""Where built-in files are: one function that serves a checkout and an installed wheel alike."""

from __future__ import annotations

from pathlib import Path

from vigcli.errors import ConfigError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent
KINDS = {"space": "search_spaces", "table": "latency_tables", "recipe": "recipes"}


def builtin_folder(kind: str) -> Path:
    """The folder of a kind ('space', 'table', 'recipe') of built-in files.

    They stand at the top of a checkout, where a user looks; the wheel carries them inside the package.
    """
    installed = _PACKAGE / "builtin" / KINDS[kind]
    return installed if installed.is_dir() else _PACKAGE.parent / KINDS[kind]


def builtin_names(kind: str) -> list[str]:
    """The names of the built-in files of a kind, without their suffix."""
    return sorted(path.stem for path in builtin_folder(kind).glob("*.yaml") if not path.name.startswith("_"))


def find_builtin(kind: str, name: str) -> Path | None:
    """The built-in file that `name` means: `v2_s`, `v2_s.yaml` or `recipes/v2_s.yaml`, from wherever one stands."""
    path = Path(name)
    known = str(path.parent) in (".", KINDS[kind]) and path.name.removesuffix(".yaml") in builtin_names(kind)
    return builtin_folder(kind) / f"{path.name.removesuffix('.yaml')}.yaml" if known else None


def find_file(kind: str, name: str) -> Path:
    """The file that `name` means: a path that exists, else a built-in name (`v2_s`, `recipes/v2_s.yaml`).

    Raises ConfigError with the nearest built-in name.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, not a {kind} file.", "Name a YAML file.")
    if (builtin := find_builtin(kind, name)) is not None:
        return builtin
    hint = did_you_mean(path.stem, builtin_names(kind)) or f"`vig ls {kind}s` lists the built-in ones."
    raise ConfigError(f"{name}: no such {kind} file.", hint)


def embedded(name: str) -> Path:
    """A data file that ships inside the package: `emoji10.zip`."""
    return _PACKAGE / "data" / name

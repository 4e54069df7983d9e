"""Files of weights that others wrote (.pth, .pt, .pth.tar, .safetensors), as plain named tensors.

The only reader of pickles. It leaves them to torch's weights-only unpickler, which calls nothing but the constructors
of tensors and plain containers, and of what `_ALLOWED` adds; what the names mean is the matter of `official`.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vigcli.errors import ConfigError

_PLAIN = ("state_dict", "model_state_dict", "model")
_EMA = ("state_dict_ema", "ema_state_dict", "model_ema")
_DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
}  # fmt: skip


class Weights(NamedTuple):
    """Named tensors of a file; they may share memory with each other and with the file, so copy them.

    Attributes:
        tensors: without the `module.` of data-parallel training.
        taken: the key under which they stand in the file, or nothing where they are the file.
        left: what else the file holds, by key.
    """

    tensors: dict[str, Tensor]
    taken: str
    left: tuple[str, ...]


def read_weights(path: Path | str, ema: bool = False) -> Weights:
    """The weights of a file, or with `ema` their exponential moving average.

    Without `ema` a file that holds the average alone gives it. Nothing that the file names is imported or called.
    Raises ConfigError for a file that is damaged, names more than weights, or holds none.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file of weights.", "Name a .pth, .pt, .pth.tar or .safetensors file.")
    content = _safetensors(path) if path.suffix == ".safetensors" else _unpickled(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: is one object ({_kind(content)}), not named weights.", _WANTED)
    taken = _place(path, content, ema)
    named: Any = content[taken] if taken else content
    left = tuple(str(key) for key in content if key != taken and isinstance(key, str | int)) if taken else ()
    return Weights(_tensors(path, named), taken, left)


def load_into(model: nn.Module, path: Path | str, what: str, ema: bool = False) -> Weights:
    """Fill a network whose parameters the file names as the network does. Raises ConfigError, naming `what` it is."""
    try:
        weights = read_weights(path, ema)
        model.load_state_dict(weights.tensors)
        return weights
    except (ConfigError, RuntimeError) as error:
        reason = " ".join(str(error).removeprefix(f"{path}: ").split())[:120].rstrip(".")
        raise ConfigError(
            f"{path}: does not hold weights of {what} ({reason}).",
            "Give the weights that timm publishes for this network, as safetensors or a weights-only .pth.",
        ) from error


_WANTED = "Wanted: named tensors, bare or under state_dict, model_state_dict, model or their EMA."


def _place(path: Path, content: Mapping[Any, Any], ema: bool) -> str:
    """The key under which the wanted weights stand; nothing where they are the file itself."""
    others, averages = ([key for key in keys if _holds_tensors(content.get(key))] for keys in (_PLAIN, _EMA))
    if not others and not averages and _holds_tensors(content):
        others = [""]
    wanted = averages if ema else others or averages
    if wanted:
        return wanted[0]
    if others:
        there = others[0] or "bare weights"
        raise ConfigError(f"{path}: holds no EMA weights, only {there}.", "Leave --ema out.")
    keys = ", ".join(str(key)[:40] for key in list(content)[:8] if isinstance(key, str)) or "nothing that has a name"
    raise ConfigError(f"{path}: holds no weights; it holds {keys}.", _WANTED)


def _holds_tensors(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(entry, Tensor) for entry in value.values())


def _tensors(path: Path, named: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Plain tensors by name. Raises ConfigError for anything else among them."""
    tensors: dict[str, Tensor] = {}
    for key, value in named.items():
        if not isinstance(key, str):
            raise ConfigError(f"{path}: a weight's name is not text ({_kind(key)}).", _WANTED)
        if not _is_plain(value):
            raise ConfigError(f"{path}: {key}: is no plain tensor of numbers ({_kind(value)}).", _WANTED)
        name = key.removeprefix("module.")
        if name in tensors:
            raise ConfigError(f"{path}: {name}: stands twice in the file, with and without 'module.'.", _WANTED)
        tensors[name] = value.detach()
    return tensors


def _is_plain(value: object) -> bool:
    """Neither sparse, quantized, nested, complex nor without data."""
    if type(value) not in (Tensor, nn.Parameter):
        return False
    assert isinstance(value, Tensor)
    dense = value.layout == torch.strided and value.device.type == "cpu" and not value.is_nested
    return dense and value.dtype in _DTYPES


def _kind(value: object) -> str:
    """`list`; of a tensor what sets it apart."""
    return f"{value.dtype}, {value.layout}, {value.device}" if isinstance(value, Tensor) else type(value).__name__


# ------------------------------------------------------------------------------------------------------- safetensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            if "vig" in (file.metadata() or {}):
                raise ConfigError(f"{path}: is a checkpoint of vig already.", "The other commands take it as it is.")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ConfigError:
    """Says what can be said of a file that is no file of weights."""
    with path.open("rb") as file:
        start = file.read(32).decode("latin-1")
    if not start:
        return ConfigError(f"{path}: is an empty file.", "Download it again.")
    if start.isascii() and all(c.isprintable() or c.isspace() for c in start):
        hint = f"It begins '{start}': was a page or a pointer saved in its place?"
        return ConfigError(f"{path}: is a text, no file of weights.", hint)
    reason = re.split(r"\n|  ", str(error).rpartition("WeightsUnpickler error: ")[2].strip())[0][:120]
    what = f"is truncated, damaged or no file of weights ({reason or type(error).__name__})"
    return ConfigError(f"{path}: {what}.", "Download it again, and compare its size with that at the source.")


# ------------------------------------------------------------------------------------------------------------ pickles


_FORMATS = {  # numpy's codes and struct's
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    "f2": "e", "f4": "f", "f8": "d",
}  # fmt: skip


class _NumpyType:
    """Stands in for numpy.dtype. A real one can be given a state that lies about its size or holds pointers."""

    def __init__(self, code: str, align: bool = False, copy: bool = True):
        if code not in _FORMATS:
            raise UnpicklingError(f"a numpy value of type {str(code)[:20]}")
        self.format, self.order = _FORMATS[code], "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")


def _number(kind: _NumpyType, raw: bytes) -> float | int | bool:
    """Stands in for numpy's constructor of scalars: a plain number."""
    return struct.unpack(kind.order + kind.format, raw)[0]


# What the authors' files hold besides tensors and containers: command lines and best accuracies.
_ALLOWED: list[Any] = [
    (argparse.Namespace, "argparse.Namespace"),
    (_NumpyType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),  # written with numpy 1
    (_number, "numpy._core.multiarray.scalar"),  # written with numpy 2
]


@contextlib.contextmanager
def _only_allowed() -> Iterator[None]:
    """torch's list of additional constructors is `_ALLOWED` and nothing that others added, and afterwards as before."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(_ALLOWED)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    try:
        with _only_allowed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old protocols and storages: nothing that the user can mend
            if zipped:
                _check_archive(path)
            # Mapped, because torch 2.7 bounds a tensor by what the pickle says of its storage unless it is mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except ConfigError:
        raise
    except Exception as error:  # of a damaged file the unpickler raises nearly anything
        if refused := re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error)):
            raise ConfigError(
                f"{path}: names {refused[1][:80]}, which weights do not need; nothing of it was run.",
                "It holds whole objects or is an attack: ask its author for the state dict alone.",
            ) from error
        with path.open("rb") as file:
            is_pickle = file.read(1) == b"\x80"
        if is_pickle and "Unsupported operand" in str(error):
            raise ConfigError(
                f"{path}: is a pickle of another protocol than torch writes, which is not read; nothing of it was run.",
                "If it holds weights, save it again: torch.save(torch.load(FILE), OTHER), or ask its author to.",
            ) from error
        raise _unreadable(path, error) from error


def _check_archive(path: Path) -> None:
    """Hold an archive to its checksums, which torch ignores, and to its own size: torch never compresses."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.filename.endswith("/constants.pkl") for part in parts):
            raise ConfigError(f"{path}: is a TorchScript program, not a file of weights.", _WANTED)
        stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
        if not stored or sum(part.file_size for part in parts) > path.stat().st_size:
            raise UnpicklingError("the archive's parts are compressed or overlap")
        if damaged := archive.testzip():
            raise UnpicklingError(f"{damaged} does not fit its checksum")

"""Checkpoints: safetensors weights with readable metadata. No pickle is written or read here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vigcli.archs import build
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.config.load import parse_as
from vigcli.errors import ConfigError
from vigcli.files import kind_of, replacing

_KEY, _CHECKSUM = "vig", "sha256"


class Checkpoint(NamedTuple):
    """A trained (or drawn) network in its training form, and what is known of it."""

    model: nn.Module
    meta: CheckpointMeta


def save_checkpoint(path: Path | str, model: nn.Module, meta: CheckpointMeta) -> None:
    """Write weights and metadata, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(path, tensors, meta.model_dump_json())


def load_checkpoint(path: Path | str) -> Checkpoint:
    """A checkpoint of ours as a network in evaluation mode. Raises ConfigError for one that is damaged or foreign."""
    meta = read_meta(path)
    tensors, _ = load_tensors(path)
    try:
        model = build(meta.arch, device="meta")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", error.hint or _REMAKE) from error
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected or _form(tensors[name]) != _form(expected[name]):
            raise ConfigError(f"{path}: {name}: does not fit the network that the file names.", _REMAKE)
    model.load_state_dict(tensors, assign=True)
    return Checkpoint(model.eval(), meta)


def _form(tensor: Tensor) -> tuple[torch.dtype, torch.Size]:
    return tensor.dtype, tensor.shape


_REMAKE = "The file is damaged or was edited: make it again with `vig train` or `vig build`."


def read_meta(path: Path | str) -> CheckpointMeta:
    """A checkpoint's metadata alone."""
    _, text = _open(path, tensors=False)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no checkpoint of vig: its metadata cannot be read.", _REMAKE) from error
    if isinstance(data, dict) and "progress" in data:
        raise ConfigError(f"{path}: is the state of a training.", "Give checkpoint.safetensors, which lies beside it.")
    try:
        return parse_as(CheckpointMeta, data, str(path))
    except ConfigError as error:
        raise ConfigError(str(error), _REMAKE) from error


def is_checkpoint(path: Path | str) -> bool:
    """Whether a file is a checkpoint of ours, rather than weights of others."""
    try:
        with safe_open(path, "pt") as file:
            return _KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def save_tensors(path: Path | str, tensors: dict[str, Tensor], text: str) -> None:
    """Named tensors and a text as one safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {_KEY: text, _CHECKSUM: _checksum(tensors, text)})
        except SafetensorError as error:  # it wraps the operating system's complaint
            raise OSError(str(error)) from error


def load_tensors(path: Path | str) -> tuple[dict[str, Tensor], str]:
    """The tensors and the text of a file that `save_tensors` wrote. Raises ConfigError."""
    return _open(path, tensors=True)


def _open(path: Path | str, tensors: bool) -> tuple[dict[str, Tensor], str]:
    path = Path(path)
    if path.exists() and (path.is_dir() or path.suffix != ".safetensors"):
        raise ConfigError(f"{path}: is {kind_of(path)}, not a checkpoint.", "Give a checkpoint (.safetensors).")
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint file.", "`vig train` and `vig build -o FILE` write one.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            names = file.keys() if tensors else ()
            # Copied: memory aligned as in the file, not as torch's own, gives other last digits in the same arithmetic.
            loaded = {name: file.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{path}: is no safetensors file, or is truncated ({error}).", _REMAKE) from error
    if _KEY not in metadata:
        raise ConfigError(f"{path}: is a safetensors file, but no checkpoint of vig.", "Others' weights: vig import.")
    if tensors and metadata.get(_CHECKSUM) not in (None, _checksum(loaded, metadata[_KEY])):
        raise ConfigError(f"{path}: its contents do not fit its checksum.", _REMAKE)
    if any(tensor.is_floating_point() and not torch.isfinite(tensor).all() for tensor in loaded.values()):
        raise ConfigError(
            f"{path}: holds weights that are not finite.", "The run diverged: train again with a lower lr."
        )
    return loaded, metadata[_KEY]


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    """Against accidents, not attacks: a weight with a flipped bit is still a number."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

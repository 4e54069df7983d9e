"""The authors' checkpoints: their parameter names become ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vigcli.errors import ConfigError
from vigcli.registry import FAMILIES, resolve

Names = dict[str, str]
"""Prefixes of parameter names in a published checkpoint, and ours: `stem.stem.0` -> `stem.0.conv`."""


def join_names(theirs: str, ours: str, names: Names) -> Names:
    """The names inside a block put behind the places of the block."""
    return {f"{theirs}.{a}": f"{ours}.{b}" for a, b in names.items()}


def load_official(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights named as in the authors' code into a network of ours, in place.

    Layer scales of shape (C, 1, 1) become (C,). Raises ConfigError naming the first key that is missing, left over or
    of another shape.
    """
    config: Any = model.config
    candidates = resolve(FAMILIES[config.family].official)(config)
    known = [sum(_rename(key.removeprefix("module."), names) != key for key in state_dict) for names in candidates]
    prefixes = candidates[known.index(max(known))]
    ours = model.state_dict()
    renamed: dict[str, Tensor] = {}
    for official, tensor in state_dict.items():
        key = _rename(official.removeprefix("module."), prefixes)
        if key not in ours:
            raise ConfigError(f"{official}: the network has no such weight.", "Is this checkpoint of another variant?")
        if tensor.numel() != ours[key].numel() or tensor.squeeze().shape != ours[key].squeeze().shape:
            raise ConfigError(
                f"{official}: shape {tuple(tensor.shape)}, but the network has {tuple(ours[key].shape)}.",
                "Is this checkpoint of another variant?",
            )
        renamed[key] = tensor.reshape(ours[key].shape)
    for key in ours:
        if key not in renamed:
            raise ConfigError(f"{key}: the checkpoint lacks this weight.", "Is this checkpoint of another variant?")
    with torch.no_grad():
        model.load_state_dict(renamed)


def _rename(key: str, prefixes: Mapping[str, str]) -> str:
    """`backbone.1.3.ffn.0.weight` by its longest known prefix; an unknown key stays as it is."""
    for end in (len(key), *sorted((i for i, c in enumerate(key) if c == "."), reverse=True)):
        if key[:end] in prefixes:
            return prefixes[key[:end]] + key[end:]
    return key

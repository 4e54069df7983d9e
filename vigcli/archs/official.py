"""The authors' checkpoints: their parameter names become ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vigcli.archs import build
from vigcli.archs.foreign import Weights, load_into, read_weights
from vigcli.config.archs import VARIANTS, ArchConfig, TimmConfig, variant_name
from vigcli.errors import ConfigError
from vigcli.registry import FAMILIES, resolve

Names = dict[str, str]
"""Prefixes of parameter names in a published checkpoint, and ours: `stem.stem.0` -> `stem.0.conv`."""


def join_names(theirs: str, ours: str, names: Names) -> Names:
    """The names inside a block put behind the places of the block."""
    return {f"{theirs}.{a}": f"{ours}.{b}" for a, b in names.items()}


_Shape = tuple[int, ...]


def read_official(path: Path | str, config: ArchConfig, ema: bool = False) -> tuple[nn.Module, Weights]:
    """A network with the weights of its publisher's file in evaluation mode, and what was read of the file.

    With `ema` it takes the exponential moving average of the weights. Raises ConfigError for a file that cannot be read
    or does not fit.
    """
    model = build(config)
    if isinstance(config, TimmConfig):
        return model.eval(), load_into(model, path, f"timm:{config.name}", ema)
    weights = read_weights(path, ema)
    try:
        load_official(model, weights.tensors)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", error.hint) from error
    return model.eval(), weights


def load_official(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights named as in the authors' code, or as another publisher names them, into a network of ours, in place.

    Shapes may differ by axes of length one: layer scales of shape (C, 1, 1) become (C,), linear layers 1 x 1
    convolutions. Batch counts of norms and frozen relative positions may be missing. Raises ConfigError naming the
    weights that are missing, left over, of another shape or not finite, and the variant that the weights fit.
    """
    config: Any = model.config
    ours = model.state_dict()
    fit = _fit(config, {key: tuple(value.shape) for key, value in ours.items()}, state_dict)
    if fit.num_faults:
        raise ConfigError(fit.complaint(_name(config)), _hint(fit, config, state_dict))
    loaded = {key: state_dict[name].reshape(ours[key].shape).to(ours[key].dtype) for key, name in fit.names.items()}
    broken = [fit.names[key] for key, value in loaded.items() if not torch.isfinite(value).all()]
    if broken:
        what = f"{_count(len(broken), 'weight')} not finite in {ours[next(iter(ours))].dtype}"
        raise ConfigError(f"{what}: {_few(broken)}.", "The file is damaged, or its training diverged.")
    absent = {key: value for key, value in ours.items() if key not in loaded}
    uncounted = {key: torch.zeros_like(value) for key, value in absent.items() if key.endswith(_BATCH_COUNT)}
    model.load_state_dict(absent | loaded | uncounted)


def classes_of(config: ArchConfig, state_dict: Mapping[str, Tensor]) -> int | None:
    """The classes of published weights, where their number alone may tell them from a network of `config`."""
    shapes = {key: tuple(value.shape) for key, value in build(config, device="meta").state_dict().items()}
    fit = _fit(config, shapes, state_dict)
    return fit.classes(config.num_classes) if fit.num_faults else config.num_classes


class _Misshapen(NamedTuple):
    name: str
    theirs: _Shape
    ours: _Shape

    @property
    def squeezed(self) -> tuple[_Shape, _Shape]:
        return _squeezed(self.theirs), _squeezed(self.ours)


class _Fit(NamedTuple):
    """How the weights of a file fit a network.

    Attributes:
        names: of our keys that fit, the names in the file.
        missing: weights that the file lacks, as its author would name them.
        unexpected: weights of the file that the network lacks.
    """

    names: dict[str, str]
    missing: list[str]
    unexpected: list[str]
    misshapen: list[_Misshapen]

    @property
    def num_faults(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def complaint(self, network: str) -> str:
        """`it does not fit mobilevigv2_ti: 2 weights missing (a, b), 1 weight unexpected (c).`"""
        shapes = [f"{m.name}: {m.theirs} in the file, {m.ours} in {network}" for m in self.misshapen]
        groups = (
            ("missing", self.missing, ", "),
            ("unexpected", self.unexpected, ", "),
            ("of another shape", shapes, "; "),
        )
        said = [f"{_count(len(of), 'weight')} {what} ({_few(of, mark)})" for what, of, mark in groups if of]
        return f"it does not fit {network}: {', '.join(said)}."

    def classes(self, num_classes: int) -> int | None:
        """The file's classes, where nothing but their number tells it from a network of `num_classes`."""
        if self.missing or self.unexpected or not self.misshapen:
            return None
        pairs = [m.squeezed for m in self.misshapen]
        if any(not a or a[1:] != b[1:] or b[:1] != (num_classes,) for a, b in pairs):
            return None
        found = {a[0] for a, _ in pairs}
        return found.pop() if len(found) == 1 else None


def _fit(config: ArchConfig, shapes: Mapping[str, _Shape], state_dict: Mapping[str, Tensor]) -> _Fit:
    """Under the publisher's names of which the network knows most."""
    publishers = resolve(FAMILIES[config.family].official)(config)
    fits = [_fit_under(prefixes, shapes, state_dict) for prefixes in publishers]
    return max(fits, key=lambda fit: len(fit.names) + len(fit.misshapen))  # the first of equals: the authors


def _fit_under(prefixes: Mapping[str, str], shapes: Mapping[str, _Shape], state_dict: Mapping[str, Tensor]) -> _Fit:
    names: dict[str, str] = {}
    unexpected, misshapen = [], {}
    for name, tensor in state_dict.items():
        key, theirs = _rename(name, prefixes), tuple(tensor.shape)
        if key not in shapes or key in names or key in misshapen:
            unexpected.append(name)
        elif _squeezed(theirs) == _squeezed(shapes[key]):
            names[key] = name
        else:
            misshapen[key] = _Misshapen(name, theirs, shapes[key])
    backwards = {our: their for their, our in prefixes.items()}
    absent = [key for key in shapes if key not in names and key not in misshapen and not key.endswith(_OPTIONAL)]
    return _Fit(names, [_rename(key, backwards) for key in absent], unexpected, list(misshapen.values()))


_BATCH_COUNT = "num_batches_tracked"  # of no use with a fixed momentum; other publishers leave it out
_OPTIONAL = (_BATCH_COUNT, ".relative_pos")  # ViG's frozen table, which the network makes by itself


def _hint(fit: _Fit, config: ArchConfig, state_dict: Mapping[str, Tensor]) -> str:
    """What to type instead: the number of classes, or the variant that the weights fit."""
    if classes := fit.classes(config.num_classes):
        return f"It has {classes} classes: pass --num-classes {classes}."
    for name, variant in VARIANTS.items():
        other = variant.changed({"num_classes": config.num_classes, "in_chans": config.in_chans})
        shapes = {key: tuple(value.shape) for key, value in build(other, device="meta").state_dict().items()}
        found = _fit(other, shapes, state_dict)
        if not found.num_faults:
            return f"It fits {name}."
        if classes := found.classes(config.num_classes):
            return f"It fits {name} with --num-classes {classes}."
    return "It fits no variant that vig knows: was it made by other code, or by changed code?"


def _name(config: ArchConfig) -> str:
    return variant_name(config) or "the network"


def _squeezed(shape: _Shape) -> _Shape:
    return tuple(size for size in shape if size != 1)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _few(items: Sequence[str], mark: str = ", ") -> str:
    return mark.join([*items[:3], *(["..."] if len(items) > 3 else [])])


def _rename(key: str, prefixes: Mapping[str, str]) -> str:
    """`backbone.1.3.ffn.0.weight` by its longest known prefix; an unknown key stays as it is."""
    for end in (len(key), *sorted((i for i, c in enumerate(key) if c == "."), reverse=True)):
        if key[:end] in prefixes:
            return prefixes[key[:end]] + key[end:]
    return key

"""What a run starts from: weights of a file, the classifier drawn anew where the classes differ."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from vigcli.archs import build
from vigcli.archs.checkpoint import is_checkpoint, load_tensors, read_meta
from vigcli.archs.foreign import read_weights
from vigcli.archs.official import classes_of, load_official
from vigcli.config.archs import ArchConfig, TimmConfig
from vigcli.errors import ConfigError
from vigcli.train.scales import resized

_OTHER = "Name weights of the recipe's network, or take theirs: --set arch=CHECKPOINT."


class _File(NamedTuple):
    """What a file of weights holds: tensors under our names; its classes and resolution where it knows them."""

    tensors: Mapping[str, Tensor]
    labels: tuple[str, ...]
    resolution: int


def start_from(model: nn.Module, config: ArchConfig, path: Path | str, labels: Sequence[str] = ()) -> tuple[str, ...]:
    """Load the weights of a file, ours or another's, into a network of `config`, in place.

    The classifier stays as it was drawn where its classes are not `labels` or their number is another; tables of
    positions of another resolution are interpolated. Gives the names of the tensors that stay as they were drawn.
    Raises ConfigError where the file holds another network's weights.
    """
    file, classifier = _read(Path(path), config), _classifier(config)
    _check_fit(path, file, config, classifier)
    drawn = []
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, own in model.state_dict().items():
        tensor = file.tensors.get(name, own)
        if name in classifier and (tensor.shape != own.shape or (labels and file.labels and file.labels != (*labels,))):
            drawn.append(name)
        elif tensor.shape == own.shape:
            own.copy_(tensor)
        elif name in trained:  # what is not is computed from the grid
            own.copy_(resized(tensor, (own.shape[-2], own.shape[-1])))
    return tuple(drawn)


def check_weights(path: Path | str, config: ArchConfig) -> None:
    """Raise ConfigError where a file of weights does not fit a network; none is built."""
    _check_fit(path, _read(Path(path), config), config, _classifier(config))


def _read(path: Path, config: ArchConfig) -> _File:
    if is_checkpoint(path):
        meta = read_meta(path)
        return _File(load_tensors(path)[0], meta.labels, meta.arch.resolution)
    tensors = read_weights(path).tensors
    if isinstance(config, TimmConfig):
        return _File(tensors, (), config.resolution)
    model = build(config.changed({"num_classes": classes_of(config, tensors) or config.num_classes}))
    try:
        load_official(model, tensors)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", error.hint) from error
    return _File(model.state_dict(), (), config.resolution)


def _check_fit(path: Path | str, file: _File, config: ArchConfig, classifier: set[str]) -> None:
    with contextlib.suppress(ConfigError):  # one that it does not take says nothing of the tensors
        config = config.changed({"resolution": file.resolution})
    expected = build(config, device="meta").state_dict()
    for name in sorted(expected.keys() | file.tensors.keys()):
        if name in expected and name in file.tensors:
            theirs, ours = tuple(file.tensors[name].shape), tuple(expected[name].shape)
            if theirs != ours and name not in classifier:
                what = f"{name} is {theirs} in the file, {ours} in the network"
                raise ConfigError(f"{path}: does not fit the recipe's network: {what}.", _OTHER)
        elif not name.endswith("num_batches_tracked"):  # of no use with a fixed momentum; others leave it out
            where = "network" if name in expected else "file"
            raise ConfigError(f"{path}: does not fit the recipe's network: only the {where} has {name}.", _OTHER)


def _classifier(config: ArchConfig) -> set[str]:
    """The tensors whose shape hangs on the number of classes."""
    some, more = (
        build(config.changed({"num_classes": config.num_classes + i}), device="meta").state_dict() for i in (0, 1)
    )
    return {name for name in some if some[name].shape != more[name].shape}

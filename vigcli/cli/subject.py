"""What `vig run` and `vig eval` run: from what a user typed, or left out, to something that scores pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vigcli.cli.output import say
from vigcli.errors import UnavailableError, UsageError
from vigcli.runs.rundir import RUN_FILE, newest

if TYPE_CHECKING:
    from torch import nn

    from vigcli.config.recipe import Preprocessing
    from vigcli.coreml.runtime import Runner

FILES = ("*.mlpackage", "*.onnx", "checkpoint.safetensors")  # in a run directory
TIMM = "timm:"


def subject_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how a subject is run."""
    for option in (
        click.option(
            "--runtime", type=click.Choice(("auto", "coreml", "interpreter")), default="auto", show_default=True,
            help="Of a package: auto is CoreML on a Mac, else vig's interpreter.",
        ),
        click.option("--device", default="auto", show_default=True, help="Of a checkpoint: cpu, cuda, mps, or auto."),
        click.option("--weights", type=click.Path(), help="Of timm:NAME: timm's weights (.safetensors or .pth)."),
    ):  # fmt: skip
        command = option(command)
    return command


def is_subject(name: str) -> bool:
    """Whether a name means a package, an ONNX file, a checkpoint, a run directory or a network of timm."""
    path = Path(name)
    return (
        name.startswith(TIMM)
        or path.suffix in (".mlpackage", ".mlmodel", ".onnx", ".safetensors")
        or (path / RUN_FILE).is_file()
        or any(next(path.glob(pattern), None) for pattern in FILES)
    )


def check_weights(names: Sequence[str], weights: str | None) -> None:
    """Raise UsageError for a file of weights that is not that of one network of timm."""
    if weights is not None and [name.startswith(TIMM) for name in names].count(True) != 1:
        raise UsageError("--weights goes with one timm:NAME.", "Checkpoints and packages have their own.")


def open_subject(name: str | None, runtime: Any, device: str, weights: str | None) -> Runner:
    """What a user named, or the newest of any run, ready to run."""
    from vigcli.cli.load import picked_device
    from vigcli.coreml.runtime import open_runner

    if name is not None and name.startswith(TIMM):
        return _timm_runner(name, weights, picked_device(device))
    what, hint = "package, ONNX file or checkpoint", "Write one first: vig train, then vig export."
    if name is None:
        path = newest([f"*/{pattern}" for pattern in FILES], what, hint)
    elif Path(name).is_dir() and not name.rstrip("/").endswith(".mlpackage"):
        path = newest(FILES, what, "Name a file, or the run directory of one.", name)
    else:
        path = Path(name)
    if path.suffix == ".safetensors":
        return _checkpoint_runner(path, picked_device(device))
    runner = open_runner(path, runtime)
    if device != "auto":
        say(f"--device {device} is of checkpoints: it does not move {path}.")
    return runner


def _checkpoint_runner(path: Path, device: str) -> Runner:
    from vigcli.archs.checkpoint import load_checkpoint
    from vigcli.cli.load import named

    model, meta = load_checkpoint(path)
    return _torch_runner(named(path, meta), model, meta.arch, meta.labels, meta.preprocessing, device)


def _timm_runner(name: str, weights: str | None, device: str) -> Runner:
    from vigcli.archs import build, resolved
    from vigcli.archs.external import native_preprocessing
    from vigcli.archs.foreign import load_into

    config = resolved(name)
    if weights is None:
        hint = "Give its weights with --weights FILE (.safetensors or .pth); nothing is fetched."
        raise UnavailableError(f"{name}: has no weights here.", hint)
    preprocessing = native_preprocessing(name.removeprefix(TIMM))
    model = build(config)
    load_into(model, weights, name)
    return _torch_runner(f"{name} ({weights})", model, config, (), preprocessing, device)


def _torch_runner(
    name: str, model: nn.Module, arch: Any, labels: tuple[str, ...], preprocessing: Preprocessing, device: str
) -> Runner:
    import torch

    from vigcli.coreml.runtime import Runner
    from vigcli.train.evaluate import normalized

    placed = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ran_by = f"torch {torch.__version__}, {device}"
    predict = normalized(placed, preprocessing)
    return Runner(name, ran_by, arch.resolution, arch.num_classes, labels, "logits", preprocessing, predict)

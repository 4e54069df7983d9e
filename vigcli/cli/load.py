"""From what a user typed, or left out, to a typed object, the same way in every command."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vigcli.config.archs import AnyArch
from vigcli.config.load import apply_settings, parse_as
from vigcli.errors import ConfigError, UnavailableError, UsageError
from vigcli.runs.provenance import sha256
from vigcli.runs.rundir import check_empty, newest
from vigcli.units import format_bytes

CHECKPOINT_FILE = "checkpoint.safetensors"
DRAWN_FILE = "drawn.safetensors"  # of a network that was exported by its name; never taken for the newest checkpoint


def arch_with(
    name: str, settings: Sequence[str] = (), resolution: int | None = None, num_classes: int | None = None
) -> AnyArch:
    """The configuration of a named network with `--set`, `--resolution` and `--num-classes` applied."""
    from vigcli.archs import resolved

    config = resolved(name)
    for option, path, value in (
        ("--resolution", "resolution", resolution),
        ("--num-classes", "num_classes", num_classes),
    ):
        if value is not None and any(setting.partition("=")[0].strip() == path for setting in settings):
            raise UsageError(f"{option} and --set {path}=... say the same.", "Leave one of them out.")
    data = config.model_dump(mode="json")
    data.update({"resolution": resolution} if resolution else {})
    data.update({"num_classes": num_classes} if num_classes else {})
    apply_settings(data, settings)
    return parse_as(type(config), data, name)


def preprocessing_of(config: Any) -> Any:
    """How pictures are prepared for published weights of a network."""
    from vigcli.config.recipe import PREPROCESSING

    if config.family in PREPROCESSING:
        return PREPROCESSING[config.family]
    from vigcli.archs.external import native_preprocessing

    return native_preprocessing(config.name)


def checkpoint_output(path: str, force: bool) -> Path:
    """Where a command writes a checkpoint.

    Raises UsageError for a name that another kind of file would have, and for a file that exists unless `force` is set.
    """
    if not path.endswith(".safetensors"):
        raise UsageError(f"-o {path}: a checkpoint is a .safetensors file.", "Name it so.")
    if os.path.lexists(path) and not force:
        raise UsageError(f"{path}: exists already.", "Choose another name with -o, or --force.")
    return Path(path)


def picked_checkpoint(path: str | None) -> Path:
    """The checkpoint that a user named (a file or a run directory), else the newest of any run."""
    if path is None:
        return newest([f"*/{CHECKPOINT_FILE}"], "checkpoint", "Train one first: vig train RECIPE.")
    folder = Path(path)
    return folder / CHECKPOINT_FILE if folder.is_dir() and folder.suffix != ".mlpackage" else folder


SIZES = ("resolution", "num_classes")  # that a recipe and its network both have


def checkpoint_settings(settings: Sequence[str]) -> tuple[str, ...]:
    """The settings of a recipe, with `arch=CHECKPOINT` as that checkpoint's network, which may have been pruned, at its
    resolution and classes unless others are set, and `weights=RUN_DIR` as the checkpoint in it."""
    from vigcli.archs.checkpoint import read_meta

    given = dict(setting.split("=", 1) for setting in settings if "=" in setting)
    resolved = []
    for setting in settings:
        key, _, value = setting.partition("=")
        if key == "arch" and (value.endswith(".safetensors") or Path(value).is_dir()):
            sizes = {name: int(given[name]) for name in SIZES if given.get(name, "").isdigit()}
            arch = read_meta(picked_checkpoint(value)).arch.changed(sizes)
            resolved += [f"arch={arch.model_dump_json()}"]
            resolved += [f"{name}={getattr(arch, name)}" for name in SIZES if name not in given]
        elif key == "weights" and Path(value).is_dir():
            resolved.append(f"weights={picked_checkpoint(value)}")
        else:
            resolved.append(setting)
    return tuple(resolved)


def named(path: Path, meta: Any) -> str:
    """A checkpoint as the talk names it: with its epoch where its training has not ended, and what for."""
    epoch, epochs = meta.metrics.get("epoch", 0), meta.metrics.get("epochs", 0)
    notes = [
        *([f"UNFINISHED: epoch {epoch:.0f} of {epochs:.0f}"] if epoch < epochs else []),
        *(["trained to be quantized"] if meta.quantization else []),
    ]
    return f"{path} ({'; '.join(notes)})" if notes else str(path)


def run_folder(output: str | None) -> str | None:
    """What -o of a job names that writes a package: an empty run directory, which may not look like the package."""
    if output is not None and output.rstrip("/").endswith(".mlpackage"):
        raise UsageError(f"-o {output}: names a run directory, in which the package is put.", "Leave .mlpackage out.")
    if output is not None:
        check_empty(Path(output))
    return output


def due_package(file: str, folder: str | None) -> str:
    """Where a package will be put, before there is a run directory."""
    return str(Path(folder) / file) if folder else f"{file} in a new run in runs/"


def picked_package(path: str | None, others: Sequence[str] = ()) -> Path:
    """The package that a user named (or the one of a run directory), else the newest of any run.

    Args:
        others: patterns of what is taken from a run directory without a package.
    """
    if path is None:
        return newest(["*/*.mlpackage"], "CoreML package", "Write one first: vig export, or vig quantize --int8.")
    folder = Path(path)
    if folder.is_dir() and folder.suffix != ".mlpackage":
        patterns = ["*.mlpackage"] if any(folder.glob("*.mlpackage")) else ["*.mlpackage", *others]
        return newest(patterns, "CoreML package", "Name a package, or the run directory of one.", folder)
    return folder


def checkpoint_of(package: Path, digest: str, named: str | None) -> Path:
    """The checkpoint that a package was made from: the one named, else the one with the hash that it carries, in runs/,
    beside the package or in the current folder."""
    if named is not None:
        path = picked_checkpoint(named)
        if path.is_file() and sha256(path) != digest:
            raise ConfigError(f"{path}: is not the checkpoint that {package.name} was made from.", "Its hash differs.")
        return path
    places = (
        Path("runs").glob(f"*/{CHECKPOINT_FILE}"),
        Path("runs").glob(f"*/{DRAWN_FILE}"),
        package.parent.glob("*.safetensors"),
        Path().glob("*.safetensors"),
    )
    for path in itertools.chain(*places):
        if path.is_file() and sha256(path) == digest:
            return path
    hint = "Name it with --against; only runs/, the package's folder and this one were searched."
    raise ConfigError(f"{package}: the checkpoint that it was made from is not found.", hint)


def against(checkpoint: Path) -> str:
    """What `vig verify` must be told of the checkpoint of a package: nothing where it finds it in runs/ by its hash."""
    return "" if checkpoint.parent.parent == Path("runs") else f" --against {checkpoint}"


def check_memory(what: str, num_params: int) -> None:
    """Refuse weights that this machine cannot hold: Linux grants the memory and ends the process when it is used."""
    wanted, present = 2 * 4 * num_params, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # a copy is written
    if wanted > present:
        hint = "Choose smaller widths or depths, or a larger machine."
        sizes = f"{format_bytes(wanted)}, this machine has {format_bytes(present)}"
        raise UnavailableError(f"{what}: its weights need {sizes} of memory.", hint)


def picked_device(name: str) -> str:
    """`auto` is cuda where there is one, else mps, else cpu. Raises UnavailableError for one that is not there."""
    import torch

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if present[device])
    if not present.get(name.partition(":")[0], False):
        there = ", ".join(device for device, is_there in present.items() if is_there)
        raise UnavailableError(f"--device {name}: this machine has none.", f"It has: {there}.")
    return name


def data_changes(data_root: str) -> dict[str, Any]:
    """What `--data` (a folder or emoji10) changes of a recipe."""
    if data_root == "emoji10":
        return {"data.source": "emoji10", "data.root": None}
    return {"data.source": "folder", "data.root": str(Path(data_root).resolve())}


def data_of(meta: Any, data_root: str | None) -> Any:
    """Where the pictures are that a checkpoint was trained on: `--data` (a folder or emoji10), or the embedded ones."""
    from vigcli.config.recipe import Data

    if (data_root or meta.dataset) == "emoji10":
        return Data(source="emoji10")
    if data_root is not None:
        return Data(source="folder", root=data_root)
    known = f"it was trained on {meta.dataset}" if meta.dataset else "what it was trained on is not known"
    raise UnavailableError(
        f"the checkpoint's pictures are needed; {known}.", "Pass --data FOLDER with train/ and val/."
    )

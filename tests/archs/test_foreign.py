"""Files of weights that others wrote: all that the authors' files hold is read, and nothing that they name is run."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from vigcli.archs.checkpoint import save_tensors
from vigcli.archs.foreign import read_weights
from vigcli.errors import ConfigError

Formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
BASE = torch.arange(24.0)
TENSORS: dict[str, Tensor] = {
    "plain": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "bfloat": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "nothing": torch.zeros(0),
    "shared": BASE,
    "shared too": BASE,
    "view": BASE[4:12].view(2, 4),
    "across": BASE.view(4, 6).t(),
}
NUMPY = {"best": np.float64(81.25), "epoch": np.int64(299), "done": np.bool_(True), "loss": np.float32(0.5)}


def saved(path: Path, content: Any, zipped: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def rewritten(path: Path, zipped: bool, change: Callable[[bytes], bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """The file with its pickled bytes changed."""
    if not zipped:
        path.write_bytes(change(path.read_bytes()))
        return path
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in parts.items():
            archive.writestr(name, change(data) if name.endswith("/data.pkl") else data)
    return path


def content() -> dict[str, Any]:
    """As the authors' training leaves it."""
    arguments = argparse.Namespace(model="x", lr=2e-3, sizes=(1, 2), crop=None, ema=True, best=NUMPY["best"])
    return {
        "epoch": 3,
        "state_dict": collections.OrderedDict(TENSORS),
        "state_dict_ema": {f"module.{name}": value + 1 for name, value in TENSORS.items()},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3, "params": [0, 1]}]},
        "milestones": collections.Counter({5: 1}),
        "size": torch.Size((1, 2)),
        "args": arguments,
        "numbers": NUMPY,
    }


@Formats
@pytest.mark.parametrize("numpy", ["numpy.core", "numpy._core"])
def test_all_that_the_authors_files_hold_is_read(tmp_path: Path, zipped: bool, numpy: str) -> None:
    path = saved(tmp_path / "x.pth.tar", content(), zipped)
    seen = []

    def rename(data: bytes) -> bytes:
        changed = data.replace(b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n")
        changed = changed.replace(b"cnumpy._core.multiarray\n", f"c{numpy}.multiarray\n".encode())
        seen.append(changed.count(f"c{numpy}.multiarray\nscalar\n".encode()))
        return changed

    rewritten(path, zipped, rename)
    assert sum(seen) == 1, "no numpy scalar in the file"
    for ema in (False, True):
        weights = read_weights(path, ema)
        assert weights.taken == ("state_dict_ema" if ema else "state_dict")
        assert weights.left == tuple(key for key in content() if key != weights.taken)
        assert weights.tensors.keys() == TENSORS.keys()
        for name, tensor in weights.tensors.items():
            assert torch.equal(tensor, TENSORS[name] + 1 if ema else TENSORS[name])
            assert tensor.dtype == TENSORS[name].dtype


@Formats
def test_a_numpy_scalar_is_its_number(tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: seen.update(real(*a, **k)) or seen)  # type: ignore[func-returns-value]
    read_weights(saved(tmp_path / "x.pt", content(), zipped))
    assert seen["numbers"] == {name: value.item() for name, value in NUMPY.items()}
    assert seen["args"].best == 81.25


@pytest.mark.parametrize(
    ("keys", "ema", "taken"),
    [
        ({"model_state_dict", "optim_state_dict"}, False, "model_state_dict"),
        ({"model_state_dict", "ema_state_dict"}, True, "ema_state_dict"),
        ({"ema_state_dict"}, False, "ema_state_dict"),
        ({"model"}, False, "model"),
        ({"model", "model_ema"}, True, "model_ema"),
    ],
)
def test_the_weights_stand_under_known_names(tmp_path: Path, keys: set[str], ema: bool, taken: str) -> None:
    file = {key: {"module.a": torch.full((1,), float(key == taken))} for key in keys} | {"best": torch.zeros(())}
    weights = read_weights(saved(tmp_path / "x.pt", file, True), ema)
    assert weights.taken == taken
    assert weights.tensors == {"a": torch.ones(1)}


def test_bare_weights(tmp_path: Path) -> None:
    named = {name: tensor.contiguous().clone() for name, tensor in TENSORS.items()}
    save_file(named, tmp_path / "x.safetensors")
    for path in (saved(tmp_path / "x.pt", named, True), tmp_path / "x.safetensors"):
        weights = read_weights(path)
        assert (weights.taken, weights.left) == ("", ())
        assert all(torch.equal(weights.tensors[name], tensor) for name, tensor in named.items())


# ------------------------------------------------------------------------------------------------------------ attacks


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def location(command: str) -> Callable[[bytes], bytes]:
    """Puts a call of os.system where the pickle names a storage's device, inside its persistent id."""
    text = command.encode()
    call = b"cposix\nsystem\n(X" + struct.pack("<I", len(text)) + text + b"tR"
    return lambda data: data.replace(b"X\x03\x00\x00\x00cpu", call)


ATTACKS: dict[str, Callable[[str, str], Any]] = {  # what is saved beside the weights: marker file, command -> content
    "os.system": lambda marker, command: Call(os.system, command),
    "in a namespace": lambda marker, command: argparse.Namespace(lr=1, model=[Call(os.system, command)]),
    "as a key": lambda marker, command: {Call(os.system, command): 1},
    "as a numpy scalar": lambda marker, command: [np.float64(1), Call(os.system, command)],
    "persistent id": lambda marker, command: argparse.Namespace(weight=torch.zeros(1)),
    "eval": lambda marker, command: Call(eval, f"open({marker!r}, 'w').close()"),
    "pathlib": lambda marker, command: Call(pathlib.Path.touch, Path(marker)),
    "setattr": lambda marker, command: Call(setattr, argparse.Namespace, "x", 1),
    "torch.hub.load": lambda marker, command: Call(torch.hub.load, "owner/name", "model"),
    "torch.load": lambda marker, command: Call(torch.load, marker),
    "a module": lambda marker, command: torch.nn.Linear(1, 1),
    "a numpy array": lambda marker, command: np.zeros(3),
}


@Formats
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_that_a_file_names_is_run(tmp_path: Path, zipped: bool, attack: str) -> None:
    marker = tmp_path / "marker"
    command = f"touch '{marker}'"
    file = {"state_dict": TENSORS, "args": ATTACKS[attack](str(marker), command)}
    with contextlib.suppress(AttributeError):  # a module cannot be called
        saved(tmp_path / "x.pth", file, zipped)
    if attack == "persistent id":
        rewritten(tmp_path / "x.pth", zipped, location(command))
    with pytest.raises(ConfigError, match=r"names \S+, which weights do not need; nothing of it was run"):
        read_weights(tmp_path / "x.pth")
    assert not marker.exists()
    if attack in ("os.system", "in a namespace", "as a key", "eval"):
        torch.load(tmp_path / "x.pth", weights_only=False)
        assert marker.exists(), "the attack itself is broken"


@Formats
@pytest.mark.parametrize("file", [{"state_dict": TENSORS}, {"state_dict": TENSORS, "x": Call(os.getcwd)}])
def test_the_list_of_allowed_names_is_ours_alone_and_goes_again(tmp_path: Path, zipped: bool, file: Any) -> None:
    path = saved(tmp_path / "x.pth", file, zipped)
    added = [argparse.Namespace, collections.deque]
    with torch.serialization.safe_globals(added):
        before = set(torch.serialization.get_safe_globals())
        with contextlib.suppress(ConfigError):
            read_weights(path)
        assert set(torch.serialization.get_safe_globals()) == before
        with pytest.raises(ConfigError, match=r"names collections\.deque"):
            read_weights(saved(path, {"state_dict": TENSORS, "x": collections.deque()}, zipped))


def lies(data: bytes) -> bytes:
    """Four numbers in a storage and in its tensor become four hundred million."""
    assert data.count(b"K\x04") >= 2
    return data.replace(b"K\x04", b"J" + struct.pack("<i", 400_000_000))


@Formats
def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = rewritten(saved(tmp_path / "x.pth", {"a": torch.arange(4.0)}, zipped), zipped, lies)
    with pytest.raises(ConfigError, match="damaged"):
        read_weights(path)


def test_a_numpy_type_that_lies_is_refused(tmp_path: Path) -> None:
    for kind in (b"O8", b"V8", b"U9"):
        path = saved(tmp_path / "x.pth", content(), True)
        rewritten(path, True, lambda data, kind=kind: data.replace(b"X\x02\x00\x00\x00f8", b"X\x02\x00\x00\x00" + kind))
        with pytest.raises(ConfigError, match="a numpy value of type"):
            read_weights(path)


# ------------------------------------------------------------------------------------------------------------- damage


def archive(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr("x/data.pkl", b"\x80\x02}." + b"\0" * 10**7)
    return buffer.getvalue()


DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty file"),
    "a page": (b"<!DOCTYPE html>\n<html>", "no file of weights"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "no file of weights"),
    "zeros": (bytes(1000), "no file of weights"),
    "deep": (b"\x80\x02}X\x01\x00\x00\x00a" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"s.", "no file of weights"),
    "a compressed archive": (archive(zipfile.ZIP_DEFLATED), "compressed or overlap"),
    "an archive of nothing": (archive(zipfile.ZIP_STORED), "no file of weights"),
    "a tar": (b"storages".ljust(257, b"\0") + b"ustar\x0000" + bytes(512), "no file of weights"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damage_is_refused(tmp_path: Path, damage: str, suffix: str) -> None:
    data, what = DAMAGE[damage]
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=what if suffix == "pth" else "no file of weights|empty file") as refused:
        read_weights(path)
    assert str(path) in str(refused.value)
    assert refused.value.hint
    if damage.startswith("a p"):
        assert "It begins '" in refused.value.hint


@Formats
def test_a_file_cut_short_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path / "x.pth", content(), zipped)
    whole = path.read_bytes()
    for length in range(1, len(whole), len(whole) // 20):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError):
            read_weights(path)


@Formats
def test_a_changed_byte_never_escapes(tmp_path_factory: pytest.TempPathFactory, zipped: bool) -> None:
    path = saved(tmp_path_factory.mktemp("x") / "x.pth", content(), zipped)
    whole = path.read_bytes()

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, len(whole) - 1), st.integers(1, 255))
    def changed(position: int, mask: int) -> None:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ mask]) + whole[position + 1 :])
        with contextlib.suppress(ConfigError):
            tensors = read_weights(path).tensors
            if zipped:  # the old format has no checksum
                assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())

    changed()


UNFIT: dict[str, tuple[Any, str]] = {
    "a list": ([torch.zeros(1)], r"one object \(list\)"),
    "a tensor": (torch.zeros(1), r"one object \(torch\.float32"),
    "no tensors": ({"epoch": 3, "state_dict": {"a": 1}}, "holds no weights; it holds epoch, state_dict"),
    "nothing": ({}, "nothing that has a name"),
    "a number as a name": ({"state_dict": {1: torch.zeros(1)}}, r"name is not text \(int\)"),
    "a list among weights": ({"a": torch.zeros(1), "b": [1]}, r"b: is no plain tensor of numbers \(list\)"),
    "complex": ({"a": torch.zeros(1, dtype=torch.complex64)}, "a: is no plain tensor.*complex64"),
    "bits": ({"a": torch.zeros(1, dtype=torch.bool)}, "a: is no plain tensor.*bool"),
    "sparse": ({"a": torch.eye(3).to_sparse()}, "a: is no plain tensor.*sparse_coo"),
    "quantized": ({"a": torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)}, "a: is no plain.*qint8"),
    "without data": ({"a": torch.zeros(3, device="meta")}, "a: is no plain tensor.*meta"),
    "twice": ({"a": torch.zeros(1), "module.a": torch.zeros(1)}, "a: stands twice"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_what_is_no_named_weights_is_refused(tmp_path: Path, kind: str) -> None:
    file, what = UNFIT[kind]
    with pytest.raises(ConfigError, match=what) as refused:
        read_weights(saved(tmp_path / "x.pth", file, True))
    assert refused.value.hint


def test_an_average_that_is_not_there_is_not_taken(tmp_path: Path) -> None:
    for file, there in (({"model": TENSORS, "epoch": 1}, "only model"), (TENSORS, "only bare weights")):
        with pytest.raises(ConfigError, match=f"no EMA weights, {there}") as refused:
            read_weights(saved(tmp_path / "x.pth", file, True), ema=True)
        assert "--ema" in refused.value.hint


def test_programs_folders_and_our_own_files_are_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "x.pt")
    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, "{}")
    for name, what in (("x.pt", "TorchScript"), ("x.safetensors", "vig already"), (".", "no such"), ("y", "no such")):
        with pytest.raises(ConfigError, match=what):
            read_weights(tmp_path / name)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_plain_pickle_is_not_run_and_not_called_damaged(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"weight": [1.0]}, protocol))
    with pytest.raises(ConfigError) as refused:
        read_weights(path)
    if protocol >= 4:
        assert "nothing of it was run" in str(refused.value)

"""Checkpoints come back as they were, or are refused with a reason."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIG

from vigcli.archs import build
from vigcli.archs.checkpoint import Checkpoint, load_checkpoint, load_tensors, read_meta, save_checkpoint, save_tensors
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.errors import ConfigError, VigError

TINY = CONFIG.changed({"num_classes": 3})
NO_SUCH = {"family": "timm", "name": "no_such"}
META = CheckpointMeta(arch=TINY, labels=("a", "b", "ç"), dataset="mine", metrics={"top1_percent": 12.5})  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "x.safetensors", build(TINY, seed=5), META)
    return tmp_path / "x.safetensors"


def test_a_checkpoint_comes_back(path: Path) -> None:
    loaded = load_checkpoint(path)
    assert isinstance(loaded, Checkpoint)
    assert loaded.meta == read_meta(path) == META
    assert not loaded.model.training
    expected = build(TINY, seed=5).eval()
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.model(x), expected(x))


def test_others_may_read_a_checkpoint_as_any_file(path: Path) -> None:
    (plain := path.with_name("plain")).touch()
    assert path.stat().st_mode == plain.stat().st_mode


def rewrite(path: Path, change: Callable[[dict[str, Any], bytes], bytes | None]) -> None:
    """The file with its header and body changed by hand."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    body = change(header, raw[8 + size :]) or raw[8 + size :]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The file with its metadata changed; a returned text stands in for them."""
    tensors, text = load_tensors(path)
    meta = json.loads(text)
    returned = change(meta)
    save_tensors(path, tensors, returned if isinstance(returned, str) else json.dumps(meta))


def first(header: dict[str, Any]) -> dict[str, Any]:
    return header["stem.0.conv.weight"]


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "truncated"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "truncated"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:100]), "truncated"),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"x"), "truncated"),
    "text": (lambda p: p.write_text("hello, this is text"), "truncated"),
    "huge header": (lambda p: p.write_bytes(struct.pack("<Q", 2**62) + p.read_bytes()[8:]), "truncated"),
    "pickle": (lambda p: torch.save({"a": torch.zeros(1)}, p), "truncated"),
    "foreign": (lambda p: save_file({"a": torch.zeros(1)}, p), "no checkpoint of vig"),
    "huge offset": (lambda p: rewrite(p, lambda h, b: first(h).update(data_offsets=[0, 2**62])), "truncated"),
    "negative shape": (lambda p: rewrite(p, lambda h, b: first(h).update(shape=[-1])), "truncated"),
    "unknown dtype": (lambda p: rewrite(p, lambda h, b: first(h).update(dtype="XX")), "truncated"),
    "flipped bit": (lambda p: rewrite(p, lambda h, b: b[:-1] + bytes([b[-1] ^ 4])), "checksum"),
    "other dtype": (lambda p: rewrite(p, lambda h, b: first(h).update(dtype="I32")), "checksum"),
    "no metadata": (lambda p: rewrite(p, lambda h, b: h.pop("__metadata__") and None), "no checkpoint of vig"),
    "no JSON": (lambda p: edit(p, lambda m: "{"), "cannot be read"),
    "JSON bomb": (lambda p: edit(p, lambda m: "[" * 100_000), "cannot be read"),
    "deep JSON": (lambda p: edit(p, lambda m: m.update(provenance=json.loads("[" * 500 + "]" * 500))), "be read"),
    "long integer": (lambda p: edit(p, lambda m: '{"format": ' + "9" * 5000 + "}"), "cannot be read"),
    "half a character": (lambda p: edit(p, lambda m: m.update(dataset="\ud800")), "cannot be read"),
    "a list": (lambda p: edit(p, lambda m: "[1]"), "must be a mapping"),
    "NaN": (lambda p: edit(p, lambda m: m["metrics"].update(a=float("nan"))), "finite"),
    "unknown key": (lambda p: edit(p, lambda m: m.update(x=1)), "x: unknown key"),
    "newer format": (lambda p: edit(p, lambda m: m.update(format=2)), "format: must be 1"),
    "twice": (lambda p: edit(p, lambda m: m.update(labels=["a", "b", "a"])), "a label names two classes"),
    "labels": (lambda p: edit(p, lambda m: m.update(labels=["a"])), "1 labels do not name 3 classes"),
    "unknown family": (lambda p: edit(p, lambda m: m["arch"].update(family="x")), "unknown 'family'"),
    "unknown network": (lambda p: edit(p, lambda m: m.update(labels=[], arch=NO_SUCH)), "no_such"),
    "wide": (lambda p: edit(p, lambda m: [s.update(width=65536) for s in m["arch"]["stages"]] and None), "not fit"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused(path: Path, damage: str) -> None:
    spoil, what = DAMAGE[damage]
    spoil(path)
    with pytest.raises(ConfigError, match=what) as refused:
        load_checkpoint(path)
    assert refused.value.hint
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(extra=torch.zeros(1)),
        lambda t: t.pop("stem.0.conv.weight"),
        lambda t: t.update({"stem.0.conv.weight": t["stem.0.conv.weight"].flatten()}),
        lambda t: t.update({"stem.0.conv.weight": t["stem.0.conv.weight"].half()}),
        lambda t: t.update({"stem.0.conv.weight": t["stem.0.conv.weight"].int()}),
    ],
)
def test_tensors_of_another_network_are_refused(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors, text = load_tensors(path)
    change(tensors)
    save_tensors(path, tensors, text)
    with pytest.raises(ConfigError, match=r"(extra|stem\.0\.conv\.weight): does not fit"):
        load_checkpoint(path)


def test_weights_that_are_not_finite_are_refused(path: Path) -> None:
    tensors, text = load_tensors(path)
    tensors["stem.0.conv.weight"][0] = torch.nan
    save_tensors(path, tensors, text)
    with pytest.raises(ConfigError, match="not finite"):
        load_checkpoint(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for place, why in ((tmp_path, "is a folder, not a checkpoint"), (tmp_path / "missing.safetensors", "no such")):
        with pytest.raises(ConfigError, match=why):
            read_meta(place)


def test_the_state_of_a_training_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"model.x": torch.zeros(1)}, json.dumps({"progress": {"step": 1}}))
    with pytest.raises(ConfigError, match="is the state of a training") as caught:
        read_meta(path)
    assert "checkpoint.safetensors" in caught.value.hint


def test_a_failed_save_leaves_the_old_checkpoint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vigcli.archs.checkpoint as module

    before = path.read_bytes()

    def full(tensors: Any, place: Path, metadata: Any) -> None:
        Path(place).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(VigError, match="No space left"):
        save_checkpoint(path, build(TINY), META)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert load_file(path)

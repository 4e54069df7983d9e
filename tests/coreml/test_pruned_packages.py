"""Pruned networks of every family as packages: converted, run and verified like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from vigcli.archs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vigcli.compress.groups import Pruner
from vigcli.coreml.convert import export, package_meta
from vigcli.coreml.interpreter import Program
from vigcli.coreml.verify import MIN_INPUTS, verify
from vigcli.registry import FAMILIES

pytest.importorskip("coremltools", exc_type=ImportError)
pytest.importorskip("torch_pruning")


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f == "mobilevigv2" else pytest.mark.slow) for f in FAMILIES]
)
def test_a_pruned_network_converts_and_verifies(family: str, tmp_path: Path) -> None:
    whole = tiny.checkpoint(config=tiny.SMALL[family])
    pruner = Pruner(whole.model, whole.meta.arch)
    half = {group.name: group.widths[(len(group.widths) - 1) // 2] for group in pruner.groups}
    network, config = pruner.pruned(half, pruner.importance("magnitude"))
    save_checkpoint(tmp_path / "pruned.safetensors", network, whole.meta.model_copy(update={"arch": config}))
    pruned: Checkpoint = load_checkpoint(tmp_path / "pruned.safetensors")
    sizes = {}
    for name, checkpoint in (("whole", whole), ("pruned", pruned)):
        path = tmp_path / f"{name}.mlpackage"
        export(checkpoint, "ab" * 32, path, "fp16")
        sizes[name] = sum(file.stat().st_size for file in path.rglob("weight.bin"))
    assert sizes["pruned"] < 0.6 * sizes["whole"]
    assert package_meta(tmp_path / "pruned.mlpackage").arch == config
    pixels = tiny.pixels(MIN_INPUTS, size=config.resolution)
    report = verify(Program.load(tmp_path / "pruned.mlpackage"), pruned, pixels)
    assert report.passed, report

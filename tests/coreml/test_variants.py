"""Every published variant at its full size: it converts, its package gives its logits, and nothing gathers."""

from __future__ import annotations

from pathlib import Path

import golden
import packages
import pytest
import torch

from vigcli.archs import build
from vigcli.archs.checkpoint import Checkpoint
from vigcli.config.archs import VARIANTS
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.coreml.convert import Deployable, export
from vigcli.coreml.interpreter import Program

pytest.importorskip("coremltools", exc_type=ImportError)
SMALLEST = {config.family: name for name, config in reversed(VARIANTS.items())}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in SMALLEST.values() else pytest.mark.slow) for n in VARIANTS],
)
def test_a_variant_converts(name: str, tmp_path: Path) -> None:
    config = VARIANTS[name]
    model = build(config).eval()
    model.load_state_dict(golden.weights([(key, list(value.shape)) for key, value in model.state_dict().items()]))
    meta = CheckpointMeta(arch=config)
    export(Checkpoint(model, meta), "ab" * 32, tmp_path / "net.mlpackage", "fp32")
    program = Program.load(tmp_path / "net.mlpackage")
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, config.resolution, config.resolution), generator=generator).float()
    seen: list[torch.Tensor] = []
    program.run({program.inputs[0].name: image}, tap=lambda info, x: seen.append(x))
    with torch.no_grad():
        expected = Deployable(model, meta.preprocessing).eval().logits(image)
    assert packages.relative_error(seen[-2].reshape(1, -1), expected) < 2e-5  # before the softmax
    assert not {"gather", "gather_along_axis", "topk"} & set(program.op_counts)

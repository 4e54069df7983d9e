"""Every published variant at its full size: it converts, its package gives its logits, and nothing gathers."""

from __future__ import annotations

from pathlib import Path

import golden
import packages
import pytest
import torch

from vigcli.archs import backbone, build, resolved
from vigcli.archs.checkpoint import Checkpoint
from vigcli.config.archs import VARIANTS, AnyArch
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.coreml.convert import Deployable, export, meta_of, output_shapes
from vigcli.coreml.interpreter import Program

pytest.importorskip("coremltools", exc_type=ImportError)
SMALLEST = {config.family: name for name, config in reversed(VARIANTS.items())}
# Of these the features decide who is whose neighbour: rounding turns near ties, so two forms may differ by more.
DYNAMIC = {"vig": {}, "pvig": {}, "clustervig": {"partition": "grid"}}  # k-means, unrolled, takes minutes to convert


def checkpoint(config: AnyArch) -> Checkpoint:
    model = build(config).eval()
    weights = golden.weights([(key, list(value.shape)) for key, value in model.state_dict().items()])
    model.load_state_dict({key: value for key, value in weights.items() if "relative_pos" not in key}, strict=False)
    return Checkpoint(model, CheckpointMeta(arch=config))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in SMALLEST.values() else pytest.mark.slow)
        for name, config in VARIANTS.items()
        if config.family not in DYNAMIC
    ],
)
def test_a_variant_converts(name: str, tmp_path: Path) -> None:
    config = VARIANTS[name]
    made = checkpoint(config)
    export(made, "ab" * 32, tmp_path / "net.mlpackage", "fp32")
    program = Program.load(tmp_path / "net.mlpackage")
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, config.resolution, config.resolution), generator=generator).float()
    seen: list[torch.Tensor] = []
    program.run({program.inputs[0].name: image}, tap=lambda info, x: seen.append(x))
    with torch.no_grad():
        expected = Deployable(made.model, made.meta.preprocessing).eval().logits(image)
    assert packages.relative_error(seen[-2].reshape(1, -1), expected) < 2e-5  # before the softmax
    assert not {"gather", "gather_along_axis", "topk"} & set(program.op_counts)


TIMM = {  # of every way in which timm's small networks are written one; the first two are quick
    "mobilenetv2_100": ("stride4", "stride8", "stride16", "stride32"),
    "mobilenetv3_small_050": ("stride4", "stride8", "stride16", "stride32"),
    "fastvit_t8": ("stride4", "stride8", "stride16", "stride32"),
    "repvit_m0_9": ("stride4", "stride8", "stride16", "stride32"),
    "efficientformerv2_s0": ("stride4", "stride8", "stride16", "stride32"),
    "ghostnetv2_100": ("stride4", "stride8", "stride16", "stride32"),
    "mobilevitv2_050": ("stride4", "stride8", "stride16", "stride32"),
    "vit_tiny_patch16_224": ("stride16",),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if i < 2 else pytest.mark.slow) for i, name in enumerate(TIMM)]
)
def test_a_network_of_timm_converts(name: str, tmp_path: Path) -> None:
    config = resolved(f"timm:{name}")
    made = Checkpoint(build(config).eval(), CheckpointMeta(arch=config))
    pixels = torch.randint(0, 256, (1, 3, config.resolution, config.resolution)).float()
    for output in ("logits", "features"):
        export(made, "ab" * 32, tmp_path / "net.mlpackage", "fp32", output=output)
        found = Program.load(tmp_path / "net.mlpackage").run({"image": pixels})
        network = backbone(config, made.model) if output == "features" else made.model
        with torch.no_grad():
            expected = Deployable(network, made.meta.preprocessing, softmax=False)(pixels)
        assert tuple(found) == (TIMM[name] if output == "features" else ("logits",))
        for value, due in zip(found.values(), [expected] if output == "logits" else expected, strict=True):
            assert packages.relative_error(value, due) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", SMALLEST)
def test_a_family_gives_feature_maps(family: str, tmp_path: Path) -> None:
    config = VARIANTS[SMALLEST[family]].changed({"num_classes": 10, **DYNAMIC.get(family, {})})
    made = checkpoint(config)
    meta = meta_of(export(made, "ab" * 32, tmp_path / "net.mlpackage", output="features"))
    shapes = {feature.name: feature.shape for feature in Program.load(tmp_path / "net.mlpackage").outputs}
    assert shapes == output_shapes(made, meta)
    assert tuple(shapes) == tuple(f"stride{shape.stride}" for shape in config.stage_shapes() if shape.stride >= 4)


@pytest.mark.slow
@pytest.mark.parametrize("family", DYNAMIC)
def test_a_dynamic_graph_converts_with_one_choice_in_each_block(family: str, tmp_path: Path) -> None:
    config = VARIANTS[SMALLEST[family]].changed({"num_classes": 10, **DYNAMIC[family]})
    export(checkpoint(config), "ab" * 32, tmp_path / "net.mlpackage")
    counts = Program.load(tmp_path / "net.mlpackage").op_counts
    blocks = sum(spec.kind == "graph" for spec in config.blocks())
    assert counts["topk"] == blocks == 12
    assert counts["gather"] + counts["gather_along_axis"] == blocks

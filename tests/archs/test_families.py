"""Every family and every published variant: counts, gradients, deployment, round trips. A new one is covered as is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import golden
import pytest
import torch
from torch import Tensor, nn

from vigcli.archs import build, inference_form
from vigcli.config.archs import PUBLISHED, VARIANTS, AnyArch, ArchConfig, TimmConfig, arch_config, variant_name
from vigcli.config.load import dump, parse_as, parse_yaml
from vigcli.errors import ConfigError
from vigcli.measure.count import count_params, num_params, thop_macs
from vigcli.measure.profile import profile
from vigcli.measure.trace import trace
from vigcli.nn.blocks import DropPath
from vigcli.nn.deploy import deploy
from vigcli.registry import FAMILIES, resolve

# Counted on the authors' own code; "inference" has one head and merged positional encoding, but batch norm.
COUNTS = json.loads((Path(__file__).parents[1] / "data" / "counts.json").read_text())
variants = pytest.mark.parametrize("name", VARIANTS)


def with_golden_weights(config: ArchConfig) -> nn.Module:
    """In float64, with weights of the size that trained ones have: drawn layer scales would hide the blocks."""
    model = build(config).double().eval()
    model.load_state_dict(golden.weights([(key, list(value.shape)) for key, value in model.state_dict().items()]))
    return model


def images(config: ArchConfig, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, config.in_chans, config.resolution, config.resolution, generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_complete(family: str) -> None:
    parts = FAMILIES[family]
    config = resolve(parts.config)
    assert issubclass(config, ArchConfig)
    assert issubclass(resolve(parts.network), nn.Module)
    assert config.model_fields["family"].default == family
    assert config in get_args(get_args(AnyArch)[0])
    own = {name for name, variant in VARIANTS.items() if type(variant) is config}
    assert own
    assert own <= set(PUBLISHED)
    assert own & set(golden.NAMES), "no variant has reference logits"


@variants
def test_counts_are_those_of_the_authors_code(name: str) -> None:
    counted = count_params(VARIANTS[name])
    assert (counted.total, counted.inference) == (COUNTS[name]["params_total"], COUNTS[name]["params_inference"])
    assert profile(VARIANTS[name]).macs == COUNTS[name]["macs_inference"]
    assert thop_macs(VARIANTS[name]) == COUNTS[name]["macs_thop"]


@variants
def test_the_blocks_add_up_to_the_network(name: str) -> None:
    """Blocks are counted and priced one by one; the network that is built must be nothing else."""
    config = VARIANTS[name]
    model = build(config, device="meta")
    counted, deployed = profile(config), inference_form(config, model)
    assert counted.params.total == num_params(model)
    assert counted.params.inference == num_params(deploy(model, keep_norm=True))
    assert counted.params.deployed == num_params(deployed) == sum(block.params for block in counted.blocks)
    shape = (config.in_chans, config.resolution, config.resolution)
    whole = trace(deployed, shape)
    assert sorted(whole.ops) == sorted(op for block in counted.blocks for op in block.trace.ops)
    assert sum(op.act_bytes for op in whole.fused) == sum(
        op.act_bytes for block in counted.blocks for op in block.trace.fused
    )
    assert trace(model, shape).macs == COUNTS[name]["macs_training"]


@variants
def test_deployment_keeps_the_logits(name: str) -> None:
    config = VARIANTS[name]
    model, x = with_golden_weights(config), images(config)
    with torch.no_grad():
        expected = model(x.double())
        assert (deploy(model)(x.double()) - expected).abs().max() <= 1e-10 * expected.abs().max()
        assert (deploy(model, keep_norm=True)(x.double()) - expected).abs().max() <= 1e-10 * expected.abs().max()
        single = model.float()
        difference = deploy(single)(x) - single(x)
    assert difference.abs().max() <= 1e-5 * expected.abs().max()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deploy(single).modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in single.modules())  # deployment works on a copy


@variants
def test_every_parameter_learns(name: str) -> None:
    config = VARIANTS[name]
    model = build(config).train()
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0  # a branch dropped for both pictures learns nothing
    output = model(images(config, batch=2))
    heads = output if isinstance(output, tuple) else (output,)
    assert [head.shape for head in heads] == [(2, config.num_classes)] * (1 + getattr(config, "distilled", False))
    sum(head.square().sum() for head in heads).backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    dead = [key for key, p in model.named_parameters() if p.ndim > 1 and p.grad is not None and not p.grad.any()]
    assert dead == []


@variants
def test_a_configuration_survives_its_text(name: str) -> None:
    config = VARIANTS[name]
    text = dump(config)
    data, _ = parse_yaml(text, name)
    assert parse_as(type(config), data) == config
    assert type(config).model_validate_json(config.model_dump_json()) == config
    assert hash(config) == hash(type(config).model_validate_json(config.model_dump_json()))
    assert (
        variant_name(config.changed({"resolution": 160, "num_classes": 3}) if name.endswith("ti") else config) == name
    )
    assert variant_name(config.changed({"stages[0].width": config.stage_shapes()[0].width + 2})) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_alone_decides_the_weights(family: str) -> None:
    name = next(name for name, config in VARIANTS.items() if isinstance(config, resolve(FAMILIES[family].config)))
    before = torch.get_rng_state()
    first = build(name, {"num_classes": 3}, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = (build(name, {"num_classes": 3}, seed=seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(ConfigError) as unknown:
        build("mobilevigv2_tt")
    assert "mobilevigv2_ti" in unknown.value.hint
    for wrong in ("timm:", "timm:fastvit_t88"):
        with pytest.raises(ConfigError, match=wrong.removeprefix("timm:f")):
            build(wrong)


def test_a_timm_network_is_built_and_counted_by_its_name() -> None:
    config = arch_config("timm:mobilenetv3_small_050").changed({"num_classes": 7, "resolution": 64})
    assert isinstance(config, TimmConfig)
    counted = profile(config)
    model = build(config, device="meta")
    assert counted.params.total == num_params(model)
    assert counted.macs == trace(inference_form(config, model), (3, 64, 64)).macs
    assert sum(block.params for block in counted.blocks) == counted.params.deployed


# ---------------------------------------------------------------------------------------------------- MobileViGv2


@pytest.mark.parametrize(
    ("changes", "stage", "reach", "grid"),
    [
        ({"resolution": 64}, 1, 8, 8),
        ({"resolution": 128}, 1, 8, 16),
        ({"resolution": 64, "stages[1].reach": 3}, 2, 4, 4),
        ({"stages[3].reach": 7}, 3, 7, 7),
        ({"stages[2].reach": 7}, 2, 7, 14),
        ({"stages[1].mixer": "svga", "stages[1].reach": 28}, 1, 28, 28),
        ({"stages[3].mixer": "svga", "stages[3].reach": 9}, 3, 9, 7),
    ],
)
def test_graphs_that_link_nothing_are_refused(changes: dict[str, Any], stage: int, reach: int, grid: int) -> None:
    with pytest.raises(ConfigError, match=rf"K = {reach} on a grid of {grid}\b.*\(stages\[{stage}\]\)") as refused:
        arch_config("mobilevigv2_ti").changed(changes)
    assert f"{grid} x {grid}" in refused.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"stages[3].mixer": "svga", "stages[3].reach": 6},
        {"stages[0].reach": 56},  # stage 1 has no graph block
        {"resolution": 64, "stages[1].reach": 2, "stages[2].reach": 1, "stages[3].graph_depth": 0},
    ],
)
def test_sound_graphs_are_not(changes: dict[str, Any]) -> None:
    config = arch_config("mobilevigv2_ti").changed(changes)
    with torch.no_grad():
        assert build(config).eval()(images(config)).shape == (1, 1000)


def test_drop_path_advances_at_graph_blocks_only() -> None:
    rates = [m.rate for m in build("mobilevigv2_ti", device="meta").modules() if isinstance(m, DropPath)]
    assert len(rates) == 12 + 2 * 6
    assert max(rates) == pytest.approx(0.0294, abs=5e-5)
    assert rates == sorted(rates)
    assert rates[:4] == [0.0] * 4  # the inverted residuals of the first two stages

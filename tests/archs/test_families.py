"""Every family and every published variant: counts, gradients, deployment, round trips. A new one is covered as is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import golden
import pytest
import timm
import torch
from torch import Tensor, nn

from vigcli.archs import backbone, build, inference_form, resolved
from vigcli.archs.checkpoint import load_checkpoint, save_checkpoint
from vigcli.archs.network import Features
from vigcli.config.archs import (
    ABLATIONS,
    PUBLISHED,
    VARIANTS,
    Ablation,
    AnyArch,
    ArchConfig,
    TimmConfig,
    arch_config,
    variant_name,
)  # fmt: skip
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.config.load import Strict, dump, parse_as, parse_yaml
from vigcli.config.recipe import PREPROCESSING
from vigcli.errors import ConfigError
from vigcli.measure.count import count_params, num_params, thop_macs
from vigcli.measure.counters import ablation_params
from vigcli.measure.profile import profile
from vigcli.measure.trace import trace
from vigcli.nn.blocks import DropPath
from vigcli.nn.decisions import given_decisions, largest_regret, noted_decisions
from vigcli.nn.deploy import deploy, deploy_attached
from vigcli.registry import FAMILIES, resolve

# Counted on the authors' own code; "inference" has one head and merged positional encoding, but batch norm.
COUNTS = json.loads((Path(__file__).parents[1] / "data" / "counts.json").read_text())
variants = pytest.mark.parametrize("name", VARIANTS)
# Where they are run with weights: 70 billion MACs take their time.
run_variants = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "clustervig_b_hr" else name for name in VARIANTS]
)


def documented(model: type[Strict]) -> list[str]:
    """The fields of a configuration, those inside its lists too, that lack a text."""
    missing = [f"{model.__name__}.{key}" for key, field in model.model_fields.items() if not field.description]
    for field in model.model_fields.values():
        for inner in get_args(field.annotation):
            if isinstance(inner, type) and issubclass(inner, Strict):
                missing += documented(inner)
    return missing


def with_golden_weights(config: ArchConfig) -> nn.Module:
    """In float64, with weights of the size that trained ones have: drawn layer scales would hide the blocks."""
    model = build(config).double().eval()
    own = model.state_dict()  # frozen positions stay as they are
    model.load_state_dict(own | golden.weights([(key, list(value.shape)) for key, value in own.items()]))
    return model


def images(config: ArchConfig, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, config.in_chans, config.resolution, config.resolution, generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_complete(family: str) -> None:
    parts = FAMILIES[family]
    config = resolve(parts.config)
    assert issubclass(config, ArchConfig)
    assert config.model_fields["family"].default == family
    assert family in PREPROCESSING
    assert config in get_args(get_args(AnyArch)[0])
    own = {name for name, variant in VARIANTS.items() if type(variant) is config}
    assert own
    assert own <= set(PUBLISHED)
    assert own & {golden.variant(name)[0] for name in golden.NAMES}, "no variant has reference logits"
    kinds = {spec.kind for name in own for spec in VARIANTS[name].blocks()}
    assert kinds <= set(resolve(parts.blocks))
    assert [key for key in documented(config) if not key.endswith(".family")] == []


@variants
def test_counts_are_those_of_the_authors_code(name: str) -> None:
    counted = count_params(VARIANTS[name])
    assert (counted.total, counted.inference) == (COUNTS[name]["params_total"], COUNTS[name]["params_inference"])
    assert profile(VARIANTS[name]).macs == COUNTS[name]["macs_inference"]
    assert counted.trainable == COUNTS[name].get("params_trainable", counted.total)
    if COUNTS[name]["macs_thop"]:  # it counts nothing in the authors' code of MobileViT, whose layers are their own
        assert thop_macs(VARIANTS[name]) - pooled_by_a_function(VARIANTS[name]) == COUNTS[name]["macs_thop"]


def pooled_by_a_function(config: ArchConfig) -> int:
    """What thop counts of our head's pooling layer where the authors of ViG call a function, which it does not see."""
    _, height, width = config.blocks()[-1].in_shape
    return (height * width + 1) * config.blocks()[-1].in_shape[0] if config.family in ("vig", "pvig") else 0


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


@pytest.mark.slow
@run_variants
def test_deployment_keeps_the_logits(name: str) -> None:
    config = VARIANTS[name]
    model, x = with_golden_weights(config), images(config)
    with torch.no_grad():
        expected = model(x.double())
        assert (deploy(model)(x.double()) - expected).abs().max() <= 1e-10 * expected.abs().max()
        assert (deploy(model, keep_norm=True)(x.double()) - expected).abs().max() <= 1e-10 * expected.abs().max()
        single = model.float()
        with noted_decisions(single) as decisions:  # which tokens are neighbours: rounding turns near ties
            logits = single(x)
        deployed = deploy(single)
        with given_decisions(deployed, decisions):
            difference = deployed(x) - logits
    assert largest_regret(deployed) <= 1e-5
    assert difference.abs().max() <= 1e-5 * expected.abs().max()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deploy(single).modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in single.modules())  # deployment works on a copy


@pytest.mark.parametrize("name", [min((n for n in VARIANTS if VARIANTS[n].family == f), key=len) for f in FAMILIES])
def test_gradients_of_the_attached_deployed_form_are_those_of_the_network(name: str) -> None:
    config = VARIANTS[name].changed({"resolution": 64 if "mobilevit" in name else 160})
    model, x = with_golden_weights(config), images(config).double()
    with noted_decisions(model) as decisions:
        due = model(x)
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(due.square().sum(), list(parameters.values()))
    deployed = deploy_attached(model)
    with given_decisions(deployed, decisions):
        logits = deployed(x)
    assert (logits - due).abs().max() <= 1e-10 * due.abs().max()
    found = torch.autograd.grad(logits.square().sum(), list(parameters.values()))
    for key, a, b in zip(parameters, found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-7 * b.abs().max(), key


@run_variants
def test_every_parameter_learns(name: str) -> None:
    config = VARIANTS[name]
    model = build(config).train()
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0  # a branch dropped for both pictures learns nothing
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    output = model(images(config, batch=2))
    heads = output if isinstance(output, tuple) else (output,)
    assert [head.shape for head in heads] == [(2, config.num_classes)] * (1 + getattr(config, "distilled", False))
    sum(head.square().sum() for head in heads).backward()
    frozen = [key for key, p in model.named_parameters() if not p.requires_grad]
    assert all(key.endswith(".relative_pos") for key in frozen)
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == frozen
    dead = [key for key, p in model.named_parameters() if p.ndim > 1 and p.grad is not None and not p.grad.any()]
    assert dead == []


@run_variants
def test_a_saved_network_is_whole(name: str, tmp_path: Path) -> None:
    """What is no weight must not depend on how the network came about: loading builds it without memory."""
    for changes in ({}, {"partition": "grid"}) if VARIANTS[name].family == "clustervig" else ({},):
        config = VARIANTS[name].changed(changes)
        model = build(config).eval()
        save_checkpoint(tmp_path / "net.safetensors", model, CheckpointMeta(arch=config))
        loaded = load_checkpoint(tmp_path / "net.safetensors").model
        assert {t.device.type for t in (*loaded.parameters(), *loaded.buffers())} == {"cpu"}
        x = images(config)
        with torch.no_grad():
            assert torch.equal(loaded(x), model(x))


@variants
def test_a_configuration_survives_its_text(name: str) -> None:
    config = VARIANTS[name]
    text = dump(config)
    data, _ = parse_yaml(text, name)
    assert parse_as(type(config), data) == config
    assert type(config).model_validate_json(config.model_dump_json()) == config
    assert hash(config) == hash(type(config).model_validate_json(config.model_dump_json()))
    assert (
        variant_name(config.changed({"resolution": 192, "num_classes": 3}) if name.endswith("ti") else config) == name
    )
    width = "stages[0].width" if "stages" in type(config).model_fields else "width"
    for rate in {"dropout", "drop_path_rate"} & set(type(config).model_fields):  # of training alone
        assert variant_name(config.changed({rate: 0.25})) == name
    assert variant_name(config.changed({width: config.stage_shapes()[0].width + 4})) is None


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


@pytest.mark.parametrize("features_only", [False, True])
def test_images_of_another_size_are_refused(features_only: bool) -> None:
    model = build("mobilevit_xxs", {"resolution": 64}, features_only=features_only).eval()
    with pytest.raises(ConfigError, match="3 x 96 x 96, the network was built for 3 x 64 x 64") as refused:
        model(torch.zeros(1, 3, 96, 96))
    assert refused.value.__notes__ == ['Hint:  Build it for them: overrides={"resolution": 96}.']


def test_a_named_timm_network_has_timms_resolution() -> None:
    assert resolved("timm:fastvit_t8").resolution == 256
    assert resolved("timm:fastvit_t8", {"resolution": 224}).resolution == 224
    assert resolved("timm:mobilenetv2_100").resolution == 224


def test_a_timm_network_is_built_and_counted_by_its_name() -> None:
    config = arch_config("timm:mobilenetv3_small_050").changed({"num_classes": 7, "resolution": 64})
    assert isinstance(config, TimmConfig)
    counted = profile(config)
    model = build(config, device="meta")
    assert counted.params.total == num_params(model)
    assert counted.macs == trace(inference_form(config, model), (3, 64, 64)).macs
    assert sum(block.params for block in counted.blocks) == counted.params.deployed


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_stages_of_the_network(family: str) -> None:
    name = next(name for name, config in VARIANTS.items() if config.family == family)
    network, features = build(name).eval(), build(name, features_only=True).eval()
    assert isinstance(features, Features)
    x = images(VARIANTS[name])
    with torch.no_grad():
        maps = features(x)
        assert torch.equal(network.get_submodule("head")(maps[-1]), network(x))
    stages = tuple(shape.stride for shape in VARIANTS[name].stage_shapes() if shape.stride >= 4)
    isotropic = {"vig": (16,), "clustervig": (16,)}
    assert features.strides == stages == isotropic.get(family, (4, 8, 16, 32))
    assert stages[-1] == VARIANTS[name].stride
    for stride, width, found in zip(features.strides, features.widths, maps, strict=True):
        assert found.shape == (1, width, x.shape[2] // stride, x.shape[3] // stride)
    assert set(features.state_dict()) <= set(network.state_dict())


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small_050", "fastvit_t8", "mobilevitv2_050", "repvit_m0_9", "swin_tiny_patch4_window7_224"]
)
def test_features_of_a_timm_network_are_timms(name: str) -> None:
    """With the weights of the network, in either form."""
    config = resolved(f"timm:{name}")
    network, features = build(config).eval(), timm.create_model(name, features_only=True).eval()
    names = {_flat(key): key for key in features.state_dict()}
    features.load_state_dict(
        {names[_flat(key)]: value for key, value in network.state_dict().items() if _flat(key) in names}
    )
    x = torch.rand(1, 3, config.resolution, config.resolution)
    with torch.no_grad():
        theirs = [found.permute(0, 3, 1, 2) if "swin" in name else found for found in features(x)][-4:]
        for form in (network, inference_form(config, network)):
            ours = backbone(config, form)
            assert ours.strides == (4, 8, 16, 32)
            for found, expected in zip(ours(x), theirs, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert ours.widths == tuple(found.shape[1] for found in theirs)


def test_a_timm_network_of_one_scale_has_one_map() -> None:
    features = build("timm:vit_tiny_patch16_224", features_only=True)
    assert features.names == ("stride16",)
    with torch.no_grad():
        assert [found.shape for found in features(torch.zeros(1, 3, 224, 224))] == [(1, 192, 14, 14)]


def _flat(key: str) -> str:
    """A weight's name however deep a wrapper put it."""
    return key.removeprefix("model.").replace("_", ".")


@pytest.mark.parametrize(
    ("name", "changes", "sizes"),
    [
        ("mobilevig_ti", {"stages[0].width": 41}, ("41", "half")),
        ("mobilevigv2_ti", {"resolution": 250}, ("250", "224 or 256")),
        ("mobilevit_s", {"resolution": 240}, ("240", "32", "224 or 256")),
        ("mobilevit_s", {"stages[2].patch": 3}, (r"stages\[2\].patch = 3", "32 x 32", "resample")),
        ("mobilevit_s", {"stages[3].transformer_width": 190}, ("190", "num_heads = 4")),
        ("mobilevitv3_050", {"fusion": "none", "fusion_kernel": 3}, ("fusion_kernel = 3",)),
        ("mobilevigv2_ti", {"cpe_kernel": 4}, ("not 4",)),
        ("mobilevigv2_ti", {"stages[3].mixer": "knn", "stages[3].dilation": 6}, ("54 nearest", r"49 \(stages\[3\]\)")),
        ("mobilevigv2_ti", {"stages[2].mixer": "knn", "stages[2].reduction": 3}, ("reduction = 3", "14 x 14")),
        ("mobilevigv2_ti", {"stages[2].mixer": "knn", "stages[2].width": 126}, ("126", "four groups")),
        ("vig_ti", {"resolution": 232}, ("232", "16", "224 or 240")),
        ("vig_ti", {"resolution": 64}, ("17 neighbours", "17 nearest", "are 16")),
        ("vig_ti", {"stages[0].width": 4}, ("at least 8, not 4",)),
        ("pvig_ti", {"stages[0].width": 50}, (r"stages\[0\].width = 50", "multiple of 4")),
        ("pvig_ti", {"resolution": 64}, ("9 neighbours", "are 4", r"stages\[0\]|stages\[3\]")),
        ("clustervig_ti", {"cpe_kernel": 6}, ("not 6",)),
        ("clustervig_ti", {"groups": 5}, ("width = 192", "groups = 5")),
        ("clustervig_ti", {"resolution": 32, "clusters": 5}, ("clusters = 5", "4 tokens")),
        ("clustervig_b_hr", {"resolution": 100}, ("100", "96 or 104")),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(name: str, changes: dict[str, Any], sizes: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        arch_config(name).changed(changes)
    text = f"{refused.value} {refused.value.hint}"
    assert all(re.search(size, text) for size in sizes), text


# ---------------------------------------------------------------------------------------------------- ablations


@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda a: f"{a.table.split()[0]} {a.row}")
def test_ablations_are_a_matter_of_configuration(ablation: Ablation) -> None:
    """Each row is built and runs; its parameters, counted as its authors count, are those that it prints."""
    config = arch_config(ablation.base).changed(ablation.changes)
    assert count_params(config).total == num_params(build(config, device="meta"))
    with torch.no_grad():
        assert build(config).eval()(images(config)).shape == (1, 1000)
    if ablation.table != "arXiv:2110.02178 Table 6":  # prints 5.7 M where the same paper's other tables say 5.6 M
        assert ablation_params(ablation).explained in (None, "rounded")


def test_the_last_step_of_mobilevitv3_is_its_network_unscaled() -> None:
    steps = [arch_config(a.base).changed(a.changes) for a in ABLATIONS if a.table == "arXiv:2209.15159 Table 5"]
    params = [count_params(config).total for config in steps]
    assert params[1] < params[2] == params[3]  # local features are wider than the input, adding the input costs nothing
    unscaled = arch_config("mobilevitv3_s").changed(
        {"head_width": 640, **{f"stages[{i}].width": width for i, width in ((2, 96), (3, 128), (4, 160))}}
    )
    assert count_params(unscaled).total == params[4]


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
        ({"stages[3].mixer": "dagc", "stages[3].reach": 7}, 3, 7, 7),
        ({"stages[2].mixer": "dagc", "stages[2].reach": 15}, 2, 15, 14),
    ],
)
def test_graphs_that_link_nothing_are_refused(changes: dict[str, Any], stage: int, reach: int, grid: int) -> None:
    with pytest.raises(ConfigError, match=rf"K = {reach} on a grid of {grid}\b.*\(stages\[{stage}\]\)") as refused:
        arch_config("mobilevigv2_ti").changed(changes)
    assert re.fullmatch(r"Take [\d, or]+ px, or another reach\.", refused.value.hint)


@pytest.mark.parametrize(
    "changes",
    [
        {"stages[3].mixer": "svga", "stages[3].reach": 6},
        {"stages[0].reach": 56},  # stage 1 has no graph block
        {"stages[3].mixer": "dagc", "stages[3].reach": 6},
        {"stages[1].mixer": "dagc", "stages[1].reach": 5},  # no shift back is a link
        {"stages[3].mixer": "knn", "stages[3].dilation": 5},
        {"stages[1].mixer": "knn", "stages[1].reduction": 4, "stages[1].neighbours": 49},
        {"stages[1].mixer": "knn", "stages[1].reduction": 4, "stages[1].neighbours": 1},
        {"resolution": 64, "stages[1].reach": 2, "stages[2].reach": 1, "stages[3].graph_depth": 0},
    ],
)
def test_sound_graphs_are_not(changes: dict[str, Any]) -> None:
    config = arch_config("mobilevigv2_ti").changed(changes)
    with torch.no_grad():
        assert build(config).eval()(images(config)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vig_ti", {"neighbours": 1}),
        ("pvig_ti", {"last_neighbours": 1}),
        ("mobilevigv2_ti", {"stages[3].mixer": "knn", "stages[3].neighbours": 1}),
    ],
)
def test_one_neighbour_is_no_graph(name: str, changes: dict[str, Any]) -> None:
    """The nearest token of a token is itself, unless the tokens to choose from are pooled ones."""
    with pytest.raises(ConfigError, match=r"1 neighbour of a token is the token itself \(stages\[\d\]\)"):
        arch_config(name).changed(changes)


def test_drop_path_advances_as_in_the_authors_code() -> None:
    rates = [m.rate for m in build("mobilevigv2_ti", device="meta").modules() if isinstance(m, DropPath)]
    assert len(rates) == 12 + 2 * 6
    assert max(rates) == pytest.approx(0.0294, abs=5e-5)
    assert rates == sorted(rates)
    assert rates[:4] == [0.0] * 4  # the inverted residuals of the first two stages
    rates = [m.rate for m in build("mobilevig_ti", device="meta").modules() if isinstance(m, DropPath)]
    assert len(rates) == 10 + 2 * 2
    assert max(rates) == pytest.approx(0.1)  # MobileViG's advances at every block


# ---------------------------------------------------------------------------------------------------- dynamic graphs


def test_a_stage_chooses_a_dynamic_mixer_and_names_no_option_that_it_does_not_use() -> None:
    for name in ("mobilevig_ti", "mobilevigv2_s", "greedyvig_s"):
        for mixer, used in (("dagc", {"reach"}), ("knn", {"neighbours", "dilation", "reduction"})):
            config = arch_config(name).changed({"stages[3].mixer": mixer})
            spec = [spec for spec in config.blocks() if spec.kind == "graph"][-1]
            shared = {"mixer", "cpe", "mixer_expansion", "expansion", "layer_scale"}
            assert set(dict(spec.options)) == used | shared
            with torch.no_grad():
                assert build(config).eval()(images(config)).shape == (1, 1000)
    other = arch_config("mobilevigv2_s").changed({"stages[3].mixer": "dagc"})
    assert count_params(other) == count_params(arch_config("mobilevigv2_s"))  # the mask has no weights


def test_neighbours_and_dilation_grow_as_in_the_authors_code() -> None:
    def graphs(name: str, **changes: Any) -> list[dict[str, Any]]:
        return [dict(spec.options) for spec in arch_config(name).changed(changes).blocks() if spec.kind == "graph"]

    assert [g["neighbours"] for g in graphs("vig_ti")] == [9, 9, 10, 11, 12, 13, 13, 14, 15, 16, 17, 18]
    assert [g["neighbours"] for g in graphs("vig_s")] == [9, 9, 10, 10, 11, 12, 12, 13, 13, 14, 15, 15, 16, 16, 17, 18]
    assert [g["dilation"] for g in graphs("vig_b")] == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert {g["dilation"] for g in graphs("vig_b", dilated=False)} == {1}
    assert {g["neighbours"] for g in graphs("pvig_b")} == {9}
    assert [g["dilation"] for g in graphs("pvig_b")] == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 8  # 49 // 9
    assert [g["reduction"] for g in graphs("pvig_ti")] == [4, 4, 2, 2, *[1] * 8]
    assert [g["relative_pos"] for g in graphs("pvig_ti", resolution=192)] == [56, 56, 28, 28, *[14] * 6, 7, 7]


@pytest.mark.parametrize(("name", "blocks"), [("greedyvig_s", 20), ("vig_ti", 12), ("pvig_ti", 12)])
def test_drop_path_grows_with_every_block(name: str, blocks: int) -> None:
    rates = [m.rate for m in build(name, device="meta").modules() if isinstance(m, DropPath)]
    assert rates == sorted(rates)
    assert len(set(rates)) == blocks
    assert (min(rates), max(rates)) == (0.0, pytest.approx(0.1))


@pytest.mark.parametrize("name", ["vig_ti", "pvig_ti", "greedyvig_s"])
def test_another_resolution_and_a_batch_of_pictures(name: str) -> None:
    """What a network says of a picture does not depend on the others of its batch."""
    config = VARIANTS[name].changed({"resolution": 160, "num_classes": 5})
    model, x = with_golden_weights(config), images(config, batch=3).double()
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(x[i : i + 1]) for i in range(3)])
        deployed = deploy(model)(x)
    assert (together - alone).abs().max() <= 1e-11 * together.abs().max()
    assert (deployed - together).abs().max() <= 1e-10 * together.abs().max()
    assert (together[0] - together[1]).abs().max() > 1e-3 * together.abs().max()

"""Pruned networks of every family: which channels leave together, what they are worth, and what is left of them."""

from __future__ import annotations

import bisect
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigcli.archs import backbone, build, inference_form, resolved
from vigcli.archs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vigcli.compress.channels import Axis
from vigcli.compress.exchange import TOLERANCE, check_channels, check_runs, exchange_error
from vigcli.compress.groups import ROUND_TO, Pruner
from vigcli.compress.importance import CRITERIA
from vigcli.config.archs import VARIANTS, ArchConfig, TimmConfig
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.errors import ConfigError
from vigcli.latency.table import load_table
from vigcli.measure.count import num_params
from vigcli.measure.profile import profile
from vigcli.measure.trace import trace
from vigcli.nn.attention import MultiHeadAttention
from vigcli.nn.decisions import given_decisions, noted_decisions
from vigcli.nn.heads import mean_of_heads
from vigcli.registry import FAMILIES

pytest.importorskip("torch_pruning")
SMALL = tiny.SMALL
families = pytest.mark.parametrize("family", FAMILIES)
# What the variants do not have.
OPTIONS = {
    "dynamic": tiny.DYNAMIC.changed({"stages[2].mixer": "degc", "stages[2].clusters": 3}),
    "fc": SMALL["mobilevigv2"].changed({"stages[1].mixer": "fc", "stages[2].mixer": "none", "mixer_expansion": 2}),
    **{
        f"clusters, {update}, {groups} groups": SMALL["clustervig"].changed({"local_update": update, "groups": groups})
        for update in ("mrgcn", "edgeconv", "graphsage", "gin")
        for groups in (1, 4)
    },
    "centred": SMALL["clustervig"].changed({"center_tokens": True, "partition": "grid"}),
    "positions": SMALL["vig"].changed({"relative_pos": True}),
    "resampled": SMALL["mobilevit"].changed({"resolution": 96, "resample": True, "fusion": "local"}),
    "separable, input": SMALL["mobilevitv2"].changed({"fusion": "input", "residual": True, "local_conv": "dense"}),
    "two heads": SMALL["mobilevit"].changed({"distilled": True}),
}


@pytest.fixture(scope="module")
def pruners() -> dict[str, Pruner]:
    """Of trained-like networks; found once for all tests."""
    return {family: Pruner(tiny.checkpoint(config=config).model, config) for family, config in SMALL.items()}


def halved(pruner: Pruner, ratio: float = 0.5) -> dict[str, int]:
    """So much of every group, rounded down to a width that it may have."""
    return {g.name: max(w for w in g.widths if w <= max(ratio * g.num_units, g.widths[0])) for g in pruner.groups}


def to_half_the_macs(pruner: Pruner, config: ArchConfig) -> tuple[nn.Module, ArchConfig]:
    ratios = [i / 20 for i in range(20)]
    limit = profile(config).macs / 2
    too_wide = bisect.bisect(ratios, limit, key=lambda ratio: profile(pruner.config(halved(pruner, ratio))).macs)
    return pruner.pruned(halved(pruner, ratios[too_wide - 1]), pruner.importance("magnitude"))


def pictures(config: ArchConfig, count: int = 2) -> Tensor:
    return (tiny.pixels(count, size=config.resolution) - 128) / 64


# ---------------------------------------------------------------------------------------------------- channels


@pytest.mark.parametrize("config", [*SMALL.values(), *OPTIONS.values()], ids=[*SMALL, *OPTIONS])
def test_channels_that_change_places_change_nothing(config: ArchConfig) -> None:
    """In all their places at once: so a group has every layer that it must have, and none besides."""
    pruner = Pruner(build(config, device="meta"), config)
    assert exchange_error(config, pruner.groups, pruner._owners) < 1e-12


@pytest.mark.parametrize("what", ["left out", "one further", "another group's"])
def test_a_wrong_place_shows(what: str, pruners: dict[str, Pruner]) -> None:
    pruner = pruners["mobilevigv2"]
    group = next(g for g in pruner.groups if g.name == "stages[2].blocks[2].0.branch.1")
    owners = dict(pruner._owners)
    read = Axis("stages.2.2.0.branch.2.proj.conv.weight", 1)
    if what == "left out":
        owners[Axis("stages.2.2.0.branch.1.norm.running_mean", 0)] = torch.full((48,), -1)
    elif what == "one further":
        owners[read] = owners[read].roll(1)
    else:
        owners[read] = torch.cat([owners[read][:48], torch.full((48,), -1)])  # shifted maps not seen
    assert exchange_error(SMALL["mobilevigv2"], pruner.groups, pruner._owners) < 1e-12
    assert exchange_error(SMALL["mobilevigv2"], [group], owners) > TOLERANCE
    with pytest.raises(ConfigError, match=r"stages\[2\]\.blocks\[2\]\.0\.branch\.1 go"):
        check_channels(SMALL["mobilevigv2"], pruner.groups, owners)


@families
def test_groups_have_widths_that_devices_like(family: str, pruners: dict[str, Pruner]) -> None:
    for group in pruners[family].groups:
        heads = group.num_units == 4 and group.name.endswith("qkv")
        assert all(width % (1 if heads else ROUND_TO) == 0 for width in group.widths[:-1])
        assert group.widths[-1] == group.num_units
        assert not any(layer.startswith("head.3") for layer in group.layers[:1])  # the classifier makes none
    names = [group.name for group in pruners[family].groups]
    assert len(set(names)) == len(names)


@families
def test_nothing_is_in_no_group_but_what_cannot_be(family: str, pruners: dict[str, Pruner]) -> None:
    """Of all tensors: biases of logits, and the positions of tokens."""
    outside = set(dict(build(SMALL[family], device="meta").named_parameters()))
    outside -= {axis.tensor for axis in pruners[family]._owners}
    assert all((name.startswith("head.3") and name.endswith("bias")) or "relative_pos" in name for name in outside)


# ---------------------------------------------------------------------------------------------------- pruned networks


@families
def test_half_the_macs(family: str, pruners: dict[str, Pruner], tmp_path: Path) -> None:
    config = SMALL[family]
    network, pruned = to_half_the_macs(pruners[family], config)
    table = load_table("iphone13-mini")
    before, after = profile(config), profile(pruned)
    assert 0.3 * before.macs < after.macs <= before.macs / 2
    assert after.latency(table).ms < before.latency(table).ms
    assert after.params.total == num_params(network) < before.params.total
    whole = trace(inference_form(pruned, network), (3, config.resolution, config.resolution))
    assert sorted(whole.ops) == sorted(op for block in after.blocks for op in block.trace.ops)
    assert after.peak_bytes <= before.peak_bytes
    assert not {block.signature for block in after.blocks} & set(table.rows)

    logits = network.train()(pictures(config))
    F.cross_entropy(mean_of_heads(logits), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)

    save_checkpoint(tmp_path / "pruned.safetensors", network, CheckpointMeta(arch=pruned))
    loaded = load_checkpoint(tmp_path / "pruned.safetensors")
    assert loaded.meta.arch == pruned
    with torch.no_grad():
        assert torch.equal(loaded.model(pictures(config)), network.eval()(pictures(config)))
    assert loaded.model(pictures(config)).shape == (2, config.num_classes)


@families
def test_a_pruned_network_deploys(family: str, pruners: dict[str, Pruner]) -> None:
    pruner = pruners[family]
    network, pruned = pruner.pruned(halved(pruner), pruner.importance("magnitude"))
    network, x = network.double().eval(), pictures(SMALL[family]).double()
    deployed = inference_form(pruned, network)
    with torch.no_grad():
        with noted_decisions(network) as decisions:
            expected = network(x)
        with given_decisions(deployed, decisions):
            assert (deployed(x) - expected).abs().max() <= 1e-10 * expected.abs().max()


@families
def test_feature_maps_of_a_pruned_network(family: str, pruners: dict[str, Pruner]) -> None:
    pruner = pruners[family]
    network, pruned = pruner.pruned(halved(pruner), pruner.importance("magnitude"))
    maps = backbone(pruned, network.eval())
    assert [x.shape[1] for x in maps(pictures(pruned))] == list(maps.widths)


@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.startswith("mobilevit")])
@torch.no_grad()
def test_channels_that_are_nothing_are_removed_without_a_trace(family: str, pruners: dict[str, Pruner]) -> None:
    """Where no norm is over channels: those of weight 0 are judged least, and the network is the same without them."""
    config, pruner = SMALL[family], pruners[family]
    model = tiny.checkpoint(config=config).model.double()
    kept = halved(pruner)
    generator, tensors = torch.Generator().manual_seed(0), model.state_dict()
    for group in pruner.groups:
        lost = group.num_units - kept[group.name]
        parts = torch.arange(group.num_units).view(group.sections, -1)
        chosen = [p[torch.randperm(len(p), generator=generator)[: lost // group.sections]] for p in parts]
        for axis in group.entries:
            zeros = torch.isin(pruner._owners[axis], group.first + torch.cat(chosen))
            tensor = tensors[axis.tensor]
            if axis.groups > 1:
                tensor = tensor.unflatten(0, (axis.groups, -1)).transpose(1, 2).flatten(0, 1)  # a view
                tensor[zeros] = 0
                tensors[axis.tensor].copy_(tensor.unflatten(0, (axis.groups, -1)).transpose(1, 2).flatten(0, 1))
            else:
                tensor.transpose(0, axis.dim)[zeros] = 0
    own = Pruner(model, config)
    small, _ = own.pruned(kept, own.importance("group_norm"))
    x = pictures(config).double()
    with noted_decisions(model) as decisions:
        expected = model(x)
    with given_decisions(small, decisions):
        assert (small(x) - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_pruning_again(pruners: dict[str, Pruner]) -> None:
    pruner, config = pruners["mobilevit"], SMALL["mobilevit"]
    network, once = pruner.pruned(halved(pruner, 0.8), pruner.importance("magnitude"))
    again = Pruner(network, once)
    assert all(group.num_units == halved(pruner, 0.8)[group.name] for group in again.groups)
    small, twice = again.pruned(halved(again), again.importance("magnitude"))
    assert profile(twice).macs < profile(once).macs < profile(config).macs
    assert small(pictures(config)).shape == (2, 10)
    assert set(once.pruned) <= set(twice.pruned)
    assert torch.equal(
        Checkpoint(network, CheckpointMeta(arch=once)).model(pictures(config)), network(pictures(config))
    )


def test_heads_leave_whole(pruners: dict[str, Pruner]) -> None:
    pruner = pruners["mobilevit"]
    heads = {group.name: 1 for group in pruner.groups if group.name.endswith("qkv")}
    assert heads
    assert all(group.widths == (1, 2, 3, 4) for group in pruner.groups if group.name in heads)
    network, _ = pruner.pruned(heads, pruner.importance("magnitude"))
    for module in network.modules():
        if isinstance(module, MultiHeadAttention):
            assert module.qkv.out_features == 3 * module.proj.in_features == 3 * module.head_width
    assert network(pictures(SMALL["mobilevit"])).shape == (2, 10)


def test_the_network_itself_stays(pruners: dict[str, Pruner]) -> None:
    pruner = pruners["mobilevigv2"]
    before = {name: tensor.clone() for name, tensor in pruner._model.state_dict().items()}
    batches = [(pictures(SMALL["mobilevigv2"]), torch.tensor([1, 2]))]
    pruner._model.train()
    for criterion in CRITERIA:
        pruner.pruned(halved(pruner), pruner.importance(criterion, batches))
    assert pruner._model.training
    pruner._model.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruner._model.state_dict().items())
    assert all(parameter.grad is None for parameter in pruner._model.parameters())


@pytest.mark.parametrize("kept", [0, 3, 68])
def test_widths_that_cannot_be(kept: int, pruners: dict[str, Pruner]) -> None:
    """Convolutions in four groups lose as many channels of each."""
    group = next(group for group in pruners["vig"].groups if group.sections == 4)
    with pytest.raises(ValueError, match=f"cannot keep {kept} of 64"):
        pruners["vig"].config({group.name: kept})


# ---------------------------------------------------------------------------------------------------- importance


@families
def test_every_weight_takes_part(family: str) -> None:
    model = build(SMALL[family])
    pruner = Pruner(model, SMALL[family])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
        before = CRITERIA["magnitude"].importance(model, pruner._owners, pruner._num_units, None)
        for name, parameter in model.named_parameters():
            parameter.fill_(2)
            after = CRITERIA["magnitude"].importance(model, pruner._owners, pruner._num_units, None)
            parameter.fill_(1)
            having = [units[units >= 0] for axis, units in pruner._owners.items() if axis.tensor == name]
            assert (after > before).nonzero().flatten().tolist() == torch.cat(
                [*having, torch.empty(0)]
            ).unique().tolist()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_give_every_unit_a_number(criterion: str, pruners: dict[str, Pruner]) -> None:
    pruner = pruners["mobilevitv2"]
    batches = [(pictures(SMALL["mobilevitv2"]), torch.tensor([1, 2])) for _ in range(2)]
    worth = pruner.importance(criterion, batches)
    assert {name: len(values) for name, values in worth.items()} == {g.name: g.num_units for g in pruner.groups}
    assert all((values >= 0).all() and values.isfinite().all() for values in worth.values())
    if not CRITERIA[criterion].needs_batches:
        assert all(values.mean() == pytest.approx(1) for values in worth.values())


def test_taylor_is_the_slope_of_the_loss(pruners: dict[str, Pruner]) -> None:
    """When the weights of a unit shrink together."""
    pruner, config = pruners["mobilevigv2"], SMALL["mobilevigv2"]
    x, y = pictures(config), torch.tensor([1, 2])
    worth = pruner.importance("taylor", [(x, y)])
    group = next(group for group in pruner.groups if group.name == "stages[2].blocks[2].0.branch.1")

    def loss(scale: float) -> float:
        model = tiny.checkpoint(config=config).model.double()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                for axis in (axis for axis in group.entries if axis.tensor == name):
                    parameter.transpose(0, axis.dim)[pruner._owners[axis] == group.first + 5] *= scale
        return float(F.cross_entropy(model(x.double()), y))

    slope = (loss(1 + 1e-4) - loss(1 - 1e-4)) / 2e-4
    assert float(worth[group.name][5]) == pytest.approx(abs(slope), rel=1e-3)


def test_bn_scales_decide() -> None:
    """Whatever else the channels weigh."""
    model = tiny.checkpoint(config=SMALL["mobilevigv2"]).model
    norm = model.get_submodule("stages.1.1.branch.0.norm")
    with torch.no_grad():
        norm.weight[::3], norm.bias[::3] = 0.0, 100.0
    worth = Pruner(model, SMALL["mobilevigv2"]).importance("bn_scale")["stages[1].blocks[1].branch.0"]
    assert sorted(worth.argsort()[: len(worth[::3])].tolist()) == list(range(0, len(worth), 3))


def test_gradients_need_images(pruners: dict[str, Pruner]) -> None:
    with pytest.raises(ConfigError, match="taylor looks at gradients") as refused:
        pruners["vig"].importance("taylor")
    assert refused.value.hint


# ---------------------------------------------------------------------------------------------------- configurations


def test_a_pruned_configuration_at_other_sizes(pruners: dict[str, Pruner]) -> None:
    """Positions are learned at every token, and the classifier has a row for every class: sizes that stay free."""
    pruner = pruners["clustervig"]
    pruned = pruner.config(halved(pruner))
    other = pruned.changed({"resolution": 128, "num_classes": 3})
    assert build(other).eval()(torch.zeros(1, 3, 128, 128)).shape == (1, 3)
    assert pruned.pruned["stem.pos_embed"][1:] == (0, 0)


def test_a_width_that_was_changed_afterwards_is_refused(pruners: dict[str, Pruner]) -> None:
    pruner = pruners["mobilevigv2"]
    pruned = pruner.config({"head.1": 32})
    with pytest.raises(ConfigError, match=r"no head\.1\.conv\.weight to be cut to 32 x - x - x -"):
        build(pruned.changed({"head_width": 16}))
    with pytest.raises(ConfigError, match=r"no stages\.9\.weight to be cut to 3"):
        build(SMALL["mobilevigv2"].changed({"pruned": {"stages.9.weight": [3]}}))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_runs_at_half_its_widths(name: str) -> None:
    config = VARIANTS[name]
    pruner = Pruner(build(config, device="meta"), config)
    pruned = pruner.config(halved(pruner))
    check_runs(pruned)
    assert profile(pruned).macs < 0.45 * profile(config).macs


# ---------------------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize("name", ["mobilenetv2_035", "test_resnet", "test_convnext"])
def test_networks_of_timm(name: str) -> None:
    config = resolved(f"timm:{name}").changed({"resolution": 96, "num_classes": 10})
    model = build(config)
    pruner = Pruner(model, config)
    small, pruned = pruner.pruned(halved(pruner), pruner.importance("magnitude"))
    assert isinstance(pruned, TimmConfig)
    assert profile(pruned).macs < 0.6 * profile(config).macs
    assert small(pictures(config)).shape == (2, 10)
    again = build(pruned)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(pictures(config)), small(pictures(config)))


def test_a_network_of_timm_that_cannot_be_pruned() -> None:
    config = resolved("timm:test_vit")
    with pytest.raises(ConfigError, match=r"timm:test_vit: blocks\.0\.attn does not run with fewer channels"):
        Pruner(build(config, device="meta"), config)

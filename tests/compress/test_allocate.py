"""Widths for a budget: what is told of other widths is what is counted, and budgets are kept and used."""

from __future__ import annotations

import functools
import math
import re

import numpy as np
import pytest
import tiny
import torch

from vigcli.archs import build
from vigcli.compress.allocate import MACS, MAX_STEPS, PARAMS, TOLERANCE, Cost, allocate, latency_cost, lost_importance
from vigcli.compress.groups import Pruner
from vigcli.compress.widths import Widths, full
from vigcli.config.archs import ArchConfig, arch_config
from vigcli.errors import InfeasibleError
from vigcli.latency.table import load_table
from vigcli.measure.profile import profile

pytest.importorskip("torch_pruning")

GRAPHS = tiny.CONFIG.changed({f"stages[{i}].width": width for i, width in enumerate((16, 32, 64, 96))})
HEADS = arch_config("mobilevit_xxs").changed({"resolution": 64, "num_classes": 10, "stages[4].transformer_depth": 1})
CONFIGS = {
    "graphs": GRAPHS,
    "heads": HEADS,
    "timm": arch_config("timm:resnet10t").changed({"resolution": 64, "num_classes": 10}),
}
TABLE = load_table("iphone13-mini")
COSTS = {"latency": latency_cost(TABLE), "macs": MACS, "params": PARAMS}


@functools.cache
def known(name: str) -> tuple[Pruner, Widths]:
    config = CONFIGS[name]
    pruner = Pruner(build(config), config)
    return pruner, Widths(pruner)


def middle(cost: Cost, config: ArchConfig, share: float) -> float:
    """A limit that leaves such a share of what is not fixed."""
    return cost.fixed + share * (cost.of(profile(config)) - cost.fixed)


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_at_other_widths_are_told_as_they_are_counted(name: str) -> None:
    pruner, widths = known(name)
    generator = np.random.default_rng(1)
    for _ in range(3):
        kept = {x.name: int(generator.choice([w for w in x.widths if 2 * w >= x.num_units])) for x in pruner.groups}
        for place, block in enumerate(profile(pruner.config(kept)).blocks):
            told = widths.at(place, kept)
            assert (told.trace.macs, told.params) == (block.trace.macs, block.params), block.name
            assert told.trace.moved_bytes == pytest.approx(block.trace.moved_bytes, rel=0.02), block.name


def test_the_whole_network_is_as_it_was_counted() -> None:
    pruner, widths = known("graphs")
    blocks = [widths.at(place, full(pruner.groups)) for place in range(widths.num_blocks)]
    assert [(x.signature, x.trace, x.params) for x in blocks] == [
        (x.signature, x.trace, x.params) for x in profile(GRAPHS).blocks
    ]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
@pytest.mark.parametrize("share", [0.8, 0.5])
def test_a_budget_is_kept_and_used(name: str, cost: Cost, share: float) -> None:
    pruner, widths = known(name)
    limit = middle(cost, CONFIGS[name], share)
    found = allocate(pruner, pruner.importance("magnitude"), cost, limit, widths)
    assert found.cost == cost.of(profile(pruner.config(found.kept)))
    assert (1 - TOLERANCE) * limit < found.cost <= limit
    assert all(found.kept[group.name] in group.widths for group in pruner.groups)


def test_what_nobody_needs_leaves_first() -> None:
    pruner, widths = known("graphs")
    importance = {group.name: torch.ones(group.num_units) for group in pruner.groups}
    idle = max(pruner.groups, key=lambda group: group.num_units)
    importance[idle.name][8:] = 1e-9
    kept = allocate(pruner, importance, MACS, middle(MACS, GRAPHS, 0.97), widths).kept
    assert kept[idle.name] < idle.num_units
    assert all(kept[group.name] == group.num_units for group in pruner.groups if group is not idle)


def test_latency_and_macs_ask_for_other_widths() -> None:
    """A budget of milliseconds spends itself where the table says that they are, not where the arithmetic is."""
    pruner, widths = known("graphs")
    importance = pruner.importance("magnitude")
    kept = [allocate(pruner, importance, c, middle(c, GRAPHS, 0.6), widths).kept for c in (COSTS["latency"], MACS)]
    assert kept[0] != kept[1]


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_a_budget_out_of_reach_is_told_with_the_least(cost: Cost) -> None:
    pruner, widths = known("graphs")
    importance = pruner.importance("magnitude")
    with pytest.raises(InfeasibleError) as told:
        allocate(pruner, importance, cost, cost.fixed + 1e-4, widths)
    least = cost.of(profile(pruner.config({group.name: group.widths[0] for group in pruner.groups})))
    assert cost.text(least) in str(told.value)
    whole = cost.of(profile(GRAPHS))
    asked = re.fullmatch(r"The least is --(budget|macs|params) ([\d.]+)(ms)?\.", told.value.hint)
    assert asked is not None
    limit = float(asked[2]) * (1 if asked[3] else whole)
    assert least <= allocate(pruner, importance, cost, limit, widths).cost <= limit


def test_lost_importance() -> None:
    """Nothing for nothing; half of equals costs the logarithm of two, whatever their scale; all is beyond price."""
    for scale in (1e-6, 1.0, 1e6):
        lost = lost_importance(scale * torch.ones(4))
        assert lost[:4].tolist() == pytest.approx([0, math.log(4 / 3), math.log(2), math.log(4)])
        assert lost[4] > 20
    assert lost_importance(torch.tensor([3.0, 1.0]))[1] == pytest.approx(math.log(4 / 3))
    assert np.isfinite(lost_importance(torch.zeros(4))).all()


def test_great_widths_go_in_few_steps() -> None:
    from vigcli.compress.allocate import _steps

    assert _steps((8, 16, 20)) == [20, 16, 8]
    steps = _steps(range(8, 4104, 8))
    assert (steps[0], steps[-1], len(steps)) == (4096, 8, MAX_STEPS + 1)

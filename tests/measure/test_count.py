"""Counts of blocks and profiles of networks, against the networks themselves."""

from __future__ import annotations

import pytest
import torch

from vigcli.archs import build, build_block
from vigcli.config.archs import VARIANTS, BlockSpec, arch_config
from vigcli.measure.count import _count_block, count_block, num_params, thop_macs, training_trace
from vigcli.measure.profile import profile

HEAD = VARIANTS["mobilevigv2_ti"].blocks()[-1]


def test_the_three_forms_of_a_block() -> None:
    counted = count_block("mobilevigv2", HEAD)
    one_classifier = 512 * 1000 + 1000
    assert counted.params.total - counted.params.inference == one_classifier
    assert counted.params.inference - counted.params.deployed == 2 * 512  # batch norm's factor and offset
    assert counted.deployed.macs == 256 * 512 + 512 * 1000
    assert training_trace("mobilevigv2", HEAD).macs == 256 * 512 + 2 * 512 * 1000


def test_a_block_is_counted_as_its_formula() -> None:
    spec = BlockSpec("inverted_residual", (16, 14, 14), (("expansion", 4),))
    counted = count_block("mobilevigv2", spec)
    weights = 16 * 64 + 64 * 9 + 64 * 16
    assert counted.deployed.macs == weights * 14 * 14
    assert counted.deployed.weight_mb == pytest.approx(2 * weights / 1e6)
    assert counted.deployed.depthwise_macs == 64 * 9 * 14 * 14
    assert counted.params.deployed == weights + 64 + 64 + 16
    assert counted.params.total == num_params(build_block("mobilevigv2", spec))


def test_profiles_name_their_blocks() -> None:
    config = VARIANTS["mobilevigv2_ti"]
    names = [block.name for block in profile(config).blocks]
    assert (names[0], names[-1]) == ("stem", "head")
    assert len(set(names)) == len(names) == len(config.blocks())
    assert names.count("stages[2].blocks[0]") == 1


@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", "timm:repvit_m0_9"])
def test_a_timm_profile_adds_up(name: str) -> None:
    config = arch_config(name).changed({"resolution": 96})
    parts = profile(config)
    model = build(config, device="meta")
    assert parts.params.total == num_params(model)
    assert parts.macs > 0
    assert len({block.signature for block in parts.blocks}) == len(parts.blocks) > 3
    assert all(block.signature.startswith(f"{name} ") for block in parts.blocks)


def test_counting_leaves_the_random_state_alone() -> None:
    _count_block.cache_clear()
    before = torch.get_rng_state()
    config = VARIANTS["mobilevigv2_ti"].changed({"resolution": 96, "stages[1].reach": 2, "stages[2].reach": 1})
    assert thop_macs(config) > profile(config).macs  # it counts batch norm
    assert torch.equal(torch.get_rng_state(), before)

"""Peak activation memory and bytes moved, against cases worked out by hand and against the blocks of every network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vigcli.archs import build, inference_form
from vigcli.config.archs import VARIANTS, arch_config
from vigcli.measure.count import count_block
from vigcli.measure.memory import peak_bytes
from vigcli.measure.profile import profile
from vigcli.measure.trace import SLICES, folded_calls, op_trace, record, trace

BYTES = 2
MAP = 10 * 10  # elements of a channel


def peak(model: nn.Module, channels: int) -> float:
    """In channels of a 10 x 10 feature map."""
    return peak_bytes(record(model, (channels, 10, 10))) / (BYTES * MAP)


def test_a_chain_holds_an_input_and_an_output() -> None:
    chain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 32, 1), nn.Conv2d(32, 2, 1))
    assert peak(chain, 3) == 8 + 32


def test_no_call_writes_over_its_input() -> None:
    assert peak(nn.Sequential(nn.Conv2d(3, 8, 1), nn.GELU()), 3) == 8 + 8


def test_what_a_layer_absorbs_needs_no_memory() -> None:
    assert peak(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU()), 3) == 3 + 8


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(4, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def test_a_skip_stays_alive() -> None:
    assert peak(Residual(), 4) == 4 + 16 + 16
    assert peak(Residual().branch, 4) == 16 + 16
    # As long as it is needed: what follows the sum does not pay for it.
    assert peak(nn.Sequential(Residual(), nn.Conv2d(4, 40, 1)), 4) == 4 + 40


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], 1)


def test_a_concat_holds_its_parts_and_itself() -> None:
    assert peak(Joined(), 4) == (6 + 10) + 16


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second = x.split(4, 1)
        return torch.cat([second, first], 1).transpose(2, 3).flatten(1)


def test_views_share_the_memory_of_their_source() -> None:
    assert peak(Halves(), 8) == 8 + 8


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 10, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        early = self.first(x)
        return early.flatten(1), self.second(self.second(early)[:, :6])


def test_outputs_stay_and_inputs_go() -> None:
    assert peak(TwoOutputs(), 4) == 6 + 10 + 10


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2)  # (1, C, N)
        index = rows.topk(10).indices
        return nn.functional.embedding(index, rows[0].T).sum()


def test_a_computed_index_lives_until_it_is_read() -> None:
    """Of 4 channels of 100 places 10 each, and as many rows of 4 channels: all of it beside the 4 channels read."""
    assert peak(Sorted(), 4) == pytest.approx(4 + 4 * 10 / MAP + 4 * 10 * 4 / MAP)


def test_bytes_moved_are_activations_and_weights() -> None:
    moved = trace(nn.Sequential(nn.Conv2d(4, 6, 1), nn.GELU()), (4, 10, 10)).moved_bytes
    assert moved == BYTES * (4 * MAP + 6 * MAP + 4 * 6) + BYTES * (6 * MAP + 6 * MAP)


ONE_OF_EACH = {config.family: name for name, config in reversed(VARIANTS.items())}.values()


@pytest.mark.parametrize("name", [*ONE_OF_EACH, "mobilevitv3_050", "timm:mobilenetv3_small_050"])
def test_a_network_holds_what_its_greatest_call_and_block_do(name: str) -> None:
    config = arch_config(name)
    deployed = inference_form(config, build(config, device="meta"))
    calls = record(deployed, (config.in_chans, config.resolution, config.resolution))
    counted = profile(config)
    assert counted.peak_bytes == peak_bytes(calls)
    folded = folded_calls(calls)
    for call in calls:
        if not (call.kind in ("view", "pick", "perm") or call.name in SLICES or call in folded or call.constant):
            read = sum(x.out_bytes for x in set(call.inputs) if not x.constant)
            assert counted.peak_bytes >= read + call.out_bytes
    assert counted.moved_bytes == op_trace(calls).moved_bytes
    if name in VARIANTS:
        peaks = [count_block(config.family, spec).peak_bytes for spec in config.blocks()]
        assert counted.peak_bytes == max(peaks)

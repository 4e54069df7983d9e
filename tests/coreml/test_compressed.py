"""What a compression makes of a weight, and that anything else is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vigcli.compress.schemes import palette
from vigcli.config.compression import LEAST_WEIGHTS, Compression
from vigcli.coreml.compressed import as_compressed, fake_quantized, is_compressed, wrongly_compressed

SCHEMES = {
    compression.name + ("-grouped" if compression.group_channels else ""): compression
    for compression in (
        Compression(weight_bits=8),
        Compression(weight_bits=6),
        Compression(weight_bits=4),
        Compression(weight_bits=4, group_channels=16),
        Compression(sparsity_ratio=0.5),
        Compression(sparsity_ratio=0.5, weight_bits=8),
        Compression(sparsity_ratio=0.5, weight_bits=4, group_channels=16),
    )
}
CHANNELS = 48


def weight() -> Tensor:
    """(48, 32, 3, 3), drawn; one channel is small, as after a batch norm was folded."""
    drawn = torch.randn(CHANNELS, 32, 3, 3, generator=torch.Generator().manual_seed(0)) / 10
    drawn[5] /= 50
    return drawn


def stored_by(compression: Compression, drawn: Tensor) -> Tensor:
    """What a package would hold, by other code than is tested: numpy's, and the palettes' own."""
    half = drawn.half().float()
    if compression.sparsity_ratio:
        least = half.abs().flatten().kthvalue(int(compression.sparsity_ratio * half.numel())).values
        half = torch.where(half.abs() <= least, 0.0, half)
    if compression.weight_bits == 8:
        scale = 2 * half.half().abs().amax((1, 2, 3), keepdim=True) / 254
        integers = (half.half() / scale.clamp_min(2.0**-24)).round()  # all of a small channel may be zero
        return (integers * scale).float()
    if not compression.has_palettes:
        return half
    size = compression.group_of(CHANNELS)
    for start in range(0, CHANNELS, size):
        group = half[start : start + size]
        values, indices = palette(group[group != 0].half().numpy(), compression.weight_bits)
        group[group != 0] = torch.from_numpy(values[indices]).float()
    return half


def largest(x: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(x.abs().argmax(), x.shape))


def one_less(x: Tensor) -> None:
    x[largest(x)] *= 0.95


def other_channels(x: Tensor) -> None:
    x[[0, 1]] = x[[1, 0]]


def one_zero_less(x: Tensor) -> None:
    x[tuple((x == 0).nonzero()[0])] = 0.01


def one_zero_more(x: Tensor) -> None:
    x[largest(x)] = 0.0


def a_value_more(x: Tensor) -> None:
    """All weights of a value of the palette, and not those that are nearest to it."""
    value = x[largest(x)]
    x[x == value] = 0.9 * value


FAULTS: tuple[Callable[[Tensor], None], ...] = (
    one_less, other_channels, one_zero_less, one_zero_more, a_value_more
)  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_a_compression_makes_is_right(scheme: str) -> None:
    drawn, compression = weight(), SCHEMES[scheme]
    stored = stored_by(compression, drawn)
    assert wrongly_compressed(drawn, stored, 0, compression) == ""
    made = as_compressed(drawn, stored, 0, compression)
    assert torch.allclose(made, stored, rtol=2**-9, atol=1e-6), "but for a rounding of the product"
    turned = wrongly_compressed(drawn.transpose(0, 1), stored.transpose(0, 1), 1, compression)
    assert turned == "", "channels may lie along another axis"


@pytest.mark.parametrize(("scheme", "fault"), [
    (scheme, fault)
    for scheme, compression in SCHEMES.items()
    for fault in FAULTS
    if fault is not one_zero_less or compression.sparsity_ratio  # others have no zeros
])  # fmt: skip
def test_anything_else_is_told(scheme: str, fault: Callable[[Tensor], None]) -> None:
    drawn, compression = weight(), SCHEMES[scheme]
    stored = stored_by(compression, drawn)
    fault(stored)
    assert wrongly_compressed(drawn, stored, 0, compression)


def test_a_weight_of_another_shape_is_told() -> None:
    assert "is (3, 4), not (4, 3)" in wrongly_compressed(
        torch.zeros(4, 3), torch.zeros(3, 4), 0, Compression(weight_bits=8)
    )


def test_too_many_values_are_no_palette() -> None:
    six = stored_by(SCHEMES["w6"], weight())
    assert "has 64 values" in wrongly_compressed(weight(), six, 0, SCHEMES["w4"])


def test_what_is_compressed() -> None:
    small, large = torch.zeros(8, 8), torch.zeros(LEAST_WEIGHTS + 1, 1)
    for scheme, compression in SCHEMES.items():
        assert is_compressed(large, "conv", "x", compression)
        assert is_compressed(small, "linear", "x", compression) == (compression.weight_bits == 8), scheme
        assert not is_compressed(large.flatten(), "conv", "bias", compression)
        assert not is_compressed(large.int(), "conv", "indices", compression)
        assert not is_compressed(large, "conv", "x", compression.model_copy(update={"kept": ("x",)}))
        assert not is_compressed(large, "add", "x", compression)  # a table of positions


def test_a_fake_quantized_weight_is_symmetric_for_each_output_channel() -> None:
    drawn = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    drawn[1] = 0
    found = fake_quantized(drawn, 0)
    step = drawn.half().float().abs().amax((1, 2, 3)) / 127
    assert torch.equal(found[1], drawn[1])
    assert bool(((found - drawn).abs().amax((1, 2, 3)) <= 0.52 * step).all())
    assert torch.allclose(fake_quantized(drawn.transpose(0, 3), -1), found.transpose(0, 3))

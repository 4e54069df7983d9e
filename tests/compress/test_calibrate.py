"""Ranges of activations: what a histogram that widens counts, and what each way of choosing makes of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vigcli.compress.calibrate import BINS, MIN_IMAGES, PERCENT, STEPS, Magnitudes, check_fp16, check_images
from vigcli.errors import ConfigError, VigError


def counted(*parts: Tensor) -> Magnitudes:
    found = Magnitudes()
    for part in parts:
        found.add(part)
    return found


def drawn(count: int = 20_000) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


def squared_error(x: Tensor, end: float) -> float:
    step = end / STEPS
    return float((x - step * (x / step).round().clamp(-STEPS, STEPS)).square().sum())


def test_a_histogram_that_widens_loses_nothing() -> None:
    x = drawn()
    parts = (x[:50] / 40, x[50:300], 3 * x[300:])
    found, whole = counted(*parts), torch.cat(parts)
    assert found.counts.sum() == len(whole)
    assert (found.low, found.high) == (float(whole.min()), float(whole.max()))
    assert found.top / counted(parts[0]).top == 2 ** round(math.log2(found.top / counted(parts[0]).top))
    at_once = torch.histc(whole.abs(), BINS, 0.0, found.top).double()
    assert (found.counts.cumsum(0) - at_once.cumsum(0)).abs().max() <= 3, "but for the rounding of where bins end"


def test_all_of_the_range() -> None:
    x = drawn()
    assert counted(x).reach("minmax") == float(x.abs().max())


def test_a_percentile_leaves_out_the_few_that_are_far() -> None:
    x = torch.cat([drawn(), torch.tensor([300.0])])
    end = counted(x).reach("percentile")
    assert float((x.abs() <= end).double().mean()) >= PERCENT / 100
    assert float((x.abs() <= end - 2 * 300 / BINS).double().mean()) < PERCENT / 100
    assert end < 6


def test_the_least_error_is_less_than_that_of_the_others() -> None:
    x = torch.cat([drawn(400_000), torch.tensor([8.0, 12.0])])
    found = counted(*x.split(30_000))
    best = squared_error(x, found.reach("error"))
    assert best < 0.7 * squared_error(x, found.reach("minmax"))
    tried = [squared_error(x, 12.0 * i / 100) for i in range(10, 101)]
    assert best <= 1.02 * min(tried)


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "error"])
def test_ranges_of_nothing_and_of_one_number(calibration: str) -> None:
    assert counted(torch.zeros(5)).reach(calibration) == 0  # type: ignore[arg-type]
    only = counted(torch.full((5,), -3.0)).reach(calibration)  # type: ignore[arg-type]
    assert only == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(strange: float) -> None:
    found = counted(torch.ones(3), torch.tensor([1.0, strange]), torch.ones(3))
    with pytest.raises(VigError, match=r"conv 'x' reaches (nan|inf), beyond fp16") as refused:
        check_fp16("conv", "x", found.largest)
    assert refused.value.hint
    assert "--precision mixed" in refused.value.hint


def test_too_few_pictures_are_refused_with_what_works() -> None:
    check_images(MIN_IMAGES)
    with pytest.raises(ConfigError, match=f"^train: {MIN_IMAGES - 1} pictures are too few") as refused:
        check_images(MIN_IMAGES - 1, "train")
    assert refused.value.hint
    assert "--weights-only" in refused.value.hint

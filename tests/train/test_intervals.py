"""Intervals of a top-1 and of a difference: the published formulas, and that they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vigcli.train.intervals import Difference, paired_difference, wilson_percent


def test_wilson_stays_within_bounds() -> None:
    assert wilson_percent(0, 5)[0] == 0.0
    assert wilson_percent(5, 5)[1] == pytest.approx(100.0)


def test_paired_differences() -> None:
    """50 pictures: both right 20, one alone 12, the other alone 5."""
    a, b = np.zeros((2, 50), bool)
    a[:32], b[:20], b[32:37] = True, True, True
    found = paired_difference(a, b)
    assert found.points == pytest.approx(14.0)
    share, variance = 7 / 52, 18 / 52 - (7 / 52) ** 2  # half a picture more in each cell
    half = 1.959964 * math.sqrt(variance / 52)
    assert (found.low, found.high) == pytest.approx((100 * (share - half), 100 * (share + half)))
    assert not found.is_told
    turned = paired_difference(b, a)
    assert (turned.points, turned.low, turned.high) == pytest.approx((-found.points, -found.high, -found.low))
    assert paired_difference(a, np.zeros(50, bool)).is_told
    same = paired_difference(a, a)
    assert same.low < 0 < same.high
    assert str(Difference(2.0, 1.0, 3.0)) == "+2.0 points (95 % interval +1.0 to +3.0)"
    assert "cannot be told" in str(found)


def test_the_interval_of_a_paired_difference_covers() -> None:
    """Networks that agree on most pictures: the interval holds the truth 95 times of 100."""
    generator = np.random.default_rng(0)
    hits = []
    for _ in range(2000):
        kind = generator.choice(4, 319, p=[0.55, 0.12, 0.08, 0.25])  # both, a alone, b alone, neither
        found = paired_difference((kind == 0) | (kind == 1), (kind == 0) | (kind == 2))
        hits.append(found.low <= 4.0 <= found.high)
    assert 0.94 <= np.mean(hits) <= 0.965

"""Ranks, crowding, fronts and hypervolume, against their definitions written out."""

from __future__ import annotations

import numpy as np
import pytest

from vigcli.search.front import Front, crowding, hypervolume, ranks


def points(seed: int, number: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Points on a coarse grid, so that many are equal in one or both."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 12, number) / 4, generator.integers(0, 12, number) / 4


def beats(ms: np.ndarray, score: np.ndarray, i: int, j: int) -> bool:
    """Whether point i is before j: no worse in both, and better in one or, where equal, first."""
    if ms[i] == ms[j] and score[i] == score[j]:
        return i < j
    return bool(ms[i] <= ms[j] and score[i] >= score[j])


@pytest.mark.parametrize("seed", range(8))
def test_ranks_peel_fronts(seed: int) -> None:
    ms, score = points(seed)
    expected, left, rank = np.zeros(len(ms)), set(range(len(ms))), 0
    while left:
        front = {j for j in left if not any(beats(ms, score, i, j) for i in left if i != j)}
        expected[list(front)] = rank
        left, rank = left - front, rank + 1
    assert np.array_equal(ranks(ms, score), expected)
    some = ranks(ms, score, 20)
    last = some.max()
    assert np.array_equal(some[some < last], expected[some < last])
    assert (some < last).sum() >= 20
    assert (expected[some == last] >= last).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_front_is_what_none_beats_in_any_order_of_adding(seed: int) -> None:
    ms, score = points(seed)
    rows = np.arange(len(ms))[:, None]
    whole = Front.of(rows, ms, score)
    assert (np.diff(whole.latency_ms) > 0).all()
    assert (np.diff(whole.score) > 0).all()
    parts = Front.of(rows[:7], ms[:7], score[:7]).joined(rows[7:30], ms[7:30], score[7:30])
    parts = parts.joined(rows[30:], ms[30:], score[30:])
    assert np.array_equal(parts.candidates, whole.candidates)
    empty = Front.of(rows[:0], ms[:0], score[:0])
    assert np.array_equal(empty.joined(rows, ms, score).candidates, whole.candidates)


@pytest.mark.parametrize("seed", range(4))
def test_the_hypervolume_is_the_area_that_is_beaten(seed: int) -> None:
    ms, score = points(seed, 15)
    grid = (np.arange(0, 3, 0.25) + 0.125)[:, None], np.arange(0, 3, 0.25) + 0.125
    inside = (grid[0] < 2.5) & (grid[1] > 0.5)
    beaten = ((ms <= grid[0][..., None]) & (score >= grid[1][..., None])).any(-1)
    assert hypervolume(ms, score, 2.5, 0.5) == pytest.approx((beaten & inside).sum() / 16)
    assert hypervolume(ms[:0], score[:0], 2.5, 0.5) == 0


def test_crowding_is_the_distance_of_the_neighbours_on_the_own_front() -> None:
    ms = np.array([0.0, 1, 2, 4, 3, 3.5])
    score = np.array([0.0, 1, 2, 4, 1, 1.5])
    distance = crowding(ms, score, ranks(ms, score))
    assert np.isinf(distance[[0, 3, 4, 5]]).all()
    assert distance[1] == pytest.approx(2 / 4 + 2 / 4)
    assert distance[2] == pytest.approx(3 / 4 + 3 / 4)

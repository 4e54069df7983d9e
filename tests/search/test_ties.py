"""What decides between candidates that the score cannot tell apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigcli.latency.table import distinguishable
from vigcli.search.score import TIE_POINTS
from vigcli.search.ties import AS_CLOSE, CLOSE, choose, closeness

PUBLISHED = np.array(
    [
        [[2, 0, 1, 0.1, 0.1], [2, 2, 2, 0.2, 0.1], [6, 2, 2, 0.4, 0.3], [2, 2, 2, 0.2, 0.4]],
        [[3, 0, 1, 0.1, 0.1], [3, 3, 2, 0.2, 0.2], [9, 3, 1.5, 0.5, 0.3], [3, 3, 2, 0.1, 0.3]],
    ]
)


@pytest.mark.parametrize(
    ("score", "latency_ms", "distance", "chosen"),
    [
        ((80, 79.4), (1.0, 0.5), (9, 0), 0),  # more than half a point is no tie
        ((80, 79.6), (1.0, 1.0), (0.5, 0.1), 1),  # a tie: the closer shape
        ((80, 79.6), (1.0, 0.8), (0.1, 0.1), 1),  # as close: the faster, by more than 10 %
        ((80, 79.6), (1.0, 0.95), (0.1, 0.1), 0),  # as fast: the greater score
        ((80, 79.6), (1.0, 0.95), (0.1, 0.105), 0),  # as close within a tenth
        ((80, 80, 80), (1.0, 0.95, 0.95), (0, 0, 0), 1),  # nothing left but latency and order
        ((80,), (1.0,), (3.0,), 0),
    ],
)
def test_the_order_of_the_rules(
    score: tuple[float, ...], latency_ms: tuple[float, ...], distance: tuple[float, ...], chosen: int
) -> None:
    assert choose(score, latency_ms, distance) == chosen


@given(
    st.lists(
        st.tuples(st.floats(70, 85), st.floats(0.3, 5), st.one_of(st.just(0.0), st.floats(0, 2))),
        min_size=1, max_size=30,
    )
)  # fmt: skip
def test_the_chosen_one_is_never_beaten_by_a_rule(candidates: list[tuple[float, float, float]]) -> None:
    score, ms, distance = np.array(candidates).T
    i = choose(score, ms, distance)
    tied = np.flatnonzero(score >= score.max() - TIE_POINTS)
    assert i in tied
    least = distance[tied].min()
    assert distance[i] <= max(AS_CLOSE * least, least + CLOSE)
    close = [j for j in tied if distance[j] <= max(AS_CLOSE * least, least + CLOSE)]
    assert not distinguishable(ms[i], min(ms[j] for j in close))
    assert all(score[j] <= score[i] for j in close if not distinguishable(ms[j], min(ms[k] for k in close)))
    order = np.random.default_rng(0).permutation(len(score))  # the order of equal candidates aside, none matters
    again = order[choose(score[order], ms[order], distance[order])]
    assert (score[again], ms[again]) == (score[i], ms[i])


def test_a_published_shape_is_at_no_distance_whatever_its_scale() -> None:
    deeper = PUBLISHED * [2, 2, 1, 1, 1]
    np.testing.assert_allclose(closeness(np.concatenate([PUBLISHED, deeper]), PUBLISHED), 0, atol=1e-12)


def test_distances_say_what_they_are_made_of() -> None:
    shapes = np.repeat(PUBLISHED[:1], 5, 0)
    shapes[1, 2, 0], shapes[1, 3, 1] = 5, 3  # one of 18 blocks is elsewhere
    shapes[2, :, 3] = [0.1, 0.1, 0.4, 0.3]  # a tenth of the MACs
    shapes[3, 3, 2] = 4  # the last stage wider by an octave
    shapes[4, :2, 4] = [0.05, 0.15]
    np.testing.assert_allclose(closeness(shapes, PUBLISHED[:1]), [0, 1 / 18, 0.1, 1 / 4, 0.05], atol=1e-12)


def test_a_network_of_convolutions_alone_is_far_from_one_with_graphs() -> None:
    without = PUBLISHED[:1].copy()
    without[0, 1:, 0] += without[0, 1:, 1]
    without[0, 1:, 1] = 0
    assert closeness(without, PUBLISHED[:1]) == pytest.approx([6 / 18])


def test_one_stage_or_none_of_its_blocks_is_no_division_by_zero() -> None:
    assert closeness([[[0, 12, 1, 0.9, 0.8]]], [[[0, 16, 1, 0.9, 0.8]]]) == pytest.approx([0])
    assert np.isfinite(closeness([[[0, 0, 1, 0.9, 0.8]]], [[[0, 16, 1, 0.9, 0.8]]])).all()

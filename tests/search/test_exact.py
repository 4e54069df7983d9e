"""The exact optimum against enumeration, its bounds, and how near the evolution comes to it."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import everything, part_of

from vigcli.config.archs import arch_config
from vigcli.config.space import SearchSpace
from vigcli.latency.table import load_table
from vigcli.search import exact
from vigcli.search.columns import POINTS
from vigcli.search.encoder import encode_space
from vigcli.search.encoding import Encoding, Population
from vigcli.search.evolution import evolve
from vigcli.search.exact import exact_best
from vigcli.search.score import predicted_top1_percent

ABLATED = {  # genes that published ablations give points for, of both signs
    "cpe_kernel": [0, 7],
    "stages[1].mixer": ["mgc", "svga", "none"],
    "stages[2].mixer": ["mgc", "svga"],
    "stages[2].width": [96, 128, 160],
    "stages[2].local_depth": [3, 6, 9],
    "stages[3].width": [192, 256],
    "head_width": [384, 512],
}


def enumerated(encoding: Encoding, budget_ms: float) -> float:
    values = encoding.evaluate(everything(encoding))
    fair = (values.violation == 0) & (values.latency_ms <= budget_ms)
    return float(values.score[fair].max(initial=-np.inf))


@pytest.mark.parametrize("knows", [True, False], ids=["from the evolution's best", "from nothing"])
@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(i, marks=pytest.mark.slow) for i in range(6, 40))])
def test_the_best_is_that_of_enumeration(
    wide: Encoding, seed: int, knows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no first best helps to prune: then the bounds alone must let the best through."""
    generator = np.random.default_rng(seed)
    encoding = part_of(wide, generator)
    nothing = np.zeros((0, len(encoding.num_choices)), np.intp)
    if not knows:
        none = evolve(encoding, 1e-3, nothing, generator, num_candidates=1, max_evaluated=1)
        monkeypatch.setattr(exact, "evolve", lambda *args, **kwargs: none)
    for budget_ms in (0.6, 0.8, 0.9, 1.0, 1.2, 99.0):
        found, best = exact_best(encoding, budget_ms, nothing, generator), enumerated(encoding, budget_ms)
        assert found.proven
        assert found.score == pytest.approx(best, abs=1e-9)
        assert found.gap_points == 0
        assert (found.candidate is None) == (best == -np.inf)
        if found.candidate is not None:
            values = encoding.evaluate(np.array([found.candidate]))
            assert (values.score[0], values.latency_ms[0]) == (found.score, found.latency_ms)
            assert (values.violation[0], values.latency_ms[0] <= budget_ms) == (0, True)


@pytest.mark.parametrize("seed", range(6))
def test_no_bound_lies_below_a_completion(wide: Encoding, seed: int) -> None:
    generator = np.random.default_rng(seed)
    encoding = part_of(wide, generator)
    rows = everything(encoding)
    values = encoding.evaluate(rows)
    fair = np.flatnonzero((values.violation == 0) & (values.latency_ms <= 1.1))
    if not len(fair):
        return
    known = fair[values.score[fair] <= np.median(values.score[fair])]
    for best in (None, rows[generator.choice(known)]):
        bounds = exact._Bounds(encoding, 1.1, best)
        least = -np.inf if best is None else encoding.evaluate(best[None]).score[0]
        better = fair[values.score[fair] > least]
        for decided in range(len(bounds.order) + 1):
            assert (bounds(rows[better][:, bounds.order[:decided]]) >= values.score[better]).all()


def test_when_the_time_is_up_the_gap_is_told(wide: Encoding, published: Population) -> None:
    generator = np.random.default_rng(0)
    whole = exact_best(wide, 1.0, published, generator)
    assert whole.proven
    hasty = exact_best(wide, 1.0, published, np.random.default_rng(0), max_seconds=0)
    assert not hasty.proven
    assert hasty.score <= whole.score < hasty.bound
    assert hasty.gap_points == pytest.approx(hasty.bound - hasty.score)


@pytest.mark.parametrize("budget_ms", [0.85, 0.95, 1.0, 1.1, 1.3])
def test_the_evolution_comes_near_the_proven_best(wide: Encoding, published: Population, budget_ms: float) -> None:
    best = exact_best(wide, budget_ms, published, np.random.default_rng(0))
    assert best.proven
    for seed in range(3):
        found = evolve(wide, budget_ms, published, np.random.default_rng(seed), num_candidates=20_000)
        assert best.score - 0.02 <= found.score[-1] <= best.score + 1e-9


def test_the_score_is_of_the_kind_that_the_bounds_need() -> None:
    """In -ln(100 - top1) a sum of what parameters, layers and (MACs, depthwise share) add, each rising."""
    generator = np.random.default_rng(0)
    low, high = np.array([5e5, 3e7, 10, 0.001]), np.array([8e7, 1e10, 200, 0.4])

    def s(*points: np.ndarray) -> np.ndarray:
        return -np.log(100 - predicted_top1_percent(*points, offset=-0.018))

    a, b = (np.exp(generator.uniform(np.log(low), np.log(high), (2000, 4))).T for _ in range(2))
    for i in range(4):
        more = a.copy()
        more[i] = np.maximum(a[i], b[i])
        assert (s(*more) >= s(*a) - 1e-12).all()
    for group in ([0], [2], [1, 3]):
        ours, theirs = a.copy(), b.copy()
        ours[group], theirs[group] = b[group], a[group]
        assert s(*ours) + s(*theirs) == pytest.approx(s(*a) + s(*b), abs=1e-9)


@pytest.mark.parametrize("knows", [True, False], ids=["from the evolution's best", "from nothing"])
def test_points_of_ablations_are_part_of_the_optimum(knows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    space = SearchSpace.parse({"base": "mobilevigv2_s", "genes": ABLATED})
    encoding = encode_space(space, arch_config(space.base), {}, [load_table("iphone13-mini")])
    rows = everything(encoding)
    points = encoding.totals(rows)[:, POINTS]
    assert points.min() < 0 < points.max()
    nothing = np.zeros((0, len(ABLATED)), np.intp)
    if not knows:
        none = evolve(encoding, 1e-3, nothing, np.random.default_rng(0), num_candidates=1, max_evaluated=1)
        monkeypatch.setattr(exact, "evolve", lambda *args, **kwargs: none)
    for budget_ms in np.linspace(0.8, 1.3, 11).tolist():
        found = exact_best(encoding, budget_ms, nothing, np.random.default_rng(0))
        assert found.proven
        assert found.score == pytest.approx(enumerated(encoding, budget_ms), abs=1e-9)

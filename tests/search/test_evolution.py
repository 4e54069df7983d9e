"""The evolution: nothing evaluated twice, every answer within the rules, the same whatever the threads, good fronts."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from conftest import everything, part_of

from vigcli.search import evolution
from vigcli.search.encoding import Encoding, Evaluation, Population
from vigcli.search.engines import nsga2
from vigcli.search.evolution import Found, State, evolve, random_search
from vigcli.search.front import Front, hypervolume

LARGE = {"num_candidates": 6000, "max_evaluated": 9000}  # fewer than the spaces have, so that they are bred


def same(one: Found, other: Found) -> bool:
    numbers = [(f.num_evaluated, f.num_feasible, f.exhausted) for f in (one, other)]
    arrays = ("candidates", "latency_ms", "score")
    return numbers[0] == numbers[1] and all(np.array_equal(getattr(one, a), getattr(other, a)) for a in arrays)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Population]:
    """The rows that are evaluated from now on."""
    calls: list[Population] = []
    evaluate = Encoding.evaluate

    def recording(self: Encoding, population: Population) -> Evaluation:
        calls.append(population)
        return evaluate(self, population)

    monkeypatch.setattr(Encoding, "evaluate", recording)
    return calls


@pytest.mark.parametrize("budget_ms", [1.0, 1.1])
def test_what_is_counted_was_evaluated_once_and_is_feasible(
    wide: Encoding, published: Population, budget_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    found = evolve(wide, budget_ms, published, np.random.default_rng(0), **LARGE)
    rows = np.concatenate(calls)
    monkeypatch.undo()
    assert len(np.unique(rows, axis=0)) == len(rows) == found.num_evaluated
    values = wide.evaluate(rows)
    fair = (values.violation == 0) & (values.latency_ms <= budget_ms)
    assert fair.sum() == found.num_feasible
    assert not found.exhausted
    assert found.num_evaluated == 9000 or found.num_feasible >= 6000
    assert {tuple(row) for row in published.tolist()} <= {tuple(row) for row in rows.tolist()}
    front = Front.of(rows[fair], values.latency_ms[fair], values.score[fair])
    assert np.array_equal(front.latency_ms, found.latency_ms)
    assert np.array_equal(front.score, found.score)
    assert np.array_equal(wide.evaluate(found.candidates).score, found.score)


@pytest.mark.parametrize("budget_ms", [0.85, 1.0, 99.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_small_space_is_gone_through_whole(wide: Encoding, seed: int, budget_ms: float) -> None:
    encoding = part_of(wide, np.random.default_rng(seed))
    rows = everything(encoding)
    values = encoding.evaluate(rows)
    fair = (values.violation == 0) & (values.latency_ms <= budget_ms)
    found = evolve(encoding, budget_ms, rows[-3:], np.random.default_rng(0))
    front = Front.of(rows[fair], values.latency_ms[fair], values.score[fair])
    assert found.exhausted
    assert found.num_feasible == fair.sum()
    assert found.score.tolist() == front.score.tolist()
    assert found.latency_ms.tolist() == front.latency_ms.tolist()


def test_the_seed_decides_and_threads_do_not(wide: Encoding, published: Population) -> None:
    one, again, threads, other = (
        evolve(wide, 1.0, published, np.random.default_rng(seed), jobs=jobs, **LARGE)
        for seed, jobs in ((0, 1), (0, 1), (0, 3), (1, 1))
    )
    assert same(one, again)
    assert same(one, threads)
    assert not same(one, other)


def test_a_search_goes_on_from_any_generation(wide: Encoding, published: Population) -> None:
    states: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def keep(state: State) -> None:
        arrays, rest = state.as_arrays()
        states.append(({name: array.copy() for name, array in arrays.items()}, copy.deepcopy(rest)))

    whole = evolve(wide, 1.0, published, np.random.default_rng(3), on_generation=keep, **LARGE)
    assert len(states) > 10
    for i in (0, 1, 7, len(states) - 2, len(states) - 1):
        state = State.from_arrays(*states[i])
        rest: list[int] = []
        on = evolve(
            wide, 1.0, published[:0], np.random.default_rng(99), state=state,
            on_generation=lambda s, rest=rest: rest.append(s.generation), **LARGE,
        )  # fmt: skip
        assert same(on, whole)
        assert rest == list(range(i + 1, len(states)))


def test_a_state_that_does_not_fit_is_refused(wide: Encoding, published: Population) -> None:
    states: list[State] = []
    evolve(wide, 1.0, published, np.random.default_rng(3), on_generation=states.append, max_evaluated=500)
    arrays, rest = states[0].as_arrays()
    State.from_arrays(arrays, rest)
    wrong: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (arrays | {"score": arrays["score"][:-1]}, rest),
        (arrays | {"population": arrays["population"].astype(float)}, rest),
        (arrays | {"seen": arrays["seen"].astype(float)}, rest),
        ({k: v for k, v in arrays.items() if k != "front"}, rest),
        (arrays, rest | {"generator": {"bit_generator": "MT19937"}}),
        (arrays, rest | {"generation": "many"}),
    ]
    for bad in wrong:
        with pytest.raises((KeyError, TypeError, ValueError)):
            State.from_arrays(*bad)


def test_progress_counts_what_is_asked_for(wide: Encoding, published: Population) -> None:
    calls: list[tuple[int, int]] = []
    evolve(
        wide, 1.05, published, np.random.default_rng(0), num_candidates=3000,
        on_progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert calls == sorted(calls)
    assert {total for _, total in calls} == {3000}
    assert all(done <= 3000 for done, _ in calls)


@pytest.mark.parametrize("sizes", [[3, 4, 2], [2] * 62, [11] * 40], ids=["small", "63 bits", "hashed"])
def test_a_key_stands_for_one_candidate(sizes: list[int]) -> None:
    keys = evolution._Keys(np.array(sizes))
    generator = np.random.default_rng(0)
    rows = np.unique(generator.integers(0, sizes, (100_000, len(sizes))), axis=0)
    neighbours = rows[:1000].copy()
    neighbours[:, -1] = (neighbours[:, -1] + 1) % sizes[-1]
    rows = np.unique(np.concatenate([rows, neighbours]), axis=0)
    assert len(np.unique(keys(rows))) == len(rows)
    first, seen = keys.unseen(rows[:50], np.zeros(0, np.uint64), 30)
    assert np.array_equal(first, rows[:30])
    second, seen = keys.unseen(np.concatenate([rows[20:50], rows[20:60]]), seen, 1000)
    assert np.array_equal(second, rows[30:60])
    assert np.array_equal(seen, np.sort(keys(rows[:60])))


def test_children_keep_the_rules_of_every_part(wide: Encoding, published: Population) -> None:
    """Most of them by being mended: of random candidates hardly any does under the rules of trained shapes."""
    states: list[State] = []
    evolve(wide, 1.0, published, np.random.default_rng(3), on_generation=states.append, max_evaluated=2000)
    run = evolution._Run(wide, 1.0, 0, None)
    state = states[-1]
    for rows in (run._bred(state, 2000), run._fresh(state, 2000)):
        assert ((rows >= 0) & (rows < wide.num_choices)).all()
        assert run._allowed(rows).mean() > 0.8


def test_random_search_gives_the_front_of_what_it_drew(wide: Encoding) -> None:
    found = random_search(wide, 1.0, 3000, np.random.default_rng(0))
    rows = np.random.default_rng(0).integers(0, wide.num_choices, (3000, len(wide.num_choices)))
    values = wide.evaluate(rows)
    fair = (values.violation == 0) & (values.latency_ms <= 1.0)
    assert found.num_feasible == fair.sum()
    assert found.score.max(initial=0) == values.score[fair].max(initial=0)


@pytest.mark.parametrize("seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 10))])
@pytest.mark.parametrize("evaluations", [4000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_the_front_is_as_good_as_that_of_nsga2(
    wide: Encoding, published: Population, evaluations: int, seed: int
) -> None:
    """At the same number of evaluations; the reference is the budget and the lowest score of either front."""
    theirs = nsga2(wide, 1.05, published, np.random.default_rng(seed), num_candidates=evaluations)
    ours = evolve(wide, 1.05, published, np.random.default_rng(seed), max_evaluated=evaluations)
    assert ours.num_evaluated <= evaluations <= theirs.num_evaluated
    worst = min(ours.score[0], theirs.score[0])
    areas = [hypervolume(found.latency_ms, found.score, 1.05, worst) for found in (ours, theirs)]
    assert areas[0] >= 0.99 * areas[1]

"""Elimination against enumeration, on random terms: what a prefix can still reach, and how often a sample is drawn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import everything

from vigcli.search import elimination
from vigcli.search.elimination import Sampler, Term, eliminate, elimination_order, log_sum
from vigcli.search.encoding import Encoding

SIZES = (3, 2, 4, 1, 3, 2)
SCOPES = ((0, 1), (1, 2), (2, 4), (0, 4), (5,), ())
ROWS = np.array(list(itertools.product(*map(range, SIZES))))


def random_terms(seed: int, forbidden: float = 0.0) -> list[Term]:
    generator = np.random.default_rng(seed)
    terms = []
    for scope in SCOPES:
        values = generator.normal(size=[SIZES[axis] for axis in scope])
        terms.append((scope, np.where(generator.random(values.shape) < forbidden, -np.inf, values)))
    return terms


def summed(terms: list[Term]) -> np.ndarray:
    return np.asarray(
        sum(values[tuple(ROWS[:, axis] for axis in axes)] for axes, values in terms) + np.zeros(len(ROWS))
    )


REDUCTIONS = {"max": lambda v: v.max(-1), "min": lambda v: v.min(-1), "log_sum": log_sum}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_a_prefix_reaches_what_enumeration_says(name: str, seed: int) -> None:
    terms, reduce = random_terms(seed, 0.2 if name != "min" else 0.0), REDUCTIONS[name]
    order, total = elimination_order(SCOPES, SIZES), summed(terms)
    assert sorted(order) == list(range(len(SIZES)))
    found = eliminate(terms, order, SIZES, reduce)
    for decided in range(len(SIZES) + 1):
        prefixes, group = np.unique(ROWS[:, order[:decided]], axis=0, return_inverse=True)
        expected = [reduce(total[group.reshape(-1) == i]) for i in range(len(prefixes))]
        assert found(prefixes) == pytest.approx(np.array(expected), abs=1e-12)


def test_terms_too_large_to_join_still_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    terms = random_terms(0)
    order, best = elimination_order(SCOPES, SIZES), summed(terms).max()
    monkeypatch.setattr(elimination, "_MAX_CELLS", 10)
    loose = eliminate(terms, order, SIZES, lambda v: v.max(-1))(np.zeros((1, 0), int))[0]
    assert loose > best
    assert (eliminate(terms, order, SIZES, lambda v: v.max(-1))(ROWS[:, order]) >= summed(terms) - 1e-12).all()


def test_samples_come_as_often_as_their_weight_says() -> None:
    terms = random_terms(4, 0.2)
    sampler = Sampler(terms, elimination_order(SCOPES, SIZES), SIZES)
    weights = np.exp(summed(terms))
    assert (weights == 0).any()
    assert sampler.log_total == pytest.approx(np.log(weights.sum()))
    rows = sampler(200_000, np.random.default_rng(0))
    drawn = np.bincount(np.ravel_multi_index(tuple(rows.T), SIZES), minlength=len(ROWS)) / len(rows)
    assert (drawn[weights == 0] == 0).all()
    assert drawn == pytest.approx(weights / weights.sum(), abs=4e-3)


def test_a_chain_of_stages_joins_no_more_than_its_largest_part(wide: Encoding) -> None:
    """The order keeps dynamic programming along the stages, and the count of allowed candidates is exact."""
    parts = wide.parts
    order = elimination_order([part.axes for part in parts], wide.num_choices.tolist())
    logs = [(part.axes, np.where(part.allowed, 0.0, -np.inf)) for part in parts]
    sampler = Sampler(logs, order, wide.num_choices.tolist())
    assert max(chances.size for _, chances in sampler.chances) <= max(part.allowed.size for part in parts)
    rows = sampler(2000, np.random.default_rng(0))
    assert all(part.allowed[tuple(rows[:, axis] for axis in part.axes)].all() for part in parts)
    if wide.space.size < 200_000:
        rows = everything(wide)
        allowed = np.all([part.allowed[tuple(rows[:, axis] for axis in part.axes)] for part in parts], 0)
        assert np.exp(sampler.log_total) == pytest.approx(allowed.sum())

"""The cheapest candidate against enumeration, and that no answer of the search is ever over its budget."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from conftest import everything, part_of

from vigcli.search.columns import MACS, PARAMS, Limits
from vigcli.search.encoding import Encoding, Population
from vigcli.search.evolution import evolve
from vigcli.search.feasibility import Reach, cheapest


@pytest.mark.parametrize("share", [None, 0.3, 0.01])
@pytest.mark.parametrize("seed", range(15))
def test_the_cheapest_is_that_of_enumeration(wide: Encoding, seed: int, share: float | None) -> None:
    """Of limits too, each of which so many candidates keep."""
    encoding = part_of(wide, np.random.default_rng(seed))
    if share is not None:
        totals = encoding.totals(everything(encoding))
        params, macs = (float(np.quantile(totals[:, column], share)) for column in (PARAMS, MACS))
        encoding = dataclasses.replace(encoding, limits=Limits(params=params, macs=macs))
    values = encoding.evaluate(everything(encoding))
    least = np.where(values.violation == 0, values.latency_ms, np.inf).min()
    found = cheapest(encoding)
    if found is None:
        assert least == np.inf
    else:
        ours = encoding.evaluate(np.array([found]))
        assert ours.violation[0] == 0
        assert ours.latency_ms[0] == pytest.approx(least, abs=1e-12)


def test_what_a_prefix_can_reach_is_never_more_than_its_completions(wide: Encoding) -> None:
    encoding = part_of(wide, np.random.default_rng(1))
    rows, reach = everything(encoding), Reach(encoding)
    values = encoding.evaluate(rows)
    kept = values.violation == 0
    for decided in range(len(reach.order) + 1):
        bound = reach.least(rows[:, reach.order[:decided]])
        assert (bound[kept] <= values.latency_ms[kept]).all()
    budget_ms = float(np.median(values.latency_ms[np.isfinite(bound)]))
    listed = reach.below(budget_ms, len(rows))
    assert listed is not None
    inside = {tuple(row) for row in rows[kept & (values.latency_ms <= budget_ms)].tolist()}
    assert inside <= {tuple(row) for row in listed.tolist()}
    assert reach.below(budget_ms, 3) is None


def test_an_infeasible_budget_is_known_within_a_second(wide: Encoding) -> None:
    start = time.process_time()
    least = cheapest(wide)
    assert time.process_time() - start < 1
    assert least is not None
    least_ms = float(wide.evaluate(np.array([least])).latency_ms[0])
    nothing = np.zeros((0, len(least)), np.intp)
    generator = np.random.default_rng(0)
    below = evolve(wide, least_ms * (1 - 1e-6), nothing, generator, num_candidates=1000, max_evaluated=3000)
    assert (len(below.score), below.num_feasible) == (0, 0)
    at = evolve(wide, least_ms, np.array([least]), generator, num_candidates=1000, max_evaluated=3000)
    assert at.latency_ms.tolist() == [least_ms]


def test_a_limit_out_of_reach_is_known_without_a_whole_candidate(
    wide: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Encoding, "evaluate")
    for limits in (Limits(params=1e5), Limits(macs=1e6), Limits(size_mb=0.1)):
        assert cheapest(dataclasses.replace(wide, limits=limits)) is None


def test_no_candidate_is_over_any_of_a_thousand_budgets(wide: Encoding, published: Population) -> None:
    """Zero violations: every answer is priced anew, at budgets from below the cheapest to far above the published."""
    generator = np.random.default_rng(7)
    least = cheapest(wide)
    least_ms = float(wide.evaluate(np.array([least])).latency_ms[0])
    answered = 0
    for budget_ms in np.exp(generator.uniform(np.log(0.4), np.log(2.5), 1000)).tolist():
        found = evolve(wide, budget_ms, published, generator, num_candidates=100, max_evaluated=300)
        values = wide.evaluate(found.candidates)
        assert (values.latency_ms <= budget_ms).all()
        assert (values.violation == 0).all()
        assert budget_ms >= least_ms or not len(found.score)
        answered += bool(len(found.score))
    assert answered > 400

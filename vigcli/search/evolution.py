"""Vectorized evolution over an encoded space: two objectives, least latency and greatest score, under hard rules.

Ranked as in NSGA-II (Deb et al. 2002): constraint domination, non-dominated sorting, crowding. What differs is that a
generation is a few array operations, that no candidate is evaluated twice, and where new candidates come from.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vigcli.search.columns import ms_column
from vigcli.search.elimination import Sampler
from vigcli.search.encoding import Encoding, Evaluation, Population
from vigcli.search.feasibility import Reach
from vigcli.search.front import Front, crowding, ranks

Array = NDArray[np.float64]

NUM_CANDIDATES = 200_000  # distinct and feasible, of a search
_POPULATION = 400
_FIRST, _MOST = 400, 8_000  # children of a generation: few while each teaches much, then as many as arrays like
_GROWTH = 0.08  # children of a generation / candidates evaluated before it
_FRESH = 0.06  # least share of the children that are not bred but sampled
_TILTS = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # how strongly samples prefer low latency: exp(-tilt * latency / budget)
_SLOW, _DRY = 0.2, 0.02  # of its children new and feasible: a generation that breeds little, and next to nothing
_PATIENCE = 12  # dry generations in a row after which the space has hardly anything left
_MOST_LISTED = 500_000  # a space with fewer candidates that may be feasible is gone through whole
_CHUNK = 4_000  # candidates that one call prices, whatever the number of threads


@dataclass(frozen=True)
class Found:
    """Candidates none of which beats another in both latency and score, by rising latency.

    Attributes:
        num_evaluated: distinct candidates that were priced and scored (drawn ones, of a random search).
        num_feasible: those of them that keep every rule and the budget.
        exhausted: every candidate that can be feasible was evaluated, so the front is the true one.
    """

    candidates: Population
    latency_ms: Array
    score: Array
    num_evaluated: int
    num_feasible: int = 0
    exhausted: bool = False


_COUNTERS = ("generation", "num_feasible", "listed", "slow", "dry")


@dataclass
class State:
    """All that the next generation depends on; `as_arrays` and `from_arrays` are its copy on disk."""

    population: Population
    values: Evaluation
    front: Front
    seen: NDArray[np.uint64]  # keys of what was evaluated, sorted
    generation: int
    num_feasible: int
    listed: int  # candidates of the list, where the space has one, that were taken
    slow: int  # generations in a row that bred little that is new
    dry: int  # generations in a row that brought hardly anything new
    generator: np.random.Generator

    @property
    def num_evaluated(self) -> int:
        return len(self.seen)

    def as_arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The state as arrays, and the rest as what JSON can hold."""
        arrays: dict[str, NDArray[Any]] = {
            "population": self.population,
            "seen": self.seen,
            "front": self.front.candidates,
            "front_latency_ms": self.front.latency_ms,
            "front_score": self.front.score,
        }
        arrays |= {f.name: getattr(self.values, f.name) for f in fields(Evaluation)}
        numbers = {name: getattr(self, name) for name in _COUNTERS}
        return arrays, {**numbers, "generator": self.generator.bit_generator.state}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], rest: dict[str, Any]) -> State:
        """Raises KeyError, TypeError or ValueError where something is missing or is no state."""
        generator = np.random.default_rng()
        generator.bit_generator.state = rest["generator"]
        values = Evaluation(*(arrays[f.name] for f in fields(Evaluation)))
        front = Front(arrays["front"], arrays["front_latency_ms"], arrays["front_score"])
        for rows, *columns in (
            (arrays["population"], *(getattr(values, f.name) for f in fields(Evaluation))),
            (front.candidates, front.latency_ms, front.score),
        ):
            if rows.dtype != np.intp or any(c.shape != rows.shape[:1] or c.dtype != np.float64 for c in columns):
                raise ValueError("arrays of a state do not fit each other")
        if arrays["seen"].dtype != np.uint64 or arrays["seen"].ndim != 1:
            raise ValueError("keys of a state are no numbers of 64 bits")
        counters = {name: int(rest[name]) for name in _COUNTERS}
        return cls(arrays["population"], values, front, arrays["seen"], generator=generator, **counters)


def evolve(
    encoding: Encoding,
    budget_ms: float,
    seeds: Population,
    generator: np.random.Generator,
    *,
    num_candidates: int = NUM_CANDIDATES,
    max_evaluated: int | None = None,
    jobs: int = 1,
    state: State | None = None,
    on_generation: Callable[[State], None] = lambda state: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """Evolve from `seeds` and samples until `num_candidates` distinct feasible candidates were priced and scored.

    A space that hardly has more is gone through whole instead, and the front is the true one. It ends sooner where
    next to nothing new is found, or after `max_evaluated` candidates in all (default: ten times as many). The answer
    depends on the generator alone, not on `jobs`, the threads that evaluate. `state`, as `on_generation` got it after
    a generation, is gone on from; `seeds` and `generator` play no part then.

    Args:
        seeds: candidates to start from, such as published networks: (n, genes).
        num_candidates: distinct candidates that keep every rule and the budget.
    """
    limit = max_evaluated if max_evaluated is not None else 10 * num_candidates
    with ThreadPoolExecutor(jobs) as pool:
        most_listed = min(_MOST_LISTED, 5 * num_candidates // 2, limit)
        run = _Run(encoding, budget_ms, most_listed, pool if jobs > 1 else None)
        if state is None:
            state = run.start(seeds, min(_FIRST, limit), generator)
            on_generation(state)
        while state.num_evaluated < limit and not run.ended(state, num_candidates):
            run.step(state, limit - state.num_evaluated)
            on_generation(state)
            on_progress(min(state.num_feasible, num_candidates), num_candidates)
    front = state.front
    numbers = state.num_evaluated, state.num_feasible
    return Found(front.candidates, front.latency_ms, front.score, *numbers, run.exhausted(state))


def random_search(encoding: Encoding, budget_ms: float, num_candidates: int, generator: np.random.Generator) -> Found:
    """The front of as many random candidates: what an evolution must beat."""
    population = generator.integers(0, encoding.num_choices, (num_candidates, len(encoding.num_choices)))
    values = encoding.evaluate(population)
    fair = broken(values, budget_ms) == 0
    front = Front.of(population[fair], values.latency_ms[fair], values.score[fair])
    return Found(front.candidates, front.latency_ms, front.score, num_candidates, int(fair.sum()))


class _Run:
    """An evolution of one space under one budget: everything that does not change between generations."""

    def __init__(self, encoding: Encoding, budget_ms: float, most_listed: int, pool: ThreadPoolExecutor | None):
        self.encoding, self.budget_ms, self.pool = encoding, budget_ms, pool
        self.sizes = encoding.num_choices
        self.num_free = max(int((self.sizes > 1).sum()), 1)
        self.keys = _Keys(self.sizes)
        reach, parts = Reach(encoding), encoding.parts
        scale = 1 / budget_ms if np.isfinite(budget_ms) else 1.0
        preferred = [
            [(p.axes, np.where(p.allowed, -tilt * scale * p.costs[..., ms_column(0)], -np.inf)) for p in parts]
            for tilt in _TILTS
        ]
        self.samplers = [Sampler(terms, reach.order, reach.sizes) for terms in preferred]
        tried = encoding.price(self.samplers[0](1000, np.random.default_rng(0)))
        expected = np.exp(self.samplers[0].log_total) * np.mean(tried <= budget_ms)
        listed = reach.below(budget_ms, most_listed) if expected < 2 * most_listed else None
        # In any order but that of the genes, and always the same.
        self.listed = None if listed is None else np.random.default_rng(0).permutation(listed)

    def start(self, seeds: Population, count: int, generator: np.random.Generator) -> State:
        nothing = np.zeros((0, len(self.sizes)), np.intp)
        none = Evaluation(*(np.zeros(0) for _ in fields(Evaluation)))
        front = Front(nothing, np.zeros(0), np.zeros(0))
        state = State(nothing, none, front, np.zeros(0, np.uint64), 0, 0, 0, 0, 0, generator)
        fresh = self._fresh(state, max(count - len(seeds), 0))
        self._take_in(state, np.concatenate([seeds.astype(np.intp), fresh]), count)
        return state

    def step(self, state: State, limit: int) -> None:
        """One generation, of at most `limit` evaluations."""
        if self.listed is not None:
            self._take_in(state, self._fresh(state, _MOST), limit)
        else:
            count = int(min(max(_FIRST, _GROWTH * state.num_evaluated), _MOST))
            fresh = int(min(_FRESH * 2 ** min(state.slow, 10), 0.5) * count)
            bred = self._bred(state, count - fresh)
            new = self._take_in(state, np.concatenate([bred, self._fresh(state, fresh)]), limit)
            state.slow = state.slow + 1 if new < _SLOW * count else 0
            state.dry = state.dry + 1 if new < _DRY * count else 0
        state.generation += 1

    def ended(self, state: State, num_candidates: int) -> bool:
        """Whether the space is exhausted, or has given what it was asked for or hardly anything for long."""
        if self.listed is not None:
            return self.exhausted(state)
        return state.num_feasible >= num_candidates or state.dry >= _PATIENCE

    def exhausted(self, state: State) -> bool:
        return self.listed is not None and state.listed >= len(self.listed)

    # ------------------------------------------------------------------------------------------------ new candidates

    def _fresh(self, state: State, count: int) -> Population:
        """The next of the list, or candidates that keep the rules of every part, of any latency down to the least."""
        if self.listed is not None:
            state.listed += count
            return self.listed[state.listed - count : state.listed]
        shares = np.diff(np.linspace(0, count, len(self.samplers) + 1).astype(int))
        pairs = zip(self.samplers, shares.tolist(), strict=True)
        return np.concatenate([sampler(number, state.generator) for sampler, number in pairs])

    def _bred(self, state: State, count: int) -> Population:
        """Children of tournament winners: crossed gene by gene or by a run of genes, then redrawn or moved a step."""
        generator, rows, genes = state.generator, state.population, np.arange(len(self.sizes))
        first, second = generator.integers(0, len(rows), (2, 2, count)).min(1)  # the population stands best first
        ends = np.sort(generator.integers(0, len(genes) + 1, (2, count, 1), np.int16), 0)
        coins = generator.random((count, len(genes)), np.float32)
        how = generator.random((count, 1), np.float32)  # two fifths by gene, two fifths by a run, a fifth by one parent
        from_second = np.where(how < 0.4, coins < 0.5, (how < 0.8) & (ends[0] <= genes) & (genes < ends[1]))
        children = np.where(from_second, rows[second], rows[first])
        self._mutate(children.reshape(-1), generator)
        return self._mended(children, rows[first], generator)

    def _mutate(self, flat: NDArray[np.intp], generator: np.random.Generator) -> None:
        """Move each gene, with the chance that makes 1.2 of a candidate, a choice up or down or to any."""
        places = np.flatnonzero(generator.random(len(flat), np.float32) < 1.2 / self.num_free)
        sizes = self.sizes[places % len(self.sizes)]
        step = flat[places] + generator.choice([-1, 1], len(places))
        drawn = (generator.random(len(places)) * sizes).astype(np.intp)
        stepped = (generator.random(len(places)) < 0.6) & (step >= 0) & (step < sizes)
        flat[places] = np.where(stepped, step, drawn)

    def _mended(self, children: Population, parents: Population, generator: np.random.Generator) -> Population:
        """Children that break the rules of a part go half of the way back to their parent, gene by gene, twice."""
        for _ in range(2):
            wrong = np.flatnonzero(~self._allowed(children))
            back = generator.integers(0, 2, (len(wrong), len(self.sizes)), np.uint8).astype(bool)
            children[wrong] = np.where(back, parents[wrong], children[wrong])
        return children

    def _allowed(self, rows: Population) -> NDArray[np.bool_]:
        allowed = np.ones(len(rows), bool)
        for part in self.encoding.parts:
            if not part.allowed.all():
                allowed &= part.allowed[tuple(rows[:, axis] for axis in part.axes)]
        return allowed

    # ------------------------------------------------------------------------------------------------ selection

    def _take_in(self, state: State, rows: Population, limit: int) -> int:
        """Evaluate what is new, and keep the best of it and of the population; how many are feasible and new."""
        rows = rows[self._allowed(rows)] if state.generation else rows
        rows, state.seen = self.keys.unseen(rows, state.seen, limit)
        values = self._evaluate(rows)
        fair = broken(values, self.budget_ms) == 0
        state.num_feasible += int(fair.sum())
        state.front = state.front.joined(rows[fair], values.latency_ms[fair], values.score[fair])
        merged = np.concatenate([state.population, rows])
        merged_values = _joined(state.values, values)
        order = np.argsort(_strength(merged_values, self.budget_ms, _POPULATION), kind="stable")[:_POPULATION]
        state.population, state.values = merged[order], _taken(merged_values, order)
        return int(fair.sum())

    def _evaluate(self, rows: Population) -> Evaluation:
        chunks = [rows[i : i + _CHUNK] for i in range(0, max(len(rows), 1), _CHUNK)]
        parts = list((self.pool.map if self.pool else map)(self.encoding.evaluate, chunks))
        return Evaluation(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Evaluation)))


class _Keys:
    """One number for each candidate: its place in the space where 64 bits hold it, else a hash of its genes."""

    def __init__(self, sizes: Population):
        exact = float(np.prod(sizes.astype(float))) < 2.0**63
        places = np.concatenate([[1], sizes[:-1]]).astype(np.uint64).cumprod() if exact else None
        odd = np.random.default_rng(0).integers(0, 2**63, len(sizes), np.uint64) * np.uint64(2) + np.uint64(1)
        self.factors = places if places is not None else odd
        self.exact = exact

    def __call__(self, rows: Population) -> NDArray[np.uint64]:
        keys = (rows.astype(np.uint64) * self.factors).sum(1, dtype=np.uint64)
        if not self.exact:  # a bijection that mixes the bits of the sum (splitmix64)
            for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
                keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
        return keys

    def unseen(self, rows: Population, seen: NDArray[np.uint64], limit: int) -> tuple[Population, NDArray[np.uint64]]:
        """The first `limit` of the rows that are neither in `seen` nor twice among them, and `seen` with them."""
        keys = self(rows)
        known = seen[np.minimum(seen.searchsorted(keys), max(len(seen) - 1, 0))] == keys if len(seen) else False
        first = np.zeros(len(rows), bool)
        first[np.unique(keys, return_index=True)[1]] = True
        chosen = np.flatnonzero(first & ~np.asarray(known))[:limit]
        added = np.sort(keys[chosen])
        return rows[chosen], np.insert(seen, seen.searchsorted(added), added)


def broken(values: Evaluation, budget_ms: float) -> Array:
    """By how much the rules and the budget are broken; 0 for a feasible candidate."""
    return np.asarray(values.violation + np.maximum(values.latency_ms / budget_ms - 1, 0))


def _strength(values: Evaluation, budget_ms: float, enough: int | None = None) -> Array:
    """Lower is better: rank, and within it crowding; after the feasible candidates the others by what they break.

    Once `enough` are ranked the ranks of the rest are not told apart.
    """
    off = broken(values, budget_ms)
    strength = 1e6 + off
    fair = np.flatnonzero(off == 0)
    latency_ms, score = values.latency_ms[fair], values.score[fair]
    rank = ranks(latency_ms, score, enough)
    strength[fair] = rank + 0.9 / (1 + crowding(latency_ms, score, rank))
    return strength


def _taken(values: Evaluation, index: NDArray[np.intp]) -> Evaluation:
    return Evaluation(*(getattr(values, f.name)[index] for f in fields(Evaluation)))


def _joined(first: Evaluation, second: Evaluation) -> Evaluation:
    return Evaluation(*(np.concatenate([getattr(v, f.name) for v in (first, second)]) for f in fields(Evaluation)))

"""Vectorized evolution over an encoded space: two objectives, least latency and greatest score, under hard rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vigcli.search.encoding import Encoding, Evaluation, Population

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """Candidates none of which beats another in both latency and score, by rising latency."""

    candidates: Population
    latency_ms: Array
    score: Array
    num_evaluated: int
    num_feasible: int = 0


def evolve(
    encoding: Encoding,
    budget_ms: float,
    seeds: Population,
    generator: np.random.Generator,
    *,
    population_size: int = 500,
    generations: int = 80,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """Evolve from `seeds` and random candidates; every candidate in the result keeps the budget and every rule.

    Parents are chosen by tournaments on (rules kept, non-dominated rank); children are uniform crossovers with, on
    average, one gene redrawn.
    """
    genes = len(encoding.num_choices)
    population = np.concatenate([seeds, _random(encoding, population_size - len(seeds), generator)])
    values = encoding.evaluate(population)
    archive = _Archive(budget_ms)
    archive.add(population, values)
    for generation in range(generations):
        fitness = _fitness(values, budget_ms)
        parents = [_tournament(fitness, population_size, generator) for _ in range(2)]
        mask = generator.random((population_size, genes)) < 0.5
        children = np.where(mask, population[parents[0]], population[parents[1]])
        redraw = generator.random(children.shape) < 1 / genes
        children = np.where(redraw, _random(encoding, population_size, generator), children)
        children_values = encoding.evaluate(children)
        archive.add(children, children_values)
        merged = np.concatenate([population, children])
        merged_values = _join(values, children_values)
        unique = np.unique(merged, axis=0, return_index=True)[1]
        order = unique[np.argsort(_fitness(_take(merged_values, unique), budget_ms), kind="stable")[:population_size]]
        population, values = merged[order], _take(merged_values, order)
        on_progress((generation + 2) * population_size, (generations + 1) * population_size)
    return archive.found((generations + 1) * population_size)


def random_search(encoding: Encoding, budget_ms: float, num_candidates: int, generator: np.random.Generator) -> Found:
    """The front of as many random candidates: what an evolution must beat."""
    population = _random(encoding, num_candidates, generator)
    archive = _Archive(budget_ms)
    archive.add(population, encoding.evaluate(population))
    return archive.found(num_candidates)


def _random(encoding: Encoding, count: int, generator: np.random.Generator) -> Population:
    return generator.integers(0, encoding.num_choices, (max(count, 0), len(encoding.num_choices)))


def _tournament(fitness: Array, count: int, generator: np.random.Generator) -> Population:
    rivals = generator.integers(0, len(fitness), (count, 2))
    return np.where(fitness[rivals[:, 0]] <= fitness[rivals[:, 1]], rivals[:, 0], rivals[:, 1])


def _fitness(values: Evaluation, budget_ms: float) -> Array:
    """Lower is better: the non-dominated rank of candidates that keep all rules, then the others by what they break."""
    broken = values.violation + np.maximum(values.latency_ms / budget_ms - 1, 0)
    fitness = 1e6 + broken
    fair = np.flatnonzero(broken == 0)
    fitness[fair] = _ranks(values.latency_ms[fair], values.score[fair])
    return fitness


def _ranks(latency_ms: Array, score: Array) -> Array:
    """The non-dominated rank of each point, 0 for the front, peeled front by front."""
    order = np.lexsort((-score, latency_ms))
    ranks = np.zeros(len(order))
    rank = 0
    while len(order):
        best = np.maximum.accumulate(score[order])
        front = np.concatenate([[True], score[order][1:] > best[:-1]])
        ranks[order[front]] = rank
        order, rank = order[~front], rank + 1
    return ranks


def _take(values: Evaluation, index: Population) -> Evaluation:
    return Evaluation(values.latency_ms[index], values.score[index], values.violation[index])


def _join(first: Evaluation, second: Evaluation) -> Evaluation:
    pairs = ((first.latency_ms, second.latency_ms), (first.score, second.score), (first.violation, second.violation))
    return Evaluation(*(np.concatenate(pair) for pair in pairs))


class _Archive:
    """The front of all fair candidates seen so far."""

    def __init__(self, budget_ms: float):
        self.budget_ms = budget_ms
        self.rows: Population | None = None
        self.latency_ms = self.score = np.zeros(0)

    def add(self, population: Population, values: Evaluation) -> None:
        fair = np.flatnonzero((values.violation == 0) & (values.latency_ms <= self.budget_ms))
        old = self.rows if self.rows is not None else population[:0]
        rows = np.concatenate([old, population[fair]])
        latency = np.concatenate([self.latency_ms, values.latency_ms[fair]])
        score = np.concatenate([self.score, values.score[fair]])
        front = np.flatnonzero(_ranks(latency, score) == 0)
        front = front[np.argsort(latency[front], kind="stable")]
        self.rows, self.latency_ms, self.score = rows[front], latency[front], score[front]

    def found(self, num_evaluated: int) -> Found:
        assert self.rows is not None
        return Found(self.rows, self.latency_ms, self.score, num_evaluated)

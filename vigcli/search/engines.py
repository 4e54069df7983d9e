"""What can look through an encoded space: the evolution of `vig`, pymoo's NSGA-II, NNI's regularized evolution.

All get the same encoding, budget, first candidates and generator, and give the same `Found`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from vigcli.errors import UnavailableError, UsageError, did_you_mean
from vigcli.registry import resolve
from vigcli.search.encoding import Encoding, Evaluation, Population
from vigcli.search.evolution import Found, broken
from vigcli.search.front import Front

ENGINES = {
    "vig": "vigcli.search.evolution:evolve",
    "nsga2": "vigcli.search.engines:nsga2",
    "nni": "vigcli.search.engines:nni_evolution",
}
DEFAULT_CANDIDATES = {"vig": 200_000, "nsga2": 200_000, "nni": 40_000}
_NSGA2_POPULATION = 500


class Engine(Protocol):
    def __call__(
        self,
        encoding: Encoding,
        budget_ms: float,
        seeds: Population,
        generator: np.random.Generator,
        *,
        num_candidates: int = ...,
        on_progress: Callable[[int, int], None] = ...,
    ) -> Found: ...


def engine(name: str) -> Engine:
    """The engine of that name. Raises UsageError for an unknown one."""
    if name not in ENGINES:
        raise UsageError(f"--engine {name}: no such engine.", did_you_mean(name, ENGINES))
    found: Engine = resolve(ENGINES[name])
    return found


def nsga2(
    encoding: Encoding,
    budget_ms: float,
    seeds: Population,
    generator: np.random.Generator,
    *,
    num_candidates: int = DEFAULT_CANDIDATES["nsga2"],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """NSGA-II of pymoo over `num_candidates` evaluations. Raises UnavailableError without pymoo.

    Its first population is `seeds` and random candidates; the front is that of all it evaluated.
    """
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.optimize import minimize
    except ImportError as error:
        raise UnavailableError("pymoo is not installed.", "pip install 'vig[search]'") from error
    top, archive = encoding.num_choices - 1, _Archive(encoding, budget_ms)

    class Space(Problem):
        def __init__(self) -> None:
            super().__init__(n_var=len(top), n_obj=2, n_ieq_constr=1, xl=np.zeros(len(top)), xu=top, vtype=int)

        def _evaluate(self, x: Any, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            values = archive.evaluate(np.asarray(x, np.intp))
            out["F"] = np.stack([values.latency_ms, -values.score], 1)
            out["G"] = broken(values, budget_ms)[:, None]
            on_progress(min(archive.num_evaluated, num_candidates), num_candidates)

    size = min(_NSGA2_POPULATION, num_candidates)
    drawn = generator.integers(0, top + 1, (max(size - len(seeds), 0), len(top)))
    algorithm = NSGA2(
        pop_size=size,
        sampling=np.concatenate([seeds, drawn])[:size],
        crossover=SBX(vtype=float, repair=RoundingRepair()),
        mutation=PM(vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    minimize(Space(), algorithm, ("n_eval", num_candidates), seed=int(generator.integers(2**31)))
    return archive.found()


def nni_evolution(
    encoding: Encoding,
    budget_ms: float,
    seeds: Population,
    generator: np.random.Generator,
    *,
    num_candidates: int = DEFAULT_CANDIDATES["nni"],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """NNI's regularized evolution (Real et al. 2019) over `num_candidates`, those that its filter holds back included.

    The metric is the score; what breaks the budget or a rule is stopped by NNI's `Filter` and counts as a score of 0.
    It starts from `seeds` and random candidates. Raises UnavailableError without NNI.
    """
    try:
        import nni

        nni.set_default_framework("none")  # before the rest, which would look for torch's own
        from nni.mutable import Categorical, MutableDict, Sample
        from nni.nas.execution import SequentialExecutionEngine
        from nni.nas.space import ExecutableModelSpace, ModelStatus
        from nni.nas.strategy import RegularizedEvolution
        from nni.nas.strategy.middleware import Chain, Filter
    except ImportError as error:
        raise UnavailableError("NNI is not installed.", "pip install 'vig[nni]'") from error
    archive, first, labels = _Archive(encoding, budget_ms), iter(seeds.tolist()), list(encoding.space.genes)

    class Space(ExecutableModelSpace):
        """The genes as choices; a frozen one is a candidate, whose score is reported when it is run."""

        def __init__(self, status: Any = ModelStatus.Initialized) -> None:
            super().__init__(status)
            sizes = zip(labels, encoding.num_choices.tolist(), strict=True)
            self.genes = MutableDict({label: Categorical(range(size), label=label) for label, size in sizes})

        def leaf_mutables(self, is_leaf: Any) -> Any:
            return self.genes.leaf_mutables(is_leaf)

        def check_contains(self, sample: Any) -> Any:
            return self.genes.check_contains(sample)

        def freeze(self, sample: Any) -> Any:
            self.validate(sample)
            frozen = object.__new__(type(self))
            ExecutableModelSpace.__init__(frozen, ModelStatus.Frozen)
            frozen.sample = dict(sample)
            return frozen

        def random(self, memo: Any = None, random_state: Any = None) -> Any:
            seed = next(first, None)
            if seed is None:
                return super().random(memo=memo, random_state=random_state)
            sample: Sample = dict(zip(labels, seed, strict=True))
            if memo is not None:
                memo.update(sample)
            return self.freeze(sample)

        def execute(self) -> None:
            nni.report_final_result(self.score)

    def keeps_the_budget(model: Any) -> bool:
        row = np.array([[model.sample[label] for label in labels]], np.intp)
        values = archive.evaluate(row)
        model.score = float(values.score[0])
        on_progress(min(archive.num_evaluated, num_candidates), num_candidates)
        return bool(broken(values, budget_ms)[0] == 0)

    class Budget(Filter):
        def budget_available(self) -> bool:
            return archive.num_evaluated < num_candidates

    logging.getLogger("nni").setLevel(logging.ERROR)  # it would report on every model
    strategy = Chain(
        RegularizedEvolution(
            seed=int(generator.integers(2**31)),
            crossover=True,
            mutation_prob=2 / max(int((encoding.num_choices > 1).sum()), 2),  # at its default most children are known
        ),
        Budget(keeps_the_budget, metric_for_invalid=0.0),
    )
    strategy(Space(), SequentialExecutionEngine())
    return archive.found()


class _Archive:
    """All that a foreign engine evaluates, for the front of it."""

    def __init__(self, encoding: Encoding, budget_ms: float):
        self.encoding, self.budget_ms = encoding, budget_ms
        self.num_evaluated = 0
        self._rows: list[Population] = []
        self._values: list[Evaluation] = []

    def evaluate(self, rows: Population) -> Evaluation:
        values = self.encoding.evaluate(rows)
        fair = broken(values, self.budget_ms) == 0
        self.num_evaluated += len(rows)
        self._rows.append(rows[fair])
        self._values.append(Evaluation(values.latency_ms[fair], values.score[fair], values.violation[fair]))
        return values

    def found(self) -> Found:
        rows = np.concatenate(self._rows)
        latency_ms = np.concatenate([values.latency_ms for values in self._values])
        front = Front.of(rows, latency_ms, np.concatenate([values.score for values in self._values]))
        num_feasible = len(np.unique(rows, axis=0))
        return Found(front.candidates, front.latency_ms, front.score, self.num_evaluated, num_feasible)

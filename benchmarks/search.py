"""The evolution of `vig search` against random search and pymoo's NSGA-II at the same number of candidates.

Same space, same table, same evaluation, so what differs is the engine: CPU seconds and the best predicted top-1 at or
below the budget, over several seeds, interleaved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vigcli.config.archs import VARIANTS, arch_config
from vigcli.config.space import encode, load_space
from vigcli.latency.table import load_table
from vigcli.paths import find_file
from vigcli.search.encoding import Encoding, encode_space
from vigcli.search.evolution import evolve, random_search


def nsga2(encoding: Encoding, budget_ms: float, seeds: np.ndarray, candidates: int, seed: int) -> float:
    """The best score that pymoo's NSGA-II finds under the budget; the same seeds are in its first population."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.optimize import minimize

    top = encoding.num_choices - 1

    class Space(Problem):
        def __init__(self) -> None:
            super().__init__(n_var=len(top), n_obj=2, n_ieq_constr=1, xl=np.zeros(len(top)), xu=top, vtype=int)

        def _evaluate(self, x: np.ndarray, out: dict, *args: object, **kwargs: object) -> None:
            values = encoding.evaluate(x.astype(np.intp))
            out["F"] = np.stack([values.latency_ms, -values.score], 1)
            out["G"] = (values.violation + np.maximum(values.latency_ms / budget_ms - 1, 0))[:, None]

    size = 500
    first = np.concatenate([seeds, np.random.default_rng(seed).integers(0, top + 1, (size - len(seeds), len(top)))])
    algorithm = NSGA2(
        pop_size=size, sampling=first, crossover=SBX(vtype=float, repair=RoundingRepair()),
        mutation=PM(vtype=float, repair=RoundingRepair()), eliminate_duplicates=True,
    )  # fmt: skip
    result = minimize(Space(), algorithm, ("n_eval", candidates), seed=seed)
    return float(-result.F[:, 1].min()) if result.F is not None else float("-inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=1.0, help="milliseconds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    space, table = load_space(find_file("space", "mobilevigv2")), load_table("iphone13-mini")
    base = arch_config(space.base)
    encoding = encode_space(space, base, {name: VARIANTS[name] for name in space.trained_shapes.variants}, table)
    encoding = encoding.keeping_unseen().without_idle_choices()  # as `vig search` does, for all engines alike
    published = np.array([c for c in (encode(encoding.space, base, v) for v in VARIANTS.values()) if c])
    candidates = 40_500

    def best(found) -> float:
        return float(found.score[-1]) if len(found.score) else float("-inf")

    engines: dict[str, Callable[[int], float]] = {
        "vig search": lambda s: best(evolve(encoding, options.budget, published, np.random.default_rng(s))),
        "pymoo NSGA-II": lambda s: nsga2(encoding, options.budget, published, candidates, s),
        "random": lambda s: best(random_search(encoding, options.budget, candidates, np.random.default_rng(s))),
    }
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for seed in range(options.seeds):
        for name, engine in engines.items():
            start = time.process_time()
            score = engine(seed)
            figures[name].append((time.process_time() - start, score))
    summary = {
        name: {"cpu_s": statistics.median(t for t, _ in runs), "top1": statistics.median(s for _, s in runs)}
        for name, runs in figures.items()
    }
    ours = summary["vig search"]
    print(f"{candidates:,} candidates, {options.budget:g} ms, medians of {options.seeds} seeds")
    print(f"{'engine':<15}{'CPU s':>8}{'x vig':>8}{'candidates/s':>15}{'predicted top-1 %':>20}")
    for name, row in summary.items():
        rate = f"{candidates / row['cpu_s']:,.0f}"
        top1 = f"{row['top1']:.2f}" if np.isfinite(row["top1"]) else "found none"
        print(f"{name:<15}{row['cpu_s']:>8.2f}{row['cpu_s'] / ours['cpu_s']:>8.1f}{rate:>15}{top1:>20}")
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()

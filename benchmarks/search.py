"""The engines of `vig search` side by side: candidates a second, and the front that they find.

All get the same encoded space, budget and first candidates; several seeds, interleaved, medians. Seconds are CPU
seconds of the engine's call. Hypervolume: the area above the cheapest network's score and below the budget, in ms x
points, relative to the largest that any run found. "Equal time": each engine gets as many evaluations as it makes in
the time that NSGA-II needs for its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vigcli.config.archs import VARIANTS, arch_config
from vigcli.config.space import encode, load_space
from vigcli.latency.table import load_table
from vigcli.paths import find_file
from vigcli.search.encoder import encode_space
from vigcli.search.encoding import Encoding, Population
from vigcli.search.engines import engine
from vigcli.search.evolution import Found, evolve, random_search
from vigcli.search.exact import exact_best
from vigcli.search.feasibility import cheapest
from vigcli.search.front import hypervolume


class Run(NamedTuple):
    """One engine with one seed."""

    cpu_s: float
    found: Found
    hypervolume: float


class Task(NamedTuple):
    """What all engines are handed."""

    encoding: Encoding
    budget_ms: float
    seeds: Population
    worst_score: float

    def run(self, name: str, seed: int, num_evaluated: int | None) -> Run:
        """An engine by name; `num_evaluated` None: the default of `vig search`."""
        generator = np.random.default_rng(seed)
        args = self.encoding, self.budget_ms, self.seeds, generator
        start = time.process_time()
        if name == "random":
            found = random_search(self.encoding, self.budget_ms, num_evaluated or 0, generator)
        elif name == "vig":
            found = evolve(*args, max_evaluated=num_evaluated)
        else:
            found = engine(name)(*args, num_candidates=num_evaluated or 0)
        cpu_s = time.process_time() - start
        area = hypervolume(found.latency_ms, found.score, self.budget_ms, self.worst_score)
        return Run(cpu_s, found, area)


def make_task(space_name: str, budget_ms: float, shapes: bool) -> Task:
    """The space as `vig search` encodes it; without `shapes`, also the shapes that were never trained."""
    space, table = load_space(find_file("space", space_name)), load_table("iphone13-mini")
    if not shapes:
        space = space.model_copy(update={"trained_shapes": None})
    base = arch_config(space.base)
    trained = {name: VARIANTS[name] for name in space.trained_shapes.variants} if space.trained_shapes else {}
    encoding = encode_space(space, base, trained, [table]).keeping_unseen().without_idle_choices()
    known = [c for c in (encode(encoding.space, base, v) for v in VARIANTS.values()) if c]
    least = np.array([cheapest(encoding)], np.intp)
    seeds = np.concatenate([np.array(known, np.intp).reshape(-1, least.shape[1]), least])
    return Task(encoding, budget_ms, seeds, float(encoding.evaluate(least).score[0]))


def summary(runs: list[Run], largest: float) -> dict[str, float]:
    found = [run.found for run in runs]
    best = [float(f.score[-1]) if len(f.score) else float("nan") for f in found]
    return {
        "cpu_s": statistics.median(run.cpu_s for run in runs),
        "evaluated": statistics.median(f.num_evaluated for f in found),
        "feasible": statistics.median(f.num_feasible for f in found),
        "feasible_per_s": statistics.median(run.found.num_feasible / run.cpu_s for run in runs),
        "hypervolume": statistics.median(run.hypervolume for run in runs) / largest,
        "least_hypervolume": min(run.hypervolume for run in runs) / largest,
        "top1": statistics.median(best),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="mobilevigv2")
    parser.add_argument("--budget", type=float, default=1.0, help="milliseconds")
    parser.add_argument("--any-shape", action="store_true", help="also shapes that were never trained")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=20_000, help="of NSGA-II, and of the rest at equal numbers")
    parser.add_argument("--engines", default="vig,nsga2,nni,random", help="those to run, by comma")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    task, names = make_task(options.space, options.budget, not options.any_shape), options.engines.split(",")
    equal: dict[str, list[Run]] = {name: [] for name in names}
    whole: list[Run] = []
    timed: dict[str, list[Run]] = {name: [] for name in names if name in ("vig", "random")}
    task.run("vig", 0, 2_000)  # imports and first calls are not what is timed
    for seed in range(options.seeds):
        for name in names:
            equal[name].append(task.run(name, seed, options.evaluations))
        whole.append(task.run("vig", seed, None))
        if "nsga2" in names:
            for name, runs in timed.items():
                last = equal[name][-1]
                share = equal["nsga2"][-1].cpu_s / last.cpu_s
                runs.append(task.run(name, seed, min(int(share * last.found.num_evaluated), 2_000_000)))
    start = time.process_time()
    exact = exact_best(task.encoding, task.budget_ms, task.seeds, np.random.default_rng(0))
    exact_s = time.process_time() - start
    groups = {"equal evaluations": equal, "equal time": timed, "as vig search": {"vig": whole}}
    largest = max(run.hypervolume for group in groups.values() for runs in group.values() for run in runs)
    figures = {
        what: {name: summary(runs, largest) for name, runs in group.items() if runs} for what, group in groups.items()
    }
    size = float(np.prod(task.encoding.num_choices.astype(float)))
    print(f"{options.space}, {size:.2g} networks, {options.budget:g} ms, medians of {options.seeds} seeds")
    head = f"{'':<20}{'engine':<9}{'CPU s':>8}{'evaluated':>11}{'feasible':>10}{'feasible/s':>12}"
    print(f"{head}{'hypervolume':>13}{'least':>8}{'top-1 %':>9}")
    for what, rows in figures.items():
        for name, row in rows.items():
            counts = f"{row['evaluated']:>11,.0f}{row['feasible']:>10,.0f}{row['feasible_per_s']:>12,.0f}"
            area = f"{row['hypervolume']:>13.4f}{row['least_hypervolume']:>8.4f}{row['top1']:>9.3f}"
            print(f"{what:<20}{name:<9}{row['cpu_s']:>8.2f}{counts}{area}")
    ratios = {}
    if {"vig", "nsga2"} <= equal.keys():
        pairs = zip(equal["vig"], equal["nsga2"], strict=True)
        ratios["hypervolume_equal_evaluations"] = [a.hypervolume / b.hypervolume for a, b in pairs]
        pairs = zip(timed["vig"], equal["nsga2"], strict=True)
        ratios["hypervolume_equal_time"] = [a.hypervolume / b.hypervolume for a, b in pairs]
        for what, values in ratios.items():
            print(f"vig / NSGA-II, {what}: median {statistics.median(values):.4f}, least {min(values):.4f}")
    proof = "proven" if exact.proven else f"not proven: at most {exact.bound:.3f}"
    print(f"exact best {exact.score:.3f} % ({proof}), {exact.num_bounded:,} partial networks, {exact_s:.2f} CPU s")
    if options.json:
        answer = {
            "figures": figures,
            "ratios": ratios,
            "exact": {"top1": exact.score, "bound": exact.bound, "cpu_s": exact_s},
        }
        options.json.write_text(json.dumps(answer, indent=2) + "\n")


if __name__ == "__main__":
    main()

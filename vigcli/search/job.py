"""The search: a space, a table and a budget in; the best network, the front and what they are compared with out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vigcli.config.archs import VARIANTS, ArchConfig, arch_config, variant_name
from vigcli.config.load import get_path
from vigcli.config.space import SearchSpace, encode
from vigcli.errors import InfeasibleError
from vigcli.latency.table import Interval, LatencyEstimate, LatencyTable
from vigcli.measure.count import ParamCounts
from vigcli.measure.profile import profile
from vigcli.search.encoding import BlockColumns, Encoding, encode_space, score_of
from vigcli.search.evolution import evolve, random_search
from vigcli.search.feasibility import cheapest
from vigcli.search.score import ERROR_POINTS, NOT_IN_THE_SCORE

if TYPE_CHECKING:
    from vigcli.search.built import Built


@dataclass(frozen=True)
class Network:
    """A network that the search speaks of, in full: latency calibrated, `top1_percent` predicted for ImageNet-1k."""

    name: str
    config: ArchConfig
    params: ParamCounts
    macs: int
    latency: LatencyEstimate
    top1_percent: float

    @property
    def latencies(self) -> tuple[LatencyEstimate, ...]:
        """By each table."""
        return (self.latency,)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "arch": self.config.model_dump(mode="json"),
            "params": self.params._asdict(),
            "macs": self.macs,
            "latency_ms": round(self.latency.ms, 4),
            "latency_range_ms": [round(self.latency.low_ms, 4), round(self.latency.high_ms, 4)],
            "latency_kind": self.latency.kind,
            "latency_outside_fit": list(self.latency.outside),
            "top1_percent": round(self.top1_percent, 2),
            "top1_plus_minus": ERROR_POINTS,
            "top1_kind": "predicted",
        }


@dataclass(frozen=True)
class SearchResult:
    """What a search found under `budget_ms`.

    Attributes:
        front: (latency_ms, predicted top-1, configuration) of candidates none of which beats another, by latency.
        random_front: (latency_ms, predicted top-1) of as many random candidates.
        kept: genes that neither price nor score can see; they keep the base's value.
        choices: what the best has for the genes that are neither depths nor widths of stages, nor kept.
        judged_by_size: genes whose worth the score was never shown beyond parameters and MACs.
        second: the next best, where one is known.
        tables: those that price; the networks' latencies are in their order.
        apart: like `front`, of candidates whose shape was never trained.
        history: for each generation `evaluated`, `feasible`, `best_top1` and `hypervolume` so far.
        limits: besides the budget, as the user wrote them.
        undecided: genes that neither price nor score decides, and what they were left at.
        effects: published ablations that the score used: `field`, `value`, `points`, `source`.
        seconds: of CPU time.
        num_feasible: of the evaluated candidates, those that keep every rule and limit.
        built: candidates that were really built, and timed where that was asked for.
    """

    budget_ms: float
    best: Network
    nearest: Network
    published: tuple[Network, ...]
    front: tuple[tuple[float, float, ArchConfig], ...]
    random_front: tuple[tuple[float, float], ...]
    num_evaluated: int
    space_size: int
    interval: Interval
    kept: tuple[str, ...]
    choices: dict[str, Any]
    judged_by_size: tuple[str, ...]
    second: Network | None = None
    tables: tuple[LatencyTable, ...] = ()
    apart: tuple[tuple[float, float, ArchConfig], ...] = ()
    history: tuple[dict[str, Any], ...] = ()
    limits: dict[str, str] = field(default_factory=dict)
    undecided: tuple[str, ...] = ()
    effects: tuple[Any, ...] = ()
    seconds: float = 0.0
    num_feasible: int | None = None
    built: tuple[Built, ...] = ()

    @property
    def beats_random(self) -> bool:
        """Whether the best scores higher than the best of as many random candidates."""
        return not self.random_front or self.best.top1_percent > max(score for _, score in self.random_front)


def search(
    space: SearchSpace,
    table: LatencyTable,
    budget_ms: float,
    *,
    resolution: int | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> SearchResult:
    """The network of the greatest predicted accuracy that the table prices at or below `budget_ms`.

    Raises InfeasibleError with the smallest latency of the space when nothing meets the budget.
    """
    base = arch_config(space.base)
    changes = {"resolution": resolution or base.resolution, "num_classes": num_classes or base.num_classes}
    base = base.changed(changes)
    space = space.sound_at(base)
    generator = np.random.default_rng(seed)
    family = {name: config.changed(changes) for name, config in VARIANTS.items() if type(config) is type(base)}
    trained = {name: family[name] for name in space.trained_shapes.variants} if space.trained_shapes else {}
    full = encode_space(space, base, trained, table, lambda done, total: on_progress("counting", done, total))
    encoding = full.keeping_unseen().without_idle_choices()
    known = (encode(encoding.space, base, config) for config in family.values())
    seeds = np.array([candidate for candidate in known if candidate], np.intp).reshape(-1, len(space.genes))
    least = cheapest(encoding, seeds, generator)
    _check_budget(encoding, least, budget_ms)
    seeds = np.concatenate([seeds, np.array([least])])
    found = evolve(
        encoding, budget_ms, seeds, generator, on_progress=lambda n, total: on_progress("evolving", n, total)
    )
    chance = random_search(encoding, budget_ms, found.num_evaluated, generator)
    published = tuple(describe(name, config, table) for name, config in family.items())
    config = encoding.config(found.candidates[-1])
    data = config.model_dump(mode="json")
    genes = [path for path, choices in space.genes.items() if choices[1:]]
    seen = {path for path, is_seen in zip(space.genes, full.seen(), strict=True) if is_seen}
    best = describe(variant_name(config) or "found", config, table)
    assert abs(best.latency.ms - found.latency_ms[-1]) < 1e-4, "the encoding prices a network unlike its trace"
    front = zip(found.latency_ms, found.score, map(encoding.config, found.candidates), strict=True)
    return SearchResult(
        budget_ms,
        best,
        nearest_published(published, budget_ms),
        published,
        tuple((float(ms), float(score), config) for ms, score, config in front),
        tuple(zip(chance.latency_ms.tolist(), chance.score.tolist(), strict=True)),
        found.num_evaluated,
        space.size,
        table.interval,
        tuple(path for path in genes if path not in seen),
        {path: get_path(data, path) for path in genes if path in seen and not re.search(r"\.(\w+_depth|width)$", path)},
        tuple(
            path
            for path in genes
            if path in seen and re.split(r"[.\[]", path)[-1 - path.endswith("]")] in NOT_IN_THE_SCORE
        ),
        tables=(table,),
    )


def describe(name: str, config: ArchConfig, table: LatencyTable) -> Network:
    """A network counted, priced and scored by itself."""
    counted = profile(config)
    columns = BlockColumns(table).segments(config).sum(0)
    top1 = float(score_of(columns[None], config)[0])
    return Network(name, config, counted.params, counted.macs, counted.latency(table), top1)


def nearest_published(published: Sequence[Network], budget_ms: float) -> Network:
    """The slowest published network at or below the budget, else the fastest of all."""
    below = [network for network in published if network.latency.ms <= budget_ms]
    return max(below, key=lambda n: n.latency.ms) if below else min(published, key=lambda n: n.latency.ms)


def _check_budget(encoding: Encoding, least: tuple[int, ...] | None, budget_ms: float) -> None:
    if least is None:
        raise InfeasibleError("no network of the space keeps its own rules.", "Widen trained_shapes or the genes.")
    ms = float(encoding.evaluate(np.array([least])).latency_ms[0])
    if ms > budget_ms:
        smallest = np.ceil(1000 * ms) / 1000
        raise InfeasibleError(
            f"no network of the space meets {budget_ms:g} ms: the smallest latency is {smallest:.3f} ms "
            f"(calibrated, {encoding.table.device}, {encoding.base.resolution} px).",
            f"Try --budget {np.ceil(100 * ms) / 100:.2f}ms, or a smaller --resolution.",
        )

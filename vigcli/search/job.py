"""The search: spaces, tables and a budget in; the best network, the front and what they are compared with out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vigcli.config.archs import PUBLISHED, VARIANTS, ArchConfig, arch_config, variant_name
from vigcli.config.load import get_path
from vigcli.config.space import SearchSpace, encode
from vigcli.errors import InfeasibleError
from vigcli.latency.table import Interval, LatencyEstimate, LatencyTable, distinguishable
from vigcli.measure.count import ParamCounts
from vigcli.measure.profile import profile
from vigcli.search.effects import Effect, decided, effects
from vigcli.search.encoding import Columns, Encoding, Limits, Population, encode_space, score_of, shape_of
from vigcli.search.evolution import Found, evolve, random_search
from vigcli.search.feasibility import cheapest, least
from vigcli.search.score import NOT_IN_THE_SCORE, TIE_POINTS, load_score
from vigcli.search.ties import choose, closeness

Progress = Callable[[str, int, int], None]
BRIDGES = 20_000  # candidates between the front and published networks, among which a tie is decided
_NEAR_FRONT = 64


@dataclass(frozen=True)
class Network:
    """A network that the search speaks of, in full: `top1_percent` is predicted for ImageNet-1k.

    Attributes:
        latencies: by each table; `latency` is the greatest.
        memory_bytes: the most fp16 activations alive at once.
        published_top1: in percent, where a paper prints it.
    """

    name: str
    config: ArchConfig
    params: ParamCounts
    macs: int
    latencies: tuple[LatencyEstimate, ...]
    top1_percent: float
    size_bytes: float
    memory_bytes: int
    published_top1: float | None = None
    effects: tuple[Effect, ...] = ()

    @property
    def latency(self) -> LatencyEstimate:
        return max(self.latencies, key=lambda estimate: estimate.ms)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "arch": self.config.model_dump(mode="json"),
            "params": self.params._asdict(),
            "macs": self.macs,
            "weights_bytes": round(self.size_bytes),
            "peak_activation_bytes": self.memory_bytes,
            "latency_ms": round(self.latency.ms, 4),
            "latency_range_ms": [round(self.latency.low_ms, 4), round(self.latency.high_ms, 4)],
            "latency_kind": self.latency.kind,
            "latency_outside_fit": list(self.latency.outside),
            "latencies": [
                {"device": e.device, "ms": round(e.ms, 4), "range_ms": [round(e.low_ms, 4), round(e.high_ms, 4)]}
                for e in self.latencies
            ],
            "top1_percent": round(self.top1_percent, 2),
            "top1_plus_minus": load_score().interval(self.config.family).points_90,
            "top1_kind": "predicted",
            "top1_percent_published": self.published_top1,
        }


Point = tuple[float, float, ArchConfig]  # latency_ms, predicted top-1, the network


@dataclass(frozen=True)
class SearchResult:
    """What a search found under `budget_ms`.

    Attributes:
        second: the runner-up: the one of greatest predicted top-1 besides the best; None where there is no other.
        start: the user's own network that the search began from.
        front: candidates none of which beats another, by latency.
        apart: the front of candidates that keep every rule but that their shapes were trained.
        random_front: (latency_ms, predicted top-1) of as many random candidates.
        num_evaluated: candidates that the engine priced and scored.
        num_feasible: of those, distinct ones that kept budget and rules.
        kept: genes that neither price nor score can see; they keep the base's value.
        undecided: genes whose worth neither the score nor a published ablation tells; they keep the base's value.
        choices: what the best has for the genes that are neither depths nor widths of stages, nor held.
        judged_by_size: genes whose worth the score was never shown beyond parameters and MACs.
        seconds: of the engine.
    """

    budget_ms: float
    best: Network
    second: Network | None
    nearest: Network
    start: Network | None
    published: tuple[Network, ...]
    front: tuple[Point, ...]
    apart: tuple[Point, ...]
    random_front: tuple[tuple[float, float], ...]
    num_evaluated: int
    num_feasible: int
    space_size: int
    tables: tuple[LatencyTable, ...]
    limits: dict[str, str]
    kept: tuple[str, ...]
    undecided: tuple[str, ...]
    choices: dict[str, Any]
    judged_by_size: tuple[str, ...]
    seconds: float
    history: tuple[dict[str, Any], ...] = ()
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def interval(self) -> Interval:
        """The widest of the tables'."""
        return max((table.interval for table in self.tables), key=lambda interval: interval.factor)

    @property
    def beats_random(self) -> bool:
        """Whether the best of the front scores higher than the best of as many random candidates."""
        return not self.random_front or self.front[-1][1] > max(score for _, score in self.random_front)

    def tells_apart(self, other: Network) -> bool:
        """Whether the best can be told from another network, by predicted top-1 or by latency."""
        gap = abs(self.best.top1_percent - other.top1_percent)
        return gap >= TIE_POINTS or distinguishable(self.best.latency.ms, other.latency.ms)


@dataclass(frozen=True)
class Member:
    """One space of a search, encoded.

    Attributes:
        full: with every gene that is decided; `encoding` without what nothing sees, and without idle choices.
        variants: the family's published networks at the search's resolution and classes.
        seeds: those of them, and the user's own network, that lie in the space.
    """

    full: Encoding
    encoding: Encoding
    variants: Mapping[str, ArchConfig]
    seeds: Population
    undecided: tuple[str, ...]

    def shapes(self) -> np.ndarray:
        """Shapes of the published networks: (variants, stages, numbers)."""
        columns = Columns(self.encoding.tables)
        return np.stack([shape_of(config, columns) for config in self.variants.values()])


def search(
    spaces: Sequence[SearchSpace],
    tables: Sequence[LatencyTable],
    budget_ms: float,
    *,
    limits: Limits = Limits(),
    start: ArchConfig | None = None,
    risk: float = 0.0,
    resolution: int | None = None,
    num_classes: int | None = None,
    num_candidates: int = 200_000,
    seed: int = 0,
    on_progress: Progress = lambda what, done, total: None,
) -> SearchResult:
    """The network of the greatest predicted accuracy that every table prices at or below `budget_ms`.

    Args:
        spaces: searched one by one, their fronts joined; the candidates are shared out evenly.
        start: a network of the user's own; it is evaluated whatever else is.
        risk: by how much of the tables' interval the budget is moved: -1 where the upper end of the interval must keep
            it, 1 where the lower end is enough.

    Raises InfeasibleError with the smallest latency of the spaces when nothing meets the budget.
    """
    generator = np.random.default_rng(seed)
    members = [
        prepare(space, tables, limits, start, resolution, num_classes, lambda n, total: on_progress("counting", n, total))
        for space in spaces
    ]
    strictest = max(table.interval.factor for table in tables) if risk < 0 else min(t.interval.factor for t in tables)
    bound_ms = budget_ms * strictest**risk
    fastest = [fastest_of(member, generator) for member in members]
    _check_budget(members, fastest, budget_ms, bound_ms, generator)
    began = time.process_time()
    founds, apart, chance = [], [], []
    running = [(m, f) for m, f in zip(members, fastest, strict=True) if f is not None and f[1] <= bound_ms]
    share = num_candidates // len(running)
    for i, (member, (candidate, _)) in enumerate(running):
        seeds = np.concatenate([member.seeds, np.array([candidate])])
        found = _evolved(member.encoding, bound_ms, seeds, generator, share, i, len(running), on_progress)
        founds.append(found)
    seconds = time.process_time() - began
    for (member, _), found in zip(running, founds, strict=True):
        chance.append(random_search(member.encoding, bound_ms, found.num_evaluated, generator))
        apart += _apart(member, bound_ms, found, share // 10, generator)
    config, second = _chosen([m for m, _ in running], founds, bound_ms, generator)
    columns = Columns(tables)
    published = tuple(
        describe(name, config, columns) for member in members for name, config in member.variants.items()
    )
    best = describe(_name(config), config, columns)
    assert best.latency.ms <= bound_ms + 1e-9, "the encoding prices a network unlike its trace"
    front = _front([p for (m, _), f in zip(running, founds, strict=True) for p in _points(m.encoding, f)])
    home = next(member for member in members if type(member.encoding.base) is type(config))
    return SearchResult(
        budget_ms=budget_ms,
        best=best,
        second=None if second is None else describe(_name(second), second, columns),
        nearest=nearest_published(published, budget_ms),
        start=None if start is None else describe("yours", start, columns),
        published=published,
        front=tuple(front),
        apart=tuple(_front(apart)),
        random_front=tuple((ms, score) for f in chance for ms, score in zip(f.latency_ms.tolist(), f.score.tolist())),
        num_evaluated=sum(f.num_evaluated for f in founds),
        num_feasible=sum(f.num_feasible for f in founds),
        space_size=sum(space.size for space in spaces),
        tables=tuple(tables),
        limits={name: f"{value:g}" for name, value in limits._asdict().items() if value < np.inf},
        undecided=home.undecided,
        seconds=seconds,
        **_genes(home, config),
    )


def prepare(
    space: SearchSpace,
    tables: Sequence[LatencyTable],
    limits: Limits = Limits(),
    start: ArchConfig | None = None,
    resolution: int | None = None,
    num_classes: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Member:
    """Encode a space at a resolution and number of classes (default: the base's own), ready to be searched.

    Raises ConfigError for a resolution that the space does not bear.
    """
    base = start if start is not None else arch_config(space.base)
    changes = {"resolution": resolution or base.resolution, "num_classes": num_classes or base.num_classes}
    base = base.changed(changes)
    space = space.sound_at(base)
    space, undecided = _decided(space, base)
    variants = {name: config.changed(changes) for name, config in VARIANTS.items() if type(config) is type(base)}
    trained = {name: variants[name] for name in space.trained_shapes.variants} if space.trained_shapes else {}
    full = encode_space(space, base, trained, tables, limits, on_progress)
    encoding = full.keeping_unseen().without_idle_choices()
    known = (encode(encoding.space, base, config) for config in (*variants.values(), base))
    seeds = np.array(sorted({candidate for candidate in known if candidate}), np.intp).reshape(-1, len(space.genes))
    return Member(full, encoding, variants, seeds, undecided)


def describe(name: str, config: ArchConfig, columns: Columns) -> Network:
    """A network counted, priced and scored by itself."""
    counted = profile(config)
    total = columns.network(config)
    top1 = float(score_of(total[None], config)[0])
    known = PUBLISHED.get(name)
    return Network(
        name,
        config,
        counted.params,
        counted.macs,
        tuple(counted.latency(table) for table in columns.tables),
        top1,
        sum(block.trace.weight_mb for block in counted.blocks) * 1e6,
        counted.peak_bytes,
        None if known is None or config != VARIANTS[name] else known.top1,
        effects(config),
    )


def nearest_published(published: Sequence[Network], budget_ms: float) -> Network:
    """The slowest published network at or below the budget, else the fastest of all."""
    below = [network for network in published if network.latency.ms <= budget_ms]
    return max(below, key=lambda n: n.latency.ms) if below else min(published, key=lambda n: n.latency.ms)


def _name(config: ArchConfig) -> str:
    return variant_name(config) or "found"


def _last_part(path: str) -> str:
    """The field that a path ends in: `stages[1].mixer` -> `mixer`, `neighbours[0]` -> `neighbours`."""
    return re.split(r"[.\[]", path)[-1 - path.endswith("]")]


def _decided(space: SearchSpace, base: ArchConfig) -> tuple[SearchSpace, tuple[str, ...]]:
    """The space with choices that neither the score nor a published ablation tells apart held at the base's value, or
    the nearest to it, and the genes that are so held."""
    data, genes, undecided = base.model_dump(mode="json"), dict(space.genes), []
    for path, choices in space.genes.items():
        if _last_part(path) in NOT_IN_THE_SCORE and choices[1:]:
            known = tuple(choice for choice in choices if decided(base.family, path, choice))
            genes[path] = known if known[1:] else (choices[space.nearest_choice(data, path)],)
            undecided += [] if known[1:] else [path]
    return space.model_copy(update={"genes": genes}), tuple(undecided)


def _genes(member: Member, best: ArchConfig) -> dict[str, Any]:
    """What is said of the genes of the best network's space."""
    data = best.model_dump(mode="json")
    free = [path for path, choices in member.full.space.genes.items() if choices[1:]]
    seen = {path for path, is_seen in zip(member.full.space.genes, member.full.seen(), strict=True) if is_seen}
    return {
        "kept": tuple(path for path in free if path not in seen),
        "choices": {
            path: get_path(data, path) for path in free if path in seen and not re.search(r"\.(\w+_depth|width)$", path)
        },
        "judged_by_size": tuple(path for path in free if path in seen and _last_part(path) in NOT_IN_THE_SCORE),
    }


def fastest_of(member: Member, generator: np.random.Generator) -> tuple[tuple[int, ...], float] | None:
    """The candidate of least latency that keeps every rule and limit, and its milliseconds; None without any."""
    candidate = cheapest(member.encoding, member.seeds, generator)
    if candidate is None:
        return None
    return candidate, float(member.encoding.evaluate(np.array([candidate])).latency_ms[0])


def _check_budget(
    members: Sequence[Member],
    fastest: Sequence[tuple[Any, float] | None],
    budget_ms: float,
    bound_ms: float,
    generator: np.random.Generator,
) -> None:
    known = [(ms, member) for found, member in zip(fastest, members, strict=True) if found for ms in found[1:]]
    if not known:
        raise _too_tight(members, generator)
    ms, member = min(known, key=lambda pair: pair[0])
    if ms <= bound_ms:
        return
    devices = ", ".join(table.device for table in member.encoding.tables)
    smallest, needed = np.ceil(1000 * ms) / 1000, np.ceil(100 * ms * budget_ms / bound_ms) / 100
    moved = f" ({bound_ms:.3f} ms with --risk)" if bound_ms != budget_ms else ""
    raise InfeasibleError(
        f"no network of the space meets {budget_ms:g} ms{moved}: the smallest latency is {smallest:.3f} ms "
        f"({member.encoding.tables[0].kind}, {devices}, {member.encoding.base.resolution} px).",
        f"Try --budget {needed:.2f}ms, or a smaller --resolution.",
    )


_OPTIONS = {"params": "--max-params", "macs": "--max-macs", "weight_mb": "--max-size", "peak_mb": "--max-memory"}


def _too_tight(members: Sequence[Member], generator: np.random.Generator) -> InfeasibleError:
    """Which limit nothing keeps, and the least that something has."""
    limits = members[0].encoding.limits
    free = [replace(member.encoding, limits=Limits()) for member in members]
    for limit, (column, option) in zip(limits, _OPTIONS.items(), strict=True):
        reached = [least(e, column, cheapest(e, m.seeds, generator)) for e, m in zip(free, members, strict=True)]
        known = [value for value in reached if value is not None] if limit < np.inf else []
        if known and min(known) > limit:
            value = np.ceil(min(known) * (1 if column.endswith("mb") else 1e-6) * 100) / 100
            text = f"{value:.2f}{'MB' if column.endswith('mb') else 'M'}"
            return InfeasibleError(
                f"no network of the space keeps {option}: the least of any is {text}.",
                f"Try {option} {text}, or a smaller --resolution.",
            )
    if any(limit < np.inf for limit in limits):
        return InfeasibleError("no network of the space keeps all limits at once.", "Loosen one of the --max-... limits.")
    return InfeasibleError("no network of the space keeps its own rules.", "Widen trained_shapes or the genes.")


# ------------------------------------------------------------------------------------------------ fronts and ties


def _points(encoding: Encoding, found: Found) -> list[Point]:
    rows = zip(found.latency_ms.tolist(), found.score.tolist(), found.candidates, strict=True)
    return [(ms, score, encoding.config(candidate)) for ms, score, candidate in rows]


def _front(points: Sequence[Point]) -> list[Point]:
    """Those of which none beats another, by rising latency."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not found or point[1] > found[-1][1]:
            found.append(point)
    return found


def _apart(
    member: Member, bound_ms: float, found: Found, num_candidates: int, generator: np.random.Generator
) -> list[Point]:
    """What the score would choose if it did not matter whether a shape was ever trained."""
    if member.full.trained is None:
        return []
    free = member.full.keeping_unseen().ignoring_shapes().without_idle_choices()
    configs = map(member.encoding.config, found.candidates)
    seeds = [candidate for config in configs if (candidate := encode(free.space, free.base, config))]
    wild = _evolved(free, bound_ms, np.array(seeds[-100:], np.intp), generator, num_candidates)
    ruled = replace(free, parts=member.full.keeping_unseen().parts, trained=member.full.trained)
    untrained = ruled.evaluate(wild.candidates).violation > 0
    return [point for point, is_apart in zip(_points(free, wild), untrained, strict=True) if is_apart]


def _chosen(
    members: Sequence[Member], founds: Sequence[Found], bound_ms: float, generator: np.random.Generator
) -> tuple[ArchConfig, ArchConfig | None]:
    """The best and the runner-up: a tie in predicted top-1 goes to the shape closest to a published one."""
    top = max(float(found.score[-1]) for found in founds)
    rows: list[tuple[int, Population]] = []
    score, latency_ms, distance = [], [], []
    for i, (member, found) in enumerate(zip(members, founds, strict=True)):
        pool = _pool(member.encoding, found, member.seeds, generator)
        values = member.encoding.evaluate(pool)
        near = (values.violation == 0) & (values.latency_ms <= bound_ms) & (values.score >= top - TIE_POINTS)
        if near.any():
            rows += [(i, row) for row in pool[near]]
            score.append(values.score[near])
            latency_ms.append(values.latency_ms[near])
            distance.append(closeness(member.encoding.shapes(pool[near]), member.shapes()))
    scores = np.concatenate(score)
    chosen = choose(scores, np.concatenate(latency_ms), np.concatenate(distance))
    configs = [members[i].encoding.config(row) for i, row in (rows[chosen], *(rows[j] for j in np.argsort(-scores)[:2]))]
    others = [config for config in configs[1:] if config != configs[0]]
    return configs[0], others[0] if others else None


def _pool(encoding: Encoding, found: Found, seeds: Population, generator: np.random.Generator) -> Population:
    """The front, the published networks, and candidates between the two."""
    near = found.candidates[-_NEAR_FRONT:]
    pool = [found.candidates, seeds]
    if len(seeds):
        ones = near[generator.integers(len(near), size=BRIDGES)]
        others = seeds[generator.integers(len(seeds), size=BRIDGES)]
        pool.append(np.where(generator.random(ones.shape) < generator.random((BRIDGES, 1)), ones, others))
    return np.unique(np.concatenate(pool), axis=0)


def _evolved(
    encoding: Encoding,
    bound_ms: float,
    seeds: Population,
    generator: np.random.Generator,
    num_candidates: int,
    turn: int = 0,
    turns: int = 1,
    on_progress: Progress = lambda what, done, total: None,
) -> Found:
    size = 500
    return evolve(
        encoding, bound_ms, seeds, generator, population_size=size, generations=max(num_candidates // size - 1, 1),
        on_progress=lambda n, total: on_progress("evolving", turn * total + n, turns * total),
    )  # fmt: skip

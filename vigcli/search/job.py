"""The search: spaces, tables and a budget in; the best network, the front and what they are compared with out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vigcli.config.archs import ArchConfig, variant_name
from vigcli.config.load import get_path
from vigcli.config.space import SearchSpace, encode
from vigcli.errors import UsageError
from vigcli.latency.table import Interval, LatencyTable, distinguishable
from vigcli.search.columns import NO_LIMITS, Columns, Limits
from vigcli.search.encoding import Encoding, Population
from vigcli.search.engines import engine
from vigcli.search.evolution import Found, evolve, random_search
from vigcli.search.exact import Exact, exact_best
from vigcli.search.history import HISTORY_FILE, History, fixed_of, lines_of
from vigcli.search.members import Member, check_budget, fastest_of, last_part, prepare
from vigcli.search.networks import Network, describe, nearest_published
from vigcli.search.score import NOT_IN_THE_SCORE, TIE_POINTS
from vigcli.search.ties import choose, closeness

if TYPE_CHECKING:
    from vigcli.search.built import Built

Progress = Callable[[str, int, int], None]
Point = tuple[float, float, ArchConfig]  # latency_ms, predicted top-1, the network
BRIDGES = 20_000  # candidates between the front and published networks, among which a tie is decided
_NEAR_FRONT = 64


@dataclass(frozen=True)
class Settings:
    """What a search is asked for.

    Attributes:
        budget_ms: that every table must price a network at or below.
        limits: what a network may have besides.
        start: a network of the user's own; it is evaluated whatever else is.
        risk: by how much of the tables' interval the budget is moved: -1 where the upper end of the interval must keep
            it, 1 where the lower end is enough.
        resolution: pixels; default: of the space's base.
        num_candidates: that the engine evaluates; members of a mixed space share them evenly.
        exact: also prove which candidate is the best.
        jobs: threads.
    """

    budget_ms: float
    limits: Limits = NO_LIMITS
    start: ArchConfig | None = None
    risk: float = 0.0
    resolution: int | None = None
    num_classes: int | None = None
    engine: str = "vig"
    num_candidates: int = 200_000
    exact: bool = False
    seed: int = 0
    jobs: int = 1

    def bound_ms(self, tables: Sequence[LatencyTable]) -> float:
        """The budget, moved by the risk."""
        factors = [table.interval.factor for table in tables]
        return float(self.budget_ms * (max(factors) if self.risk < 0 else min(factors)) ** self.risk)


@dataclass(frozen=True)
class SearchResult:
    """What a search found under `budget_ms`.

    Attributes:
        nearest_keeps: whether the nearest published network keeps budget and limits; else it is the fastest of all.
        second: the runner-up: the one of greatest predicted top-1 besides the best; None where there is no other.
        start: the user's own network that the search began from.
        front: candidates none of which beats another, by latency.
        apart: the front of candidates that keep every rule but that their shapes were trained.
        doubtful: the best of members whose prices are not to be trusted; they are not compared with the others.
        random_front: (latency_ms, predicted top-1) of as many random candidates.
        num_evaluated: candidates that the engine priced and scored.
        num_feasible: of those, distinct ones that kept budget and rules.
        kept: genes that neither price nor score can see; they keep the base's value.
        undecided: genes whose worth neither the score nor a published ablation tells; they keep the base's value.
        choices: what the best has for the genes that are neither depths nor widths of stages, nor held.
        by_ablations: genes whose worth, beyond parameters and MACs, published ablations alone tell.
        exact: the proven best of each member, where it was asked for.
        seconds: CPU time of the engine.
        history: a line for each generation.
        bound_ms: the budget, moved by the risk.
        built: candidates that were really built, and timed where that was asked for.
    """

    budget_ms: float
    best: Network
    second: Network | None
    nearest: Network
    nearest_keeps: bool
    start: Network | None
    published: tuple[Network, ...]
    front: tuple[Point, ...]
    apart: tuple[Point, ...]
    doubtful: tuple[Network, ...]
    random_front: tuple[tuple[float, float], ...]
    num_evaluated: int
    num_feasible: int
    space_size: int
    tables: tuple[LatencyTable, ...]
    limits: dict[str, str]
    kept: tuple[str, ...]
    undecided: tuple[str, ...]
    choices: dict[str, Any]
    by_ablations: tuple[str, ...]
    exact: tuple[Exact, ...]
    seconds: float
    bound_ms: float
    history: tuple[dict[str, Any], ...] = ()
    built: tuple[Built, ...] = ()

    @property
    def interval(self) -> Interval:
        """The widest of the tables'."""
        return max((table.interval for table in self.tables), key=lambda interval: interval.factor)

    @property
    def beats_random(self) -> bool:
        """Whether the best of the front scores higher than the best of as many random candidates."""
        return not self.random_front or self.front[-1][1] > max(score for _, score in self.random_front)

    def candidates(self, most: int) -> list[tuple[str, ArchConfig]]:
        """The best, the second, and the front from its best end, each network once."""
        named = [("best", self.best.config)]
        named += [("second", self.second.config)] if self.second is not None else []
        known = [config for _, config in named]
        others = [config for _, _, config in reversed(self.front) if config not in known]
        return [*named, *((f"front {i}", config) for i, config in enumerate(others, 1))][:most]

    def tells_apart(self, other: Network) -> bool:
        """Whether the best can be told from another network, by predicted top-1 or by latency."""
        gap = abs(self.best.top1_percent - other.top1_percent)
        return gap >= TIE_POINTS or distinguishable(self.best.latency.ms, other.latency.ms)


def search(
    spaces: Sequence[SearchSpace],
    tables: Sequence[LatencyTable],
    settings: Settings,
    run: Path | None = None,
    *,
    resume: bool = False,
    on_progress: Progress = lambda what, done, total: None,
) -> SearchResult:
    """The network of the greatest predicted accuracy that every table prices at or below the budget.

    Args:
        spaces: searched one by one, their fronts joined.
        run: the directory that gets the history; without one there is none, and no resuming.
        resume: go on from the state that `run` holds.

    Raises InfeasibleError with the smallest latency of the spaces when nothing meets the budget, ConfigError for a run
    that cannot be gone on with.
    """
    members = [
        prepare(space, tables, settings.limits, settings.start, settings.resolution, settings.num_classes,
                lambda done, total: on_progress("counting", done, total))
        for space in spaces
    ]  # fmt: skip
    bound_ms = settings.bound_ms(tables)
    fastest = [fastest_of(member) for member in members]
    check_budget(members, fastest, settings.budget_ms, bound_ms, np.random.default_rng(settings.seed))
    running = [
        replace(member, seeds=np.concatenate([member.seeds, np.array([found[0]])]))
        for member, found in zip(members, fastest, strict=True)
        if found is not None and found[1] <= bound_ms
    ]
    began = time.process_time()
    looked = []
    for i, member in enumerate(running):
        folder = run if run is None or len(spaces) == 1 else run / member.name

        def advance(done: int, total: int, turn: int = i) -> None:
            on_progress("evolving", turn * total + done, len(running) * total)

        looked.append(_looked_through(member, bound_ms, settings, len(running), folder, resume, advance))
    seconds = time.process_time() - began
    return _answer(spaces, tables, settings, bound_ms, members, list(zip(running, looked, strict=True)), seconds)


_Looked = tuple[Found, Exact | None, tuple[dict[str, Any], ...]]  # what an engine found, what was proven, how it went


def _looked_through(
    member: Member,
    bound_ms: float,
    settings: Settings,
    num_members: int,
    folder: Path | None,
    resume: bool,
    on_progress: Callable[[int, int], None],
) -> _Looked:
    generator = np.random.default_rng(settings.seed)
    num_candidates = settings.num_candidates // num_members
    lines: tuple[dict[str, Any], ...] = ()
    if settings.engine != "vig":
        if resume:
            raise UsageError(f"--engine {settings.engine} leaves no state to resume from.", "Leave --resume out.")
        found = engine(settings.engine)(
            member.encoding, bound_ms, member.seeds, generator, num_candidates=num_candidates, on_progress=on_progress
        )
    elif folder is None:
        found = evolve(
            member.encoding, bound_ms, member.seeds, generator, num_candidates=num_candidates, jobs=settings.jobs,
            on_progress=on_progress,
        )  # fmt: skip
    else:
        folder.mkdir(exist_ok=True)
        fixed = fixed_of(member.encoding, bound_ms, settings.seed, num_candidates)
        with History(folder, fixed, bound_ms) as history:
            state = history.restore() if resume and (folder / HISTORY_FILE).is_file() else None
            found = evolve(
                member.encoding, bound_ms, member.seeds, generator, num_candidates=num_candidates, jobs=settings.jobs,
                state=state, on_generation=history, on_progress=on_progress,
            )  # fmt: skip
        lines = lines_of(folder)
    seeds = np.unique(np.concatenate([member.seeds, found.candidates[-1:]]), axis=0)
    exact = exact_best(member.encoding, bound_ms, seeds, generator) if settings.exact else None
    return found, exact, lines


def _answer(
    spaces: Sequence[SearchSpace],
    tables: Sequence[LatencyTable],
    settings: Settings,
    bound_ms: float,
    members: Sequence[Member],
    looked: Sequence[tuple[Member, _Looked]],
    seconds: float,
) -> SearchResult:
    columns, generator = Columns(tables), np.random.default_rng(settings.seed)
    tops = [describe("found", m.encoding.config(found.candidates[-1]), columns) for m, (found, *_) in looked]
    trusted = [not top.latency.outside for top in tops]
    believed = [pair for pair, is_trusted in zip(looked, trusted, strict=True) if is_trusted or not any(trusted)]
    config, second = _chosen([(m, found, exact) for m, (found, exact, _) in believed], bound_ms, generator)
    best = describe(_name(config), config, columns)
    assert best.latency.ms <= bound_ms * (1 + 1e-9), "the encoding prices a network unlike its trace"
    published = tuple(
        describe(name, variant, columns) for member in members for name, variant in member.variants.items()
    )
    chance = [random_search(m.encoding, bound_ms, found.num_evaluated, generator) for m, (found, *_) in believed]
    share = settings.num_candidates // len(looked) // 10
    home = next(member for member in members if type(member.encoding.base) is type(config))
    return SearchResult(
        budget_ms=settings.budget_ms,
        best=best,
        second=None if second is None else describe(_name(second), second, columns),
        nearest=nearest_published(published, bound_ms, settings.limits),
        nearest_keeps=any(network.keeps(bound_ms, settings.limits) for network in published),
        start=None if settings.start is None else describe("yours", settings.start, columns),
        published=published,
        front=tuple(_front([p for m, (found, *_) in believed for p in _points(m.encoding, found)])),
        apart=tuple(_front([p for m, (found, *_) in believed for p in _apart(m, bound_ms, found, share, generator)])),
        doubtful=tuple(top for top in tops if top.latency.outside and any(trusted)),
        random_front=tuple(
            pair for found in chance for pair in zip(found.latency_ms.tolist(), found.score.tolist(), strict=True)
        ),
        num_evaluated=sum(found.num_evaluated for _, (found, *_) in looked),
        num_feasible=sum(found.num_feasible for _, (found, *_) in looked),
        space_size=sum(space.size for space in spaces),
        tables=tuple(tables),
        limits=settings.limits.texts(),
        undecided=home.undecided,
        exact=tuple(exact for _, (_, exact, _) in looked if exact is not None),
        seconds=seconds,
        bound_ms=bound_ms,
        history=tuple(line for _, (_, _, lines) in looked for line in lines),
        **_genes(home, config),
    )


def _name(config: ArchConfig) -> str:
    return variant_name(config) or "found"


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
        "by_ablations": tuple(path for path in free if path in seen and last_part(path) in NOT_IN_THE_SCORE),
    }


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
    full = member.full.keeping_unseen()
    free = full.ignoring_shapes().without_idle_choices()
    configs = map(member.encoding.config, found.candidates[-100:])
    seeds = [candidate for config in configs if (candidate := encode(free.space, free.base, config))]
    wild = evolve(free, bound_ms, np.array(seeds, np.intp), generator, num_candidates=num_candidates)
    points = _points(free, wild)
    rows = [encode(full.space, full.base, config) for *_, config in points]
    is_apart = full.evaluate(np.array(rows, np.intp)).violation > 0
    return [point for point, apart in zip(points, is_apart, strict=True) if apart]


def _chosen(
    looked: Sequence[tuple[Member, Found, Exact | None]], bound_ms: float, generator: np.random.Generator
) -> tuple[ArchConfig, ArchConfig | None]:
    """The best and the runner-up: a tie in predicted top-1 goes to the shape closest to a published one."""
    top = max(float(found.score[-1]) for _, found, _ in looked)
    rows: list[tuple[Encoding, Population]] = []
    score, latency_ms, distance = [], [], []
    for member, found, exact in looked:
        pool = _pool(member, found, exact, generator)
        values = member.encoding.evaluate(pool)
        near = (values.violation == 0) & (values.latency_ms <= bound_ms) & (values.score >= top - TIE_POINTS)
        if near.any():
            rows += [(member.encoding, row) for row in pool[near]]
            score.append(values.score[near])
            latency_ms.append(values.latency_ms[near])
            distance.append(closeness(member.encoding.shapes(pool[near]), member.shapes()))
    scores = np.concatenate(score)
    chosen = choose(scores, np.concatenate(latency_ms), np.concatenate(distance))
    best, *others = [
        encoding.config(row) for encoding, row in (rows[i] for i in (chosen, *np.argsort(-scores, kind="stable")[:2]))
    ]
    second = [config for config in others if config != best]
    return best, second[0] if second else None


def _pool(member: Member, found: Found, exact: Exact | None, generator: np.random.Generator) -> Population:
    """The front, the published networks, and candidates between the two."""
    near, seeds = found.candidates[-_NEAR_FRONT:], member.seeds
    pool = [found.candidates, seeds]
    if exact is not None and exact.candidate is not None:
        pool.append(np.array([exact.candidate], np.intp))
    ones = near[generator.integers(len(near), size=BRIDGES)]
    others = seeds[generator.integers(len(seeds), size=BRIDGES)]
    pool.append(np.where(generator.random(ones.shape) < generator.random((BRIDGES, 1)), ones, others))
    return np.unique(np.concatenate(pool), axis=0)

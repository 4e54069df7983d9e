"""A space made ready to be searched: what is decided, encoded, and whether a budget can be met at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vigcli.config.archs import VARIANTS, ArchConfig, arch_config
from vigcli.config.space import SearchSpace, encode
from vigcli.errors import InfeasibleError
from vigcli.latency.table import LatencyTable
from vigcli.search.columns import MACS, NO_LIMITS, PARAMS, PEAK_MB, WEIGHT_MB, Columns, Limits, shape_of
from vigcli.search.effects import decided
from vigcli.search.encoder import encode_space
from vigcli.search.encoding import Encoding, Population
from vigcli.search.feasibility import cheapest, least
from vigcli.search.score import NOT_IN_THE_SCORE

_SAMPLES = 20_000  # random candidates, for the least of what is no sum


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

    @property
    def name(self) -> str:
        return self.full.space.name

    def shapes(self) -> np.ndarray:
        """Shapes of the published networks: (variants, stages, numbers)."""
        columns = Columns(self.encoding.tables)
        return np.stack([shape_of(config, columns) for config in self.variants.values()])


def prepare(
    space: SearchSpace,
    tables: Sequence[LatencyTable],
    limits: Limits = NO_LIMITS,
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


def last_part(path: str) -> str:
    """The field that a path ends in: `stages[1].mixer` -> `mixer`, `neighbours[0]` -> `neighbours`."""
    return re.split(r"[.\[]", path)[-1 - path.endswith("]")]


def _decided(space: SearchSpace, base: ArchConfig) -> tuple[SearchSpace, tuple[str, ...]]:
    """The space with choices that neither the score nor a published ablation tells apart held at the base's value, or
    the nearest to it, and the genes that are so held."""
    data, genes, undecided = base.model_dump(mode="json"), dict(space.genes), []
    for path, choices in space.genes.items():
        if last_part(path) in NOT_IN_THE_SCORE and choices[1:]:
            known = tuple(choice for choice in choices if decided(base.family, path, choice))
            genes[path] = known if known[1:] else (choices[space.nearest_choice(data, path)],)
            undecided += [] if known[1:] else [path]
    return space.model_copy(update={"genes": genes}), tuple(undecided)


def fastest_of(member: Member) -> tuple[tuple[int, ...], float] | None:
    """The candidate of least latency that keeps every rule and limit, and its milliseconds; None without any."""
    candidate = cheapest(member.encoding)
    if candidate is None:
        return None
    return candidate, float(member.encoding.evaluate(np.array([candidate])).latency_ms[0])


def check_budget(
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
    anywhere = replace(member.encoding, in_hull=(False,) * len(member.encoding.tables))
    faster = cheapest(anywhere)
    is_faster = faster is not None and anywhere.evaluate(np.array([faster])).latency_ms[0] < ms - 1e-9
    instead = "; faster ones are outside what the table was fitted to" if is_faster else ", or a smaller --resolution"
    limited = [f"{text} {what}" for what, text in member.encoding.limits.texts().items()]
    within = f" with at most {', '.join(limited)}" if limited else ""
    raise InfeasibleError(
        f"no network of the space{within} meets {budget_ms:g} ms{moved}: the smallest latency is {smallest:.3f} ms "
        f"({member.encoding.tables[0].kind}, {devices}, {member.encoding.base.resolution} px).",
        f"Try --budget {needed:.2f}ms{instead}.",
    )


_OPTIONS = {PARAMS: "--max-params", MACS: "--max-macs", WEIGHT_MB: "--max-size", PEAK_MB: "--max-memory"}


def _least(encoding: Encoding, column: int, generator: np.random.Generator) -> float | None:
    """The least of a column that a candidate has; of activations, which are no sum, the least of random ones."""
    if column != PEAK_MB:
        return least(encoding, column)
    rows = generator.integers(0, encoding.num_choices, (_SAMPLES, len(encoding.num_choices)))
    fair = encoding.evaluate(rows).violation == 0
    return float(encoding.totals(rows)[fair, column].min()) if fair.any() else None


def _too_tight(members: Sequence[Member], generator: np.random.Generator) -> InfeasibleError:
    """Which limits nothing keeps, and the least that something has."""
    limits = members[0].encoding.limits
    free = [replace(member.encoding, limits=Limits()) for member in members]
    broken = {}
    for limit, (column, option) in zip(limits, _OPTIONS.items(), strict=True):
        reached = [_least(encoding, column, generator) for encoding in free] if limit < np.inf else []
        known = [value for value in reached if value is not None]
        if known and min(known) > limit:
            unit, factor = ("MB", 1.0) if column in (WEIGHT_MB, PEAK_MB) else ("M", 1e-6)
            broken[option] = f"{np.ceil(min(known) * factor * 100) / 100:.2f}{unit}"
    if broken:
        told = ", nor ".join(f"{option}: the least of any is {text}" for option, text in broken.items())
        tried = " ".join(f"{option} {text}" for option, text in broken.items())
        together = "at least " if len(broken) > 1 else ""  # no network need have the least of two things at once
        return InfeasibleError(
            f"no network of the space keeps {told}.", f"Try {together}{tried}, or a smaller --resolution."
        )
    if any(limit < np.inf for limit in limits):
        return InfeasibleError(
            "no network of the space keeps all limits at once.", "Loosen one of the --max-... limits."
        )
    return InfeasibleError("no network of the space keeps its own rules.", "Widen trained_shapes or the genes.")

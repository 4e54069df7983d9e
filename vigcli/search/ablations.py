"""Reading the papers' ablations: what they say of choices that the score's formula cannot see.

Each effect is what rows of a table differ by, less what the formula credits for the same change in size, shared
evenly by the stages that the rows changed. Effects of several fields are taken to add up, as the rows of each table do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from vigcli.config.archs import ABLATIONS, VARIANTS, Ablation, ArchConfig
from vigcli.search.score import PublishedEffect, Score
from vigcli.search.size import network_size

# The rows of a table by the names that they have in `ABLATIONS`, the base of the comparison first.
GRAPHS = "arXiv:2406.05850 Table 3"
MGC_CPE, SVGA_CPE, SVGA, FC = (
    "MGC, three stages, CPE",
    "SVGA, three stages, CPE",
    "SVGA, three stages",
    "fully connected",
)
ONE_STAGE, ONE_STAGE_CPE = "SVGA, one stage", "SVGA, one stage, CPE"
WIRING = "arXiv:2209.15159 Table 5"
V1, KERNEL, LOCAL, ADDED, DEPTHWISE = (
    "MobileViT-S", "+ 1x1 fusion", "+ local features fused", "+ input added", "+ depthwise convolution",
)  # fmt: skip
PATCHES = "arXiv:2110.02178 Table 6"
TWO, THREE, FOUR, MIXED = "patches 2, 2, 2", "patches 3, 3, 3", "patches 4, 4, 4", "patches 8, 4, 2"

CAVEATS = {
    GRAPHS: "seeds of MobileViGv2 differ by 0.1 point",
    WIRING: "trained for 100 epochs",
    PATCHES: "one run each",
}


class Reading(NamedTuple):
    """One value of a field, against what the family has: the weighted sum of rows, over `num_stages` stages.

    A block without a graph is read off the row whose graphs are fully connected layers: net of its size it is the
    same. So `none` stands for a stage without graph blocks too.
    """

    family: str
    field: str
    value: int | bool | str
    stages: tuple[int, ...]
    table: str
    weights: Mapping[str, float]  # they sum up to 0
    num_stages: int = 3


def readings() -> Iterator[Reading]:
    """All that is read off the tables."""
    later = (1, 2, 3)
    mgc = {MGC_CPE: 1.0, SVGA_CPE: -1.0}  # against svga
    no_graph = {FC: 1.0, SVGA: -1.0}  # against svga
    for value, weights in (("svga", _minus(mgc)), ("fc", no_graph | _minus(mgc)), ("none", no_graph | _minus(mgc))):
        yield Reading("mobilevigv2", "mixer", value, later, GRAPHS, weights)
    yield Reading("mobilevigv2", "cpe_kernel", 0, later, GRAPHS, {SVGA: 1, SVGA_CPE: -1})
    for value, weights in (("mgc", mgc), ("fc", no_graph), ("none", no_graph)):
        yield Reading("mobilevig", "mixer", value, (3,), GRAPHS, weights)
    for value, weights in (("svga", _minus(no_graph)), ("mgc", mgc | _minus(no_graph)), ("fc", {})):
        yield Reading("mobilevig", "mixer", value, (1, 2), GRAPHS, weights)  # whose networks have no graph there
    yield Reading("mobilevig", "cpe_kernel", 7, (3,), GRAPHS, {ONE_STAGE_CPE: 1, ONE_STAGE: -1}, 1)

    last = (2, 3, 4)
    for field, old, new, without, with_ in (
        ("fusion_kernel", 3, 1, V1, KERNEL),
        ("fusion", "input", "local", KERNEL, LOCAL),
        ("residual", False, True, LOCAL, ADDED),
        ("local_conv", "dense", "depthwise", ADDED, DEPTHWISE),
    ):
        yield Reading("mobilevit", field, new, last, WIRING, {with_: 1, without: -1})
        yield Reading("mobilevitv3", field, old, last, WIRING, {without: 1, with_: -1})
    yield Reading("mobilevit", "patch", 3, last, PATCHES, {THREE: 1, TWO: -1})
    yield Reading("mobilevit", "patch", 4, last, PATCHES, {FOUR: 1, TWO: -1})
    # 8, 4, 2 changes two stages: the 4 is worth what it is in 4, 4, 4, the 8 has the rest.
    yield Reading("mobilevit", "patch", 8, last[:1], PATCHES, {MIXED: 1, TWO: -2 / 3, FOUR: -1 / 3}, 1)


def published_effects(score: Score) -> tuple[PublishedEffect, ...]:
    """The readings in points of top-1, net of what the formula of `score` credits."""
    rows = {(ablation.table, ablation.row): ablation for ablation in ABLATIONS}
    sizes = {key: score.s(network_size(_config(ablation))) for key, ablation in rows.items()}
    bases = {GRAPHS: MGC_CPE, WIRING: V1, PATCHES: TWO}

    def credited(table: str, row: str) -> float:
        """Points that a row has over the base of its table by the formula, at the base's published top-1."""
        base = table, bases[table]
        return float((100 - rows[base].top1) * -np.expm1(sizes[base] - sizes[table, row]))

    def effect(reading: Reading) -> PublishedEffect:
        table, weights = reading.table, reading.weights
        published = sum(weight * rows[table, row].top1 for row, weight in weights.items())
        by_size = sum(weight * credited(table, row) for row, weight in weights.items())
        return PublishedEffect(
            family=reading.family,
            field=reading.field,
            value=reading.value,
            stages=reading.stages,
            points=round((published - by_size) / reading.num_stages, 3),
            published_points=round(published, 3),
            credited_points=round(by_size, 3),
            num_stages=reading.num_stages,
            source=_source(table, weights),
        )

    return tuple(effect(reading) for reading in readings())


def _config(ablation: Ablation) -> ArchConfig:
    return VARIANTS[ablation.base].changed(ablation.changes)


def _minus(weights: Mapping[str, float]) -> dict[str, float]:
    return {row: -weight for row, weight in weights.items()}


def _source(table: str, weights: Mapping[str, float]) -> str:
    """The table, its rows with their signs, and what is known of their spread."""
    if not weights:
        return "a block without a graph, as the family has it there"
    terms = []
    for row, weight in sorted(weights.items(), key=lambda item: -item[1]):
        sign = "-" if weight < 0 else "+"
        terms.append(f"{sign} {'' if abs(weight) == 1 else f'{abs(weight):.3g} x '}({row})")
    return f"{table}: {' '.join(terms).removeprefix('+ ')}; {CAVEATS[table]}"

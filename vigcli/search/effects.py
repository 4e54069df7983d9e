"""What published ablations say of a network's graph blocks, positional encoding, fusion and patches.

The score's formula cannot see these; here they get the papers' points, and what no paper has tried is undecided.
"""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

from vigcli.config.archs import VARIANTS, ArchConfig
from vigcli.config.load import get_path
from vigcli.errors import ConfigError
from vigcli.search.score import PublishedEffect, load_score

CAVEAT = (
    "published differences between single runs, taken to add up, to be shared evenly by the stages that they changed, "
    "and to be the same in networks of other sizes"
)


class Effect(NamedTuple):
    """What one value of a stage is worth against what the family's published networks have there."""

    path: str  # of the configuration: stages[2].mixer, or cpe_kernel for one stage's share of it
    stage: int
    value: int | bool | str  # the mixer `none`: also a stage without graph blocks
    points: float  # of ImageNet-1k top-1, net of what the formula credits
    source: str  # table and rows, and what is known of their spread


def effects(config: ArchConfig) -> tuple[Effect, ...]:
    """All that published ablations say of a network; none where it has its family's published pattern."""
    if not any(config.family == effect.family for effect in load_score().effects):
        return ()
    return tuple(effect for i in range(len(config.stage_shapes())) for effect in stage_effects(config, i))


def stage_effects(config: ArchConfig, stage: int) -> tuple[Effect, ...]:
    """What they say of one stage, whatever the others have."""
    return tuple(
        Effect(_path(config, stage, found.field), stage, found.value, found.points, found.source)
        for found in _found(config, stage)
    )


def stage_points(config: ArchConfig, stage: int) -> float:
    """Points of top-1 of one stage: a network's are the sum over its stages."""
    return sum(found.points for found in _found(config, stage))


def network_points(config: ArchConfig) -> float:
    """Points of top-1 of a network."""
    return sum(effect.points for effect in effects(config))


def decided(family: str, path: str, value: Any) -> bool:
    """Whether something published speaks of a value of a path whose field is one of `NOT_IN_THE_SCORE`: a network of
    the family that has it there, or an ablation. The other values are for data to decide."""
    stage = re.match(r"stages\[(\d+)\]", path)
    field = path.rpartition(".")[2]
    stages = [int(stage[1])] if stage else range(_MOST_STAGES)
    return any(_same(value, have) for have in _published_values(family, path)) or any(
        _same(value, known) for i in stages for known in _known(family, i).get(field, {})
    )


_MOST_STAGES = max(len(config.stage_shapes()) for config in VARIANTS.values())


def _same(one: Any, other: Any) -> bool:
    """Equal, and not by True being 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _found(config: ArchConfig, stage: int) -> list[PublishedEffect]:
    known = _known(config.family, stage)
    if not known:
        return []
    own = config.stages[stage]  # type: ignore[attr-defined]  # only families with tables come here
    mixer = getattr(own, "mixer", None) if config.stage_shapes()[stage].global_depth else "none"
    found = []
    for field, by_value in known.items():
        if field == "mixer":
            value = mixer
        elif mixer == "none":  # no block that the field would be of
            continue
        else:
            value = getattr(own if _is_of(own, field) else config, field)
        if (effect := by_value.get(value)) is not None:
            found.append(effect)
    return found


def _path(config: ArchConfig, stage: int, field: str) -> str:
    return f"stages[{stage}].{field}" if _is_of(config.stages[stage], field) else field  # type: ignore[attr-defined]


def _is_of(stage: Any, field: str) -> bool:
    return field in type(stage).model_fields


@functools.cache
def _known(family: str, stage: int) -> dict[str, dict[Any, PublishedEffect]]:
    """Field -> value -> effect."""
    found: dict[str, dict[Any, PublishedEffect]] = {}
    for effect in load_score().effects:
        if effect.family == family and stage in effect.stages:
            found.setdefault(effect.field, {})[effect.value] = effect
    return found


@functools.cache
def _published_values(family: str, path: str) -> tuple[Any, ...]:
    values = []
    for config in VARIANTS.values():
        if config.family == family:
            try:
                values.append(get_path(config.model_dump(mode="json"), path))
            except ConfigError:
                continue  # a list that is shorter
    return tuple(values)

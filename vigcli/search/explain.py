"""What the predicted top-1 of one network is made of, and what the score does not see of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from vigcli.config.archs import PUBLISHED, VARIANTS, ArchConfig, TimmConfig, variant_name
from vigcli.paths import builtin_folder
from vigcli.search.effects import Effect, decided, effects
from vigcli.search.score import (
    EPOCHS,
    FEATURES,
    NOT_IN_THE_SCORE,
    Interval,
    Size,
    load_score,
    recipe_features,
    shape_features,
)
from vigcli.search.score_fit import read_accuracy
from vigcli.search.size import network_size

PART_OF = dict(
    zip(FEATURES, ("params", "MACs", "MACs", "layers", "depthwise", "recipe", "recipe", "recipe"), strict=True)
)


class Known(NamedTuple):
    """What is published of a network, and how it was trained; else what a search assumes."""

    top1_percent: float | None
    source: str | None
    recipe: dict[str, Any]  # distilled, epochs, old_recipe


class Explanation(NamedTuple):
    """A prediction in its parts.

    Attributes:
        top1_percent: predicted, by the formula and the effects.
        points: of top-1 that the formula would lose with a part at its mean over the fitted networks, and the family's.
        effects: published ablations.
        undecided: paths whose values no paper has tried in this family.
        outside: what of the size is beyond what the fit has seen.
    """

    size: Size
    top1_percent: float
    interval: Interval
    published: Known
    points: dict[str, float]
    effects: tuple[Effect, ...]
    undecided: tuple[str, ...]
    outside: tuple[str, ...]


def explain(config: ArchConfig) -> Explanation:
    """Predict a network's ImageNet-1k top-1, trained as its published weights were. Raises ConfigError."""
    score, size, known, found = load_score(), network_size(config), known_of(config), effects(config)
    s = _parts_of_s(size, known.recipe, config.family)
    error_percent = float(np.exp(-score.s(size, **known.recipe) - s["family"]))
    return Explanation(
        size,
        100 - error_percent + sum(effect.points for effect in found),
        score.interval(config.family),
        known,
        {part: error_percent * float(np.expm1(x)) for part, x in s.items()},
        found,
        undecided(config),
        score.outside(config.family, size),
    )


def why_better(one: ArchConfig, other: ArchConfig) -> dict[str, float]:
    """What makes one network predicted better than another, both trained as a search assumes: points of top-1 by part,
    which add up to the difference."""
    sizes, recipes = (network_size(one), network_size(other)), (_assumed(one), _assumed(other))
    ours, theirs = (
        _parts_of_s(size, recipe, config.family)
        for size, recipe, config in zip(sizes, recipes, (one, other), strict=True)
    )
    score, gap = load_score(), sum(ours.values()) - sum(theirs.values())
    error_percent = float(np.exp(-score.s(sizes[1], **recipes[1]) - theirs["family"]))
    in_points = -np.expm1(-gap) / gap if gap else 1.0  # points that a unit of s is worth, in the mean between the two
    found = {part: error_percent * float(in_points) * (ours[part] - theirs[part]) for part in ours}
    ablations = sum(effect.points for effect in effects(one)) - sum(effect.points for effect in effects(other))
    return {**found, "published ablations": ablations}


def _parts_of_s(size: Size, recipe: dict[str, Any], family: str) -> dict[str, float]:
    """What each part adds to s = -ln(100 - top1), against its mean over the fitted networks; and the family."""
    score = load_score()
    s = dict.fromkeys(PART_OF.values(), 0.0)
    for name, value in zip(FEATURES, (*shape_features(size), *recipe_features(**recipe)), strict=True):
        s[PART_OF[name]] += score.coefficients[name] * (float(value) - score.means[name])
    return {**s, "family": score.offset(family)}


def _assumed(config: ArchConfig) -> dict[str, Any]:
    """How a search takes a network to be trained."""
    return {"distilled": getattr(config, "distilled", False), "epochs": EPOCHS, "old_recipe": False}


def known_of(config: ArchConfig) -> Known:
    """What is published of a network at its resolution."""
    recipe = _assumed(config)
    if isinstance(config, TimmConfig):
        for row in read_accuracy(builtin_folder("space") / "published" / "accuracy.csv"):
            if (row.network, row.resolution) == (config.name, config.resolution):
                recipe = {"distilled": row.distilled, "epochs": row.epochs, "old_recipe": row.old_recipe}
                return Known(row.top1, row.source, recipe)
        return Known(None, None, recipe)
    name = variant_name(config)
    if name is None or VARIANTS[name].resolution != config.resolution:
        return Known(None, None, recipe)
    return Known(PUBLISHED[name].top1, PUBLISHED[name].source, recipe)


def undecided(config: ArchConfig) -> tuple[str, ...]:
    """The paths of a network whose values neither the score nor anything published speaks of."""
    data = config.model_dump(mode="json")
    places = {"": data} | {f"stages[{i}].": stage for i, stage in enumerate(data.get("stages", ()))}
    return tuple(
        f"{where}{field}"
        for where, values in places.items()
        for field, value in values.items()
        if field in NOT_IN_THE_SCORE and not decided(config.family, f"{where}{field}", value)
    )

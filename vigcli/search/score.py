"""How good a network may become, predicted without data from its size and shape.

A ridge regression on -ln(100 - top1) of published ImageNet-1k networks: `score_fit` makes the file of coefficients
that is loaded here. It does not see the reach or kind of a graph, positional encoding or fusion wiring: what it cannot
see it must not decide (`effects`, `ties`).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vigcli.config.load import Strict, load
from vigcli.paths import builtin_folder

Array = NDArray[np.float64]

TIE_POINTS = 0.5  # a smaller predicted gap at equal MACs is little better than a coin: `right_order` of the score
FEATURES = (
    "ln_params", "ln_macs", "ln_macs_below_300m", "ln_path_layers", "sqrt_depthwise_share",
    "distilled", "log2_epochs", "old_recipe",
)  # fmt: skip
NUM_SHAPE_FEATURES = 5  # the others are of the recipe: the same for all candidates of a search
FEW_MACS = 3e8  # below, another slope
PATH_LAYERS = (25, 130)  # more or fewer layers count for nothing, so that no search farms them
MAX_DEPTHWISE_SHARE = 0.15  # likewise
EPOCHS = 300

NOT_IN_THE_SCORE = (
    "mixer", "difference", "cpe_kernel", "patch", "attention", "num_heads", "local_conv", "fusion", "fusion_kernel",
    "residual", "reach", "clusters", "neighbours", "last_neighbours", "dilation", "reduction", "local_update",
    "groups", "partition", "center_tokens", "kmeans_iterations",
)  # fmt: skip
"""Fields whose worth the regression was never shown: it judges a choice by what it adds in parameters and MACs."""

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Tau = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=1)]


class Size(NamedTuple):
    """What the score sees of a network: numbers, or arrays of as many networks."""

    params: Array | float
    """With a classifier of 1000 classes (both heads in the MobileViG families), batch norm included."""
    macs: Array | float
    """Of convolution, linear and matmul, likewise."""
    path_layers: Array | float
    """Convolution, linear and matmul layers on the longest path."""
    depthwise_share: Array | float
    """Depthwise MACs / all MACs."""


class Ordering(Strict):
    """How often two networks are put in the right order, both their families unknown to the fit: a Kendall tau."""

    tau: Tau
    num_pairs: Count


class Errors(Strict):
    """How well networks are predicted by fits that have not seen their family."""

    mae_points: Positive
    """Mean absolute error of top-1, in points."""
    tau: Tau
    """Kendall's, over all pairs of networks."""
    equal_macs: Ordering
    """Of pairs whose MACs are within 1.3 of each other, trained alike."""
    equal_params: Ordering
    equal_both: Ordering
    equal_latency: Ordering
    """Of pairs of two families that one lab timed within 1.2 of each other, trained alike."""
    own_families: Ordering
    """Of pairs of one family, of those that this program builds."""


class Interval(Strict):
    """So many points of top-1 to either side cover 80 and 90 percent of networks that were held out."""

    points_80: Positive
    points_90: Positive


class GapOrder(Strict):
    """How often the better prediction is the better network, at equal MACs, by the predicted gap in points."""

    from_points: Annotated[float, Field(ge=0)]
    below_points: Positive | None
    right_percent: Annotated[float, Field(ge=0, le=100)]
    num_pairs: Count


class FamilyOffset(Strict):
    """Mean residual of a family in s, shrunk by n / (n + 1)."""

    s: float
    num_rows: Count


class PublishedEffect(Strict):
    """What a paper's ablation says of one value of a field, against what the family's networks have there.

    Attributes:
        stages: those that the effect may be given to.
        points: of top-1, for each such stage; `published_points` / `num_stages` less what the score credits anyway.
        published_points: the difference of the rows, over all the stages that they changed.
        credited_points: what the score's formula says of the same rows.
        source: table and rows.
    """

    family: str
    field: str
    value: int | bool | str
    stages: tuple[int, ...]
    points: float
    published_points: float
    credited_points: float
    num_stages: Count
    source: str


class Seen(Strict):
    """Least and greatest values that the fit has seen; outside is extrapolation."""

    params: tuple[float, float]
    macs: tuple[float, float]
    path_layers: tuple[float, float]
    depthwise_share: tuple[float, float]

    def outside(self, size: Size) -> tuple[str, ...]:
        """The numbers of a network that lie outside."""
        return tuple(
            name
            for name, value in size._asdict().items()
            if not getattr(self, name)[0] <= value <= getattr(self, name)[1]
        )


class Score(Strict):
    """The fitted formula, where it comes from and how wrong it is.

    Attributes:
        source_sha256: of the file that it was fitted to.
        means: of the features, over the rows.
        size_alone: a ridge on ln_params, ln_macs and the recipe alone, for comparison.
        seen: by "all" rows, and by those of the families that this program builds ("own").
    """

    format: Annotated[int, Field(ge=1, le=1)]
    source: str
    source_sha256: str
    date: str
    tools: dict[str, str]
    num_rows: Count
    num_families: Count
    alpha: Positive
    intercept: float
    coefficients: dict[str, float]
    means: dict[str, float]
    family_offsets: dict[str, FamilyOffset]
    errors: Errors
    size_alone: Errors
    new_family: Interval
    known_family: Interval
    right_order: tuple[GapOrder, ...]
    seen: dict[str, Seen]
    effects: tuple[PublishedEffect, ...]

    def offset(self, family: str) -> float:
        """What the family's own networks add to s; 0 of a family that has no offset."""
        return self.family_offsets[family].s if family in self.family_offsets else 0.0

    def interval(self, family: str) -> Interval:
        """How far off predictions are, in points of top-1."""
        return self.known_family if family in self.family_offsets else self.new_family

    def outside(self, family: str, size: Size) -> tuple[str, ...]:
        """The numbers of a network that are beyond what the fit has seen of such families."""
        return self.seen["own" if family in self.family_offsets else "all"].outside(size)

    def s(self, size: Size, *, distilled: Any = True, epochs: Any = EPOCHS, old_recipe: Any = False) -> Array:
        """-ln(100 - top1) without a family's offset."""
        terms = (*shape_features(size), *recipe_features(distilled, epochs, old_recipe))
        return np.asarray(
            self.intercept + sum(self.coefficients[name] * x for name, x in zip(FEATURES, terms, strict=True))
        )


PATH = "published/score.yaml"


@functools.cache
def load_score(path: Path | None = None) -> Score:
    """The built-in score, or that of a file. Raises ConfigError for a file that is none."""
    return load(Score, path or builtin_folder("space") / PATH)


def shape_features(size: Size) -> tuple[Array | float, ...]:
    """The first features of a network, each of which a network can have more of but not farm."""
    ln_macs = np.log(size.macs)
    return (
        np.log(size.params),
        ln_macs,
        np.minimum(ln_macs - np.log(FEW_MACS), 0),
        np.log(np.clip(size.path_layers, *PATH_LAYERS)),
        np.sqrt(np.minimum(size.depthwise_share, MAX_DEPTHWISE_SHARE)),
    )


def recipe_features(distilled: Any, epochs: Any, old_recipe: Any) -> tuple[Array | float, ...]:
    """The last features: how a network was trained."""
    return distilled, np.clip(np.log2(np.asarray(epochs) / EPOCHS), -2, 2), old_recipe


def predicted_top1_percent(
    params: Array | float,
    macs: Array | float,
    path_layers: Array | float,
    depthwise_share: Array | float,
    *,
    distilled: bool = True,
    epochs: float = EPOCHS,
    old_recipe: bool = False,
    offset: float = 0.0,
) -> Array:
    """ImageNet-1k top-1 in percent, as predicted for a network trained by a modern recipe; see `Size`.

    Args:
        offset: the family's, `load_score().offset(family)`.
    """
    size = Size(params, macs, path_layers, depthwise_share)
    return 100 - np.exp(-load_score().s(size, distilled=distilled, epochs=epochs, old_recipe=old_recipe) - offset)

"""How good a network may become, predicted without data from its size and shape.

A ridge regression on -ln(100 - top1) of 227 published ImageNet-1k networks. It does not see the reach or kind of a
graph, positional encoding or fusion wiring: what it cannot see it must not decide.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ERROR_POINTS = 1.3  # 90 % of held-out networks of a family with an offset are within this many points of top-1
TIE_POINTS = 0.5  # at equal MACs a predicted gap below this is in the right order 60 to 68 times of 100: a tie

FAMILY_OFFSETS = {  # mean residual of the family in s, shrunk by n / (n + 1)
    "mobilevig": -0.040,
    "mobilevigv2": -0.018,
    "greedyvig": -0.026,
    "clustervig": -0.022,
    "mobilevit": -0.021,
    "mobilevitv2": 0.003,
    "mobilevitv3": 0.033,
}

NOT_IN_THE_SCORE = (
    "mixer", "difference", "cpe_kernel", "patch", "attention", "num_heads", "local_conv", "fusion", "residual",
    "clusters", "neighbours", "last_neighbours", "dilation", "reduction", "local_update", "groups", "partition",
    "center_tokens", "kmeans_iterations",
)  # fmt: skip
"""Fields whose worth the regression was never shown: it judges a choice by what it adds in parameters and MACs."""


def predicted_top1_percent(
    params: Array | float,
    macs: Array | float,
    path_layers: Array | float,
    depthwise_share: Array | float,
    *,
    distilled: bool = True,
    epochs: float = 300,
    old_recipe: bool = False,
    offset: float = 0.0,
) -> Array:
    """ImageNet-1k top-1 in percent, as predicted for a network trained by a modern recipe.

    Args:
        params: parameters with a classifier of 1000 classes (both heads in the MobileViG families).
        macs: MACs of convolution, linear and matmul, likewise.
        path_layers: convolution, linear and matmul layers on the longest path.
        depthwise_share: depthwise MACs / all MACs.
        offset: the family's, from `FAMILY_OFFSETS`.
    """
    s = (
        -6.607620
        + 0.108227 * np.log(params)
        + 0.072086 * np.log(macs)
        + 0.089949 * np.minimum(np.log(np.asarray(macs) / 3e8), 0)
        + 0.052895 * np.log(np.clip(path_layers, 25, 130))
        + 0.429492 * np.sqrt(np.minimum(depthwise_share, 0.15))
        + 0.072830 * distilled
        + 0.024362 * np.clip(np.log2(epochs / 300), -2, 2)
        - 0.059726 * old_recipe
        + offset
    )
    return 100 - np.exp(-s)


def family_offset(family: str) -> float:
    return FAMILY_OFFSETS.get(family, 0.0)


def stage_points(config, i: int) -> float:
    return 0.0


def network_points(config) -> float:
    return 0.0


class Effect: pass
def decided(family, path, value): return False
def effects(config): return ()
def closeness(shapes, published):
    d=np.abs(np.log1p(shapes[:,None])-np.log1p(published[None])).sum((2,3)); return d.min(1)
def choose(score, latency, distance):
    return int(np.argmin(distance))

"""GreedyViG (arXiv:2405.06849): convolution blocks and masked axial graph blocks in every stage."""

from __future__ import annotations

from typing import Literal

from vigcli.config.archs.base import CountedWith, Published
from vigcli.config.archs.mobilevig import (
    CpeKernel,
    Difference,
    DropPathSteps,
    GraphLayerScale,
    GraphStage,
    MixerExpansion,
    MobileGraphConfig,
)


class GreedyViGConfig(MobileGraphConfig):
    """GreedyViG (arXiv:2405.06849): DAGC graph blocks with positional encoding in all four stages."""

    family: Literal["greedyvig"] = "greedyvig"
    cpe_kernel: CpeKernel = 7
    mixer_expansion: MixerExpansion = 1
    graph_layer_scale: GraphLayerScale = True
    difference: Difference = "neighbour"
    drop_path_steps: DropPathSteps = "block"


def _greedyvig(depths: tuple[tuple[int, int], ...], width: int) -> GreedyViGConfig:
    return GreedyViGConfig(
        stages=tuple(
            GraphStage(local_depth=n, graph_depth=m, width=width << i, mixer="dagc", reach=8 >> i)
            for i, (n, m) in enumerate(depths)
        ),
        head_width=768,
    )


VARIANTS: dict[str, GreedyViGConfig] = {
    "greedyvig_s": _greedyvig(((2, 2), (2, 2), (6, 2), (2, 2)), 48),
    "greedyvig_m": _greedyvig(((3, 3), (3, 3), (9, 3), (3, 3)), 56),
    "greedyvig_b": _greedyvig(((4, 4), (4, 4), (12, 4), (3, 3)), 64),
}

_SOURCE = (None, None, "arXiv:2405.06849, as ClusterViG's Table IV quotes it")
PUBLISHED = {
    "greedyvig_s": Published(12.0, 1.6, 81.1, *_SOURCE),
    "greedyvig_m": Published(21.9, 3.2, 82.9, *_SOURCE),
    "greedyvig_b": Published(30.9, 5.2, 83.9, *_SOURCE),
}
COUNTED_WITH = dict.fromkeys(PUBLISHED, CountedWith("true", "thop", 1))  # of B's GMACs thop alone gives what is printed

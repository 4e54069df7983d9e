"""Networks so small that converting and running them takes seconds, with every kind of block in them."""

from __future__ import annotations

import torch
from torch import Tensor

from vigcli.archs import build
from vigcli.archs.checkpoint import Checkpoint
from vigcli.config.archs import ArchConfig, arch_config
from vigcli.config.archs.clustervig import ClusterViGConfig
from vigcli.config.archs.mobilevig import MobileViGv2Config
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.config.recipe import Preprocessing
from vigcli.nn.blocks import LayerScale

CONFIG = arch_config("mobilevigv2_ti").changed(
    {"resolution": 96, "num_classes": 10, "head_width": 16}
    | {f"stages[{i}].width": width for i, width in enumerate((8, 16, 16, 16))}
    | {f"stages[{i}].local_depth": 1 for i in range(4)}
    | {f"stages[{i}].graph_depth": 1 for i in range(1, 4)}
)
assert isinstance(CONFIG, MobileViGv2Config)
LABELS = tuple(f"kind {i}" for i in range(CONFIG.num_classes))


# The dynamic graphs on the same layout: masks in the stages of 12 x 12 and 3 x 3 tokens, nearest neighbours between.
DYNAMIC = CONFIG.changed(
    {"stages[1].mixer": "dagc", "stages[1].reach": 2, "stages[3].mixer": "dagc", "stages[3].reach": 1}
    | {"stages[2].mixer": "knn", "stages[2].neighbours": 5, "stages[2].dilation": 2}
)
# Clusters and neighbours in them, with fewer iterations to convert than the networks of the paper have.
CLUSTERED = ClusterViGConfig(
    resolution=96, num_classes=10, depth=2, width=32, clusters=3, neighbours=(4, 5), kmeans_iterations=4, head_width=16
)


def _small(name: str, **changes: object) -> ArchConfig:
    """A variant at 96 px, unless others are given, and ten classes."""
    return arch_config(name).changed({"resolution": 96, "num_classes": 10, "head_width": 64} | changes)


_WIDTHS = {f"stages[{i}].width": width for i, width in enumerate((16, 24, 48, 64))}
_SHALLOW = {f"stages[{i}].local_depth": 1 for i in range(4)}
_TRANSFORMERS = {"resolution": 64} | {f"stages[{i}].transformer_depth": 1 for i in (2, 3, 4)}
# One of each family, of which half the channels can leave.
SMALL = {
    "mobilevig": _small("mobilevig_ti", **_WIDTHS, **_SHALLOW, **{"stages[3].graph_depth": 1}),
    "mobilevigv2": _small(
        "mobilevigv2_ti", **_WIDTHS, **_SHALLOW, **{f"stages[{i}].graph_depth": 1 for i in (1, 2, 3)}
    ),
    "greedyvig": _small("greedyvig_s", **_WIDTHS, **_SHALLOW, **{f"stages[{i}].graph_depth": 1 for i in range(4)}),
    "vig": _small("vig_ti", **{"stages[0].depth": 2, "stages[0].width": 64}),
    "pvig": _small(
        "pvig_ti", **_WIDTHS, **{f"stages[{i}].depth": 1 for i in range(4)}, neighbours=4, last_neighbours=4
    ),
    "clustervig": CLUSTERED.changed({"width": 64, "head_width": 64}),
    "mobilevit": _small("mobilevit_xxs", **_TRANSFORMERS),
    "mobilevitv2": _small("mobilevitv2_050", **_TRANSFORMERS, head_width=0),
    "mobilevitv3": _small("mobilevitv3_xxs", **_TRANSFORMERS),
}


@torch.no_grad()
def checkpoint(seed: int = 0, config: ArchConfig = CONFIG) -> Checkpoint:
    """Weights drawn from a seed, with layer scales near 0.3 (a new network's 1e-5 would hide what its blocks do) and
    the statistics of batch norm those of the pictures that it sees."""
    model = build(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, LayerScale):
            module.gamma.copy_(0.3 + 0.05 * torch.randn(module.gamma.shape, generator=generator))
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean over the batches
            module.weight.add_(0.1 * torch.randn(module.weight.shape, generator=generator))
            module.bias.add_(0.1 * torch.randn(module.bias.shape, generator=generator))
    preprocessing = Preprocessing()
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for i in range(2):
            model((pixels(16, seed=100 + i, size=config.resolution) / 255 - mean) / std)
    labels = LABELS if config.num_classes == len(LABELS) else ()
    meta = CheckpointMeta(arch=config, labels=labels, preprocessing=preprocessing, dataset="drawn")
    return Checkpoint(model.eval(), meta)


def pixels(count: int, seed: int = 1, size: int = CONFIG.resolution) -> Tensor:
    """Smooth pictures (count, 3, size, size), whole numbers to 255: noise alone would look the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    fine = torch.rand(count, 3, size, size, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear")
    return (255 * (0.85 * smooth + 0.15 * fine)).round()

"""What the score sees of a network, counted: the sizes of its blocks with the ImageNet classifier and both heads."""

from __future__ import annotations

from typing import NamedTuple

from vigcli.archs import build, inference_form
from vigcli.config.archs import ArchConfig, BlockSpec, TimmConfig
from vigcli.measure.count import count_block, count_params, training_trace
from vigcli.measure.trace import trace
from vigcli.search.score import Size

CLASSES = 1000  # the number of classes is no merit


class BlockSize(NamedTuple):
    """The share of one block in a network's size: they add up."""

    params: int
    macs: int
    path_layers: int
    depthwise_macs: int


def block_size(family: str, spec: BlockSpec) -> BlockSize:
    """A block counted as the score counts it, on the meta device."""
    options = dict(spec.options)
    is_head = "num_classes" in options
    if is_head:
        spec = spec._replace(options=tuple((options | {"num_classes": CLASSES}).items()))
    count = count_block(family, spec)
    runs = training_trace(family, count.spec) if is_head else count.deployed
    return BlockSize(count.params.total, runs.macs, runs.path_layers, runs.depthwise_macs)


def network_size(config: ArchConfig) -> Size:
    """A network counted as the score counts it; one of timm in its inference form. Raises ConfigError."""
    if isinstance(config, TimmConfig):
        config = config.changed({"num_classes": CLASSES})
        whole = inference_form(config, build(config, device="meta"))
        runs = trace(whole, (config.in_chans, config.resolution, config.resolution))
        total = BlockSize(count_params(config).inference, runs.macs, runs.path_layers, runs.depthwise_macs)
    else:
        sizes = [block_size(config.family, spec.counted()) for spec in config.blocks()]
        total = BlockSize(*map(sum, zip(*sizes, strict=True)))
    return Size(total.params, total.macs, total.path_layers, total.depthwise_macs / total.macs)

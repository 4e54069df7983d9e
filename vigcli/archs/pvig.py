"""Pyramid ViG (arXiv:2206.00272): kNN graph blocks in four stages, with relative positions."""

from __future__ import annotations

from vigcli.archs import vig
from vigcli.archs.vig import initialize, official_names
from vigcli.nn.blocks import Downsample

__all__ = ["BLOCKS", "initialize", "official_names"]

BLOCKS = {**vig.BLOCKS, "downsample": Downsample}

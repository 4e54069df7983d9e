"""A package in eight bits, and where its network rounds."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import tiny
import torch

from vigcli.archs.checkpoint import Checkpoint
from vigcli.compress.qat import roundings_of
from vigcli.compress.quantize import quantize
from vigcli.compress.rounded import Roundings
from vigcli.config.archs import ArchConfig
from vigcli.config.compression import Compression

INT8 = Compression(weight_bits=8, activation_bits=8, calibration="minmax")


class Made(NamedTuple):
    checkpoint: Checkpoint
    package: Path
    roundings: Roundings


def make(config: ArchConfig, folder: Path) -> Made:
    checkpoint, package = tiny.checkpoint(config=config), folder / "int8.mlpackage"
    pixels = tiny.pixels(128, seed=3, size=config.resolution).to(torch.uint8)
    quantize(checkpoint, "ab" * 32, package, INT8, pixels)
    return Made(checkpoint, package, roundings_of(checkpoint, package, pixels[:1]))

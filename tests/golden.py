"""The reference logits in tests/golden and the weight rule under which the authors' code gave them."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

# How a reference differs from the variant that its file is named after, by what stands behind the first dot.
OVERRIDES: dict[str, dict[str, str | bool]] = {
    "": {},
    "grid": {"partition": "grid"},
    "grid_centred": {"partition": "grid", "center_tokens": True},
}
FOLDER = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def variant(name: str) -> tuple[str, dict[str, str | bool]]:
    """The network of a reference: `clustervig_ti.grid` -> the variant and its overrides."""
    base, _, form = name.partition(".")
    return base, OVERRIDES[form]


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def weights(keys: list[tuple[str, list[int]]]) -> dict[str, torch.Tensor]:
    """By the rule, for all but ViG's frozen relative positions, which a network makes by itself."""
    return {key: torch.from_numpy(np.asarray(_weight(key, shape))) for key, shape in keys if "relative_pos" not in key}


def images(resolution: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, resolution, resolution)))


def _weight(key: str, shape: list[int]) -> np.ndarray:
    n = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("num_batches_tracked"):
        return np.asarray(0)
    if key.endswith("running_var"):
        return 0.5 + abs(n)
    if "layer_scale" in key:
        return 0.5 + 0.1 * n
    if "pos_embed" in key or key.endswith(("running_mean", "bias")):
        return 0.1 * n
    if len(shape) >= 2:
        return n / math.sqrt(math.prod(shape[1:]))
    return (1 if key.endswith("weight") else 0) + 0.1 * n

"""Randomness as a function of what it is for: an interruption or another number of workers does not change it."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def derived_seed(*key: int | str) -> int:
    """A seed of 32 bits that is a function of the key, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest())


@contextlib.contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """The CPU's global random states (Python, numpy, torch) set by the key, and restored afterwards.

    timm's and torchvision's augmentations draw from all three, and take no generator.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = derived_seed(*key)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])

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


def reseed(*key: int | str) -> None:
    """Set the CPU's global random states (Python, numpy, torch) by the key.

    timm's and torchvision's augmentations draw from all three, and take no generator.
    """
    seed = derived_seed(*key)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """After the block those states are what they were. For whole jobs: for every picture it would take too long."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])

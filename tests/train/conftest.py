"""The pictures of small trainings, and how one is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vigcli.config.recipe import Recipe
from vigcli.train.loop import TrainEvent, TrainResult, train


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For networks this small, threads that wait for a busy core cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes, two training pictures and one validation picture each: 2 steps of 8 an epoch."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        for label in range(10):
            (folder / split / f"class{label}").mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8) // 4 + 19 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / f"class{label}" / f"{i}.png")
    return folder


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Callable[..., TrainResult]:
    def run(
        recipe: Recipe,
        name: str = "run",
        stop_after: float = math.inf,
        resume: bool = False,
        events: list[TrainEvent] | None = None,
        **options: Any,
    ) -> TrainResult:
        """Train; `stop_after` counts the calls of `should_stop` that say no."""
        asked = iter(range(10**9))
        return train(
            recipe,
            tmp_path / name,
            on_event=(events if events is not None else []).append,
            should_stop=lambda: next(asked) >= stop_after,
            provenance={"argv": ["vig", "train"]},
            resume=resume,
            **{"data_root": root} | options,
        )

    return run

"""Trainings so small that a whole one takes seconds, and what is left of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import load_file

from vigcli.archs.checkpoint import load_checkpoint
from vigcli.config.recipe import Recipe

TINY = tiny.CONFIG.changed({"drop_path_rate": 0.3})
PLAIN: dict[str, Any] = {
    "arch": TINY.model_dump(mode="json"),
    "resolution": 96,
    "num_classes": 10,
    "data": {"source": "folder", "workers": 0},
    "epochs": 3,
    "batch_size": 8,
    "optimizer": {"lr": 1e-2},
    "schedule": {"warmup_epochs": 1},
    "augment": {"rand_augment": "rand-m9-mstd0.5-inc1", "erase": 0.5, "mixup": 0.8, "cutmix": 1.0, "repeats": 2},
    "label_smoothing": 0.1,
    "ema_decay": 0.5,
}


def recipe(**changes: Any) -> Recipe:
    return Recipe.parse(PLAIN | changes)


def facts(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """All of a run's final bits: state tensors, and the history without what the clock decides."""
    history = json.loads((folder / "history.json").read_text())
    for record in history:
        del record["images_per_s"]
    return load_file(folder / "state.safetensors"), history


def assert_same_run(a: Path, b: Path) -> None:
    (tensors_a, history_a), (tensors_b, history_b) = facts(a), facts(b)
    assert tensors_a.keys() == tensors_b.keys()
    different = [name for name in tensors_a if not torch.equal(tensors_a[name], tensors_b[name])]
    assert not different
    assert history_a == history_b
    weights_a, weights_b = (load_checkpoint(folder / "checkpoint.safetensors").model.state_dict() for folder in (a, b))
    assert all(torch.equal(weights_a[name], weights_b[name]) for name in weights_a)

"""Training in a package's place: the result is an ordinary checkpoint whose package rounds as it was trained."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from compressed import INT8, Made
from PIL import Image

from vigcli.archs.checkpoint import load_checkpoint, save_checkpoint
from vigcli.compress.measure import baseline, cost
from vigcli.compress.qat import QAT_RECIPE, qat_recipe, train_quantized, trained_ranges
from vigcli.compress.quantize import compress, half_package
from vigcli.compress.rounded import Rounded
from vigcli.config.checkpoint import Quantization
from vigcli.config.recipe import Data, Recipe, load_recipe
from vigcli.coreml.convert import meta_of
from vigcli.coreml.graphs import Graph
from vigcli.coreml.interpreter import Program
from vigcli.coreml.simulate import Scales
from vigcli.coreml.verify import twin_of, verify
from vigcli.errors import ConfigError
from vigcli.paths import builtin_folder
from vigcli.runs.provenance import sha256
from vigcli.train.data import open_data
from vigcli.train.loop import TrainResult

pytest.importorskip("coremltools", exc_type=ImportError)
TRAINED = INT8.model_copy(update={"qat": True, "calibration": None})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Ten classes, two pictures each for training, one for validation: 2 steps of 10 an epoch."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 2), ("val", 1)):
        for i, pixels in enumerate(tiny.pixels(10 * count, seed=count)):
            folder = root / split / tiny.LABELS[i % 10]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy().astype(np.uint8)).save(folder / f"{i}.png")
    return Data(root=str(root), workers=0)


def recipe_for(path: Path, made: Made, data: Data, **changes: Any) -> Recipe:
    recipe = load_recipe(builtin_folder("recipe") / QAT_RECIPE)
    given = {"epochs": 1, "batch_size": 10, "schedule.warmup_epochs": 0, "optimizer.lr": 1e-3} | changes
    return qat_recipe(recipe, path, made.checkpoint.meta, data).changed(given)


@pytest.fixture(scope="module")
def start(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("start") / "net.safetensors"
    save_checkpoint(path, made.checkpoint.model, made.checkpoint.meta)
    return path


def trained(recipe: Recipe, made: Made, folder: Path, **job: Any) -> TrainResult:
    folder.mkdir(exist_ok=True)
    given: dict[str, Any] = {"on_event": lambda event: None, "should_stop": lambda: False} | job
    return train_quantized(recipe, made.roundings, folder, {}, **given)


def test_the_package_rounds_as_it_was_trained(made: Made, start: Path, data: Data, tmp_path: Path) -> None:
    result = trained(recipe_for(start, made, data), made, tmp_path / "run")
    assert result.checkpoint is not None
    checkpoint = load_checkpoint(result.checkpoint)
    before = dict(made.checkpoint.model.named_parameters())
    moved = [key for key, p in checkpoint.model.named_parameters() if not torch.equal(p, before[key])]
    assert len(moved) == len(before)
    buffers = dict(made.checkpoint.model.named_buffers())
    assert all(torch.equal(b, buffers[key]) for key, b in checkpoint.model.named_buffers())  # statistics stay
    package = tmp_path / "int8.mlpackage"
    with half_package(checkpoint, sha256(result.checkpoint), 17) as source:
        ranges = trained_ranges(checkpoint.meta, source)
        compress(source, package, TRAINED, ranges=ranges)
    program = Program.load(package)
    compression = meta_of(program).compression
    assert compression is not None
    assert compression.qat
    old, new = (Scales(Graph(Program.load(path))) for path in (made.package, package))
    for name, (step, _) in new.steps.items():
        assert step == pytest.approx(old.steps[name][0], rel=4e-3), name  # fp16, twice
    assert verify(Program.load(package), checkpoint, tiny.pixels(32, seed=5)).passed


def test_what_learned_is_held_against_itself_simulated(made: Made, start: Path, data: Data, tmp_path: Path) -> None:
    result = trained(recipe_for(start, made, data), made, tmp_path / "run")
    assert result.checkpoint is not None
    checkpoint, package, val = load_checkpoint(result.checkpoint), tmp_path / "int8.mlpackage", open_data(data, "val")
    with half_package(made.checkpoint, "ab" * 32, 17) as before, half_package(checkpoint, "cd" * 32, 17) as source:
        base = baseline(made.checkpoint, before, val)
        compress(source, package, TRAINED, ranges=trained_ranges(checkpoint.meta, source))
        found = cost(package, source, base, val, twin_of(checkpoint, source.meta))
        wrong = cost(package, source, base, val)
    assert found.simulated_db > 40
    assert wrong.simulated_db < found.simulated_db - 10  # the other weights compressed
    assert (found.snr_db, found.layers[-1].snr_db) == (wrong.snr_db, wrong.layers[-1].snr_db)


def test_a_run_goes_on_where_it_was_stopped(made: Made, start: Path, data: Data, tmp_path: Path) -> None:
    recipe = recipe_for(start, made, data)
    whole = trained(recipe, made, tmp_path / "whole")
    asked = iter((False, True))
    assert not trained(recipe, made, tmp_path / "part", should_stop=lambda: next(asked)).finished
    again = trained(recipe, made, tmp_path / "part", resume=True)
    assert whole.checkpoint is not None
    assert again.checkpoint is not None
    a, b = (load_checkpoint(path).model.state_dict() for path in (whole.checkpoint, again.checkpoint))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_network_teaches_itself(made: Made, start: Path, data: Data) -> None:
    recipe = recipe_for(start, made, data)
    assert recipe.distillation is not None
    assert (recipe.distillation.teacher, recipe.distillation.alpha) == (str(start), 1.0)
    assert (recipe.weights, recipe.arch_config()) == (str(start), made.checkpoint.meta.arch)
    other = load_recipe(builtin_folder("recipe") / QAT_RECIPE).changed({"distillation": {"teacher": "mobilevig_s"}})
    named = qat_recipe(other, start, made.checkpoint.meta, data).distillation
    assert named is not None
    assert named.teacher == "mobilevig_s"


def test_training_brings_the_package_nearer_to_the_network(made: Made, start: Path, data: Data, tmp_path: Path) -> None:
    """On the pictures that it is trained on, whatever it is on others."""
    losses: list[float] = []
    recipe = recipe_for(start, made, data, epochs=12, **{"optimizer.lr": 2e-3, "augment.scale": [1.0, 1.0]})
    trained(recipe, made, tmp_path / "run", on_event=lambda event: losses.append(event.loss))
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])


def test_ranges_of_another_package_are_refused(made: Made) -> None:
    meta = made.checkpoint.meta.model_copy(update={"quantization": Quantization(ranges={"nobody": (0.0, 1.0)})})
    with (
        half_package(made.checkpoint, "ab" * 32, 17) as source,
        pytest.raises(ConfigError, match="a range of 'nobody'"),
    ):
        trained_ranges(meta, source)


def test_what_has_no_range_of_the_training_is_named(made: Made, tmp_path: Path) -> None:
    ranges = {**made.roundings.ranges}
    missing, _ = ranges.popitem()
    with (
        half_package(made.checkpoint, "ab" * 32, 17) as source,
        pytest.raises(ConfigError, match=f"which range '{missing}' has"),
    ):
        compress(source, tmp_path / "int8.mlpackage", TRAINED, ranges=ranges)


def test_evaluation_during_training_is_of_the_rounded_network(
    made: Made, start: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    forward = Rounded.forward

    @functools.wraps(forward)
    def counted(self: Rounded, x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return forward(self, x)

    monkeypatch.setattr(Rounded, "forward", counted)
    trained(recipe_for(start, made, data), made, tmp_path / "run")
    assert seen == [True, True, False]

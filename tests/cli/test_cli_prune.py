"""`vig prune`: what it leaves and says, and that a pruning that was stopped ends as one that was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from trainings import recipe

from vigcli.archs.checkpoint import load_checkpoint, read_meta, save_checkpoint
from vigcli.cli.prune_options import CRITERIA
from vigcli.compress import prune as job
from vigcli.compress.allocate import latency_cost
from vigcli.compress.analyze import RATIOS
from vigcli.compress.importance import CRITERIA as KNOWN
from vigcli.config.checkpoint import Quantization
from vigcli.config.load import dump
from vigcli.config.recipe import Data
from vigcli.latency.table import load_table
from vigcli.measure.profile import profile

if TYPE_CHECKING:
    from conftest import Vig

pytest.importorskip("torch_pruning")

CONFIG = tiny.CONFIG.changed(
    {f"stages[{i}].width": width for i, width in enumerate((8, 16, 32, 48))}
    | {"stages[0].local_depth": 0, "stages[1].local_depth": 0, "stages[1].graph_depth": 0, "stages[2].graph_depth": 0}
)
COST = latency_cost(load_table("iphone13-mini"))
WHOLE_MS = COST.of(profile(CONFIG))
LIMIT_MS = round((COST.fixed + WHOLE_MS) / 2, 4)
BUDGET = ["--budget", f"{LIMIT_MS}ms"]
WEIGHTS = "c.safetensors"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 3), ("val", 2)):
        found = tiny.pixels(count * len(tiny.LABELS), seed=count).to(torch.uint8)
        for i, pixels in enumerate(found):
            place = folder / split / tiny.LABELS[i % len(tiny.LABELS)]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place / f"{i}.png")
    return folder


PLAIN = recipe(epochs=2, batch_size=10, augment={}, schedule={"warmup_epochs": 0}, ema_decay=None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The current one, with a checkpoint and a recipe of two epochs."""
    save_checkpoint(tmp_path / WEIGHTS, *tiny.checkpoint(config=CONFIG))
    (tmp_path / "r.yaml").write_text(dump(PLAIN))
    return tmp_path


def test_what_a_pruning_leaves(vig: Vig, folder: Path, pictures: Path) -> None:
    said = json.loads(vig("prune", WEIGHTS, *BUDGET, "--data", str(pictures), "-o", "run", "--json"))
    assert {path.name for path in (folder / "run").iterdir()} == {
        "checkpoint.safetensors", "options.json", "prune.json", "run.yaml",
    }  # fmt: skip
    assert json.loads((folder / "run/prune.json").read_text()) == said
    meta = read_meta(folder / "run/checkpoint.safetensors")
    counted = profile(meta.arch)
    assert 0.98 * LIMIT_MS < said["cost"][1] == COST.of(counted) <= LIMIT_MS < WHOLE_MS == said["cost"][0]
    assert said["macs"][1] == counted.macs < said["macs"][0]
    assert said["params"][1] == counted.params.deployed < said["params"][0]
    assert said["num_images"] == 20
    assert len(said["top1_percent"]) == 2
    assert meta.provenance[job.RECORD] == said["groups"]
    assert all(before >= after > 0 for before, after in said["groups"].values())
    assert meta.labels == tiny.LABELS
    assert len(meta.parents) == 1


def test_the_report_can_be_read(vig: Vig, folder: Path, pictures: Path) -> None:
    text = vig("prune", WEIGHTS, *BUDGET, "--data", str(pictures))
    assert "params, deployed" in text
    assert "top-1 % of 20, measured" in text
    assert "channels of" in text
    pruned = "runs/0001-prune/checkpoint.safetensors"
    assert text.endswith(f"Next:  vig train RECIPE --set arch={pruned} --set weights={pruned}\n")


def test_a_pruned_network_is_trained_from_its_own_widths(vig: Vig, folder: Path, pictures: Path) -> None:
    vig("prune", WEIGHTS, *BUDGET, "--data", str(pictures), "-o", "run")
    words = ("train", "r.yaml", "--data", str(pictures), "--set", "epochs=1", "--set", "weights=run")
    vig(*words, code=3)  # of another network than the recipe's
    vig(*words, "--set", "arch=run", "-o", "again")
    said = json.loads(vig(*words, "--set", "arch=run", "--set", "resolution=160", "--dry-run", "--json"))
    assert said["recipe"]["arch"]["resolution"] == 160
    assert (
        read_meta(folder / "again/checkpoint.safetensors").arch == read_meta(folder / "run/checkpoint.safetensors").arch
    )


@pytest.mark.parametrize("option", ["--macs", "--params"])
def test_half_of_what_there_is(vig: Vig, folder: Path, option: str) -> None:
    said = json.loads(vig("prune", WEIGHTS, option, "0.5", "--dry-run", "--json"))
    assert 0.45 < said["cost"][1] / said["cost"][0] <= 0.5
    assert [path.name for path in folder.iterdir() if path.name not in ("r.yaml", WEIGHTS)] == []


def test_a_network_that_is_small_enough_is_left_alone(vig: Vig, folder: Path) -> None:
    said = json.loads(vig("prune", WEIGHTS, "--budget", "5ms", "--json"))
    assert said["already_within"]
    assert not (folder / "runs").exists()


def test_ranges_of_a_training_are_not_those_of_what_is_left(vig: Vig, folder: Path) -> None:
    model, meta = load_checkpoint(folder / WEIGHTS)
    trained = meta.model_copy(update={"quantization": Quantization(ranges={"image": (0.0, 255.0)})})
    save_checkpoint(folder / "qat.safetensors", model, trained)
    said = json.loads(vig("prune", "qat.safetensors", *BUDGET, "--json"))
    assert read_meta(folder / said["checkpoint"]).quantization is None


def test_a_budget_out_of_reach_writes_nothing(vig: Vig, folder: Path, pictures: Path) -> None:
    words = ["--steps", "2", "--recipe", "r.yaml", "--data", str(pictures)]
    vig("prune", WEIGHTS, "--budget", f"{COST.fixed + 1e-4}ms", *words, code=4)
    assert not (folder / "runs").exists()


def test_without_pictures_the_weights_tell(vig: Vig, folder: Path) -> None:
    said = json.loads(vig("prune", WEIGHTS, *BUDGET, "--json"))
    assert said["criterion"] == "magnitude"
    assert said["top1_percent"] is None
    vig("prune", WEIGHTS, *BUDGET, "--criterion", "taylor", code=3)


def test_every_criterion_is_offered_and_prunes(vig: Vig, folder: Path, pictures: Path) -> None:
    assert set(CRITERIA) == set(KNOWN)
    found = [
        vig("prune", WEIGHTS, *BUDGET, "--criterion", name, "--data", str(pictures), "--dry-run") for name in CRITERIA
    ]
    assert len(set(found)) == len(CRITERIA)


def test_analysis(vig: Vig, folder: Path, pictures: Path) -> None:
    text = vig("prune", WEIGHTS, "--analyze", "--data", str(pictures), "-o", "run")
    assert "saves at 50 %" in text
    said = json.loads((folder / "run/sensitivity.json").read_text())
    assert all(group["group"] in text for group in said["groups"])
    assert {path.name for path in (folder / "run").iterdir()} == {"run.yaml", "sensitivity.json", "sensitivity.png"}
    cuts = [(group, cut) for group in said["groups"] for cut in group["cuts"] if cut]
    assert cuts
    assert all(0 < cut["kept"] < group["num_units"] for group, cut in cuts)
    for group in said["groups"]:
        for ratio, cut in zip(RATIOS, group["cuts"], strict=True):  # none belongs to another ratio
            near = [abs(1 - cut["kept"] / group["num_units"] - each) for each in RATIOS] if cut else [0.0]
            assert cut is None or min(near) == abs(1 - cut["kept"] / group["num_units"] - ratio)
    assert all(cut["saved"] > 0 and 0 <= cut["top1_percent"] <= 100 for _, cut in cuts)
    assert np.asarray(Image.open(folder / "run/sensitivity.png")).std() > 0
    vig("prune", WEIGHTS, "--analyze", code=6)


# ---------------------------------------------------------------------------------------------------- fine-tuning


def in_two_steps(folder: Path, pictures: Path, should_stop: Any = lambda: False) -> Path | None:
    """Prunes and fine-tunes, in a run of that folder."""
    if not (folder / WEIGHTS).exists():
        save_checkpoint(folder / WEIGHTS, *tiny.checkpoint(config=CONFIG))
        (folder / "run").mkdir()
    data = Data(root=str(pictures), workers=0)
    request = job.Request(COST, LIMIT_MS, "taylor", data, PLAIN.changed({"data": data.model_dump()}), steps=2)
    return job.prune(folder / WEIGHTS, request, folder / "run", {"argv": []}, "ab" * 32, should_stop=should_stop)


@pytest.fixture(scope="module")
def pruned(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not stopped: its checkpoint."""
    end = in_two_steps(tmp_path_factory.mktemp("whole"), pictures)
    assert end is not None
    return end


@pytest.mark.parametrize("calls", [2, 11], ids=["in the first step", "in the second"])
def test_a_pruning_that_was_stopped_ends_as_one_that_was_not(
    tmp_path: Path, pictures: Path, pruned: Path, calls: int
) -> None:
    asked = iter(range(1000))
    assert in_two_steps(tmp_path, pictures, lambda: next(asked) >= calls) is None
    assert not (tmp_path / "run/checkpoint.safetensors").exists()
    assert (tmp_path / "run/step-2").exists() == (calls == 11)
    end = in_two_steps(tmp_path, pictures)
    assert end is not None
    ours, theirs = (load_checkpoint(path).model.state_dict() for path in (end, pruned))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_steps_keep_their_budgets(pruned: Path) -> None:
    starts = sorted(pruned.parent.glob("step-*/pruned.safetensors"))
    costs = [COST.of(profile(read_meta(path).arch)) for path in (*starts, pruned)]
    assert WHOLE_MS > costs[0] > LIMIT_MS >= costs[1] == costs[2] > 0.98 * LIMIT_MS
    meta = read_meta(pruned)
    assert meta.metrics.keys() >= {"top1_percent", "epoch"}
    record = meta.provenance[job.RECORD]
    first = read_meta(starts[0]).provenance[job.RECORD]
    assert {name: before for name, (before, _) in record.items()} == {name: units[0] for name, units in first.items()}
    assert all(record[name][1] <= first[name][1] for name in first)
    assert sum(after for _, after in record.values()) < sum(after for _, after in first.values())


def test_the_recipe_of_fine_tuning(folder: Path) -> None:
    checkpoint = load_checkpoint(folder / WEIGHTS)
    start, teacher = Path("start.safetensors"), Path("teacher.safetensors")
    plain = job.fine_tuning(recipe(), checkpoint, start, teacher)
    assert plain.arch == CONFIG
    assert plain.weights == str(start)
    assert plain.distillation is not None
    assert (plain.distillation.teacher, plain.distillation.kind) == (str(teacher), "soft")
    own = recipe(distillation={"teacher": "timm:resnet18", "weights": "x.pth", "kind": "hard", "alpha": 0.3})
    kept = job.fine_tuning(own, checkpoint, start, teacher).distillation
    assert kept is not None
    assert (kept.teacher, kept.weights, kept.kind, kept.alpha) == (str(teacher), None, "hard", 0.3)
    bgr = checkpoint.meta.preprocessing.model_copy(update={"channels": "BGR"})
    blue = checkpoint._replace(meta=checkpoint.meta.model_copy(update={"preprocessing": bgr}))
    assert job.fine_tuning(recipe(), blue, start, teacher).distillation is None


def test_going_on(vig: Vig, folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder knows what was asked for."""
    words = ["prune", WEIGHTS, *BUDGET, "--recipe", "r.yaml", "--set", "epochs=1", "--data", str(pictures)]
    with monkeypatch.context() as patched:
        patched.setattr(job, "train", lambda *_, **__: type("Stopped", (), {"finished": False}))
        vig(*words, "-o", "run", code=130)
    said = json.loads(vig("prune", "--resume", "run", "--json"))
    assert said["cost"][1] <= LIMIT_MS
    written = (folder / "run/prune.json").stat().st_mtime_ns
    vig("prune", "--resume", "run")  # it has ended
    assert (folder / "run/prune.json").stat().st_mtime_ns == written
    (folder / "run/options.json").write_text("{")
    vig("prune", "--resume", "run", code=3)
    vig("prune", "--resume", "run", *BUDGET, code=2)
    vig("prune", "--resume", "nowhere", code=3)

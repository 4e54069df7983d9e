"""The training loop: exact resumption, what it refuses, what it writes; and evaluation of any callable."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from trainings import TINY, assert_same_run, recipe

from vigcli.archs import build
from vigcli.archs.checkpoint import load_checkpoint
from vigcli.config.recipe import Data, Preprocessing
from vigcli.errors import ConfigError, UnavailableError, VigError
from vigcli.train.curves import curves
from vigcli.train.data import open_data
from vigcli.train.evaluate import Evaluation, agreement_percent, class_order, evaluate, normalized
from vigcli.train.intervals import wilson_percent
from vigcli.train.loop import TrainEvent, TrainResult, train
from vigcli.train.objective import Objective
from vigcli.train.schedule import plan

OPTIONS: list[Any] = [
    {},
    {"precision": "bf16", "ema_decay": None, "clip_grad_norm": 1.0},
    pytest.param(
        {"optimizer": {"name": "sgd", "lr": 1e-2}, "augment": {}, "data": {"workers": 2}}, marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_an_interrupted_run_ends_with_the_same_bits(
    run: Callable[..., TrainResult], tmp_path: Path, options: dict[str, Any]
) -> None:
    """The calls of `should_stop`: two steps and one batch of validation in each epoch."""
    whole = run(recipe(**options), "whole")
    assert whole.finished
    assert whole.step == 6
    for stop_after in (0, 1, 2, 3, 4) if not options else (1, 3):
        name = f"after{stop_after}"
        part = run(recipe(**options), name, stop_after)
        assert not part.finished
        assert len(part.history) == stop_after // 3
        torch.manual_seed(stop_after)  # a new process would have another global state
        assert run(recipe(**options), name, resume=True).finished
        assert_same_run(tmp_path / "whole", tmp_path / name)


def test_a_run_until_an_epoch_goes_on_with_the_same_bits(
    run: Callable[..., TrainResult], root: Path, tmp_path: Path
) -> None:
    """A rung of a contest: the schedule is the whole recipe's, the evaluation that of the epoch that ended."""
    run(recipe(), "whole")
    options: dict[str, Any] = {
        "on_event": lambda _: None,
        "should_stop": bool,
        "provenance": {"argv": ["vig", "train"]},
    }
    opened = open_data(Data(root=str(root)), "train"), open_data(Data(root=str(root)), "val")
    part = train(recipe(), tmp_path / "part", until_epoch=2, opened=opened, **options)
    assert not part.finished
    assert len(part.history) == 2
    assert part.evaluation is not None
    assert part.evaluation.top1_percent == part.history[1]["val_top1_percent"]
    again = train(recipe(), tmp_path / "part", until_epoch=2, opened=opened, resume=True, **options)
    assert (again.step, again.evaluation) == (part.step, None)
    assert train(recipe(), tmp_path / "part", opened=opened, resume=True, **options).finished
    assert_same_run(tmp_path / "whole", tmp_path / "part")


def test_resuming_a_finished_run_changes_nothing(run: Callable[..., TrainResult], tmp_path: Path) -> None:
    first = run(recipe())
    before = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    again = run(recipe(), resume=True)
    assert again.finished
    assert again.history == first.history
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == before


def test_a_run_leaves_the_global_random_states_alone(run: Callable[..., TrainResult]) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    run(recipe(epochs=1, schedule={"warmup_epochs": 0}))
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_what_a_run_leaves(run: Callable[..., TrainResult], tmp_path: Path, root: Path) -> None:
    events: list[TrainEvent] = []
    result = run(recipe(), events=events)
    assert [event.step for event in events if event.val_top1_percent is None] == [1, 2, 3, 4, 5, 6]
    assert [event.epoch for event in events] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert {event.total_steps for event in events} == {6}
    meta = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").meta
    assert meta.labels == tuple(f"class{i}" for i in range(10))
    assert meta.dataset == root.name
    assert meta.metrics["num_images"] == 10
    assert meta.metrics["top1_percent"] == result.history[-1]["val_top1_percent"]
    assert result.evaluation is not None
    assert result.history[-1].keys() == {"epoch", "step", "train_loss", "val_top1_percent", "lr", "images_per_s"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "state.safetensors", "checkpoint.safetensors", "history.json", "log.jsonl"
    }  # fmt: skip
    curves(result.history, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").format == "PNG"


def test_the_checkpoint_holds_the_averaged_weights(run: Callable[..., TrainResult], tmp_path: Path) -> None:
    run(recipe())
    state = load_file(tmp_path / "run" / "state.safetensors")
    weights = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").model.state_dict()
    assert all(torch.equal(weights[name], state[f"ema.{name}"]) for name in weights)
    assert any(not torch.equal(weights[name], state[f"model.{name}"]) for name in weights)


def test_training_learns(run: Callable[..., TrainResult]) -> None:
    """Brightness decides the class."""
    easy = recipe(epochs=6, augment={"scale": [0.9, 1.0]}, label_smoothing=0.0, ema_decay=None)
    history = run(easy).history
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_a_changed_recipe_is_not_resumed(run: Callable[..., TrainResult]) -> None:
    run(recipe(), stop_after=1)
    with pytest.raises(ConfigError, match=r"optimizer\.lr was 0\.01, is 0\.02"):
        run(recipe(optimizer={"lr": 0.02}), resume=True)
    with pytest.raises(ConfigError, match=r"resolution was 96, is 192"):
        run(recipe(resolution=192, arch=TINY.changed({"resolution": 192}).model_dump(mode="json")), resume=True)
    assert not run(recipe(data={"workers": 1}), resume=True, stop_after=0).finished


def test_damaged_states_are_refused(run: Callable[..., TrainResult], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no state"):
        run(recipe(), resume=True)
    run(recipe(), stop_after=1)
    path = tmp_path / "run" / "state.safetensors"
    good = path.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # it maps a file that is written over
    for content in (b"", good[:100], good[: len(good) // 2]):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="truncated") as damaged:
            run(recipe(), resume=True)
        assert "vig train" in damaged.value.hint
    save_file(tensors, path, {"vig": "{}"})
    with pytest.raises(ConfigError, match="no training state"):
        run(recipe(), resume=True)
    header = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])["__metadata__"]
    del tensors["model.stem.0.conv.weight"]
    save_file(tensors, path, header)
    with pytest.raises(ConfigError, match="do not fit"):
        run(recipe(), resume=True)


@pytest.mark.parametrize(("batch_size", "what"), [(2, "the loss is"), (8, "the output on the validation")])
def test_numbers_that_are_not_finite_end_the_run(
    run: Callable[..., TrainResult], tmp_path: Path, batch_size: int, what: str
) -> None:
    wild = recipe(optimizer={"name": "sgd", "lr": 1e38, "weight_decay": 0.5}, batch_size=batch_size)
    with pytest.raises(VigError, match=rf"diverged at step \d+ \(lr .*\): {what}") as diverged:
        run(wild, "wild")
    assert "lr" in diverged.value.hint
    assert {path.name for path in (tmp_path / "wild").iterdir()} == {"log.jsonl"}


def test_divergence_keeps_the_last_checkpoint(
    run: Callable[..., TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipe(), stop_after=3)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    monkeypatch.setattr(Objective, "__call__", lambda *_: torch.tensor(math.inf, requires_grad=True))
    what = r"diverged at step 2 .*: the loss is not finite on .*class\d/\d.png, .* and 1 more\."
    with pytest.raises(VigError, match=what) as diverged:
        run(recipe(), resume=True)
    assert "state.safetensors is of step 2, checkpoint.safetensors there of epoch 1" in diverged.value.hint
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == kept


def test_class_counts_and_data_are_checked_first(run: Callable[..., TrainResult], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="10 classes, but the network has 11"):
        run(recipe(num_classes=11, arch=TINY.changed({"num_classes": 11}).model_dump(mode="json")))
    nothing = {"on_event": print, "should_stop": bool, "provenance": {}}
    with pytest.raises(UnavailableError, match="no such folder"):
        train(recipe(), tmp_path, data_root=tmp_path / "none", **nothing)
    with pytest.raises(UnavailableError):
        train(recipe(), tmp_path, **nothing)


# ---------------------------------------------------------------------------------------------------- the loss


class Heads(nn.Module):
    """Two heads with fixed logits."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor):
        super().__init__()
        self.heads = first, second

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.heads


def test_two_heads_without_a_teacher_share_the_labels() -> None:
    first, second, target = torch.randn(4, 10), torch.randn(4, 10), torch.arange(4)
    objective = Objective(recipe(augment={}, label_smoothing=0.0), "cpu")
    expected = sum(nn.functional.cross_entropy(head, target) for head in (first, second)) / 2
    torch.testing.assert_close(objective(Heads(first, second), torch.zeros(4, 3, 8, 8), target), expected)


def test_hard_distillation(tmp_path: Path) -> None:
    teacher = build("timm:mobilenetv3_small_050", {"num_classes": 10, "resolution": 96}, seed=3)
    torch.save({"model": teacher.state_dict()}, tmp_path / "teacher.pth")
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    x, target = torch.randn(4, 3, 96, 96), torch.arange(4)
    first, second, answer = torch.randn(4, 10), torch.randn(4, 10), teacher(x).argmax(1)
    cross_entropy = nn.functional.cross_entropy
    expected = 0.75 * cross_entropy(first, target) + 0.25 * cross_entropy(second, answer)
    for name in ("teacher.pth", "teacher.safetensors"):
        distillation = {"teacher": "timm:mobilenetv3_small_050", "weights": str(tmp_path / name), "alpha": 0.25}
        objective = Objective(recipe(augment={}, label_smoothing=0.0, distillation=distillation), "cpu")
        torch.testing.assert_close(objective(Heads(first, second), x, target), expected)
    alone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))  # learns both with one head
    expected = 0.75 * cross_entropy(alone(x), target) + 0.25 * cross_entropy(alone(x), answer)
    torch.testing.assert_close(objective(alone, x, target), expected)


def test_a_teacher_without_sound_weights_is_refused(tmp_path: Path) -> None:
    distillation: dict[str, Any] = {"teacher": "timm:mobilenetv3_small_050"}
    with pytest.raises(UnavailableError, match="needs its weights"):
        Objective(recipe(distillation=distillation), "cpu")
    with pytest.raises(UnavailableError, match="no such file"):
        Objective(recipe(distillation=distillation | {"weights": str(tmp_path / "none.pth")}), "cpu")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    torch.save(build("timm:mobilenetv3_small_050", {"num_classes": 3}).state_dict(), tmp_path / "three.pth")
    for name in ("junk.pth", "three.pth"):
        with pytest.raises(ConfigError, match="does not hold weights of timm:mobilenetv3_small_050"):
            Objective(recipe(distillation=distillation | {"weights": str(tmp_path / name)}), "cpu")


def test_weight_decay_spares_vectors(run: Callable[..., TrainResult], tmp_path: Path) -> None:
    """With decay and a rate that forbid any other survivor, the norms' factors still stand near one."""
    run(recipe(optimizer={"lr": 1e-4, "weight_decay": 9e3}, schedule={"warmup_epochs": 0}, ema_decay=None))
    weights = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").model.state_dict()
    assert weights["stem.0.norm.weight"].mean() > 0.9
    assert weights["stem.0.conv.weight"].abs().max() < 0.1


# ---------------------------------------------------------------------------------------------------- evaluation


def test_any_callable_is_evaluated() -> None:
    pixels = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 4, 4)
    labels = torch.arange(10).clamp(max=7)
    batches = [(pixels[:6], labels[:6]), (pixels[6:], labels[6:])]
    seen: list[int] = []
    result = evaluate(lambda x: nn.functional.one_hot(x[:, 0, 0, 0].long(), 10), batches, seen.append)
    assert seen == [6, 10]
    assert result.num_images == 10
    assert result.top1_percent == pytest.approx(80.0)
    assert result.predictions.tolist() == list(range(10))
    low, high = result.interval_percent()
    assert low == pytest.approx(49.02, abs=0.01)  # Wilson's interval of 8 of 10
    assert high == pytest.approx(94.33, abs=0.01)


def test_agreement() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    first = torch.zeros(4, dtype=torch.long)
    a, b = Evaluation(labels, labels, first), Evaluation(torch.tensor([0, 1, 2, 0]), labels, first)
    assert agreement_percent(a, b) == 75.0
    with pytest.raises(ValueError, match="different pictures"):
        agreement_percent(a, Evaluation(labels, labels.flip(0), first))


def test_top_5_classes_and_confusions() -> None:
    """Four classes, of which the second picture's comes third and the last one's last, among equals."""
    scores = torch.tensor([[4.0, 3, 2, 1], [1, 2, 4, 3], [0, 0, 9, 0], [0, 9, 0, 0], [5, 5, 5, 5]])
    labels = torch.tensor([0, 1, 2, 2, 3])
    result = evaluate(lambda x: scores, [(torch.zeros(5, 3, 4, 4, dtype=torch.uint8), labels)])
    assert result.ranks.tolist() == [0, 2, 0, 2, 3]
    assert [result.num_correct(top) for top in (1, 2, 3, 4)] == [2, 2, 4, 5]
    assert result.right.tolist() == (result.ranks == 0).tolist() == [True, False, True, False, False]
    assert result.interval_percent(3) == wilson_percent(4, 5)
    assert {c: right.tolist() for c, right in result.by_class().items()} == {
        0: [True], 1: [False], 2: [True, False], 3: [False],
    }  # fmt: skip
    assert result.confusions() == [(1, 2, 1), (2, 1, 1), (3, 0, 1)]


def test_equal_scores_are_ranked_as_argmax_chooses() -> None:
    """Rounded scores have many equals; a right answer must be one by its rank, too."""
    scores = torch.randint(0, 4, (500, 6), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.arange(500) % 6
    result = evaluate(lambda x: scores, [(torch.zeros(500, 3, 1, 1, dtype=torch.uint8), labels)])
    assert result.right.tolist() == (result.ranks == 0).tolist()
    assert result.ranks.bincount(minlength=6).tolist() == pytest.approx([500 / 6] * 6, rel=0.35)


def test_classes_are_matched_by_name() -> None:
    """The network's own order may differ, and it may know more classes than there are pictures of."""
    assert class_order("val", ("ant", "cat"), ("cat", "bee", "ant"), 3) == [2, 0, 1]
    assert class_order("val", ("ant", "cat"), (), 2) == [0, 1]
    with pytest.raises(ConfigError, match=r"val: dog, emu: no class of the network, which knows cat, bee, ant and 1"):
        class_order("val", ("cat", "dog", "emu"), ("cat", "bee", "ant", "elk"), 4)
    with pytest.raises(ConfigError, match="val: holds 2 classes, but the network has 3"):
        class_order("val", ("ant", "cat"), (), 3)


def test_scores_that_are_no_numbers_and_empty_data_are_refused() -> None:
    batch = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.long)
    with pytest.raises(VigError, match="NaN"):
        evaluate(lambda x: torch.full((2, 10), math.nan), [batch])
    with pytest.raises(ConfigError, match="no picture"):
        evaluate(lambda x: torch.zeros(2, 10), [])


def test_a_torch_network_is_evaluated_in_its_evaluation_mode() -> None:
    model = build(TINY, seed=1)
    pixels = torch.randint(0, 256, (4, 3, 96, 96), dtype=torch.uint8)
    predict = normalized(model.train(), Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = predict(pixels)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(scores, model.eval()((pixels / 255 - 0.5) / 0.25), atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------- plans, recipes


def test_plan() -> None:
    counts = plan(recipe(epochs=10, schedule={"warmup_epochs": 2, "cooldown_epochs": 1, "min_lr": 1e-4}), 85)
    assert counts["steps_per_epoch"] == 10
    assert counts["total_steps"] == 100
    assert counts["total_images"] == 800
    assert counts["warmup_steps"] == 20
    assert (counts["lr_start"], counts["lr_peak"], counts["lr_end"]) == pytest.approx((1e-6, 1e-2, 1e-4))

"""What a run starts from, what stays frozen, and whom it learns from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from trainings import TINY, recipe

from vigcli.archs import build, official
from vigcli.archs.checkpoint import load_checkpoint, save_checkpoint
from vigcli.config.archs import ArchConfig, arch_config
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.config.recipe import Preprocessing
from vigcli.errors import ConfigError, UnavailableError
from vigcli.registry import FAMILIES, resolve
from vigcli.train.data import eval_batches, open_data
from vigcli.train.evaluate import evaluate, normalized
from vigcli.train.loop import TrainResult
from vigcli.train.objective import Objective, distance
from vigcli.train.scales import resized
from vigcli.train.start import start_from
from vigcli.train.teacher import load_teacher

Run = Callable[..., TrainResult]
TIMM = "timm:mobilenetv3_small_050"


def saved(path: Path, config: ArchConfig, labels: tuple[str, ...] = (), seed: int = 7, **more: Any) -> nn.Module:
    model = build(config, seed=seed)
    save_checkpoint(path, model, CheckpointMeta(arch=config, labels=labels, **more))  # type: ignore[arg-type]
    return model


def drawn(config: ArchConfig, path: Path, labels: tuple[str, ...] = ()) -> tuple[set[str], nn.Module]:
    """The tensors that a start leaves as they were drawn, and the network."""
    model = build(config, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = set(start_from(model, config, path, labels))
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in names)
    return names, model


# ---------------------------------------------------------------------------------------------------- weights


def test_a_checkpoint_of_ours_is_taken_whole(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.safetensors", TINY, tiny.LABELS)
    names, model = drawn(TINY, tmp_path / "a.safetensors", tiny.LABELS)
    assert names == set()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize("labels", [(), tuple("abcdefghij")])
def test_a_classifier_of_other_classes_is_drawn_anew(tmp_path: Path, labels: tuple[str, ...]) -> None:
    """Of another number, or of the same number with other names."""
    count = 7 if not labels else 10
    source = saved(tmp_path / "a.safetensors", TINY.changed({"num_classes": count}), labels)
    names, model = drawn(TINY, tmp_path / "a.safetensors", tiny.LABELS)
    assert names
    assert names <= {name for name in model.state_dict() if name.startswith("head.")}
    for name, tensor in model.state_dict().items():
        assert name in names or torch.equal(tensor, source.state_dict()[name])


@pytest.mark.parametrize("classes", [10, 1000])
def test_the_authors_weights_are_taken(tmp_path: Path, classes: int) -> None:
    source = build(TINY.changed({"num_classes": classes}), seed=5)
    (names, *_) = resolve(FAMILIES[TINY.family].official)(TINY)
    backwards = {ours: theirs for theirs, ours in names.items()}
    state = {official._rename(name, backwards): tensor for name, tensor in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "theirs.pth")
    left, model = drawn(TINY, tmp_path / "theirs.pth")
    assert bool(left) == (classes != 10)
    for name, tensor in model.state_dict().items():
        assert name in left or torch.equal(tensor, source.state_dict()[name])


def test_weights_of_timm_are_taken(tmp_path: Path) -> None:
    source = build(TIMM, {"num_classes": 1000}, seed=5)
    save_file(source.state_dict(), tmp_path / "timm.safetensors")
    left, model = drawn(arch_config(TIMM).changed({"num_classes": 10}), tmp_path / "timm.safetensors")
    assert left == {"classifier.weight", "classifier.bias"}
    assert torch.equal(model.get_parameter("conv_stem.weight"), source.get_parameter("conv_stem.weight"))


def test_positions_of_another_resolution_are_interpolated(tmp_path: Path) -> None:
    config = arch_config("vig_ti").changed({"resolution": 192, "num_classes": 10})
    model = build(config, seed=1)
    nn.init.normal_(model.get_parameter("stem.pos_embed"))
    save_checkpoint(tmp_path / "a.safetensors", model, CheckpointMeta(arch=config))  # type: ignore[arg-type]
    names, smaller = drawn(config.changed({"resolution": 160}), tmp_path / "a.safetensors")
    assert names == set()
    expected = resized(model.get_parameter("stem.pos_embed"), (10, 10))
    assert torch.equal(smaller.get_parameter("stem.pos_embed"), expected)


@pytest.mark.parametrize(("other", "what"), [
    (TINY.changed({"stages[3].width": 24}), "in the network"),
    (TINY.changed({"stages[3].local_depth": 2}), "only the"),
    (arch_config("mobilevit_xxs"), "only the"),
    (arch_config("mobilevit_xxs").changed({"resolution": 128}), "only the"),  # where TINY does nothing
])  # fmt: skip
def test_weights_of_another_network_are_refused(tmp_path: Path, other: ArchConfig, what: str) -> None:
    saved(tmp_path / "a.safetensors", other)
    with pytest.raises(ConfigError, match=f"does not fit the recipe's network: .*{what}") as unfit:
        drawn(TINY, tmp_path / "a.safetensors")
    assert unfit.value.hint


def test_a_run_starts_from_weights_and_keeps_what_is_frozen(run: Run, tmp_path: Path) -> None:
    source = saved(tmp_path / "a.safetensors", TINY)
    options = {"weights": str(tmp_path / "a.safetensors"), "freeze": ["stem", "stages[0]"], "ema_decay": None}
    run(recipe(**options))
    state = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").model.state_dict()
    same = {name for name, tensor in source.state_dict().items() if torch.equal(state[name], tensor)}
    frozen = {name for name in state if name.startswith(("stem.", "stages.0."))}
    assert any("running_mean" in name for name in frozen)
    assert frozen <= same
    assert {"stages.1.0.norm.running_mean", "stages.1.0.conv.weight"}.isdisjoint(same)


# ---------------------------------------------------------------------------------------------------- teachers


def logits(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 10, generator=generator), 3 * torch.randn(count, 10, generator=generator)


def test_soft_distillation_is_hintons() -> None:
    student, teacher = logits()
    soft = recipe(distillation={"teacher": TIMM, "kind": "soft", "temperature": 3.0}).distillation
    assert soft is not None
    p, q = (functional.softmax(x / 3.0, 1) for x in (teacher, student))
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distance(student, teacher, soft), expected)
    student.requires_grad_(True)  # at a high temperature its gradient is that of the logits' squared distance / 2N
    hot = soft.changed({"temperature": 1e3})
    distance(student, teacher, hot).backward()
    centred = student.detach() - teacher - (student.detach() - teacher).mean(1, keepdim=True)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, centred / 10 / 4, rtol=0.02, atol=1e-4)


def test_a_checkpoint_of_ours_teaches_on_pictures_as_it_expects_them(tmp_path: Path, root: Path) -> None:
    """Normalized for the student, turned round for the teacher; what it answers is what it answers by itself."""
    own = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    model = saved(tmp_path / "teacher.safetensors", TINY, tiny.LABELS, preprocessing=own)
    taught = recipe(distillation={"teacher": str(tmp_path / "teacher.safetensors")})
    teacher = load_teacher(taught, tiny.LABELS, "cpu")
    pictures = open_data(taught.data.changed({"root": str(root)}), "val")
    batches = list(eval_batches(pictures, taught.preprocessing, 96))
    expected = evaluate(normalized(model, own), batches)
    student = evaluate(lambda x: teacher(_normalized(x, taught.preprocessing)), batches)
    assert torch.equal(expected.predictions, student.predictions)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def _normalized(pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (pixels / 255 - mean) / std


@pytest.mark.parametrize(("count", "labels"), [(7, ()), (10, tuple("abcdefghij"))])
def test_a_teacher_of_other_classes_is_refused(tmp_path: Path, count: int, labels: tuple[str, ...]) -> None:
    saved(tmp_path / "teacher.safetensors", TINY.changed({"num_classes": count}), labels)
    taught = recipe(distillation={"teacher": str(tmp_path / "teacher.safetensors")})
    with pytest.raises(ConfigError, match=rf"this teacher's {count} classes are not the 10") as refused:
        load_teacher(taught, tiny.LABELS, "cpu")
    assert "Fine-tune it" in refused.value.hint


def test_a_teacher_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no such checkpoint of a teacher"):
        load_teacher(recipe(distillation={"teacher": str(tmp_path / "none.safetensors")}), (), "cpu")


def test_a_teacher_sees_the_resolution_of_the_step(tmp_path: Path) -> None:
    saved(tmp_path / "teacher.safetensors", TINY)
    taught = recipe(distillation={"teacher": str(tmp_path / "teacher.safetensors")}, multiscale=[96, 160],
                    batch_size=16, augment={})  # fmt: skip
    objective = Objective(taught, "cpu")
    for side in (96, 160):
        assert objective.teacher is not None
        assert objective.teacher(torch.randn(2, 3, side, side)).shape == (2, 10)

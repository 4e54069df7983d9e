"""Steps in parts, by micro-batches and by processes, are steps of the whole batch."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from trainings import TINY, recipe

from vigcli.config.recipe import Recipe
from vigcli.errors import UnavailableError, VigError
from vigcli.train.distributed import joined
from vigcli.train.loop import TrainResult, train
from vigcli.train.step import Stepper

Run = Callable[..., TrainResult]
STEADY = TINY.changed({"drop_path_rate": 0.0}).model_dump(mode="json")


@pytest.fixture
def norms_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of batch norm are a part's own; without them a step in parts adds up to the whole."""
    training_mode = Stepper.training_mode

    def mode(self: Stepper) -> None:
        training_mode(self)
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    monkeypatch.setattr(Stepper, "training_mode", mode)


def in_processes(size: int, work: Callable[[int], Any]) -> list[int]:
    """The exit codes of so many processes of one world."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])})
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    return [process.exitcode or 0 for process in processes]


def train_in(size: int, options: Recipe, folder: Path, root: Path | None, stop_at: float = float("inf")) -> list[int]:
    """Train in so many processes, of which the last asks to stop at a step."""

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        asked = iter(range(10**9))
        with joined(rank, size, "cpu") as world:
            train(
                options, folder, on_event=lambda _: None, provenance={"argv": ["vig", "train"]}, data_root=root,
                should_stop=lambda: rank == size - 1 and next(asked) >= stop_at,
                world=world, resume=(folder / "state.safetensors").exists(),
            )  # fmt: skip

    return in_processes(size, work)


def assert_close_runs(a: Path, b: Path) -> None:
    """The same but for the order in which sums were taken."""
    states = [load_file(folder / "state.safetensors") for folder in (a, b)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        torch.testing.assert_close(
            tensor, states[1][name], rtol=2e-3, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.usefixtures("norms_in_evaluation")
@pytest.mark.parametrize("options", [{}, {"clip_grad_norm": 0.1, "augment": {"mixup": 0.8, "cutmix": 1.0}}])
def test_micro_batches_give_the_gradients_of_the_batch(run: Run, tmp_path: Path, options: dict[str, Any]) -> None:
    plain = {"arch": STEADY, "epochs": 1, "schedule": {"warmup_epochs": 0}, "batch_size": 16,
             "optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.9}}  # fmt: skip
    for accumulate in (1, 2, 4):
        run(recipe(**plain, **options, accumulate=accumulate), str(accumulate))
    for accumulate in (2, 4):
        assert_close_runs(tmp_path / "1", tmp_path / str(accumulate))
    untrained = run(recipe(**plain | {"seed": 0}, **options), "other", stop_after=0)
    assert not untrained.finished
    with pytest.raises(AssertionError):  # the step does change the weights by more than that
        assert_close_runs(tmp_path / "1", tmp_path / "other")


@pytest.mark.usefixtures("norms_in_evaluation")
@pytest.mark.parametrize("options", [
    {"augment": {"rand_augment": "rand-m9-mstd0.5-inc1", "erase": 0.5, "mixup": 0.8, "cutmix": 1.0}},
    {"batch_size": 10, "accumulate": 2, "augment": {}},  # micro-batches of 5, parts of 2 and 3
    {"multiscale": [96, 160], "batch_size": 16},
])  # fmt: skip
def test_two_processes_do_what_one_does(run: Run, root: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    both = recipe(**{"arch": STEADY, "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.01}, **options})
    assert run(both, "alone").finished
    assert train_in(2, both, tmp_path / "two", root) == [0, 0]
    assert_close_runs(tmp_path / "alone", tmp_path / "two")
    a, b = (json.loads((tmp_path / name / "history.json").read_text()) for name in ("alone", "two"))
    assert [r["train_loss"] for r in a] == pytest.approx([r["train_loss"] for r in b], rel=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("norms_in_evaluation")
def test_two_processes_of_64_do_what_one_of_128_does(run: Run, tmp_path: Path) -> None:
    """The embedded pictures, nine steps, everything that is drawn for a picture."""
    drawn = {"rand_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25, "mixup": 0.8, "cutmix": 1.0, "repeats": 3}
    both = recipe(arch=STEADY, epochs=1, batch_size=128, data={"source": "emoji10", "workers": 0}, augment=drawn,
                  schedule={"warmup_epochs": 0}, optimizer={"name": "sgd", "lr": 0.01})  # fmt: skip
    assert run(both, "alone", data_root=None).step == 9
    assert train_in(2, both, tmp_path / "two", None) == [0, 0]
    assert_close_runs(tmp_path / "alone", tmp_path / "two")


def assert_the_same_is_learned(run: Run, folder: Path, **changes: Any) -> None:
    """With SGD: AdamW makes a whole step of a gradient that is none but for rounding."""
    both = {"arch": STEADY, "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.01}, "schedule": {"warmup_epochs": 0}}
    for name, more in (("plain", {}), ("other", changes)):
        run(recipe(**both, **more), name)
    assert_close_runs(folder / "plain", folder / "other")


@pytest.mark.slow  # the compiler takes a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++")
def test_a_compiled_network_learns_the_same(run: Run, tmp_path: Path) -> None:
    assert_the_same_is_learned(run, tmp_path, compile=True)


@pytest.mark.parametrize("options", [{"channels_last": False}, {"save_every_steps": 1}, {"data": {"workers": 1}}])
def test_what_is_the_machines_changes_nothing(run: Run, tmp_path: Path, options: dict[str, Any]) -> None:
    assert_the_same_is_learned(run, tmp_path, **options)


def test_processes_stop_together_and_go_on(root: Path, tmp_path: Path) -> None:
    """Batch norm in training mode here: each process has its own statistics, and the leader's are kept."""
    options = recipe(arch=STEADY, epochs=2)
    assert train_in(2, options, tmp_path / "whole", root) == [0, 0]
    assert train_in(2, options, tmp_path / "parts", root, stop_at=2) == [0, 0]
    assert not (tmp_path / "parts" / "history.json").exists()
    assert train_in(2, options, tmp_path / "parts", root) == [0, 0]
    whole, parts = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_synchronized_norms_need_a_gpu(root: Path, tmp_path: Path) -> None:
    def work(rank: int) -> None:
        with joined(rank, 2, "cpu") as world, pytest.raises(UnavailableError, match="SyncBatchNorm"):
            train(
                recipe(sync_batch_norm=True), tmp_path, on_event=print, provenance={}, data_root=root,
                should_stop=bool, world=world,
            )  # fmt: skip

    assert in_processes(2, work) == [0, 0]


def test_a_process_that_dies_ends_the_other(root: Path, tmp_path: Path) -> None:
    def work(rank: int) -> None:
        with joined(rank, 2, "cpu") as world, pytest.raises(VigError, match="another process of the run has ended"):
            train(
                recipe(arch=STEADY), tmp_path / "run", provenance={}, data_root=root, should_stop=bool, world=world,
                on_event=lambda event: os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else None,
            )  # fmt: skip

    assert in_processes(2, work) == [0, -signal.SIGKILL]

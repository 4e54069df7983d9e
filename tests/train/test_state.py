"""A run is never lost: killed at any moment it goes on with the same bits; a full disk leaves what was saved."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import assert_same_run, recipe

from vigcli import files
from vigcli.errors import ConfigError, VigError
from vigcli.train import step
from vigcli.train.loop import TrainEvent, TrainResult, train
from vigcli.train.objective import Objective

Run = Callable[..., TrainResult]
OFTEN = {"save_every_steps": 1, "ema_decay": 0.5, "multiscale": [96, 160], "batch_size": 16, "accumulate": 2}


def in_child(work: Callable[[], Any]) -> int:
    """The exit code of a forked process that does the work; -9 where it was killed."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lines(folder: Path) -> list[dict[str, Any]]:
    """What a log says, without what the clock decides."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "images_per_s"} for record in records]


@pytest.mark.parametrize("options", [OFTEN, {"save_every_steps": 2, "precision": "bf16"}])
def test_killed_at_random_steps_a_run_ends_with_the_same_bits(
    run: Run, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """With SIGKILL after a step, or between the writing of a file and its renaming."""
    killed, draw = recipe(**options), random.Random(0)
    assert run(killed, "whole").finished
    folder, kills = tmp_path / "killed", 0

    def train_until(event: int, rename: int) -> None:
        events, renames = iter(range(event)), iter(range(rename))
        put = files._put

        def on_event(_: TrainEvent) -> None:
            if next(events, None) is None:
                die()

        def put_or_die(*paths: Path) -> None:
            if next(renames, None) is None:
                die()
            put(*paths)

        monkeypatch.setattr(files, "_put", put_or_die)
        train(
            killed, folder, on_event=on_event, should_stop=bool, provenance={"argv": ["vig", "train"]}, data_root=root,
            resume=(folder / "state.safetensors").exists(),
        )  # fmt: skip

    while (code := in_child(lambda: train_until(draw.randint(1, 4), draw.randint(1, 6)))) != 0:
        assert code == -signal.SIGKILL
        kills += 1
        assert kills < 30
    assert kills >= 2
    assert_same_run(tmp_path / "whole", folder)
    assert lines(folder) == lines(tmp_path / "whole")
    assert not list(folder.glob(".vig-*"))


def test_a_full_disk_leaves_the_last_state(run: Run, tmp_path: Path) -> None:
    """A file that grows beyond the limit is refused like one for which the disk has no room."""
    assert not run(recipe(save_every_steps=1), stop_after=1).finished
    folder = tmp_path / "run"
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "log.jsonl"}

    def on_a_full_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept["state.safetensors"]) // 2,) * 2)
        with pytest.raises(VigError, match="cannot be written") as full:
            run(recipe(save_every_steps=1), resume=True)
        assert "half-written" in full.value.hint

    assert in_child(on_a_full_disk) == 0
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    assert not list(folder.glob(".vig-*"))
    assert run(recipe(save_every_steps=1), "whole").finished
    assert run(recipe(save_every_steps=1), resume=True).finished
    assert_same_run(tmp_path / "whole", folder)


def test_the_scaler_of_fp16_is_kept(run: Run, tmp_path: Path) -> None:
    options = recipe(precision="fp16", epochs=2)
    run(options, "whole")
    run(options, stop_after=2)
    torch.manual_seed(1)
    assert run(options, resume=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_gradients_that_overflow_fp16_at_any_scale_end_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale is halved until it is none; the limit is raised here so that this takes few steps."""
    loss = Objective.__call__
    monkeypatch.setattr(Objective, "__call__", lambda *arguments: 1e38 * loss(*arguments))
    monkeypatch.setattr(step, "_LEAST_SCALE", 2.0**14)
    with pytest.raises(VigError, match=r"step 2 .*: the gradients overflow fp16"):
        run(recipe(precision="fp16"))


def test_old_states_are_refused(run: Run, tmp_path: Path) -> None:
    run(recipe(), stop_after=1)
    with pytest.raises(ConfigError, match=r"accumulate was 1, is 2"):
        run(recipe(accumulate=2), resume=True)

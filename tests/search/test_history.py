"""A search that is killed goes on as if it had not been: the same front and the same history, to the byte."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import zipfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vigcli.errors import ConfigError, VigError
from vigcli.search import history as module
from vigcli.search.encoding import Encoding, Population
from vigcli.search.evolution import Found, State, evolve
from vigcli.search.history import HISTORY_FILE, STATE_FILE, History, fixed_of

BUDGET_MS, NUM, EVERY = 1.0, 5000, 4


def searched(
    encoding: Encoding, seeds: Population, folder: Path, *, resume: bool = False, seed: int = 5, sleep_s: float = 0.0
) -> Found:
    fixed = fixed_of(encoding, BUDGET_MS, seed, NUM)
    with History(folder, fixed, BUDGET_MS, every=EVERY) as history:
        state = history.restore() if resume else None

        def on_generation(state: State) -> None:
            history(state)
            time.sleep(sleep_s)

        generator = np.random.default_rng(seed)
        return evolve(
            encoding, BUDGET_MS, seeds, generator, num_candidates=NUM, max_evaluated=3 * NUM // 2,
            state=state, on_generation=on_generation,
        )  # fmt: skip


def answer(found: Found) -> tuple[Any, ...]:
    arrays = (found.candidates, found.latency_ms, found.score)
    return (*(a.tolist() for a in arrays), found.num_evaluated, found.num_feasible)


@pytest.fixture(scope="module")
def whole(wide: Encoding, published: Population, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    found = searched(wide, published, folder)
    return answer(found), (folder / HISTORY_FILE).read_bytes()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def started(target: Callable[..., object], *args: object, **kwargs: object) -> BaseProcess:
    """A child forked from a server that has no threads, as this process may have by other tests' imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module.__name__])  # what takes long to import
    child = context.Process(target=target, args=args, kwargs=kwargs)
    child.start()
    return child


def search_and_die(encoding: Encoding, seeds: Population, folder: Path, generation: int, where: str) -> None:
    """Search, and be killed at one generation."""
    call, write, savez = History.__call__, History._write, np.savez

    def dying_call(self: History, state: State) -> None:
        if state.generation == generation and where == "before the line":
            die()
        if state.generation == generation and where == "in the line":
            with (folder / HISTORY_FILE).open("ab") as file:
                file.write(b'{"generation": ')
            die()
        call(self, state)
        if state.generation == generation:
            die()

    def dying_write(self: History, state: State) -> None:
        if state.generation == generation and where == "after the line":
            die()
        if state.generation == generation and where == "in the state":
            module.np.savez = half_written  # type: ignore[assignment]
        write(self, state)

    def half_written(path: Path, **arrays: Any) -> None:
        savez(path, **arrays)
        path.write_bytes(path.read_bytes()[:100])
        die()

    History.__call__ = dying_call  # type: ignore[method-assign]
    History._write = dying_write  # type: ignore[method-assign]
    searched(encoding, seeds, folder)


def test_the_history_says_what_happened(whole: tuple[Any, bytes]) -> None:
    lines = [json.loads(line) for line in whole[1].splitlines()]
    assert [line["generation"] for line in lines] == list(range(len(lines)))
    assert len(lines) > 3 * EVERY
    for name in ("num_evaluated", "num_feasible", "best_top1_percent", "hypervolume"):
        values = [line[name] for line in lines]
        assert values == sorted(values), name
    *_, score, evaluated, feasible = whole[0]
    last = lines[-1]
    assert (last["num_evaluated"], last["num_feasible"], last["front_size"]) == (evaluated, feasible, len(score))
    assert last["best_top1_percent"] == round(score[-1], 4)


@pytest.mark.parametrize("generation", [0, EVERY - 1, EVERY, 2 * EVERY])
@pytest.mark.parametrize("where", ["before the line", "in the line", "after the line", "in the state", "at the end"])
def test_a_killed_search_goes_on_as_if_it_had_not_been(
    wide: Encoding, published: Population, whole: tuple[Any, bytes], tmp_path: Path, generation: int, where: str
) -> None:
    if where == "in the state" and generation % EVERY:
        pytest.skip("no state is written then")

    child = started(search_and_die, wide, published, tmp_path, generation, where)
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    if not (tmp_path / HISTORY_FILE).exists():
        assert (generation, where) == (0, "before the line")
        return
    found = searched(wide, published, tmp_path, resume=True)
    assert answer(found) == whole[0]
    assert (tmp_path / HISTORY_FILE).read_bytes() == whole[1]


def test_a_search_may_be_killed_again_and_again(
    wide: Encoding, published: Population, whole: tuple[Any, bytes], tmp_path: Path
) -> None:
    """From outside, at moments that nothing decides."""
    generator = np.random.default_rng()
    (tmp_path / HISTORY_FILE).touch()
    for _ in range(5):
        child = started(searched, wide, published, tmp_path, resume=True, sleep_s=0.01)
        time.sleep(float(generator.uniform(0.05, 0.5)))
        child.kill()
        child.join()
    found = searched(wide, published, tmp_path, resume=True)
    assert answer(found) == whole[0]
    assert (tmp_path / HISTORY_FILE).read_bytes() == whole[1]


def test_a_finished_search_ends_the_same_again(
    wide: Encoding, published: Population, whole: tuple[Any, bytes], tmp_path: Path
) -> None:
    searched(wide, published, tmp_path)
    assert answer(searched(wide, published, tmp_path, resume=True)) == whole[0]
    assert (tmp_path / HISTORY_FILE).read_bytes() == whole[1]


def refused(encoding: Encoding, published: Population, folder: Path, **changes: Any) -> VigError:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError) as error:
        searched(encoding, published, folder, resume=True, **changes)
    assert error.value.hint
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before  # nothing is touched
    return error.value


def test_another_search_is_refused(wide: Encoding, published: Population, tmp_path: Path) -> None:
    assert "holds no search" in str(refused(wide, published, tmp_path))
    searched(wide, published, tmp_path)
    assert "seed was 5, now 6" in str(refused(wide, published, tmp_path, seed=6))
    fewer = wide._restricted({0: [0]})
    assert "encoding was" in str(refused(fewer, published[:0], tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_damaged_state_is_refused(wide: Encoding, published: Population, tmp_path: Path, share: float) -> None:
    searched(wide, published, tmp_path)
    data = (tmp_path / STATE_FILE).read_bytes()
    (tmp_path / STATE_FILE).write_bytes(data[: int(share * len(data))])
    assert "is no state of a search" in str(refused(wide, published, tmp_path))


def test_a_changed_byte_is_noticed(wide: Encoding, published: Population, tmp_path: Path) -> None:
    searched(wide, published, tmp_path)
    data = bytearray((tmp_path / STATE_FILE).read_bytes())
    with zipfile.ZipFile(tmp_path / STATE_FILE) as file:
        offset = file.getinfo("seen.npy").header_offset
    data[offset + 400] ^= 1
    (tmp_path / STATE_FILE).write_bytes(data)
    assert "is no state of a search" in str(refused(wide, published, tmp_path))


@pytest.mark.parametrize("what", ["text", "foreign arrays", "a folder"])
def test_a_foreign_file_is_refused(wide: Encoding, published: Population, tmp_path: Path, what: str) -> None:
    (tmp_path / HISTORY_FILE).touch()
    path = tmp_path / STATE_FILE
    if what == "a folder":
        path.mkdir()
        with pytest.raises(ConfigError, match="cannot be read"):
            searched(wide, published, tmp_path, resume=True)
        return
    if what == "text":
        path.write_text("hello")
    else:
        np.savez(path, a=np.zeros(3))
    assert "is no state of a search" in str(refused(wide, published, tmp_path))


def test_a_changed_history_is_refused(wide: Encoding, published: Population, tmp_path: Path) -> None:
    searched(wide, published, tmp_path)
    history = tmp_path / HISTORY_FILE
    data = history.read_bytes()
    for changed in (data[:50], data.replace(b'"generation": 1,', b'"generation": 7,')):
        history.write_bytes(changed)
        assert "is not the history" in str(refused(wide, published, tmp_path))

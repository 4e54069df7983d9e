"""What a search writes while it runs: a history, a line a generation, and a state from which it can be gone on with.

The history is only ever appended to. The state is replaced whole, after the history up to it is on the disk, and says
how much of the history belongs to it: what was appended later is cut off when the search goes on. So a search that is
killed at any point and resumed ends with the same front and the same history, to the byte, as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from vigcli.errors import ConfigError
from vigcli.files import replacing
from vigcli.search.encoding import Encoding
from vigcli.search.evolution import State
from vigcli.search.front import hypervolume

HISTORY_FILE, STATE_FILE = "history.jsonl", "state.npz"
REFERENCE_SCORE = 60.0  # of the hypervolume, in points of top-1; its latency is the budget
_FORMAT = 1
_EVERY = 20  # generations between two states
_START_ANEW = "Start anew with `vig search`."


class History:
    """The history and the state of one search in one folder: `evolve` calls it after every generation.

    Args:
        folder: a run directory; two searches cannot share one.
        fixed: what may not change between the parts of a search, such as `fixed_of` gives: name -> JSON value.
        every: generations between two states.
    """

    def __init__(self, folder: Path, fixed: Mapping[str, Any], budget_ms: float, *, every: int = _EVERY):
        self.folder, self.fixed, self.budget_ms, self.every = folder, dict(fixed), budget_ms, every
        self._file: IO[bytes] | None = None
        self._length, self._digest = 0, hashlib.sha256()

    def restore(self) -> State | None:
        """The state to go on from, None where the search was killed before it wrote one: it starts from the beginning.

        Raises ConfigError where the folder holds no search, another search, or a damaged one.
        """
        history, path = self.folder / HISTORY_FILE, self.folder / STATE_FILE
        if not history.is_file():
            raise ConfigError(f"{self.folder}: holds no search to resume.", "Name the folder of a search that began.")
        if not path.exists():
            return None
        state, meta = _read(path)
        for key, value in self.fixed.items():
            if key not in meta["fixed"] or meta["fixed"][key] != value:
                was = f"{key} was {_short(meta['fixed'].get(key))}, now {_short(value)}"
                raise ConfigError(f"{path}: cannot resume, {was}.", "Resume with what the run began with.")
        with history.open("rb") as file:
            begun = file.read(meta["history_bytes"])
        if len(begun) < meta["history_bytes"] or hashlib.sha256(begun).hexdigest() != meta["history_sha256"]:
            raise ConfigError(f"{history}: is not the history that {STATE_FILE} was written with.", _START_ANEW)
        self._length, self._digest = len(begun), hashlib.sha256(begun)
        return state

    def __call__(self, state: State) -> None:
        """Append a generation, and write the state where it is due."""
        if self._file is None:
            self._file = (self.folder / HISTORY_FILE).open("ab")
            self._file.truncate(self._length)
        line = (json.dumps(record(state, self.budget_ms)) + "\n").encode()
        self._file.write(line)
        self._file.flush()
        self._length += len(line)
        self._digest.update(line)
        if state.generation % self.every == 0:
            os.fsync(self._file.fileno())
            self._write(state)

    def close(self) -> None:
        """Let go of the file; the search may still be resumed."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> History:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, state: State) -> None:
        arrays, rest = state.as_arrays()
        meta = {
            "format": _FORMAT,
            "fixed": self.fixed,
            "state": rest,
            "history_bytes": self._length,
            "history_sha256": self._digest.hexdigest(),
        }
        with replacing(self.folder / STATE_FILE) as temporary:
            np.savez(temporary, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)  # type: ignore[arg-type]


def fixed_of(encoding: Encoding, budget_ms: float, seed: int, num_candidates: int) -> dict[str, Any]:
    """What decides a search: another value of any of these would end elsewhere. `encoding` is a digest of its arrays,
    which the space, the base network and the table decide."""
    digest = hashlib.sha256(encoding.space.model_dump_json().encode())
    digest.update(encoding.base.model_dump_json().encode())
    for part in encoding.parts:
        digest.update(repr((part.axes, part.costs.shape)).encode())
        digest.update(np.ascontiguousarray(part.costs).tobytes() + np.ascontiguousarray(part.allowed).tobytes())
    return {
        "budget_ms": budget_ms,
        "seed": seed,
        "num_candidates": num_candidates,
        "encoding": digest.hexdigest(),
    }


def lines_of(folder: Path) -> tuple[dict[str, Any], ...]:
    """The history that a folder holds."""
    return tuple(json.loads(line) for line in (folder / HISTORY_FILE).read_text(encoding="utf-8").splitlines())


def record(state: State, budget_ms: float) -> dict[str, Any]:
    """One generation: nothing in it depends on the clock."""
    front = state.front
    return {
        "generation": state.generation,
        "num_evaluated": state.num_evaluated,
        "num_feasible": state.num_feasible,
        "best_top1_percent": round(float(front.score[-1]), 4) if len(front.score) else None,
        "front_size": len(front.score),
        "hypervolume": round(hypervolume(front.latency_ms, front.score, budget_ms, REFERENCE_SCORE), 6),
    }


def _read(path: Path) -> tuple[State, dict[str, Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        if meta["format"] != _FORMAT or not meta.keys() >= {"fixed", "history_bytes", "history_sha256"}:
            raise ValueError("another format")
        state = State.from_arrays(arrays, meta["state"])
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}.", _START_ANEW) from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, OverflowError) as error:
        raise ConfigError(f"{path}: is no state of a search, or a damaged one.", _START_ANEW) from error
    return state, meta


def _short(value: Any) -> str:
    text = "not known" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."

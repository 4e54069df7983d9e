"""What all tests share; pytest puts this folder on the path, so that every folder can import `golden` and `tiny`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vigcli.cli.main import main

Vig = Callable[..., str]


@pytest.fixture
def vig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Vig:
    """Runs a command line in an empty folder and gives what it prints on stdout."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str, code: int = 0) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(argv)
        captured = capsys.readouterr()
        assert stop.value.code == code, captured.err
        return captured.out

    return run

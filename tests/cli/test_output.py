"""What commands print while they work."""

from __future__ import annotations

import pytest

from vigcli.cli import output


def test_off_a_terminal_nothing_is_said_of_what_is_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor a speed of what took no time."""
    clock = iter((0.0, 0.0, 20.0, 20.0, 40.0, 60.0))
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    shown = output.Progress()
    for what, done in (("convert", 0), ("run", 1), ("run", 2), ("run", 4000), ("run", 5000)):
        shown(what, done, 5000)
    assert capsys.readouterr().err == "run 1/5,000\nrun 4,000/5,000  200/s  5 s left\n"


def test_progress_of_what_is_resumed_counts_what_is_done_now(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten steps in 20 s, after 900 of an earlier process, leave 90 that take 180 s."""
    clock = iter((0.0, 0.0, 20.0))
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    shown = output.Progress()
    shown("step", 900, 1000)
    shown("step", 910, 1000, "loss 1.0")
    assert capsys.readouterr().err == "step 910/1,000  0.5/s  3 min 0 s left  loss 1.0\n"

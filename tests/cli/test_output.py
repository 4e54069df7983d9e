"""What commands print while they work."""

from __future__ import annotations

import pytest

from vigcli.cli import output


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

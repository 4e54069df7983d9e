"""The benchmarks' own command lines: a mistake is told, not thrown."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mobilevigv2_x"], "'mobilevigv2_x' is no known network. Did you mean 'mobilevigv2_s'?"),
        (["timm:resnet18"], "'timm:resnet18' has no plain reading."),
        (["--batches", "0"], "'0' is no whole number above 0."),
        (["--batches"], "expected at least one argument"),
        (["--rounds", "-1"], "'-1' is no whole number above 0."),
    ],
)
def test_mistakes_of_forward_are_told(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["forward.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module("forward").main()
    assert stop.value.code == 2
    assert said in capsys.readouterr().err

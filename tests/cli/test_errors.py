"""Typical mistakes and exactly what is printed about them: `errors.txt` is the table.

After a deliberate change, `VIG_WRITE_ERRORS=1 pytest tests/cli/test_errors.py` writes the table anew; read its diff.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from vigcli.cli.main import main
from vigcli.paths import find_file

TABLE = Path(__file__).parent / "errors.txt"


def entries() -> dict[str, str]:
    """Command line -> exit code and stderr, from `$ command` lines and what follows them."""
    blocks = TABLE.read_text(encoding="utf-8").strip().split("\n\n")
    return {block.partition("\n")[0].removeprefix("$ "): block.partition("\n")[2] for block in blocks}


@pytest.fixture
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vigcli.cli.output.Progress.__call__", lambda *_, **__: None)  # a slow machine shows some
    table = find_file("table", "iphone13-mini").read_text()
    recipe = find_file("recipe", "emoji10").read_text()
    space = find_file("space", "mobilevigv2").read_text()
    for name, text in {
        "ok.yaml": recipe,
        "misspelt.yaml": recipe.replace("weight_decay", "weight_dcay"),
        "type.yaml": recipe.replace("epochs: 5", 'epochs: "5"'),
        "twice.yaml": recipe.replace("epochs: 5", "epochs: 5\nepochs: 6"),
        "tab.yaml": "arch:\n\tname: x\n",
        "alias.yaml": "a: &a [1]\nb: *a\n",
        "escape.yaml": '"\\e[31mred": 1\n',
        "empty.yaml": "",
        "circle.yaml": "base: ring\n",
        "ring.yaml": "# builds on what builds on it\nbase: circle\n",
        "lost.yaml": "base: v2_small\n",
        "away.yaml": "base: ../../etc/passwd\n",
        "built.yaml": "# nothing else\nbase: v2_s\noptimizer: {lr: fast}\n",
        "broken_base.yaml": "base: type\n",
        "warm.yaml": "base: emoji10\nschedule: {warmup_steps: 100}\n",
        "space.yaml": space.replace("stages[1].reach", "stages[1].raech"),
        "mixed_wrong.yaml": "spaces: [mobilevigv2, mobilevg]\n",
        "old_table.yaml": table.replace("format: 2", "format: 1"),
        "cut_table.yaml": table[: table.index("  stem[width=24]")],
        "anchors.csv": "network,resolution,latency_ms\nmobilevigv2_ti,224,-0.9\n",
        "one_anchor.csv": "network,resolution,latency_ms\nmobilevigv2_ti,224,0.9\n",
        "columns.csv": "network,ms\nmobilevigv2_ti,0.9\n",
        "text.safetensors": "this is no checkpoint",
        "text.onnx": "this is no model",
        "bad.png": "this is no picture",
        "bad.mlpackage/x": "",
        "used/x": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, data in {
        "empty.pth": b"",
        "page.pth": b"<!DOCTYPE html>",
        "evil.pth": b"\x80\x02cposix\nsystem\n(X\x0a\x00\x00\x00touch evil\x85R.",
    }.items():
        (tmp_path / name).write_bytes(data)
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "none.pth")
    torch.save({"state_dict": {"head.weight": torch.zeros(1000, 384)}}, tmp_path / "other.pth")
    (tmp_path / "latin.yaml").write_bytes("# café".encode("latin-1"))
    (tmp_path / "folder.yaml").mkdir()


def run(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(command)[1:])
    captured = capsys.readouterr()
    assert captured.out == ""
    said = re.sub(r"machine has [\d.]+ \wB", "machine has 16.0 GB", captured.err.strip())
    return f"exit {stop.value.code}\n{said}"


@pytest.mark.skipif("VIG_WRITE_ERRORS" not in os.environ, reason="writes the table")
@pytest.mark.usefixtures("_files")
def test_write_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n\n".join(f"$ {command}\n{run(command, capsys)}" for command in entries())
    TABLE.write_text(text + "\n", encoding="utf-8")


@pytest.mark.parametrize("command", entries())
@pytest.mark.usefixtures("_files")
def test_a_mistake(command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    said = run(command, capsys)
    assert said == entries()[command]
    _, error, hint = said.split("\n")
    assert error.startswith("Error: ")
    assert hint.startswith("Hint:  ")
    assert sorted(tmp_path.rglob("*")) == before, "a mistake leaves nothing behind"

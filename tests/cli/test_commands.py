"""What holds for every command: help with an example, JSON alone on stdout, and clean ends."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from tiny import CONFIG

from vigcli.cli.main import COMMANDS, as_vig_error, cli, main
from vigcli.config.load import dump
from vigcli.config.recipe import Recipe
from vigcli.paths import find_file

Vig = Callable[..., str]


def find(words: list[str]) -> click.Command:
    command: Any = cli
    for word in words:
        command = command.get_command(click.Context(command), word)
    return command


def leaves() -> list[list[str]]:
    """Every command that does something, as the words that name it."""
    found = []
    for name in COMMANDS:
        command: Any = find([name])
        found += [[name, child] for child in command.commands] if isinstance(command, click.Group) else [[name]]
    return found


LEAVES = pytest.mark.parametrize("words", leaves(), ids=" ".join)


@pytest.mark.parametrize("words", [[name] for name in COMMANDS] + leaves(), ids=" ".join)
def test_help_has_an_example_that_parses(words: list[str], vig: Vig) -> None:
    text = vig(*words, "--help")
    examples = re.findall(r"^ *Example:  (vig .*)$", text, re.M)
    assert examples, "an example must fit on its line"
    for example in examples:
        arguments = shlex.split(example)[1:]
        assert arguments[: len(words)] == words
        depth = 2 if isinstance(find(arguments[:1]), click.Group) else 1
        find(arguments[:depth]).make_context("vig", arguments[depth:])


@LEAVES
def test_every_command_offers_json(words: list[str]) -> None:
    assert any("--json" in parameter.opts for parameter in find(words).params)


@pytest.mark.parametrize(
    "line",
    [
        "ls", "ls recipes", "ls paths mobilevit_s", "doctor", "table show", "check ok.yaml",
        "check --schema recipe", "check --schema space",
        "check --schema table", "cp v2_s mine.yaml", "build mobilevigv2_ti", "build mobilevigv2_ti -o x.safetensors",
        "profile mobilevigv2_ti", "profile mobilevigv2_ti --budget 3ms", "score show mobilevigv2_ti",
        "search --budget 1ms --dry-run", "train ok.yaml --dry-run", "export x.safetensors --dry-run",
    ],
)  # fmt: skip
def test_json_is_all_that_stdout_gets(line: str, vig: Vig, tmp_path: Path) -> None:
    (tmp_path / "ok.yaml").write_text(find_file("recipe", "emoji10").read_text())
    if line.startswith("export"):
        vig("build", "mobilevigv2_ti", "--num-classes", "10", "-o", "x.safetensors")
    assert json.loads(vig(*line.split(), "--json"))


def test_a_budget_that_is_not_met_still_prints_its_data(vig: Vig) -> None:
    assert json.loads(vig("profile", "mobilevigv2_ti", "--budget", "0.1ms", "--json", code=4))["over_budget"]


def test_a_run_directory_is_asked_for_its_own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vigcli.cli.load import picked_checkpoint, picked_package

    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("0001-export", "0002-quantize")):
        package = tmp_path / "runs" / name / "x.mlpackage"
        package.mkdir(parents=True)
        os.utime(package, (i, i))
    assert picked_package("runs/0001-export").parent.name == "0001-export"
    assert picked_package(None).parent.name == "0002-quantize"
    assert picked_package("a.mlpackage") == Path("a.mlpackage")
    assert picked_checkpoint("runs/0001-export") == Path("runs/0001-export/checkpoint.safetensors")


def test_no_command_is_help_and_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["table"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("Usage: vig")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "stopped."),
        (OSError(28, "No space left on device"), 1, "the disk is full."),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x: Permission denied."),
        (MemoryError(), 1, "not enough memory."),
        (KeyError("x\ny"), 1, r"unexpected: KeyError: 'x\ny'"),
        (click.UsageError("No such thing.\nDid you mean 'that'?"), 2, "No such thing."),
    ],
)
def test_every_exception_has_two_lines_and_a_code(error: BaseException, code: int, text: str) -> None:
    known = as_vig_error(error)
    assert (known.exit_code, str(known)) == (code, text)
    assert known.hint
    assert "\n" not in f"{known}{known.hint}"


def test_debug_shows_where_and_ends_alike(capsys: pytest.CaptureFixture[str]) -> None:
    codes, said = [], []
    for more in ([], ["--debug"]):
        with pytest.raises(SystemExit) as stop:
            main(["build", "nope", *more])
        codes.append(stop.value.code)
        said.append(capsys.readouterr().err)
    assert codes[0] == codes[1]
    assert "Traceback" in said[1]
    assert said[1].endswith(said[0])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("no_color", "colours"), [(None, True), ("", True), ("1", False)])
def test_colours_are_for_terminals_that_want_them(
    monkeypatch: pytest.MonkeyPatch, no_color: str | None, colours: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    monkeypatch.setattr(sys, "stdout", listed := Terminal())
    for words in (["ls", "archs"], ["searhc"]):
        with pytest.raises(SystemExit):
            main(words)
    assert ("\033[" in shown.getvalue()) == colours
    assert ("\033[" in listed.getvalue()) == colours


# ---------------------------------------------------------------------------------------------------- as a process

VIG = [sys.executable, "-m", "vigcli"]


def started(folder: Path, *argv: str, **options: Any) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([*VIG, *argv], cwd=folder, stdout=pipe, stderr=pipe, text=True, **options)


def test_the_module_is_the_program(tmp_path: Path) -> None:
    installed = Path(sys.executable).with_name("vig")
    outputs = [
        subprocess.run([*program, "ls", "nothing"], cwd=tmp_path, capture_output=True, text=True)
        for program in (VIG, [str(installed)])
        if program is VIG or installed.exists()
    ]
    assert {(done.returncode, done.stdout, done.stderr) for done in outputs} == {(2, "", outputs[0].stderr)}


@pytest.mark.parametrize("redirect", ["| head -1", ">&-", "2>&-"])
def test_a_closed_stream_is_no_fault(tmp_path: Path, redirect: str) -> None:
    line = f"{shlex.join([*VIG, 'check', '--schema', 'table'])} {redirect}"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("variables", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}])
def test_a_poor_locale_is_no_fault(tmp_path: Path, variables: dict[str, str]) -> None:
    for words in (["table", "show"], ["cp", "v2_s", os.fsdecode(b"caf\xe9.yaml"), "--json"]):
        done = subprocess.run([*VIG, *words], cwd=tmp_path, capture_output=True, env={**os.environ, **variables})
        assert done.returncode == 0, done.stderr


def worked(process: subprocess.Popen[str], seconds: float) -> None:
    """Wait until a process has used so much CPU time: on a busy machine the same place of its run comes later."""
    stat = Path(f"/proc/{process.pid}/stat")
    if not stat.exists():  # no Linux
        time.sleep(seconds)
        return
    while process.poll() is None:
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        if (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") >= seconds:
            return
        time.sleep(0.01)


def check_nothing_is_left(process: subprocess.Popen[str], number: signal.Signals, folder: Path) -> None:
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    # 130 to a shell in any case: the system ends a process that has not begun, and Python itself by SIGINT sometimes.
    assert process.returncode in (130, -number, -signal.SIGINT)
    assert out == ""
    assert os.listdir(folder) == []


@pytest.mark.parametrize("seconds", [0.1, 0.3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_search_stopped_at_its_start_leaves_nothing(tmp_path: Path, seconds: float, number: signal.Signals) -> None:
    process = started(tmp_path, "search", "--budget", "1.0ms")
    worked(process, seconds)
    check_nothing_is_left(process, number, tmp_path)


SWALLOWED = """
import ctypes, os, signal
from vigcli.cli import main
from vigcli.errors import ConfigError

def run(arguments):
    ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), signal.SIGINT))()
    raise ConfigError("no such key.")

main._run = run
main.main([])
"""


def test_an_interrupt_that_a_library_swallows_is_one(tmp_path: Path) -> None:
    """As where a pattern is then said not to match."""
    done = subprocess.run([sys.executable, "-c", SWALLOWED], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[0]) == (130, "Error: stopped.")


EVOLVING = """
import sys, time
from vigcli.cli.main import main
from vigcli.search.history import History

call = History.__call__

def slowly(self, state):
    call(self, state)
    print("evolving", file=sys.stderr, flush=True)
    time.sleep(0.1)

History.__call__ = slowly
main([{line}])
"""
SEARCH = ["search", "mobilevig", "--budget", "1.0ms", "--candidates", "60000"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_search_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    script = EVOLVING.format(line=", ".join(map(repr, SEARCH)))
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert any(line == "evolving\n" for line in process.stderr)  # after progress, on a slow machine
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.endswith(
        "Error: stopped; the state is saved.\nHint:  Go on with: vig search --resume runs/0001-search\n"
    )
    assert {"history.jsonl", "options.json"} <= set(os.listdir(tmp_path / "runs/0001-search"))
    if number == signal.SIGTERM:
        return
    outs = []
    for line in (["search", "--resume", "runs/0001-search"], [*SEARCH, "-o", "whole"]):
        process = started(tmp_path, *line, "--json")
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        outs.append({key: value for key, value in json.loads(out).items() if key != "run"})
    assert outs[0] == outs[1]
    process = started(tmp_path, "search", "--resume", "whole")
    _, err = process.communicate(timeout=120)
    assert "The search had ended; read again in" in err
    stopped, whole = tmp_path / "runs/0001-search", tmp_path / "whole"
    assert (stopped / "history.jsonl").read_bytes() == (whole / "history.jsonl").read_bytes()


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stopped_training_goes_on(tmp_path: Path, processes: int) -> None:
    recipe = Recipe.parse({
        "arch": CONFIG.model_dump(mode="json"), "resolution": 96, "num_classes": 10, "epochs": 1, "batch_size": 64,
        "optimizer": {"lr": 1e-3}, "schedule": {"warmup_epochs": 0.5}, "data": {"source": "emoji10", "workers": 0},
    })  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(dump(recipe))
    options = ["--device", "cpu", *(["--nproc", str(processes)] if processes > 1 else [])]
    process = started(tmp_path, "train", "tiny.yaml", *options, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = tmp_path / "runs/0001-train/log.jsonl"
    while not (log.is_file() and log.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    more = " --nproc 2" if processes > 1 else ""
    assert re.search(
        r"Error: stopped at step \d+; the state is saved\.\n"
        rf"Hint:  Go on with: vig train --resume runs/0001-train{more}\n$",
        err,
    )
    left = ["log.jsonl", "recipe.yaml", "run.yaml", "state.safetensors"]
    assert sorted(os.listdir(tmp_path / "runs/0001-train")) == left
    process = started(tmp_path, "train", "--resume", "runs/0001-train", *options, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert [record["epoch"] for record in json.loads(out)["history"]] == [0]

"""The documentation says what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from vigcli.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent


def test_cli_page_is_the_help_of_today() -> None:
    # In a process of its own: click keeps the help option of a command as whoever first asked for it wanted it.
    code = "import runpy, sys; sys.stdout.write(runpy.run_path('docs/generate.py')['text']())"
    page = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == page, "run: python docs/generate.py"


def test_readme_names_only_commands_and_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"\bvig ([a-z]+)\b", "\n".join(_code(text))))
    assert commands
    assert commands <= set(COMMANDS)
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / path).exists(), path


def _code(text: str) -> list[str]:
    """What stands in backticks or in fenced blocks."""
    fenced = re.findall(r"```.*?\n(.*?)```", text, re.S)
    return fenced + re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))

"""The documentation says what the program does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from vigcli.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent


def test_generated_pages_are_those_of_today() -> None:
    # In a process of its own: click keeps the help option of a command as whoever first asked for it wanted it.
    code = "import json, runpy, sys; json.dump(runpy.run_path('docs/generate.py')['pages'](), sys.stdout)"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name, page in json.loads(made).items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == page, "run: python docs/generate.py"


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

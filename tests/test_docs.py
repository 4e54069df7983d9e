"""The documentation says what the program does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from vigcli.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent


def test_cli_page_is_the_help_of_today() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.PATH.read_text(encoding="utf-8") == generate.text(), "run: python docs/generate.py"


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

"""Imports only go down: a folder or file may import its own floor's neighbours inside its folder, and lower floors."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vigcli"
FLOORS = {
    "errors": 0, "units": 0, "registry": 0, "paths": 0, "files": 0, "__init__": 0,
    "config": 1, "latency": 1, "runs": 1,
    "nn": 2, "archs": 3, "measure": 4, "coreml": 5, "train": 6, "search": 7, "compress": 7, "cli": 8, "__main__": 9,
}  # fmt: skip
# Besides the standard library; a floor may use what stands below it too.
LIBRARIES = {
    1: {"pydantic", "yaml", "numpy", "scipy"},
    2: {"torch"},
    3: {"timm", "safetensors"},
    4: {"thop", "onnxruntime"},
    5: {"coremltools"},
    6: {"torchvision", "PIL", "matplotlib"},
    7: {"pymoo", "nni", "torch_pruning"},
    8: {"click", "rich"},
}
DATA_FOLDERS = {"data"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, absolute module) of every import, relative ones resolved, those inside functions too."""
    package = ["vigcli", *path.relative_to(PACKAGE).with_suffix("").parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{module}.{alias.name}" if module == "vigcli" else module) for alias in node.names]
    return found


def violations(path: Path) -> list[str]:
    own = room(path)
    allowed = {name for floor, names in LIBRARIES.items() if floor <= FLOORS[own] for name in names}
    wrong = []
    for line, module in imports(path):
        top, *rest = module.split(".")
        if top == "vigcli":
            target = rest[0] if rest and rest[0] in FLOORS else "__init__"
            if target != own and FLOORS[target] >= FLOORS[own]:
                wrong.append(f"{path.name}:{line}: {module} is not below {own}")
        elif top not in sys.stdlib_module_names and top not in allowed:
            wrong.append(f"{path.name}:{line}: {module} does not belong on floor {FLOORS[own]}")
    return wrong


def test_every_room_has_a_floor() -> None:
    rooms = {room(path) for path in PACKAGE.rglob("*.py")}
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= set(FLOORS)
    assert folders - DATA_FOLDERS <= set(FLOORS)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    assert violations(path) == []


def test_a_violation_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    wrong = tmp_path / "latency" / "x.py"
    wrong.parent.mkdir()
    wrong.write_text("import torch\nfrom ..measure import trace\nfrom vigcli.cli import main\nfrom . import table\n")
    assert [text.split(":")[1] for text in violations(wrong)] == ["1", "2", "3"]


def test_help_imports_click_and_the_standard_library_only() -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom vigcli.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "print('LOADED', *sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "search" in result.stdout
    loaded = set(result.stdout.split("LOADED ")[1].split())
    assert {name for name in loaded if name not in sys.stdlib_module_names} == {"vigcli", "click"}

"""Imports only go down: a folder or file may import its own folder, and what stands on lower floors."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vigcli"
FLOORS = (
    ("errors",),
    ("__init__", "units", "registry", "paths", "files"),
    ("config",),
    ("latency", "runs"),
    ("nn",),
    ("archs",),
    ("measure",),
    ("coreml",),
    ("train",),
    ("search", "compress"),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
# Besides the standard library; a room that is not named needs nothing else.
LIBRARIES = {
    "config": {"pydantic", "yaml"},
    "latency": {"pydantic", "numpy", "scipy"},
    "runs": {"matplotlib"},
    "nn": {"torch"},
    "archs": {"torch", "timm", "safetensors"},
    "measure": {"torch", "numpy", "thop", "onnx", "onnxruntime", "matplotlib"},
    "coreml": {"torch", "numpy", "pydantic", "coremltools", "google.protobuf", "PIL"},
    "train": {"torch", "numpy", "timm", "torchvision", "PIL", "matplotlib", "datasets"},
    "search": {"torch", "pydantic", "numpy", "matplotlib", "pymoo", "nni"},
    "compress": {"torch", "numpy", "coremltools", "torch_pruning"},
    "cli": {"torch", "click", "rich"},
}
DATA_FOLDERS = {"data"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, absolute module) of every import: relative ones resolved, those inside functions, and by a fixed name."""
    package = ["vigcli", *path.relative_to(PACKAGE).with_suffix("").parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{module}.{alias.name}" if module == "vigcli" else module) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found += [(node.lineno, arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return found


def complaint(own: str, module: str) -> str:
    """What is wrong with a room importing a module, or nothing."""
    top, *rest = module.split(".")
    if top == "vigcli":
        target = rest[0] if rest and rest != ["__version__"] else "__init__"
        if target not in FLOOR_OF:
            return f"{module} is on no floor"
        return "" if target == own or FLOOR_OF[target] < FLOOR_OF[own] else f"{module} is not below {own}"
    allowed = LIBRARIES.get(own, set())
    if top in sys.stdlib_module_names or any(f"{module}.".startswith(f"{name}.") for name in allowed):
        return ""
    return f"{module} does not belong in {own}"


def violations(path: Path) -> list[str]:
    own = room(path)
    if own not in FLOOR_OF:
        return [f"{path.name}: {own} is on no floor"]
    found = ((line, complaint(own, module)) for line, module in imports(path))
    return [f"{path.name}:{line}: {wrong}" for line, wrong in found if wrong]


def rooms() -> set[str]:
    """Files and folders of the package, those without Python included."""
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    return {room(path) for path in PACKAGE.rglob("*.py")} | folders


def test_the_floors_are_those_of_the_package() -> None:
    assert rooms() - DATA_FOLDERS == set(FLOOR_OF)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    assert violations(path) == []


@pytest.mark.parametrize(
    ("file", "wrong", "right"),
    [
        ("latency/x.py", "import torch", "import numpy.linalg"),
        ("latency/x.py", "from ..measure import trace", "from ..config import archs"),
        ("latency/x.py", "from vigcli.runs import rundir", "from . import table"),
        ("latency/x.py", "from .. import runs", "from .. import errors"),
        ("errors.py", "import vigcli.units", "import difflib"),
        ("units.py", "from vigcli.paths import find_file", "from vigcli.errors import VigError"),
        ("config/x.py", "from vigcli.latency import table", "from vigcli import __version__"),
        ("nn/x.py", "import numpy as np", "from torch import nn"),
        ("coreml/ops/x.py", "import google.cloud", "from google.protobuf.message import DecodeError"),
        ("train/x.py", "def f():\n import vigcli.search.job", "def f():\n import vigcli.coreml.convert"),
        ("search/x.py", "from vigcli.compress import quantize", "from vigcli.train import loop"),
        ("search/x.py", "from vigcli.new import thing", "from vigcli.search.job import search"),
        ("measure/x.py", "importlib.import_module('coremltools')", "importlib.import_module('thop')"),
        ("new/x.py", "import torch", None),
    ],
)
def test_a_violation_is_seen(
    file: str, wrong: str, right: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{wrong}\n")
    assert len(violations(path)) == 1
    if right is not None:
        path.write_text(f"{right}\n")
        assert violations(path) == []


def test_an_unknown_folder_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "utils").mkdir()
    (tmp_path / "helpers.py").write_text("")
    assert rooms() - set(FLOOR_OF) == {"utils", "helpers"}


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

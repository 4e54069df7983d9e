"""Each planted fault is found in the fp32, fp16 and int8 package alike, and its operation is named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import faults
import pytest
import tiny
import torch
from compressed import INT8

from vigcli.archs.checkpoint import Checkpoint
from vigcli.compress.quantize import quantize
from vigcli.coreml.convert import export, meta_of
from vigcli.coreml.description import compare_descriptions
from vigcli.coreml.graphs import Divergence, Graph, compare_graphs
from vigcli.coreml.interpreter import Program
from vigcli.coreml.simulate import Scales
from vigcli.coreml.verify import MIN_INPUTS, hold, twin_of

pytest.importorskip("coremltools", exc_type=ImportError)
SHA = "ab" * 32
PRECISIONS = ("fp32", "fp16", "int8")


class Shipped:
    """A checkpoint with its packages and their twins."""

    def __init__(self, checkpoint: Checkpoint, precisions: Sequence[str], folder: Path):
        self.checkpoint = checkpoint
        self.paths = {precision: folder / f"{precision}.mlpackage" for precision in precisions}
        pixels = tiny.pixels(128, seed=2, size=checkpoint.meta.arch.resolution).to(torch.uint8)
        for precision, path in self.paths.items():
            if precision == "int8":
                quantize(checkpoint, SHA, path, INT8, pixels)
            else:
                images = pixels[:8] if precision == "mixed" else None
                export(checkpoint, SHA, path, precision, images=images)  # type: ignore[arg-type]
        self.twins = {
            precision: twin_of(checkpoint, meta_of(Program.load(path))) for precision, path in self.paths.items()
        }

    def static_divergence(self, path: Path, precision: str) -> Divergence | None:
        """What `verify` finds without running a picture."""
        program, twin = Program.load(path), self.twins[precision]
        meta = meta_of(program)
        return (
            compare_descriptions(twin, program, self.checkpoint.meta, meta)
            or compare_graphs(Graph(twin), Graph(program), meta)
            or (Scales(Graph(program)).divergence if precision == "int8" else None)
        )


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    return Shipped(tiny.checkpoint(), PRECISIONS, tmp_path_factory.mktemp("shipped"))


@pytest.fixture(scope="module")
def normalized(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """With layer norms and tanh GELU."""
    return Shipped(faults.normalized_checkpoint(), PRECISIONS, tmp_path_factory.mktemp("normalized"))


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """With results that fp16 does not hold."""
    return Shipped(faults.loud_checkpoint(), ("mixed",), tmp_path_factory.mktemp("loud"))


CASES = [
    *(("shipped", fault, precision) for fault in faults.FAULTS for precision in PRECISIONS),
    *(("normalized", fault, precision) for fault in faults.NORMALIZED_FAULTS for precision in PRECISIONS),
    *(("loud", fault, "mixed") for fault in faults.FAULTS),
    *(("shipped", fault, "int8") for fault in faults.INT8_FAULTS),
]


@pytest.mark.parametrize(("network", "precision"), sorted({(network, precision) for network, _, precision in CASES}))
def test_a_sound_package_has_none(network: str, precision: str, request: pytest.FixtureRequest) -> None:
    packages: Shipped = request.getfixturevalue(network)
    assert packages.static_divergence(packages.paths[precision], precision) is None


@pytest.mark.parametrize(("network", "fault", "precision"), CASES)
def test_a_fault_is_found_and_named(
    network: str, fault: str, precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    packages: Shipped = request.getfixturevalue(network)
    path = Path(shutil.copytree(packages.paths[precision], tmp_path / f"{precision}.mlpackage"))
    named = faults.ALL[fault](path)
    found = packages.static_divergence(path, precision)
    assert found is not None
    assert found.name == named


# ---------------------------------------------------------------------------------------------------- the table

PAGE = Path(__file__).parents[2] / "docs/verify.md"
BEGIN, END = "<!-- faults -->\n", "<!-- end of faults -->\n"
COLUMNS = ("fp32", "fp16", "mixed", "int8")


def found_in(packages: Shipped, fault: str, precision: str, folder: Path) -> str:
    """The stages of `verify` that find a fault, each by itself."""
    path = Path(shutil.copytree(packages.paths[precision], folder / f"{precision}.mlpackage"))
    faults.ALL[fault](path)
    pixels = tiny.pixels(MIN_INPUTS, size=packages.checkpoint.meta.arch.resolution)
    report = hold(Program.load(path), packages.twins[precision], packages.checkpoint, pixels)
    shutil.rmtree(path)
    return ", ".join(stage for stage, divergence in report.stages.items() if divergence) or "nothing"


@pytest.mark.slow
def test_the_page_says_which_stage_finds_which_fault(
    shipped: Shipped, normalized: Shipped, loud: Shipped, tmp_path: Path
) -> None:
    """`VIG_WRITE_FAULTS=1` writes the table of the page anew; read its diff."""
    networks = {"shipped": shipped, "normalized": normalized, "loud": loud}
    cells: dict[tuple[str, str], str] = {}
    for network, fault, precision in CASES:
        cells[fault, precision] = found_in(networks[network], fault, precision, tmp_path)
    rows = [f"| {fault} | {' | '.join(cells.get((fault, column), '') for column in COLUMNS)} |" for fault in faults.ALL]
    table = "\n".join([f"| fault | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|", *rows]) + "\n"
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    if os.environ.get("VIG_WRITE_FAULTS"):
        PAGE.write_text(f"{before}{BEGIN}{table}{END}{after}", encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == f"{before}{BEGIN}{table}{END}{after}"
    assert "nothing" not in table

"""The report of a search: what it says, that it says it whole and safely, and that it leaves out what is not there."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.documents import Document, read
from vigcli.config.archs import VARIANTS
from vigcli.config.recipe import load_recipe
from vigcli.latency.table import load_table
from vigcli.measure.bench import Machine, Timing
from vigcli.measure.count import count_built
from vigcli.measure.here import MeasuredHere
from vigcli.paths import find_file
from vigcli.runs.provenance import sha256
from vigcli.search.built import Built
from vigcli.search.columns import Columns
from vigcli.search.effects import Effect
from vigcli.search.job import SearchResult
from vigcli.search.networks import Network, describe
from vigcli.search.page import answer, told_apart
from vigcli.search.report import save

TABLE = load_table("iphone13-mini")
COLUMNS = Columns([TABLE])
RECIPE = load_recipe(find_file("recipe", "v2_s"))
HOSTILE = "<script>alert(1)</script>$x^2$"
SECTIONS = ["Compared", "Front", "Stages", "How the search went", "Not decided, and why", "Where it comes from"]


@pytest.fixture(scope="module")
def least() -> SearchResult:
    """A front of one network, no random front, and nothing besides."""
    nearest = describe("mobilevigv2_ti", VARIANTS["mobilevigv2_ti"], COLUMNS)
    best = describe("found", VARIANTS["mobilevigv2_ti"].changed({"stages[2].local_depth": 8}), COLUMNS)
    front = ((best.latency.ms, best.top1_percent, best.config),)
    return SearchResult(
        budget_ms=1.0, best=best, second=None, nearest=nearest, nearest_keeps=True, start=None,
        published=(nearest,), front=front, apart=(),
        doubtful=(), random_front=(), num_evaluated=100, num_feasible=0, space_size=5_000, tables=(TABLE,), limits={},
        kept=(), undecided=(), choices={}, by_ablations=(), exact=(), seconds=0.0, bound_ms=1.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def full(least: SearchResult) -> SearchResult:
    second = describe("found", VARIANTS["mobilevigv2_ti"].changed({"stages[2].local_depth": 7}), COLUMNS)
    large = describe("mobilevigv2_s", VARIANTS["mobilevigv2_s"], COLUMNS)
    front = tuple(sorted((n.latency.ms, n.top1_percent, n.config) for n in (least.nearest, second, least.best)))
    timing = MeasuredHere(Timing(12.345, 0.067, 0.01, 15), Machine("A CPU", 2, "an OS", {}))
    best = Built("best", least.best.config, least.best.latency.ms, count_built(least.best.config), timing)
    return replace(
        least,
        best=replace(least.best, effects=(Effect("cpe_kernel", 1, 7, 0.1, "arXiv:2406.05850 Table 3"),)),
        second=second, published=(least.nearest, large), front=front, random_front=((0.8, 75.0), (0.9, 76.0)),
        tables=(TABLE,), apart=((0.7, 78.0, second.config),), limits={"--max-params": "8M"},
        history=tuple(
            {"num_evaluated": 50 * i, "best_top1_percent": 77 + i / 10, "hypervolume": 3.0 * i} for i in range(1, 9)
        ),
        undecided=("stages[3].mixer",), kept=("stages[3].reach",), by_ablations=("cpe_kernel",),
        choices={"head_width": 512}, seconds=2.0, num_feasible=80, built=(best,),
    )  # fmt: skip


def report(result: SearchResult, run: Path, **given: Any) -> Document:
    save(result, RECIPE, "found", run, **given)
    written = (run / "report.html").read_text()
    assert len(written) < 500_000
    return read(written)


def test_the_least_result_has_a_report_and_empty_parts_are_left_out(least: SearchResult, tmp_path: Path) -> None:
    document = report(least, tmp_path)
    assert document.headings == SECTIONS
    text = document.text("body")
    for absent in ("Best and second", "measured here", "Undecided", "kept apart", "CPU time", "None", "nan"):
        assert absent not in re.sub("measured: timed|Measure the winner", "", text)
    assert "As many random candidates found none" in text


def test_the_full_result_is_told_from_top_to_bottom(full: SearchResult, tmp_path: Path) -> None:
    files = {"space": find_file("space", "mobilevigv2"), "table": find_file("table", "iphone13-mini")}
    record = {"argv": ["/bin/vig", "search", "--budget", "1.0ms"], "seed": 7, "versions": {"vig": "0.1.0"}}
    document = report(full, tmp_path, record=record, files=files)
    assert document.headings == [*SECTIONS[:3], "Built and counted", *SECTIONS[3:]]
    text = document.text("body")
    for said in (
        "--max-params = 8M", "Undecided without data: stages[3].mixer: kept as published",
        "Neither price nor score sees stages[3].reach",
        "besides their size: cpe_kernel", "cpe_kernel = 7: +0.10 points of top-1, published, arXiv:2406.05850",
        "head_width = 512", "was ever trained: 1 candidate of the front",
        "80 of them within every limit", "2 s of CPU time, 50 cand",
        "vig search --budget 1.0ms", "vig 0.1.0", sha256(files["space"]), sha256(files["table"]), TABLE.error_text,
    ):  # fmt: skip
        assert said in text
    assert len([tag for tag, _ in document.elements if tag == "svg"]) == 3
    pictures = document.text("svg")
    for said in ("mobilevigv2_ti", "mobilevigv2_s", "budget 1 ms", "front of 100 random networks", "stage 4",
                 "shape never trained", f"error, ±{full.best.error_points:.1f} (90 %)", "each inference",
                 "hypervolume"):  # fmt: skip
        assert said in pictures


def test_every_figure_says_what_it_is(full: SearchResult, tmp_path: Path) -> None:
    document = report(full, tmp_path)
    text = document.text("td") + document.text("th")
    best = full.best.latency
    assert f"{best.ms:.2f} ms{best.low_ms:.2f} to {best.high_ms:.2f}: {TABLE.interval.coverage_percent:g} %" in text
    assert "0.9 ms on iPhone 13 mini" in text
    assert "77.7" in text
    assert "12.35 ms ±0.07" in text
    labels = [
        "MACs, counted", "latency, published", "measured here (CPU, one thread)", "top-1 %, predicted (90 %)",
        "top-1 %, published", "ms on iPhone 13 mini, calibrated", "weights in fp16, counted",
    ]  # fmt: skip
    assert [label for label in labels if label not in text] == []


def test_a_cpu_never_stands_in_for_the_device(full: SearchResult, tmp_path: Path) -> None:
    document = report(full, tmp_path)
    assert "12.35" not in document.text("svg") + document.text("p")
    assert "A millisecond of this CPU never stands for one of the device" in document.text("p")


def test_a_published_figure_is_of_the_resolution_it_was_published_at(least: SearchResult, tmp_path: Path) -> None:
    smaller = VARIANTS["mobilevigv2_ti"].changed({"resolution": 160})
    other = replace(least, nearest=describe("mobilevigv2_ti", smaller, COLUMNS))
    assert "77.7" not in report(other, tmp_path).text("td")


def test_hostile_text_stays_text(full: SearchResult, tmp_path: Path) -> None:
    nearest = replace(full.nearest, name=HOSTILE)
    hostile = replace(
        full, nearest=nearest, published=(nearest,), limits={HOSTILE: HOSTILE}, undecided=(HOSTILE,), kept=(HOSTILE,),
        by_ablations=(HOSTILE,), choices={HOSTILE: HOSTILE}, tables=(TABLE.model_copy(update={"device": HOSTILE}),),
        best=replace(full.best, effects=(Effect(HOSTILE, 1, HOSTILE, 1.0, HOSTILE),)),
    )  # fmt: skip
    (tmp_path / HOSTILE.replace("/", "")).write_text("x")
    files = {HOSTILE: tmp_path / HOSTILE.replace("/", "")}
    record = {"argv": ["vig", HOSTILE], "platform": HOSTILE}
    document = report(hostile, tmp_path / "run", record=record, files=files)
    assert document.text("body").count(HOSTILE) > 10
    assert HOSTILE in document.text("svg")


def test_what_cannot_be_told_apart(least: SearchResult) -> None:
    best, nearest = least.best, least.nearest

    def at(ms: float, top1: float) -> Network:
        return replace(best, latencies=(best.latency._replace(ms=ms),), top1_percent=top1)

    assert told_apart(at(1.0, 78.0), at(1.05, 77.8)).endswith("they cannot be told apart")
    assert "the table tells them apart" in told_apart(at(1.0, 78.0), at(1.2, 77.8))
    assert "the score tells them apart" in told_apart(at(1.0, 78.0), at(1.0, 77.4))
    assert "cannot be told apart" in answer(replace(least, second=best))
    assert "No published network of the family meets" in answer(replace(least, budget_ms=0.5))
    said = answer(replace(least, best=nearest))
    assert said.endswith("it is a published network.")


def test_a_price_outside_what_was_fitted_is_told_with_the_answer(least: SearchResult, tmp_path: Path) -> None:
    best = describe("found", VARIANTS["clustervig_ti"].changed({"num_classes": 10}), COLUMNS)
    result = replace(least, best=best, nearest=best, tables=(TABLE,))
    assert "OUTSIDE what was fitted (" in answer(result)
    assert TABLE.calibration is not None
    new, known = TABLE.calibration.new_family_interval, TABLE.interval
    text = report(result, tmp_path).text("svg")
    assert f"x/÷ {new.factor:g} covers {new.coverage_percent:g} %" in text
    assert f"x/÷ {known.factor:g} " not in text


def test_the_pictures_stand_by_themselves_and_are_the_same_again(full: SearchResult, tmp_path: Path) -> None:
    for run in ("one", "two"):
        save(full, RECIPE, "found", tmp_path / run)
    for name in ("front.svg", "front.png", "report.html", "recipe.yaml"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one" / "front.svg").read_text().startswith("<?xml")
    pixels = np.asarray(Image.open(tmp_path / "one" / "front.png").convert("RGB"))
    assert min(pixels.shape[:2]) > 500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert (pixels[0] == 255).all()  # nothing is cut off at the top


def test_the_summary_has_the_second_and_what_was_built(full: SearchResult, tmp_path: Path) -> None:
    summary = save(full, RECIPE, "found", tmp_path)
    stored = json.loads((tmp_path / "front.json").read_text())
    assert full.second is not None
    assert stored["second"]["latency_ms"] == round(full.second.latency.ms, 4)
    assert stored["built"][0]["measured_here"]["ms"] == 12.345
    assert stored["built"] == json.loads(json.dumps(summary["built"]))

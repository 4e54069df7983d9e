"""Timing the blocks of a space on Apple hardware, as far as it goes without: packages, requests and answers, what ends
a worker, and rows. The timings are made."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import packages
import pytest
import torch

from vigcli.config.space import SearchSpace, load_space
from vigcli.config.space_blocks import space_specs
from vigcli.coreml import device_worker
from vigcli.coreml.chains import load_plan, module_of, output_shape, plan_of, write_packages
from vigcli.coreml.device import Machine, Target
from vigcli.coreml.device_blocks import Measured, measure_on_device, rows_of
from vigcli.coreml.device_process import answers_of
from vigcli.coreml.interpreter import Program
from vigcli.errors import ConfigError, UnavailableError
from vigcli.latency.measured import read_measured
from vigcli.latency.plan import Block, Package, Plan
from vigcli.latency.protocol import Protocol
from vigcli.measure.tables import space_blocks
from vigcli.paths import find_file

pytest.importorskip("coremltools", exc_type=ImportError)

PERF_UTILS = f"{device_worker.EXPERIMENTAL}.perf_utils"
PLANS = f"{device_worker.EXPERIMENTAL}.compute_plan_utils"
DEBUGGING = f"{device_worker.EXPERIMENTAL}.debugging_utils"
PROTOCOL = Protocol(rounds=3, iterations=12, trim=2)
MACHINE = Machine("Mac14,2", "Apple M2", "macOS 15.1 (24B83)", "Mac14,2, Apple M2", "9.0", "Xcode 16.1")
MAC = Target("mac")
GRAPH, HEAD = "graph[reach=1 expansion=2] 8x4x4", "head[width=16] 8x4x4"


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return load_space(find_file("space", "mobilevigv2"))


@pytest.fixture(scope="module")
def written(space: SearchSpace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """Packages of a block that chains and of two that change the shape, both small, as a dry run writes them."""
    whole = plan_of(space, PROTOCOL, every=1)
    small = [
        min((s for s in whole.blocks if s.startswith(kind)), key=lambda s: whole.blocks[s].features[3])
        for kind in ("graph", "downsample", "head")
    ]
    blocks = {signature: whole.blocks[signature] for signature in small}
    names = {name for block in blocks.values() for name in (block.few, block.many)}
    chosen = {name: package for name, package in whole.packages.items() if name in names}
    folder = tmp_path_factory.mktemp("device")
    return write_packages(whole.model_copy(update={"blocks": blocks, "packages": chosen}), folder), folder


# ---------------------------------------------------------------------------------------------------- plan


def test_every_block_of_a_space_is_planned_once(space: SearchSpace) -> None:
    plan = plan_of(space, PROTOCOL, every=3)
    specs = space_specs(space)
    assert list(plan.blocks) == list(specs)[::3]
    assert {name for block in plan.blocks.values() for name in (block.few, block.many)} == plan.packages.keys()
    for signature, block in plan.blocks.items():
        few, many = plan.packages[block.few], plan.packages[block.many]
        assert many.spec.signature == signature
        assert few.in_shape == many.in_shape
        chained = output_shape(plan.family, specs[signature]) == many.in_shape
        assert (few.copies, many.copies, few.partner, many.partner) == (
            (4, 8, False, False) if chained else (0, 1, True, True)
        )
    assert {signature.split("[")[0] for signature in plan.blocks} == {signature.split("[")[0] for signature in specs}


def test_specs_are_those_of_the_priced_blocks(space: SearchSpace) -> None:
    assert space_specs(space).keys() == space_blocks(space).keys()


def test_packages_are_the_chains_of_torch(written: tuple[Plan, Path]) -> None:
    plan, folder = written
    assert len(plan.packages) >= 5
    for name, package in plan.packages.items():
        program, module = Program.load(folder / name), module_of(plan.family, package)
        x = torch.rand(1, *package.in_shape, generator=torch.Generator().manual_seed(1))
        (y,) = program.run({"x": x}).values()
        with torch.no_grad():
            expected = module(x)
        assert y.shape == expected.shape
        assert packages.relative_error(y.float(), expected) < 0.02
        assert "cast" not in program.op_counts
        assert (program.inputs[0].name, program.outputs[0].name) == ("x", "y")


def test_a_chain_has_its_copies_and_each_its_own_weights(written: tuple[Plan, Path]) -> None:
    plan, folder = written
    block = plan.blocks[next(signature for signature in plan.blocks if signature.startswith("graph"))]
    counts = [Program.load(folder / name).op_counts for name in (block.few, block.many)]
    assert {kind: 2 * count for kind, count in counts[0].items()} == counts[1]
    chain = module_of(plan.family, plan.packages[block.many])
    first, second = (next(chain[i].parameters()) for i in (0, 1))
    assert not torch.equal(first, second)
    again = module_of(plan.family, plan.packages[block.many])
    assert all(torch.equal(a, b) for a, b in zip(chain.parameters(), again.parameters(), strict=True))


def test_the_plan_comes_back_and_a_changed_package_is_refused(written: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = written
    assert load_plan(folder) == plan
    data = plan.model_dump(mode="json")
    for text, why in (
        ("", "is no JSON"),
        (json.dumps(data | {"blocks": {}}), "blocks"),
        (json.dumps(data | {"packages": {}}), "no package"),
        (json.dumps(data | {"packages": {"../x.mlpackage": {}}}), "packages"),
        (json.dumps(data), "missing or was changed"),
    ):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(ConfigError, match=why):
            load_plan(tmp_path)
    with pytest.raises(ConfigError, match="no such plan"):
        load_plan(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------------------- the worker


def made_plan() -> Plan:
    def package(kind: str, copies: int, partner: bool) -> Package:
        return Package(
            kind=kind, in_shape=(8, 4, 4), options=(), copies=copies, partner=partner, sha256=f"{copies}" * 64
        )

    features = (0.1, 0.0, 1.0, 1.0, 12.0)
    return Plan(
        base="mobilevigv2_s", family="mobilevigv2", every=1, precision="fp16", protocol=PROTOCOL, tools={},
        packages={
            "g-4.mlpackage": package("graph", 4, False), "g-8.mlpackage": package("graph", 8, False),
            "partner.mlpackage": package("", 0, True), "h-1.mlpackage": package("head", 1, True),
        },
        blocks={
            GRAPH: Block(few="g-4.mlpackage", many="g-8.mlpackage", features=features),
            HEAD: Block(few="partner.mlpackage", many="h-1.mlpackage", features=features),
        },
    )  # fmt: skip


WORK_MS = {"g-4": 0.4, "g-8": 0.8, "partner": 0.05, "h-1": 0.15}
FAKE_WORKER = """
import json, os, signal, sys
request = json.load(sys.stdin)
open({calls!r}, "a").write(json.dumps(request) + "\\n")
for path in request["packages"]:
    name = os.path.basename(path).removesuffix(".mlpackage")
    if name == {bad!r}:
        {end}
    jitter = [1 + 0.001 * i for i in range(request["rounds"])]
    rounds = [[9.0] + [0.5 + j * {work!r}[name]] * (request["iterations"] - 1) for j in jitter]
    print(json.dumps({{"package": path, "rounds": rounds, "placement": {{"ANE": 10, "CPU": 1}}}}), flush=True)
"""


def fake_worker(folder: Path, bad: str = "", end: str = "pass") -> Sequence[str]:
    """A worker that makes timings of 0.5 ms of dispatch and `WORK_MS`, and does `end` at the package `bad`."""
    script = FAKE_WORKER.format(calls=str(folder / "calls.txt"), bad=bad, end=end, work=WORK_MS)
    return (sys.executable, "-c", script)


def requests(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "calls.txt").read_text().splitlines()]


def run(folder: Path, worker: Sequence[str], target: Target = MAC) -> Measured:
    return measure_on_device(made_plan(), folder, target, machine=MACHINE, worker=worker)


def test_measured_rows_are_the_blocks_without_the_dispatch(tmp_path: Path) -> None:
    found = run(tmp_path, fake_worker(tmp_path))
    assert found.failures == {}
    rows = {row.signature: row for row in found.rows}
    assert rows[GRAPH].ms == pytest.approx(0.1, rel=0.01)
    assert rows[HEAD].ms == pytest.approx(0.1, rel=0.01)
    row = rows[GRAPH]
    assert (row.few, row.many, row.num_runs, row.placement) == (4, 8, 2 * 3 * 7, "ANE 10, CPU 1")
    assert row.date == datetime.date.today().isoformat()
    assert (row.device, row.package_sha256, row.compute_units) == ("Mac14,2", "8" * 64, "ALL")
    assert [row.signature for row in read_measured(tmp_path / "rows.csv")] == [GRAPH, HEAD]
    assert json.loads((tmp_path / "failures.json").read_text()) == {}
    calls = requests(tmp_path)
    assert [len(call["packages"]) for call in calls] == [1, 1, 1, 1], "each package has a process of its own"
    assert all((call["rounds"], call["iterations"], call["compute_units"]) == (3, 12, "ALL") for call in calls)


@pytest.mark.parametrize("kind", ["mac", "iphone"])
@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "ANE compile failed: the process that loaded it died by SIGKILL"),
        ("os.abort()", "ANE compile failed: the process that loaded it died by SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGALRM)", "took more than 2 hours"),
        ("sys.exit(3)", "ended with 3"),
        ('print(json.dumps({"package": path, "error": "ValueError: no"}), flush=True); break', "ValueError: no"),
    ],
)
def test_a_worker_that_ends_costs_one_block_and_the_run_goes_on(kind: Any, end: str, why: str, tmp_path: Path) -> None:
    found = run(tmp_path, fake_worker(tmp_path, "g-8", end), Target(kind))
    assert [row.signature for row in found.rows] == [HEAD]
    assert why in found.failures[GRAPH]
    assert json.loads((tmp_path / "failures.json").read_text()) == found.failures
    sizes = [len(call["packages"]) for call in requests(tmp_path)]
    assert sizes == ([1, 1, 1, 1] if kind == "mac" else [4, 2]), "an iPhone's process goes on until one fails"


@pytest.mark.parametrize("damage", ["{cut o", "[]", "3", "{}", '{"of": 1, "answer": 2}'])
def test_a_stopped_run_goes_on_and_failures_are_tried_again(damage: str, tmp_path: Path) -> None:
    run(tmp_path, fake_worker(tmp_path, "g-8", "os.abort()"))
    (tmp_path / "measured" / "h-1.mlpackage.json").write_text(damage)
    (tmp_path / "calls.txt").unlink()
    assert run(tmp_path, fake_worker(tmp_path)).failures == {}
    names = [Path(path).stem for call in requests(tmp_path) for path in call["packages"]]
    assert names == ["g-8", "h-1"]
    (tmp_path / "calls.txt").unlink()
    run(tmp_path, fake_worker(tmp_path), Target("mac", "CPU_ONLY"))
    assert len(requests(tmp_path)) == 4, "other units are measured anew"


def test_what_was_timed_before_a_stop_is_written(tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_on_device(made_plan(), tmp_path, MAC, stop, MACHINE, fake_worker(tmp_path))
    assert [row.signature for row in read_measured(tmp_path / "rows.csv")] == [GRAPH]
    assert "was not timed" in json.loads((tmp_path / "failures.json").read_text())[HEAD]


def test_a_worker_that_can_time_nothing_stops_the_run(tmp_path: Path) -> None:
    worker = (sys.executable, "-c", 'print(\'{"fatal": "no team"}\')')
    with pytest.raises(UnavailableError, match="nothing can be measured: no team") as error:
        run(tmp_path, worker)
    assert "measure_on_a_mac" in error.value.hint
    assert not (tmp_path / "rows.csv").exists()


def test_a_worker_that_never_reads_its_request_is_no_broken_pipe(tmp_path: Path) -> None:
    names = [f"{i:060d}.mlpackage" for i in range(3000)]  # more than a pipe holds
    answers = answers_of(names, tmp_path, {"device": "iphone"}, (sys.executable, "-c", "raise SystemExit(4)"))
    assert [next(answers) for _ in range(2)] == [
        (name, {"error": "the process that ran it ended with 4; see worker.log"}) for name in names[:2]
    ]


def test_blocks_that_give_no_row_say_why() -> None:
    plan = made_plan()
    rounds = [[9.0] + [1.0 + 0.1 * i] * 11 for i in range(3)]
    good = {"rounds": rounds, "placement": {"ANE": 5}}
    answers = dict.fromkeys(plan.packages, good)
    assert all("within its error" in why for why in rows_of(plan, answers, MAC, MACHINE).failures.values())
    moved = answers | {"g-8.mlpackage": good | {"placement": {"GPU": 5}}}
    assert "runs on ANE and g-8.mlpackage on GPU" in rows_of(plan, moved, MAC, MACHINE).failures[GRAPH]
    assert "was not timed" in rows_of(plan, {}, MAC, MACHINE).failures[HEAD]
    cut = answers | {"g-8.mlpackage": good | {"rounds": [[1.0]] * 3}}
    assert "leave nothing" in rows_of(plan, cut, MAC, MACHINE).failures[GRAPH]


def test_a_path_that_the_build_of_the_app_cannot_bear(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a space"):
        run(tmp_path / "a folder", fake_worker(tmp_path), Target("iphone", team="T"))

"""What is asked of Apple hardware, as far as it goes without: the worker's answers of a made CoreML, the machine's
name, and the signatures of what is called in coremltools."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vigcli.config.space import load_space
from vigcli.coreml import device, device_worker
from vigcli.coreml.chains import plan_of, write_packages
from vigcli.coreml.device import Machine, Target, machine_of
from vigcli.coreml.device_process import answers_of
from vigcli.errors import UnavailableError
from vigcli.latency.protocol import Protocol
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
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small package as a dry run writes it."""
    plan = plan_of(load_space(find_file("space", "mobilevigv2")), PROTOCOL, every=500)
    folder = tmp_path_factory.mktemp("device")
    name, package = next(iter(plan.packages.items()))
    return write_packages(plan.model_copy(update={"packages": {name: package}}), folder) and folder / name


# ---------------------------------------------------------------------------------------------------- the worker


class Benchmarker:
    """In place of coremltools' class: what it gives without CoreML."""

    loads = 0

    def __init__(self, model: Any, device: Any = None):
        type(self).loads += 1

    async def benchmark_load(self, iterations: int = 1) -> Any:
        return SimpleNamespace(samples=[7.0] * iterations)

    async def benchmark_predict(self, inputs: Any = None, iterations: int = 1, warmup: bool = False) -> Any:
        return SimpleNamespace(samples=[0.5] * (iterations + warmup))


class Inspector:
    """In place of coremltools' class: a value of each result but of those that it cannot hand out."""

    def __init__(self, model: Any, device: Any = None):
        pass

    async def retrieve_outputs(
        self, inputs: Any, output_names: Any, num_predict_intermediate_outputs: int | None = None
    ) -> Any:
        assert num_predict_intermediate_outputs == len(output_names)
        assert (inputs["image"].mode, inputs["image"].size) == ("RGB", (6, 5))
        assert inputs["x"].dtype == np.float16
        return {name: None if name.startswith("bool") else np.full((1, 2), 3.0) for name in output_names}


def unit(name: str) -> Any:
    return type(name, (), {})()


class ComputePlan:
    """In place of coremltools' plan: a constant, a convolution, and an operation that moved to the CPU."""

    USAGES = (
        None,
        SimpleNamespace(preferred_compute_device=unit("MLNeuralEngineComputeDevice"),
                        supported_compute_devices=[unit("MLCPUComputeDevice"), unit("MLNeuralEngineComputeDevice")]),
        SimpleNamespace(preferred_compute_device=unit("MLCPUComputeDevice"), supported_compute_devices=[unit("New")]),
    )  # fmt: skip

    def __init__(self) -> None:
        names = ("w", "input_3_cast_fp16", "var_9")
        self.operations = [
            SimpleNamespace(operator_name=f"ios16.{kind}", outputs=[SimpleNamespace(name=name)])
            for kind, name in zip(("const", "conv", "topk"), names, strict=True)
        ]
        function = SimpleNamespace(block=SimpleNamespace(operations=self.operations))
        self.model_structure = SimpleNamespace(program=SimpleNamespace(functions={"main": function}))

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        return self.USAGES[self.operations.index(operation)]

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
        return None if operation is self.operations[0] else SimpleNamespace(weight=0.25)


@pytest.fixture
def made_coreml(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the worker calls, with made answers."""

    async def load_plan_from(path: str, compute_units: Any, device: Any = None) -> ComputePlan:
        return ComputePlan()

    Benchmarker.loads = 0
    monkeypatch.setattr(import_module(PERF_UTILS), "MLModelBenchmarker", Benchmarker)
    monkeypatch.setattr(import_module(PLANS), "load_compute_plan_from_path_on_device", load_plan_from)
    monkeypatch.setattr(import_module(DEBUGGING), "MLModelInspector", Inspector)
    utils = import_module("coremltools.models.utils")
    monkeypatch.setattr(utils, "compile_model", lambda model, destination_path: destination_path)


@pytest.mark.usefixtures("made_coreml")
def test_the_worker_answers_by_the_line(package: Path) -> None:
    path = str(package)
    request = {
        "task": "block", "device": "mac", "udid": "", "team": "", "build_folder": "", "compute_units": "CPU_AND_NE",
        "rounds": 3, "iterations": 4, "packages": [path, "nowhere.mlpackage"],
    }  # fmt: skip
    answers: list[Any] = []
    asyncio.run(device_worker.serve(request, answers.append))
    assert answers[0] == {
        "package": path, "rounds": [[0.5] * 4] * 3, "loads": [7.0] * 3, "placement": {"ANE": 1, "CPU": 1}
    }  # fmt: skip
    assert Benchmarker.loads == 3, "the model is loaded anew for each round"
    assert answers[1].keys() == {"package", "error"}
    answers.clear()
    asyncio.run(device_worker.serve(request | {"device": "iphone"}, answers.append))
    assert answers[0].keys() == {"fatal"}, "no iPhone is here"


@pytest.mark.usefixtures("made_coreml")
def test_the_worker_tells_where_every_operation_is_placed() -> None:
    found = asyncio.run(device_worker.placement("x.mlpackage", {"compute_units": "ALL"}, None))
    assert found["operations"] == [
        {"name": "input_3_cast_fp16", "type": "conv", "unit": "ANE", "supported": ["CPU", "ANE"], "cost": 0.25},
        {"name": "var_9", "type": "topk", "unit": "CPU", "supported": ["New"], "cost": 0.25},
    ]


@pytest.mark.usefixtures("made_coreml")
def test_the_worker_writes_values_and_hands_over_pictures(package: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", image=np.zeros((5, 6, 3), np.uint8), x=np.ones((1, 4), np.float16))
    request = {
        "compute_units": "ALL", "inputs": str(tmp_path / "inputs.npz"), "values": str(tmp_path / "values.npz"),
        "names": ["var_3", "bool_4"],
    }  # fmt: skip
    assert asyncio.run(device_worker.values(str(package), request, None)) == {"missing": ["bool_4"]}
    with np.load(tmp_path / "values.npz") as found:
        assert found.files == ["var_3"]
        assert found["var_3"].tolist() == [[3.0, 3.0]]


@pytest.mark.usefixtures("made_coreml")
def test_times_are_good_without_a_plan(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_plan(*arguments: Any, **more: Any) -> Any:
        raise ValueError("no plan")

    monkeypatch.setattr(import_module(PLANS), "load_compute_plan_from_path_on_device", no_plan)
    request = {"compute_units": "ALL", "rounds": 2, "iterations": 3}
    found = asyncio.run(device_worker.block(str(package), request, None))
    assert found["placement"] == {}
    assert len(found["rounds"]) == 2


def test_the_worker_as_a_process_answers_on_stdout(tmp_path: Path) -> None:
    if sys.platform == "darwin":
        pytest.skip("here it would measure")
    request = {"task": "times", "device": "mac", "compute_units": "ALL", "rounds": 2, "iterations": 3}
    ((name, answer),) = answers_of(["g-4.mlpackage"], tmp_path, request)
    assert name == "g-4.mlpackage"
    assert "g-4.mlpackage" in answer["error"], "there is no such package"


# ---------------------------------------------------------------------------------------------------- Apple's side


@pytest.mark.parametrize(
    ("module", "name", "parameters"),
    [
        ("coremltools.models", "MLModel", ("model", "compute_units", "skip_model_load")),
        ("coremltools.models.utils", "compile_model", ("model", "destination_path")),
        (PLANS, "load_compute_plan_from_path_on_device", ("path", "compute_units", "device")),
        (
            "coremltools.models.compute_plan", "MLComputePlan.get_compute_device_usage_for_mlprogram_operation",
            ("operation",),
        ),
        (
            "coremltools.models.compute_plan", "MLComputePlan.get_estimated_cost_for_mlprogram_operation",
            ("operation",),
        ),
        (DEBUGGING, "MLModelInspector", ("model", "device")),
        (
            DEBUGGING, "MLModelInspector.retrieve_outputs",
            ("inputs", "output_names", "num_predict_intermediate_outputs"),
        ),
        (PERF_UTILS, "MLModelBenchmarker", ("model", "device")),
        (PERF_UTILS, "MLModelBenchmarker.benchmark_load", ("iterations",)),
        (PERF_UTILS, "MLModelBenchmarker.benchmark_predict", ("inputs", "iterations", "warmup")),
        (f"{device_worker.EXPERIMENTAL}.remote_device", "Device.get_connected_devices", ("device_type",)),
        (
            f"{device_worker.EXPERIMENTAL}.remote_device", "Device.prepare_for_model_debugging",
            ("credentials", "working_directory"),
        ),
        (f"{device_worker.EXPERIMENTAL}.remote_device", "AppSigningCredentials", ("development_team",)),
    ],
)  # fmt: skip
def test_what_is_called_in_coremltools_is_there(module: str, name: str, parameters: tuple[str, ...]) -> None:
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    assert set(parameters) <= inspect.signature(found).parameters.keys()
    asynchronous = name.split(".")[-1] in (
        "benchmark_load", "benchmark_predict", "load_compute_plan_from_path_on_device", "retrieve_outputs",
        "prepare_for_model_debugging",
    )  # fmt: skip
    assert inspect.iscoroutinefunction(found) == asynchronous


def test_what_is_read_in_coremltools_is_there() -> None:
    plans = import_module("coremltools.models.compute_plan")
    assert isinstance(plans.MLComputePlan.model_structure, property)
    fields = [("MLModelStructure", "program"), ("MLModelStructureProgram", "functions")]
    fields += [("MLModelStructureProgramFunction", "block"), ("MLModelStructureProgramBlock", "operations")]
    fields += [("MLModelStructureProgramOperation", "operator_name"), ("MLModelStructureProgramOperation", "outputs")]
    fields += [("MLModelStructureProgramNamedValueType", "name"), ("MLComputePlanCost", "weight")]
    fields += [
        ("MLComputePlanDeviceUsage", f"{which}_compute_device{s}")
        for which, s in (("preferred", ""), ("supported", "s"))
    ]
    for name, field in fields:
        assert field in getattr(plans, name).__dataclass_fields__
    devices = import_module("coremltools.models.compute_device")
    assert all(hasattr(devices, name) for name in device_worker._UNITS)
    remote = import_module(f"{device_worker.EXPERIMENTAL}.remote_device")
    assert {"udid", "os_version", "os_build_number"} <= remote.Device.__dataclass_fields__.keys()
    assert remote.DeviceType.IPHONE.value == "iphone"
    units = import_module("coremltools").ComputeUnit
    assert all(units[name] for name in ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY"))
    perf_utils = import_module(PERF_UTILS)
    assert "samples" in perf_utils.MLModelBenchmarker.Measurement.__dataclass_fields__


SAID = {
    "hw.model": "Mac14,2", "machdep.cpu.brand_string": "Apple M2", "-productVersion": "15.1", "-buildVersion": "24B83",
    "-version": "Xcode 16.1 Build version 16B40",
}  # fmt: skip


def test_a_machine_names_itself() -> None:
    found = machine_of(MAC, said=lambda command: SAID[command[-1]])
    assert found[:4] == ("Mac14,2", "Apple M2", "macOS 15.1 (24B83)", "Mac14,2, Apple M2")
    assert found.xcode.startswith("Xcode 16.1")
    assert machine_of(Target("mac", name="Mac mini M2"), said=lambda command: "?").device == "Mac mini M2"


@pytest.mark.parametrize(("marketing", "name"), [("iPhone 13 mini", ""), (None, "iPhone 13 mini")])
def test_an_iphone_names_itself_or_is_named(marketing: str | None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    phone = SimpleNamespace(udid="U1", os_version="17.1", os_build_number="21B74")
    monkeypatch.setattr(device, "connected_iphone", lambda: phone)

    def said(command: Sequence[str]) -> str:
        if command[0] != "xcrun":
            return SAID[command[-1]]
        hardware = {"udid": "U1", "productType": "iPhone14,4"} | ({"marketingName": marketing} if marketing else {})
        devices = [{"hardwareProperties": {"udid": "U0"}}, {"hardwareProperties": hardware}]
        Path(command[-1]).write_text(json.dumps({"result": {"devices": devices}}))
        return ""

    found = machine_of(Target("iphone", name=name, team="T"), said)
    assert found[:3] == ("iPhone 13 mini", "iPhone14,4", "iOS 17.1 (21B74)")
    assert found.where == "iPhone14,4 at a Mac14,2, macOS 15.1 (24B83)"
    with pytest.raises(UnavailableError, match="does not say what model"):
        machine_of(Target("iphone", team="T"), lambda command: "" if command[0] == "xcrun" else SAID[command[-1]])


@pytest.mark.parametrize("phones", [[], [1, 2], ValueError("no devicectl")])
def test_one_iphone_must_be_connected(phones: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = import_module(f"{device_worker.EXPERIMENTAL}.remote_device")

    def connected(device_type: Any) -> Any:
        if isinstance(phones, Exception):
            raise phones
        return phones

    monkeypatch.setattr(remote.Device, "get_connected_devices", staticmethod(connected))
    with pytest.raises(UnavailableError, match=r"connected|devicectl"):
        device.connected_iphone()

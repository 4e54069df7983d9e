"""The process that times packages for `vigcli.coreml.device`: `python -m vigcli.coreml.device_worker`.

A package whose compilation for the Neural Engine fails can end the process that loads it, so the one that keeps the
results never loads any. One JSON request comes on stdin, a JSON answer a package goes to stdout; what coremltools and
CoreML print goes to stderr.

Request: `device` (mac or iphone), `udid`, `team`, `build_folder` (iphone alone), `compute_units`, `rounds`,
`iterations`, `packages` (paths). Answer: `package` with `rounds` (ms of every inference) and `placement` (operations a
unit; empty where no plan tells), or with `error`; or `fatal` alone, where no package can be timed at all.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from vigcli.coreml.apple import coremltools

EXPERIMENTAL = "coremltools.models.ml_program.experimental"
LIMIT_S = 2 * 3600  # for one package; on an iPhone every inference is a message that takes a second or two
_UNITS = {"MLNeuralEngineComputeDevice": "ANE", "MLGPUComputeDevice": "GPU", "MLCPUComputeDevice": "CPU"}


def main() -> None:
    """Read the request, time its packages."""
    request = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # CoreML writes to the file descriptor, which redirecting sys.stdout would not catch
        asyncio.run(serve(request, lambda answer: print(json.dumps(answer), file=answers, flush=True)))


async def serve(request: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
    """Time the packages of a request, one after the other, and answer each."""
    try:
        device = await prepared_device(request) if request["device"] == "iphone" else None
    except Exception as error:
        answer({"fatal": _text(error)})
        return
    for path in request["packages"]:
        signal.alarm(LIMIT_S)  # ends this process, from which the other one sees that the package hung
        try:
            answer({"package": path} | await timed(path, request, device))
        except Exception as error:
            answer({"package": path, "error": _text(error)})
            if device is not None:  # its app may have ended with the package; the next process launches it again
                return


async def timed(path: str, request: dict[str, Any], device: Any) -> dict[str, Any]:
    """The milliseconds of every inference by round, the model loaded anew for each, and what the plan places where."""
    ct = coremltools()
    perf_utils = import_module(f"{EXPERIMENTAL}.perf_utils")
    units = ct.ComputeUnit[request["compute_units"]]
    model = ct.models.MLModel(path, compute_units=units, skip_model_load=True)
    rounds = []
    for _ in range(request["rounds"]):
        benchmarker = perf_utils.MLModelBenchmarker(model, device=device)  # which keeps the model that it loads
        measured = await benchmarker.benchmark_predict(iterations=request["iterations"], warmup=False)
        rounds.append(measured.samples)
        del benchmarker
        gc.collect()
    try:
        usages = local_usages(path, units) if device is None else await remote_usages(model, device)
        return {"rounds": rounds, "placement": count_units(usages)}
    except Exception as error:  # the times are good without it
        print(f"{path}: no compute plan: {_text(error)}", file=sys.stderr)
        return {"rounds": rounds, "placement": {}}


def local_usages(path: str, units: Any) -> list[Any]:
    """What this Mac's compute plan says of every operation."""
    ct = coremltools()
    compute_plan = import_module("coremltools.models.compute_plan")
    with tempfile.TemporaryDirectory(prefix="vig-") as folder:
        compiled = ct.models.utils.compile_model(path, destination_path=str(Path(folder) / "model.mlmodelc"))
        plan = compute_plan.MLComputePlan.load_from_path(path=compiled, compute_units=units)
        operations = plan.model_structure.program.functions["main"].block.operations
        return [plan.get_compute_device_usage_for_mlprogram_operation(operation) for operation in operations]


async def remote_usages(model: Any, device: Any) -> list[Any]:
    """What the compute plan of an attached device says of every operation; it comes with a benchmark alone."""
    perf_utils = import_module(f"{EXPERIMENTAL}.perf_utils")
    infos = await perf_utils.MLModelBenchmarker(model, device=device).benchmark_operation_execution(iterations=1)
    return [info.compute_device_usage for info in infos]


def count_units(usages: Iterable[Any]) -> dict[str, int]:
    """Operations by the unit that is preferred for them; constants have none and are not counted."""
    preferred = (type(usage.preferred_compute_device).__name__ for usage in usages if usage is not None)
    return dict(Counter(_UNITS.get(name, name) for name in preferred).most_common())


async def prepared_device(request: dict[str, Any]) -> Any:
    """The attached iPhone of a request, with coremltools' app built (once in `build_folder`), installed and running."""
    coremltools()
    remote = import_module(f"{EXPERIMENTAL}.remote_device")
    connected = remote.Device.get_connected_devices(remote.DeviceType.IPHONE)
    device = next((device for device in connected if device.udid == request["udid"]), None)
    if device is None:
        raise ValueError("the iPhone is not connected any more")
    folder = Path(request["build_folder"])
    folder.mkdir(parents=True, exist_ok=True)
    credentials = remote.AppSigningCredentials(development_team=request["team"])
    return await device.prepare_for_model_debugging(credentials=credentials, working_directory=folder)


def _text(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


if __name__ == "__main__":
    main()

"""The process that loads packages for `vigcli.coreml.device_process`: `python -m vigcli.coreml.device_worker`.

A package whose compilation for the Neural Engine fails can end the process that loads it
(github.com/apple/coremltools/issues/2758), so the one that keeps the results never loads any. One JSON request comes on
stdin, a JSON answer a package goes to stdout; what coremltools and CoreML print goes to stderr.

Request: `device` (mac or iphone), `udid`, `team`, `build_folder` (iphone alone), `compute_units`, `rounds`,
`iterations`, `packages` (paths), `task`, and for some tasks `inputs` (an .npz file; random numbers without), `names`
(of results) and `values` (an .npz file to write). Answer: `package` with what its task says, or with `error`; or
`fatal` alone, where nothing can be run at all.
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

import numpy as np

from vigcli.coreml.apple import coremltools

EXPERIMENTAL = "coremltools.models.ml_program.experimental"
LIMIT_S = 2 * 3600  # for one package; on an iPhone every inference is a message that takes a second or two
_UNITS = {"MLNeuralEngineComputeDevice": "ANE", "MLGPUComputeDevice": "GPU", "MLCPUComputeDevice": "CPU"}

Request = dict[str, Any]


def main() -> None:
    """Read the request, do its task for its packages."""
    request = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # CoreML writes to the file descriptor, which redirecting sys.stdout would not catch
        asyncio.run(serve(request, lambda answer: print(json.dumps(answer), file=answers, flush=True)))


async def serve(request: Request, answer: Callable[[dict[str, Any]], None]) -> None:
    """Do the task for the packages of a request, one after the other, and answer each."""
    try:
        device = await prepared_device(request) if request["device"] == "iphone" else None
    except Exception as error:
        answer({"fatal": _text(error)})
        return
    for path in request["packages"]:
        signal.alarm(LIMIT_S)  # ends this process, from which the other one sees that the package hung
        try:
            answer({"package": path} | await TASKS[request["task"]](path, request, device))
        except Exception as error:
            answer({"package": path, "error": _text(error)})
            if device is not None:  # its app may have ended with the package; the next process launches it again
                return


# ---------------------------------------------------------------------------------------------------- tasks


async def times(path: str, request: Request, device: Any) -> dict[str, Any]:
    """`rounds`: the milliseconds of every inference, the model loaded anew for each round; `loads`: those of loads."""
    perf_utils = import_module(f"{EXPERIMENTAL}.perf_utils")
    model, inputs = _model(path, request), _inputs(request)
    rounds, loads = [], []
    for _ in range(request["rounds"]):
        benchmarker = perf_utils.MLModelBenchmarker(model, device=device)  # which keeps the first model that it loads
        loads += (await benchmarker.benchmark_load(iterations=1)).samples
        measured = await benchmarker.benchmark_predict(inputs, iterations=request["iterations"], warmup=False)
        rounds.append(measured.samples)
        del benchmarker
        gc.collect()
    return {"rounds": rounds, "loads": loads}


async def placement(path: str, request: Request, device: Any) -> dict[str, Any]:
    """`operations`: of each its `name` and `type`, the `unit` that CoreML's plan prefers, those `supported`, and its
    `cost`, the share of the estimated work; constants, of which the plan says nothing, are left out."""
    ct = coremltools()
    plans = import_module(f"{EXPERIMENTAL}.compute_plan_utils")
    with tempfile.TemporaryDirectory(prefix="vig-") as folder:
        compiled = ct.models.utils.compile_model(path, destination_path=str(Path(folder) / "model.mlmodelc"))
        units = ct.ComputeUnit[request["compute_units"]]
        plan = await plans.load_compute_plan_from_path_on_device(compiled, compute_units=units, device=device)
        functions = plan.model_structure.program.functions
        function = functions.get("main") or next(iter(functions.values()))
        return {"operations": [found for op in function.block.operations if (found := _placed(plan, op))]}


async def block(path: str, request: Request, device: Any) -> dict[str, Any]:
    """Times, and `placement`: operations by the unit that is preferred for them; empty where no plan tells."""
    found = await times(path, request, device)
    try:
        operations = (await placement(path, request, device))["operations"]
        return found | {"placement": count_units(operations)}
    except Exception as error:  # the times are good without it
        print(f"{path}: no compute plan: {_text(error)}", file=sys.stderr)
        return found | {"placement": {}}


async def values(path: str, request: Request, device: Any) -> dict[str, Any]:
    """Write the results of `names` to the file `values`; `missing`: those that CoreML does not hand out."""
    utils = import_module(f"{EXPERIMENTAL}.debugging_utils")
    model, names = _model(path, request), request["names"]
    inspector = utils.MLModelInspector(model, device=device)
    found = await inspector.retrieve_outputs(_inputs(request), names, num_predict_intermediate_outputs=len(names))
    np.savez(request["values"], **{name: value for name, value in found.items() if value is not None})
    return {"missing": [name for name in names if found.get(name) is None]}


TASKS = {"times": times, "placement": placement, "block": block, "values": values}


# ---------------------------------------------------------------------------------------------------- parts


def _model(path: str, request: Request) -> Any:
    ct = coremltools()
    units = ct.ComputeUnit[request["compute_units"]]
    return ct.models.MLModel(path, compute_units=units, skip_model_load=True)


def _inputs(request: Request) -> dict[str, Any] | None:
    """The inputs of a request: pictures of bytes (H, W, 3) as PIL has them, all else as an array.

    coremltools makes random ones by itself, but of pictures (github.com/apple/coremltools/issues/2678).
    """
    if "inputs" not in request:
        return None
    from PIL import Image

    with np.load(request["inputs"]) as stored:
        return {k: Image.fromarray(v) if v.dtype == np.uint8 else v for k, v in stored.items()}


def _placed(plan: Any, operation: Any) -> dict[str, Any] | None:
    """What a plan says of an operation; None of one of which it says nothing."""
    usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
    cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
    if usage is None and cost is None:
        return None
    return {
        "name": operation.outputs[0].name if operation.outputs else "",
        "type": operation.operator_name.rpartition(".")[2],  # ios16.conv
        "unit": _unit(usage.preferred_compute_device) if usage else None,
        "supported": [_unit(unit) for unit in usage.supported_compute_devices] if usage else [],
        "cost": cost.weight if cost else None,
    }


def _unit(device: Any) -> str:
    return _UNITS.get(type(device).__name__, type(device).__name__)


def count_units(operations: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Operations by the unit that is preferred for them."""
    return dict(Counter(operation["unit"] for operation in operations if operation["unit"]).most_common())


async def prepared_device(request: Request) -> Any:
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

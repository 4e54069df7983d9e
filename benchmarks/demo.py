"""The main job from a budget to a verified package, on the pictures inside the package: what `make demo` runs.

Every step is a command that can be typed alone; the last table is read from what the steps wrote.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

BUDGET = "0.75ms"
RUNS = Path("runs")


def vig(line: str, capture: bool = False) -> str:
    """Run one `vig` command and show it as it would be typed; its output goes to the terminal unless captured."""
    print(f"\n$ vig {line}", flush=True)
    # One thread: on two cores that others use too, two OpenMP threads wait for each other most of the time.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    command = [sys.executable, "-m", "vigcli", *shlex.split(line)]
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE if capture else None)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def newest(job: str) -> Path:
    return sorted(RUNS.glob(f"*-{job}"))[-1]


def main() -> None:
    start = time.monotonic()
    vig(f"search --budget {BUDGET} --resolution 160 --num-classes 10")
    search = newest("search")
    vig(f"train {search}/recipe.yaml")
    vig("quantize --int8")
    vig("export")
    reports = [json.loads(vig(f"verify {newest(job)} --json", capture=True)) for job in ("export", "quantize")]
    best = json.loads((search / "front.json").read_text())["best"]
    quantized = json.loads((newest("quantize") / "quantize.json").read_text())
    sizes = [sum(f.stat().st_size for f in Path(r["package"]).rglob("*") if f.is_file()) / 1e6 for r in reports]
    low, high = best["latency_range_ms"]
    outside = f", OUTSIDE the fitted range: {best['latency_outside_fit']}" if best["latency_outside_fit"] else ""
    rows = {
        "network": f"found under {BUDGET}: {search}/recipe.yaml, 160 px, 10 classes",
        "params": f"{best['params']['inference'] / 1e6:.2f} M at inference",
        "MACs": f"{best['macs'] / 1e6:.0f} M",
        "latency": f"{best['latency_ms']:.2f} ms ({low:.2f} to {high:.2f}), iPhone 13 mini, fp16, calibrated{outside}",
        "top-1 fp32": f"{quantized['top1_percent_fp32']:.1f} % of {quantized['num_images']} pictures, measured",
        "top-1 int8": f"{quantized['top1_percent_package']:.1f} % of {quantized['num_images']} pictures, measured; "
        f"agreement {quantized['agreement_percent']:.1f} %; ms not known",
        "package fp16": f"{sizes[0]:.1f} MB, {reports[0]['snr_db']:.0f} dB against its fp32 twin",
        "package int8": f"{sizes[1]:.1f} MB, {quantized['simulated_db']:.0f} dB against its simulation, "
        f"{reports[1]['fp32_snr_db']:.0f} dB against fp32",
        "verification": f"largest error of a twin {max(r['twin_relative_error'] for r in reports):.1e} "
        f"(held to {reports[0]['twin_tolerance']:g}); not Apple's runtime",
        "took": f"{time.monotonic() - start:.0f} s",
    }
    print("\nThe main job")
    for name, value in rows.items():
        print(f"{name:<14}{value}")


if __name__ == "__main__":
    main()

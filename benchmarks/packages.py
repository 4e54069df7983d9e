"""Every variant as a package: what `vig export` and `vig verify` cost, and the interpreter beside torch.

Export and verify are the commands themselves, each in a process of its own: its CPU seconds, start and imports
included. Weights are drawn, batch norms and layer scales set so that numbers keep a scale. The interpreter's fp16
package and the deployed network in torch run the same picture at batch 1 on one thread, interleaved: CPU milliseconds,
medians. One row a variant is kept in the JSON file, so that a run goes on where it was.

    python benchmarks/packages.py                               # all variants, half an hour of one core
    python benchmarks/packages.py mobilevigv2_s vig_ti --json packages.json
    python benchmarks/packages.py --markdown docs/packages.md   # the rows of the JSON file as a page
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

EXPORT_S, VERIFY_S, MILLION = 15, 30, 1_000_000  # what is aimed at, for networks below 30 M parameters
VIG = (sys.executable, "-m", "vigcli")
HEAD = (
    "network", "params", "operations", "gather", "top-k", "MB", "export s", "verify s", "dB",
    "interpreter ms", "torch ms", "ratio",
)  # fmt: skip
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NETWORK")
    parser.add_argument("--json", type=Path, default=Path("packages.json"), help="rows, read and written")
    parser.add_argument("--markdown", type=Path, help="write the page of all rows there, and measure nothing")
    parser.add_argument("--rounds", type=int, default=9, help="of the interpreter and torch")
    parser.add_argument("--one", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(side_by_side(options.one, options.rounds)))
        return
    from vigcli.config.archs import VARIANTS

    if strange := set(options.names) - VARIANTS.keys():
        parser.error(f"no such network: {', '.join(sorted(strange))}")
    rows: dict[str, Row] = json.loads(options.json.read_text()) if options.json.exists() else {}
    if options.markdown:
        options.markdown.write_text(page({name: rows[name] for name in VARIANTS if name in rows}))
        return
    print(*HEAD, sep="\t", flush=True)
    for name in options.names or VARIANTS:
        if name not in rows or options.names:
            rows[name] = measured(name, options.rounds)
            temporary = options.json.with_suffix(".tmp")
            temporary.write_text(json.dumps(rows, indent=1))
            temporary.replace(options.json)
        print(*cells(name, rows[name]), sep="\t", flush=True)


# ------------------------------------------------------------------------------------------------ measuring


def measured(name: str, rounds: int) -> Row:
    """One variant, from a checkpoint on disk."""
    with tempfile.TemporaryDirectory(prefix="vig-packages-") as place:
        folder = Path(place)
        checkpoint, exported = str(folder / "net.safetensors"), folder / "export"
        num_params = write_checkpoint(name, checkpoint)
        # Of drawn weights a result may leave fp16's range; then what costs more is measured.
        command = (*VIG, "export", checkpoint, "-o", str(exported), "--json")
        export = timed(*command)
        if export["code"] == 1:
            export = timed(*command, "--precision", "mixed")
        package = str(next(exported.glob("*.mlpackage")))
        verify = timed(*VIG, "verify", package, "--against", checkpoint, "-o", str(folder / "verify"), "--json")
        answer, verdict = json.loads(export["said"]), json.loads(verify["said"])
        beside = json.loads(timed(sys.executable, __file__, "--one", place, "--rounds", str(rounds))["said"])
    counts = answer["op_counts"]
    return {
        "params": num_params,
        "precision": answer["precision"],
        "operations": sum(counts.values()),
        "gather": counts.get("gather", 0) + counts.get("gather_along_axis", 0),
        "topk": counts.get("topk", 0),
        "size_bytes": answer["size_bytes"],
        "export_cpu_s": export["cpu_s"],
        "verify_cpu_s": verify["cpu_s"],
        "passed": verdict["passed"],
        "snr_db": verdict["snr_db"],
        **beside,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def timed(*command: str) -> dict[str, Any]:
    """What a command said, how it ended, and the CPU seconds of its process and those that it started."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"said": done.stdout, "code": done.returncode, "cpu_s": round(cpu_s, 2)}


def write_checkpoint(name: str, path: str) -> int:
    """Drawn weights whose numbers keep a scale; gives the number of parameters."""
    import torch

    from vigcli.archs import build
    from vigcli.archs.checkpoint import save_checkpoint
    from vigcli.config.archs import VARIANTS
    from vigcli.config.checkpoint import CheckpointMeta
    from vigcli.config.recipe import PREPROCESSING
    from vigcli.nn.blocks import LayerScale

    config = VARIANTS[name]
    model = build(config, seed=0)
    for module in model.modules():
        if isinstance(module, LayerScale):
            torch.nn.init.constant_(module.gamma, 0.3)
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean of all batches that it has seen
    size = config.resolution
    with torch.no_grad():
        model.train()(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0)))
    provenance = {"weights": "drawn, batch norms set on noise"}  # not what `vig build` draws: its range is looked at
    meta = CheckpointMeta(
        arch=config, preprocessing=PREPROCESSING[config.family], dataset="noise", provenance=provenance
    )
    save_checkpoint(path, model.eval(), meta)
    return sum(parameter.numel() for parameter in model.parameters())


def side_by_side(folder: Path, rounds: int) -> Row:
    """CPU milliseconds of a picture through the package, and through the deployed network in torch."""
    import torch

    from vigcli.archs.checkpoint import load_checkpoint
    from vigcli.coreml.convert import deployable, meta_of
    from vigcli.coreml.interpreter import Program

    torch.set_num_threads(1)
    start = time.process_time()
    program = Program.load(next(folder.glob("export/*.mlpackage")))
    load_s = time.process_time() - start
    module = deployable(load_checkpoint(folder / "net.safetensors"), meta_of(program))
    (given,) = program.inputs
    picture = torch.randint(0, 256, module_shape(program), generator=torch.Generator().manual_seed(0)).float()
    forms: dict[str, Callable[[], Any]] = {
        "interpreter": lambda: program.run({given.name: picture}),
        "torch": lambda: module(picture),
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    with torch.inference_mode():
        for _ in range(rounds + 2):  # two warm up
            for name, form in forms.items():
                start = time.process_time()
                form()
                times[name].append(1000 * (time.process_time() - start))
    ms = {name: statistics.median(found[2:]) for name, found in times.items()}
    return {
        "load_s": round(load_s, 3),
        "interpreter_ms": round(ms["interpreter"], 1),
        "torch_ms": round(ms["torch"], 1),
        "ratio": round(ms["interpreter"] / ms["torch"], 2),
    }


def module_shape(program: Any) -> tuple[int, ...]:
    return tuple(size or 1 for size in program.inputs[0].shape)


def machine() -> str:
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    chip = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{chip}, one thread, torch {torch.__version__}"


# ------------------------------------------------------------------------------------------------ printing


def cells(name: str, row: Row) -> Sequence[object]:
    fp16 = "" if row["precision"] == "fp16" else f" ({row['precision']})"
    return (
        f"{name}{fp16}", f"{row['params'] / MILLION:.2f} M", row["operations"], row["gather"], row["topk"],
        f"{row['size_bytes'] / MILLION:.1f}", f"{row['export_cpu_s']:.1f}", f"{row['verify_cpu_s']:.1f}",
        f"{row['snr_db']:.0f}" if row["passed"] else "diverges", f"{row['interpreter_ms']:.0f}",
        f"{row['torch_ms']:.0f}", f"{row['ratio']:.2f}",
    )  # fmt: skip


def page(rows: dict[str, Row]) -> str:
    """The rows as Markdown, with what is aimed at and what does not keep it."""
    late = [
        f"{name} ({row['export_cpu_s']:.0f} and {row['verify_cpu_s']:.0f} s)"
        for name, row in rows.items()
        if row["params"] < 30 * MILLION and (row["export_cpu_s"] > EXPORT_S or row["verify_cpu_s"] > VERIFY_S)
    ]
    machines, dates = (sorted({row[key] for row in rows.values()}) for key in ("machine", "date"))
    from vigcli.config.archs import VARIANTS

    table = "\n".join(f"| {' | '.join(map(str, cells(name, row)))} |" for name, row in rows.items())
    return f"""# Variants as packages

{len(rows)} of {len(VARIANTS)} variants, measured by `python benchmarks/packages.py` on {"; ".join(machines)}
({" and ".join(dates)}). Seconds and milliseconds are CPU time of this machine, no phone's; it grows where
others use the cores. Export has the range check on 4 to 16 pictures in it, verify an fp32 twin and 16 pictures; both
have the start of Python and all imports. Weights are drawn, their batch norms set on noise, so dB (of the fp16 package
against its twin, the least picture) are not those of trained weights.

Aimed at, below 30 M parameters: export {EXPORT_S} s, verify {VERIFY_S} s. Not kept: {", ".join(late) or "none"}.

| {" | ".join(HEAD)} |
|{"---|" * len(HEAD)}
{table}
"""


if __name__ == "__main__":
    main()

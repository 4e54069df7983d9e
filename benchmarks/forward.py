"""How fast networks run: ours deployed against a plain reading of the same network (`plain.py`), with the same weights.

On the CPU: one thread, CPU time, the forms interleaved, medians; timm's network besides, where timm has it. `compiled`
is the deployed form through torch.compile with its weights packed. With a GPU: images per second by batch. All tables
are Markdown, as in docs/speed.md.

    python benchmarks/forward.py
    python benchmarks/forward.py --bounds
    python benchmarks/forward.py --device cuda
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch._inductor.config
from plain import plain
from torch import Tensor, nn

from vigcli.archs import build, inference_form
from vigcli.config.archs import VARIANTS, arch_config
from vigcli.errors import ConfigError
from vigcli.measure.profile import profile
from vigcli.nn.blocks import LayerScale

AUTHORS_MS = {  # the authors' eager code on one core of such a machine, ms an image at batch 1: for orientation
    "mobilevig_s": 41, "mobilevigv2_s": 37, "greedyvig_s": 86, "vig_ti": 91, "pvig_ti": 160, "clustervig_ti": 208,
    "mobilevit_s": 50, "mobilevitv2_100": 41, "mobilevitv3_s": 47,
}  # fmt: skip
GPU_BATCHES = (1, 8, 16, 32, 64, 128, 256, 512)  # of ClusterViG's Table VI
KINDS = {  # what torch calls the operations
    "convolution": ("mkldnn_convolution", "_slow_conv2d_forward", "_conv_depthwise2d", "thnn_conv2d"),
    "products": ("mm", "bmm", "addmm", "baddbmm", "linear", "mkldnn_linear", "dot"),
    "activation": ("gelu", "silu", "relu", "sigmoid", "_softmax", "hardtanh"),
    "choice": ("topk", "sort", "argmin", "min", "amin", "amax", "le", "lt", "gt", "eq", "where", "index_select"),
    "moving": ("copy_", "cat", "clone", "contiguous", "stack", "narrow"),
}


def drawn(name: str) -> nn.Module:
    """The network with layer scales that do not hide its blocks."""
    model = build(name).eval()
    for module in model.modules():
        if isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, 0.3)
    return model


def images_of(name: str, batch: int) -> Tensor:
    size = VARIANTS[name].resolution
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    torch.compiler.reset()
    torch._inductor.config.freezing = True  # as an option of the call it comes too late to pack weights
    return torch.compile(network)


def cpu_ms(forms: dict[str, Callable[[Tensor], Any]], images: Tensor, rounds: int) -> dict[str, float]:
    """CPU milliseconds an image of each form, interleaved; the first two rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds + 2):
        for name, form in forms.items():
            start = time.process_time()
            form(images)
            times[name].append(time.process_time() - start)
    return {name: 1000 * statistics.median(found[2:]) / len(images) for name, found in times.items()}


@torch.no_grad()
def on_cpu(name: str, batch: int, rounds: int) -> dict[str, float]:
    images, model = images_of(name, batch), drawn(name)
    check_equal(name, images[:2])
    deployed = inference_form(VARIANTS[name], model)
    forms = {"plain": plain(model), "deployed": deployed, "compiled": compiled(deployed)}
    if timm.is_model(name):
        forms["timm"] = timm.create_model(name).eval()
    return cpu_ms(forms, images, rounds)


@torch.no_grad()
def check_equal(name: str, images: Tensor) -> None:
    """In float64, where rounding turns no near tie of two neighbours."""
    model = drawn(name).double()
    expected = plain(model)(images.double())
    given = inference_form(VARIANTS[name], model)(images.double())
    assert (given - expected).abs().max() < 1e-9 * expected.abs().max(), name


@torch.no_grad()
def bounds(name: str, rounds: int) -> dict[str, float]:
    """Percent of the deployed form's CPU time by kind of operation, and the rate of its MACs, at batch 1."""
    images, network = images_of(name, 1), inference_form(VARIANTS[name], drawn(name))
    ms = cpu_ms({"deployed": network}, images, rounds)["deployed"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(rounds):
            network(images)
    spent: dict[str, float] = defaultdict(float)
    kind_of = {f"aten::{op}": kind for kind, ops in KINDS.items() for op in ops}
    for event in profiler.key_averages():
        spent[kind_of.get(event.key, "other")] += event.self_cpu_time_total
    shares = {kind: 100 * spent[kind] / sum(spent.values()) for kind in (*KINDS, "other")}
    return {"ms": ms, "gmacs_per_s": profile(VARIANTS[name]).macs / ms / 1e6, **shares}


def product_rate(rounds: int) -> float:
    """GMAC/s of torch's product of two square matrices: what this core can do."""
    matrix = torch.randn(1024, 1024)
    ms = cpu_ms({"product": lambda _: matrix @ matrix}, torch.zeros(1), rounds)["product"]
    return 1024**3 / ms / 1e6


@torch.no_grad()
def on_gpu(name: str, device: str) -> dict[str, float]:
    """Images per second of the deployed form in fp16 by batch size, until memory ends."""
    size, found = VARIANTS[name].resolution, {}
    network = inference_form(VARIANTS[name], drawn(name)).to(device).half().to(memory_format=torch.channels_last)
    for batch in GPU_BATCHES:
        try:
            images = torch.randn(batch, 3, size, size, device=device).half().to(memory_format=torch.channels_last)
            for _ in range(3):
                network(images)
            torch.cuda.synchronize()
            start, rounds = time.perf_counter(), 20
            for _ in range(rounds):
                network(images)
            torch.cuda.synchronize()
            found[str(batch)] = rounds * batch / (time.perf_counter() - start)
        except torch.cuda.OutOfMemoryError:
            break
    return found


def row(cells: Sequence[object]) -> None:
    """A line of a Markdown table; the first cell is a name, the others are figures."""
    shown = [f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells]
    print("| " + " | ".join((shown[0].ljust(16), *(cell.rjust(9) for cell in shown[1:]))) + " |", flush=True)


def head(*columns: object) -> None:
    row(columns)
    print("|" + "-" * 18 + "|" + "|".join(["----------:"] * (len(columns) - 1)) + "|")


def network(name: str) -> str:
    try:
        arch_config(name)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"{error} {error.hint}") from None
    if name not in VARIANTS:
        raise argparse.ArgumentTypeError(f"'{name}' has no plain reading.")
    return name


def above_zero(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0.")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", type=network, default=tuple(AUTHORS_MS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=above_zero, nargs="+", default=(1, 8))
    parser.add_argument("--rounds", type=above_zero, default=9)
    parser.add_argument("--bounds", action="store_true", help="say what the time of the deployed form goes to")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    where = torch.cuda.get_device_name() if options.device != "cpu" else platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {where}, {product_rate(options.rounds):.0f} GMAC/s in a product of matrices\n")
    if options.bounds:
        head("network", "ms", "GMAC/s", *(f"{kind} %" for kind in (*KINDS, "other")))
        for name in options.networks:
            figures[name] = bounds(name, options.rounds)
            row((name, *figures[name].values()))
    elif options.device != "cpu":
        head("network", *GPU_BATCHES)
        for name in options.networks:
            figures[name] = on_gpu(name, options.device)
            row((name, *(figures[name].get(str(batch), "-") for batch in GPU_BATCHES)))
    else:
        ratios = ("plain / deployed", "plain / compiled")
        head("network", "batch", "plain", "timm", "deployed", "compiled", *ratios, "authors")
        for name in options.networks:
            figures[name] = {}
            for batch in options.batches:
                ms = figures[name][str(batch)] = on_cpu(name, batch, options.rounds)
                cells = [ms.get(form, "-") for form in ("plain", "timm", "deployed", "compiled")]
                cells += [f"{ms['plain'] / ms[form]:.2f}" for form in ("deployed", "compiled")]
                row((name, batch, *cells, AUTHORS_MS.get(name, "-") if batch == 1 else "-"))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

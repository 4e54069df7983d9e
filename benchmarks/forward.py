"""How fast networks run: ours deployed against a plain reading of the same network, with the same weights.

The plain reading keeps batch norm and both heads and writes each graph as its paper does: `torch.roll` for shifts,
`Unfold` and `Fold` for patches, one image and one cluster after another where the paper loops. Both must give the same
logits. On the CPU: one thread, CPU time, the two forms interleaved, medians. With a GPU: images per second by batch.

    python benchmarks/forward.py --json forward.json
    python benchmarks/forward.py --device cuda
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigcli.archs import build, inference_form
from vigcli.config.archs import VARIANTS
from vigcli.nn.attention import MobileViTBlock
from vigcli.nn.blocks import LayerScale
from vigcli.nn.dynamic import KnnGraph, MaskedMaxRelative
from vigcli.nn.graph import MaxRelative

NETWORKS = (
    "mobilevig_s", "mobilevigv2_s", "greedyvig_s", "vig_ti", "pvig_ti", "mobilevit_s", "mobilevitv2_100",
    "mobilevitv3_s",
)  # fmt: skip
AUTHORS_MS = {  # the authors' eager code on one core of such a machine, ms an image at batch 1: for orientation
    "mobilevig_s": 41, "mobilevigv2_s": 37, "greedyvig_s": 86, "vig_ti": 91, "pvig_ti": 160, "mobilevit_s": 50,
    "mobilevitv2_100": 41, "mobilevitv3_s": 47,
}  # fmt: skip
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


# ---------------------------------------------------------------------------------------------------- plain readings


class PlainMaxRelative(nn.Module):
    """The authors' loop: a roll, a difference and a maximum for every link, from zero."""

    def __init__(self, ours: MaxRelative):
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        greatest = x - x
        for by, dim, _ in self.ours.shifts:
            difference = torch.roll(x, by, dim) - x
            greatest = torch.maximum(greatest, -difference if self.ours.of_token else difference)
        return greatest


class PlainMaskedMaxRelative(nn.Module):
    """GreedyViG Algorithm 1: for every link a roll, a distance, a mask and a maximum."""

    def __init__(self, ours: MaskedMaxRelative):
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.ours.grid
        far = torch.roll(x, (-(-rows // 2), -(-columns // 2)), (2, 3))
        distance = (x - far).abs().sum(1, keepdim=True)
        limit = distance.mean((2, 3), keepdim=True) - distance.std((2, 3), keepdim=True)
        greatest = x - x
        for by, dim, size, both in self.ours.links:
            for shift in {by, size - by} if both else {by}:
                difference = torch.roll(x, shift, dim) - x
                near = difference.abs().sum(1, keepdim=True) < limit
                greatest = torch.maximum(greatest, torch.where(near, difference, 0.0))
        return greatest


class PlainKnnGraph(nn.Module):
    """ViG's graph: all distances, the nearest of them, and both ends of every edge gathered."""

    def __init__(self, ours: KnnGraph):
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        ours = self.ours
        nodes = F.avg_pool2d(x, ours.reduction).flatten(2) if ours.reduction > 1 else x.flatten(2)
        starts, ends = F.normalize(x.flatten(2), dim=1).transpose(1, 2), F.normalize(nodes, dim=1).transpose(1, 2)
        distance = torch.cdist(starts, ends).square()
        if ours.relative_pos is not None:
            distance = distance + ours.relative_pos
        index = distance.topk(ours.neighbours * ours.dilation, largest=False).indices[:, :, :: ours.dilation]
        edges = index.flatten(1)[:, None].expand(-1, x.shape[1], -1)  # (B, C, N * K)
        theirs = nodes.gather(2, edges).unflatten(2, index.shape[1:])  # (B, C, N, K)
        m = (theirs - x.flatten(2)[..., None]).amax(3).view_as(x)
        return ours.act(ours.proj(torch.stack([x, m], 2).flatten(1, 2)))


class PlainMobileViTBlock(nn.Module):
    """Patches by Unfold and Fold, as MobileViT Section 3.1 describes them."""

    def __init__(self, ours: MobileViTBlock):
        super().__init__()
        self.ours = ours
        ours._unfold, ours._fold = self.unfold, self.fold  # type: ignore[method-assign]

    def unfold(self, x: Tensor) -> Tensor:
        patch = self.ours.patch
        columns = F.unfold(x, patch, stride=patch)  # (B, C * P, N)
        return columns.unflatten(1, (x.shape[1], patch**2)).transpose(2, 3)

    def fold(self, x: Tensor) -> Tensor:
        patch = self.ours.patch
        return F.fold(x.transpose(2, 3).flatten(1, 2), self.ours.grid, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.ours(x)


PLAIN: dict[type[nn.Module], Callable[..., nn.Module]] = {
    MaxRelative: PlainMaxRelative,
    MaskedMaxRelative: PlainMaskedMaxRelative,
    KnnGraph: PlainKnnGraph,
    MobileViTBlock: PlainMobileViTBlock,
}


def plain(network: nn.Module) -> nn.Module:
    """A copy of a network in which every module of `PLAIN` is read as its paper writes it."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in PLAIN:
                setattr(parent, name, PLAIN[type(child)](child))
    return network


def drawn(name: str) -> nn.Module:
    """The network with layer scales that do not hide its blocks."""
    model = build(name).eval()
    for module in model.modules():
        if isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, 0.3)
    return model


# ---------------------------------------------------------------------------------------------------- timing


def prepared(network: nn.Module, images: Tensor) -> nn.Module:
    """Frozen, with its weights packed for the processor by torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(network, images)))


def cpu_ms(forms: dict[str, nn.Module], images: Tensor, rounds: int) -> dict[str, float]:
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
    size = VARIANTS[name].resolution
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    model = drawn(name)
    deployed = inference_form(VARIANTS[name], model)
    forms = {"plain": plain(model), "deployed": deployed, "prepared": prepared(deployed, images)}
    check_equal(name, images)
    return cpu_ms(forms, images, rounds)


@torch.no_grad()
def check_equal(name: str, images: Tensor) -> None:
    """In float64, where rounding turns no near tie of two neighbours."""
    model = drawn(name).double()
    expected = plain(model)(images.double())
    given = inference_form(VARIANTS[name], model)(images.double())
    assert (given - expected).abs().max() < 1e-9 * expected.abs().max(), name


@torch.no_grad()
def on_gpu(name: str, device: str) -> dict[str, float]:
    """Images per second of the deployed form in fp16 by batch size, until memory ends."""
    size, found = VARIANTS[name].resolution, {}
    network = inference_form(VARIANTS[name], drawn(name)).to(device).half().to(memory_format=torch.channels_last)
    for batch in BATCHES:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, nargs="*", default=(1, 8))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    if options.device == "cpu":
        print("CPU ms an image, one thread, medians; prepared: the deployed form frozen and packed by torch")
        print(f"{'network':<18}{'batch':>6}{'plain':>9}{'deployed':>10}{'prepared':>10}{'ratio':>7}{'authors':>9}")
    for name in options.networks:
        figures[name] = {}
        if options.device != "cpu":
            figures[name]["images_per_s"] = on_gpu(name, options.device)
            print(f"{name:<18}" + "".join(f"{b:>6}:{v:<8.0f}" for b, v in figures[name]["images_per_s"].items()))
            continue
        for batch in options.batches:
            ms = figures[name][str(batch)] = on_cpu(name, batch, options.rounds)
            authors = f"{AUTHORS_MS[name]:>9}" if batch == 1 and name in AUTHORS_MS else ""
            row = (
                f"{ms['plain']:>9.1f}{ms['deployed']:>10.1f}{ms['prepared']:>10.1f}{ms['plain'] / ms['prepared']:>7.2f}"
            )
            print(f"{name:<18}{batch:>6}{row}{authors}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

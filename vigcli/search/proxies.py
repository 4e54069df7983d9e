"""Scores of networks that were never trained, from what random pictures do in them: opt-in, to be doubted.

They fill a column of their own and, when asked, the order inside a tie; no candidate is found or dropped by them. What
they are good for is in `LIMITS`, to be printed with every use. Their registry is `vigcli.registry.PROXIES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vigcli.archs import build
from vigcli.config.archs import ArchConfig
from vigcli.errors import UsageError, VigError, did_you_mean
from vigcli.nn.blocks import DropPath
from vigcli.registry import PROXIES, resolve
from vigcli.search.score import TIE_POINTS
from vigcli.units import format_duration

TOP = 16  # candidates that a proxy is computed for
BATCH_SIZE, NUM_BATCHES = 8, 4

LIMITS = {  # of 227 published networks, ImageNet-1k; tau is Kendall's with the published top-1
    "zico": "at equal MACs its order agrees with published accuracies by tau 0.44 (the predicted top-1: 0.65), and "
    "added to the predicted top-1 it brings nothing",
    "naswot": "on published networks it does not help to predict accuracy",
}

_SWITCHES = {"relu", "leaky_relu", "hardtanh", "gelu", "silu", "hardswish"}  # ATen's names, in-place forms aside
_EXACT_COLUMNS = 2**22  # of ones that float32 adds without rounding


def proxy_scores(
    name: str,
    configs: Sequence[ArchConfig],
    seed: int,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[float]:
    """One number for each network, comparable among networks of one resolution and number of classes alone.

    Each is built in its training form with weights drawn from `seed`, and sees the same random pictures and classes;
    on the CPU, in float32. Raises UsageError for an unknown proxy.
    """
    if name not in PROXIES:
        raise UsageError(f"--proxy {name}: no such proxy.", did_you_mean(name, PROXIES))
    score = resolve(PROXIES[name])
    scores = []
    for done, config in enumerate(configs):
        on_progress(name, done, len(configs))
        scores.append(score(quiet(build(config, seed=seed)), random_batches(config, seed)))
    on_progress(name, len(configs), len(configs))
    return scores


def note(name: str, num_networks: int, seconds: float) -> str:
    """The sentence to print with every use: what the proxy is worth, and what it cost."""
    cost = f"{format_duration(seconds)} for {num_networks} networks ({seconds / max(num_networks, 1):.1f} s each, here)"
    return f"{name}: {LIMITS[name]}. Without training, on random pictures; {cost}."


def tie_order(top1_percent: Sequence[float], proxy: Sequence[float], tie_points: float = TIE_POINTS) -> list[int]:
    """Places of the candidates, best first: by predicted top-1, and by the proxy among those that it cannot tell apart.

    A tie is the best that is left and all that score less than `tie_points` below it.
    """
    left = sorted(range(len(top1_percent)), key=lambda i: -top1_percent[i])
    order: list[int] = []
    while left:
        tied = [i for i in left if top1_percent[left[0]] - top1_percent[i] < tie_points]
        order += sorted(tied, key=lambda i: -proxy[i])
        left = left[len(tied) :]
    return order


def random_batches(config: ArchConfig, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of normal noise (B, C, R, R) and uniformly drawn classes (B,), a function of seed and sizes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH_SIZE, config.in_chans, config.resolution, config.resolution)
    return [
        (
            torch.randn(shape, generator=generator),
            torch.randint(config.num_classes, (BATCH_SIZE,), generator=generator),
        )
        for _ in range(NUM_BATCHES)
    ]


def quiet(model: nn.Module) -> nn.Module:
    """The network in training mode, but for dropout and drop path, whose draws would be noise in its score.

    Batch norm uses the batch's own statistics, as in the first step of training (a new network has no others), so the
    pictures of a batch are not independent of each other, and running statistics move: the network is of no other use.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd | DropPath):
            module.eval()
    return model


# ---------------------------------------------------------------------------------------------------- ZiCo


def zico(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """ZiCo (arXiv:2301.11300): sum over layers of log(sum over weights of E|g| / sqrt(Var g)).

    g is the gradient of the cross entropy (of two heads, their mean) over the batches at the first weights. Layers are
    convolutions and linear ones; weights whose gradient does not vary are left out, as in the authors' code. Raises
    VigError where a gradient is not finite.
    """
    layers = [p for name, p in model.named_parameters() if name.split(".")[-1] == "weight" and p.dim() > 1]
    layers = [weight for weight in layers if weight.requires_grad]
    gradients: list[list[Tensor]] = [[] for _ in layers]
    for x, target in batches:
        output = model(x)
        heads = output if isinstance(output, tuple) else (output,)
        loss = torch.stack([F.cross_entropy(head, target) for head in heads]).mean()
        found = torch.autograd.grad(loss, layers, allow_unused=True)
        for kept, gradient in zip(gradients, found, strict=True):
            if gradient is not None:
                kept.append(gradient.flatten())
    total = 0.0
    for kept in gradients:
        if not kept:
            continue
        values = torch.stack(kept).double()  # (batches, weights); squares of float32 could vanish
        apart = values - values[0]  # exactly zero where nothing varies
        deviation = (apart - apart.mean(0)).square().mean(0).sqrt()  # torch's own std takes ten times as long
        if not math.isfinite(float(deviation.sum())):
            raise VigError("zico: a gradient is not finite.", "The network cannot be trained as it is drawn.")
        varies = deviation > 0
        ratio = float((values.abs().mean(0)[varies] / deviation[varies]).sum())
        total += math.log(ratio) if ratio > 0 else 0.0
    return total


# ---------------------------------------------------------------------------------------------------- NASWOT


def naswot(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """NASWOT (arXiv:2006.04647): log |det K|, K_ij = N_A - the Hamming distance of the codes of pictures i and j.

    A code has one bit for each activation: whether its input is above zero. For ReLU that is the paper's; GELU and
    SiLU, which are smooth, change sign there too. Sigmoids and softmax have no such switch and give no bits. Of the
    batches the first alone is used. -inf where two pictures have the same code.
    """
    x, _ = next(iter(batches))
    codes = _Codes(len(x))
    with torch.no_grad(), codes:
        model(x)
    sign, log_det = torch.linalg.slogdet(codes.kernel)
    return float(log_det) if sign != 0 else -math.inf


class _Codes(TorchDispatchMode):
    """Sums the kernel over all activations that run under it: no module tells of those that are called as functions."""

    def __init__(self, num_pictures: int):
        super().__init__()
        self.kernel = torch.zeros(num_pictures, num_pictures, dtype=torch.float64)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.overloadpacket.__name__.rstrip("_") in _SWITCHES:
            # sequences of one picture lie one after another: (B * P, N, C)
            for part in (args[0] > 0).reshape(len(self.kernel), -1).split(_EXACT_COLUMNS, 1):
                self.add(part.float())
        return func(*args, **(kwargs or {}))

    def add(self, code: Tensor) -> None:
        """Bits (B, A) in which two pictures agree: both on or both off."""
        off = 1 - code
        self.kernel += (code @ code.T + off @ off.T).double()

"""What the papers' parameter and MAC counters count, run on our own networks, to set beside what a paper prints.

Each counter sees the training form (all heads, norms kept) in evaluation mode, without weights. Which of them a paper
used is inferred, from the figures that it prints: `vigcli.config.archs.COUNTED_WITH`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vigcli.archs import build
from vigcli.config.archs import COUNTED_WITH, PUBLISHED, VARIANTS, Ablation, ArchConfig
from vigcli.latency.trace import OpTrace
from vigcli.measure.count import num_params, num_trainable, thop_macs
from vigcli.measure.trace import trace
from vigcli.nn.attention import MultiHeadAttention


class Call(NamedTuple):
    """A module that ran, and the shapes of its first input and its output."""

    module: nn.Module
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]


class Run(NamedTuple):
    """A forward pass of a network in its training form: what every counter reads."""

    config: ArchConfig
    model: nn.Module
    calls: tuple[Call, ...]
    trace: OpTrace

    def of(self, *kinds: type[nn.Module]) -> list[Call]:
        """The calls of some kinds of modules."""
        return [call for call in self.calls if isinstance(call.module, kinds)]


@functools.lru_cache(maxsize=64)
def run(config: ArchConfig) -> Run:
    """Run a network once on the meta device. Raises ConfigError for one that cannot be built."""
    model = build(config, device="meta").eval()
    calls: list[Call] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append(Call(module, tuple(inputs[0].shape), tuple(output.shape)))

    hooks = [module.register_forward_hook(note) for module in model.modules() if module is not model]
    shape = (config.in_chans, config.resolution, config.resolution)
    with torch.no_grad():
        model(torch.empty((1, *shape), device="meta"))
    for hook in hooks:
        hook.remove()
    return Run(config, model, tuple(calls), trace(model, shape))


# ------------------------------------------------------------------------------------------------------- parameters


def true_params(run: Run) -> int:
    """Every parameter once, as cvnets counts them: MobileViT v1, v2 and v3, and GreedyViG."""
    return num_params(run.model)


def trainable_params(run: Run) -> int:
    """The parameters that learn, ViG's frozen relative positions left out: ViG and Pyramid ViG."""
    return num_trainable(run.model)


def sld_params(run: Run) -> int:
    """Parameters by the profiler of SLDGroup's repositories (`util/profile.py`): MobileViG and MobileViGv2.

    Of every convolution the weights and, in place of its biases, one for each input channel of a group: it adds
    `weight.size(1)`. Batch norm and layer scale are left out; both heads are in.
    """
    return sum(weight.numel() + weight.shape[1] for weight in map(_weight, run.of(nn.Conv2d)))


# ------------------------------------------------------------------------------------------------------------- MACs


def true_macs(run: Run) -> int:
    """Convolution, linear and matmul, attention's QK^T and AV among them; no norm, activation or sum."""
    return run.trace.macs


def sld_macs(run: Run) -> int:
    """MACs by the profiler of SLDGroup's repositories: MobileViG and MobileViGv2.

    Convolutions, and channels times height for each GELU, whose width it forgets. Linear layers and matmul are left
    out; those two families have none.
    """
    gelu = sum(math.prod(call.out_shape[1:3]) for call in run.of(nn.GELU))
    return gelu + _layer_macs(run, nn.Conv2d)


def cvnets_0_1_macs(run: Run) -> int:
    """MACs by the profiler of cvnets 0.1 (`profile_module` of its layers): MobileViT v1, MobileViTv3-XXS, -XS and -S.

    Convolutions and linear layers with a MAC for every bias that is added. QK^T and AV are taken as N d d each
    instead of N N d, for N tokens of width d: too few where there are more tokens than channels.
    """
    attention = sum(2 * math.prod(call.in_shape) * call.in_shape[-1] for call in run.of(MultiHeadAttention))
    return _layer_macs(run, nn.Conv2d, nn.Linear) + _added_biases(run) + attention


def cvnets_0_2_macs(run: Run) -> int:
    """MACs by the profiler of cvnets 0.2: MobileViTv2, MobileViTv3-0.5 to -1.0.

    Convolutions and linear layers with a MAC for every bias that is added, and matmul. The products and sums by
    element of separable attention are left out, as in the true count.
    """
    return run.trace.macs + _added_biases(run)


def fvcore_macs(run: Run) -> int:
    """MACs (its "flops") by fvcore's FlopCountAnalysis: the ViG family.

    Convolution, linear and matmul, and 2 for every element that batch norm reads (factor and offset), 5 for layer and
    group norm, 1 for a pooled mean. Activations, softmax and sums are left out.
    """
    norms = 2 * _elements(run, nn.BatchNorm2d) + 5 * _elements(run, nn.LayerNorm, nn.GroupNorm)
    return run.trace.macs + norms + _elements(run, nn.AdaptiveAvgPool2d)


def thop_counted_macs(run: Run) -> int:
    """MACs by thop itself: GreedyViG and ClusterViG.

    Convolutions and linear layers that are modules, and 4 for every element that batch or layer norm reads. Matmul,
    attention's above all, is left out, and so are group norm and layers of types that it does not know: the linear
    layers of DEGC, PyTorch Geometric's in the authors' code.
    """
    return thop_macs(run.config)


def _weight(call: Call) -> Tensor:
    weight = call.module.weight
    assert isinstance(weight, Tensor)
    return weight


def _elements(run: Run, *kinds: type[nn.Module]) -> int:
    return sum(math.prod(call.in_shape) for call in run.of(*kinds))


def _layer_macs(run: Run, *kinds: type[nn.Module]) -> int:
    """A weight's MACs are one for every output of the channel that it belongs to."""
    return sum(math.prod(call.out_shape) * _weight(call)[0].numel() for call in run.of(*kinds))


def _added_biases(run: Run) -> int:
    return sum(math.prod(call.out_shape) for call in run.of(nn.Conv2d, nn.Linear) if call.module.bias is not None)


# ------------------------------------------------------------------------------------------------- beside the papers

PARAM_COUNTERS: dict[str, Callable[[Run], int]] = {
    "true": true_params,
    "trainable": trainable_params,
    "sld": sld_params,
}
MAC_COUNTERS: dict[str, Callable[[Run], int]] = {
    "true": true_macs,
    "sld": sld_macs,
    "cvnets-0.1": cvnets_0_1_macs,
    "cvnets-0.2": cvnets_0_2_macs,
    "fvcore": fvcore_macs,
    "thop": thop_counted_macs,
}
DIFFERENCES = {
    "trainable": "params: those that learn, frozen relative positions left out.",
    "sld": "params: convolution weights and input channels a group; no biases, norms or layer scales. "
    "MACs: no linear layers or matmul; a few for GELU.",
    "cvnets-0.1": "QK^T and AV as N d d instead of N N d (N tokens of width d); a MAC for every bias added.",
    "cvnets-0.2": "a MAC for every bias added.",
    "fvcore": "2 MACs an element of batch norm, 5 of layer and group norm, 1 of a pooled mean.",
    "thop": "4 MACs an element of batch and layer norm; no matmul outside modules, no linear layers of DEGC.",
}
"""In what a counter differs from the true count."""


class Comparison(NamedTuple):
    """A figure of a paper beside our network's, by the counter that the paper used and by the true one."""

    published: float | None  # in units
    decimals: int  # that the paper prints
    unit: float  # 1e6 or 1e9
    counter: str
    counted: int
    true: int

    @property
    def printed(self) -> str | None:
        """The published figure with the decimals that the paper prints."""
        return None if self.published is None else f"{self.published:.{self.decimals}f}"

    @property
    def explained(self) -> str | None:
        """How the counted figure gives the published one: "rounded", "cut off", "no"; None where none is published."""
        if self.published is None:
            return None
        if self.printed == f"{self.counted / self.unit:.{self.decimals}f}":
            return "rounded"
        digits = 10**self.decimals
        return "cut off" if int(self.counted * digits / self.unit) == round(self.published * digits) else "no"


class PaperRow(NamedTuple):
    """A published variant beside our counts of it."""

    name: str
    params: Comparison
    macs: Comparison


def paper_row(name: str) -> PaperRow:
    """A variant of `PUBLISHED` by the counters that its paper used."""
    published, by, seen = PUBLISHED[name], COUNTED_WITH[name], run(VARIANTS[name])
    macs = Comparison(published.gmacs, by.gmacs_decimals, 1e9, by.macs, MAC_COUNTERS[by.macs](seen), true_macs(seen))
    return PaperRow(name, _params(published.params_m, by.params, seen), macs)


def ablation_params(ablation: Ablation) -> Comparison:
    """The parameters of a row of `ABLATIONS`, by the counter of the paper of its base network."""
    config = VARIANTS[ablation.base].changed(ablation.changes)
    return _params(ablation.params_m, COUNTED_WITH[ablation.base].params, run(config))


def _params(published_m: float | None, counter: str, seen: Run) -> Comparison:
    decimals = len(str(published_m).partition(".")[2]) if published_m else 1
    return Comparison(published_m, decimals, 1e6, counter, PARAM_COUNTERS[counter](seen), true_params(seen))


def all_counts(name: str) -> dict[str, dict[str, int]]:
    """A variant's parameters and MACs by every counter."""
    seen = run(VARIANTS[name])
    counters = {"params": PARAM_COUNTERS, "macs": MAC_COUNTERS}
    return {what: {key: count(seen) for key, count in known.items()} for what, known in counters.items()}

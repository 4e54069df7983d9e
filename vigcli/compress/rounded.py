"""A network in torch that rounds where its compressed package does: what is trained and probed in the package's place.

Where and how finely is read off a package of the network, not decided again. A result of the package is found in the
network by its values on a picture; what is rounded together with it (a reshape, a slice) has the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vigcli.compress.calibrate import Ranges
from vigcli.config.compression import Compression
from vigcli.coreml.graphs import Graph, Place
from vigcli.coreml.simulate import Scales, compressed_weights
from vigcli.errors import ConfigError
from vigcli.train.network import Form, itself

LAYERS = (F.conv2d, F.linear)
QUANTIZED = ("conv", "linear", "add", "avg_pool", "max_pool")  # around what coremltools puts quantizations
SAME, ALIKE = 1e-5, 1e-3  # how far two prints of the same values may be apart, by rounding and at all


class Rounding(NamedTuple):
    """How the numbers of a result are rounded.

    Attributes:
        step, zero_point, low, high: what an integer stands for, that of 0, the least and the greatest.
        ops: the operations for whose sake, by the names of their results in the package.
    """

    step: float
    zero_point: int
    low: int
    high: int
    ops: frozenset[str]

    def __call__(self, x: Tensor) -> Tensor:
        """Rounded; the gradient is 1 where nothing is cut off, else 0."""
        return torch.fake_quantize_per_tensor_affine(x, self.step, self.zero_point, self.low, self.high)


class Roundings(NamedTuple):
    """Where a network rounds, by the numbers of its results: 0 is what goes in, then as they are computed.

    Attributes:
        results: how a result is rounded.
        weights: of a layer, by the number of its own result, the operation of the package that has its weight.
        ranges: what is not cut off, by the results of the package.
    """

    results: dict[int, Rounding]
    weights: dict[int, str]
    ranges: Ranges

    @property
    def ops(self) -> tuple[str, ...]:
        """The operations that could be left in fp16, by the names of their results."""
        found = [op for rounding in self.results.values() for op in sorted(rounding.ops)]
        return tuple(dict.fromkeys([*self.weights.values(), *found]))

    def of(self, ops: Collection[str]) -> Roundings:
        """Those for the sake of these operations alone."""
        return Roundings(
            {number: rounding for number, rounding in self.results.items() if not rounding.ops.isdisjoint(ops)},
            {number: op for number, op in self.weights.items() if op in ops},
            self.ranges,
        )

    def without(self, kept: Collection[str]) -> Roundings:
        """What is left where these operations stay in fp16."""
        return self.of({*self.ops} - {*kept})


class Rounded(nn.Module):
    """A network that rounds as its package does: normalized pictures (B, 3, R, R) -> (B, num_classes) logits.

    Args:
        form: what the package was made of, of the network: `deploy_attached`, or what it is already.
    """

    def __init__(self, network: nn.Module, roundings: Roundings, form: Form = itself):
        super().__init__()
        self.network, self.form, self.roundings = network, form, roundings

    def forward(self, x: Tensor) -> Tensor:
        network = self.form(self.network)
        mode = _RoundingMode(self.roundings)
        x = mode.numbered(x)
        with mode:
            return network(x)


def rounded_weight(weight: Tensor) -> Tensor:
    """To -127 ... 127 steps, symmetric about 0, of each output channel its own; the gradient is 1."""
    scale = weight.detach().abs().flatten(1).amax(1).clamp_min(1e-12) / 127
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale.float(), zeros, 0, -127, 127)


class Numbering(TorchFunctionMode):
    """Counts the results that are computed in the block; `seen` is what becomes of each.

    Numbers of tokens are none of them: of several pictures they take other operations than of one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number = -1

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func in LAYERS:
            args = args[0], self.weight(args[1]), *args[2:]
        return self._each(func(*args, **(kwargs or {})))

    def _each(self, result: Any) -> Any:
        if isinstance(result, Tensor):
            return self.numbered(result)
        return type(result)(map(self._each, result)) if type(result) in (tuple, list) else result

    def numbered(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        self.number += 1
        return self.seen(x)

    def weight(self, weight: Tensor) -> Tensor:
        """The weight of the layer whose result has the next number."""
        return weight

    def seen(self, x: Tensor) -> Tensor:
        return x


class _RoundingMode(Numbering):
    def __init__(self, roundings: Roundings):
        super().__init__()
        self.roundings = roundings

    def weight(self, weight: Tensor) -> Tensor:
        return rounded_weight(weight) if self.number + 1 in self.roundings.weights else weight

    def seen(self, x: Tensor) -> Tensor:
        rounding = self.roundings.results.get(self.number)
        return x if rounding is None else rounding(x.float())


# ------------------------------------------------------------------------------------------------ finding


def find_roundings(
    network: nn.Module, x: Tensor, twin: Graph, shipped: Graph, compression: Compression | None, pixels: Tensor
) -> Roundings:
    """Where the network rounds that a package is of.

    Args:
        network: the form that the package was made of.
        x: (1, 3, R, R) a picture, as the network takes it; `pixels` the same in 0 ... 255, RGB.
        twin: the fp32 package of the same network, of the same operations.
        compression: what was made smaller in the package.

    Raises ConfigError where something that the package rounds is not found in the network.
    """
    prints, layers = _prints_of_network(network, x)
    due = _prints_of_program(twin, pixels)
    scales = Scales(shipped)
    wanted = _wanted(shipped, scales, () if compression is None else compression.kept)
    sources = {scales.sources[name]: name for name in scales.steps}
    compressed = dict.fromkeys(i for i, _ in compressed_weights(twin, shipped, compression))
    places = [shipped.place[source] for source in sources] + [(i, 0) for i in compressed]
    numbers = {place: _nearest(due[twin.name(place)], prints) for place in places}
    _check_found(shipped, numbers)
    results, ranges = dict[int, Rounding](), {}
    for source, name in sources.items():
        step, zero_point = scales.steps[name]
        low, high = scales.limits[name]
        number = numbers[shipped.place[source]]
        ops = wanted[source] | (results[number].ops if number in results else set())  # of two views of the same values
        results[number] = Rounding(step, zero_point, low, high, frozenset(ops))
        ranges[source] = {"rmin": -high * step if low else 0.0, "rmax": high * step}
    weights = {}
    for i in compressed:
        behind = numbers[i, 0]  # the layer itself, or a norm behind it that the conversion folded
        weights[max(layer for layer in layers if layer <= behind)] = shipped.steps[i].outputs[0].name
    return Roundings(results, weights, ranges)


def _check_found(shipped: Graph, numbers: dict[Place, int]) -> None:
    """Raise ConfigError where the network has no result of these values."""
    if missing := [shipped.name(place) for place, number in numbers.items() if number < 0]:
        what = f"{len(missing)} of {len(numbers)} results that the package rounds, '{missing[0]}' first,"
        hint = "Quantize it without --qat and --max-drop; --calibrate error may lose less."
        raise ConfigError(f"{what} are not found in the network.", hint)


def _wanted(shipped: Graph, scales: Scales, kept: Collection[str]) -> dict[str, set[str]]:
    """Of every result that is quantized, the operations for whose sake: those that read it so, and that which computes
    it, or computes what an activation makes it of; of none that is kept in fp16."""
    wanted: dict[str, set[str]] = {scales.sources[name]: set() for name in scales.steps}
    readers = {name: step.outputs[0].name for step in shipped.steps for name in step.outputs[0].inputs}
    for step in shipped.steps:
        result = step.outputs[0].name
        if step.op.name in QUANTIZED and result not in kept:
            integers = (scales.sources.get(name, "") for name in step.outputs[0].inputs)
            read = [scales.sources[name] for name in integers if name in scales.steps]
            written = result if result in wanted else readers.get(result, "")
            for source in (*read, written):
                wanted.get(source, set()).add(result)
    return wanted


Print = tuple[int, float, float, float]
"""What values leave, however they are laid out: their number, sum, sum of magnitudes, and length."""


def _print(x: Tensor) -> Print:
    x = x.detach().double()
    return x.numel(), float(x.sum()), float(x.abs().sum()), float(torch.linalg.vector_norm(x))


def _nearest(due: Print, prints: list[Print]) -> int:
    """The first that is the same, else the nearest that is alike; -1 where there is none."""
    best, least = -1, ALIKE
    for number, found in enumerate(prints):
        if found[0] != due[0]:
            continue
        size = max(due[2], 1e-30), max(due[2], 1e-30), max(due[3], 1e-30)
        apart = max(abs(a - b) / c for a, b, c in zip(found[1:], due[1:], size, strict=True))
        if apart < SAME:
            return number
        if apart < least:
            best, least = number, apart
    return best


@torch.no_grad()
def _prints_of_network(network: nn.Module, x: Tensor) -> tuple[list[Print], list[int]]:
    """Of every result of a network, and the numbers of those of layers."""
    prints: list[Print] = []
    layers: list[int] = []

    class Listening(Numbering):
        def weight(self, weight: Tensor) -> Tensor:
            layers.append(self.number + 1)
            return weight

        def seen(self, x: Tensor) -> Tensor:
            prints.append(_print(x))
            return x

    mode = Listening()
    x = mode.numbered(x)
    with mode:
        network(x)
    return prints, layers


def _prints_of_program(twin: Graph, pixels: Tensor) -> dict[str, Print]:
    found: dict[str, Print] = {}
    program = twin.program
    program.run({program.inputs[0].name: pixels}, precision="fp32", tap=lambda info, x: _note(found, info.name, x))
    return found


def _note(found: dict[str, Print], name: str, x: Tensor) -> None:
    if x.is_floating_point():
        found[name] = _print(x)

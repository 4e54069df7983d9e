"""Ranges of activations over all calibration pictures, by the interpreter: how far they reach, or where cutting them
off costs least. coremltools' own calibration needs Apple's runtime and, in 9.0, keeps only the last sample's range.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vigcli.config.compression import Calibration
from vigcli.coreml.interpreter import OpInfo, Program
from vigcli.coreml.ranges import FP16_MAX
from vigcli.errors import ConfigError, VigError

MIN_IMAGES = 128
PERCENT = 99.99  # of the magnitudes lie within the range by percentile
BINS = 4096
CANDIDATES = 128  # ranges that are tried for the least error
STEPS = 127  # of a symmetric range, on either side of 0
UNSIGNED_STEPS = 255  # of a range that begins at 0

Ranges = dict[str, dict[str, float]]
"""By the name of an input or of an operation's result: `rmin` and `rmax`, as coremltools names them."""


class Magnitudes:
    """A histogram of |x| that widens as larger numbers come.

    Attributes:
        low, high: the least and the greatest number.
        top: the end of the last bin; a power of two times what the first numbers reached.
    """

    def __init__(self) -> None:
        self.low, self.high, self.top = math.inf, -math.inf, 0.0
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Count numbers; those that are not finite show in `low` and `high` alone."""
        low, high = (float(bound) for bound in torch.aminmax(x))
        self.low, self.high = _least(self.low, low), -_least(-self.high, -high)
        largest = max(-low, high)
        if not math.isfinite(largest):
            return
        self.top = self.top or largest
        while largest > self.top:
            self.counts = torch.cat([self.counts.reshape(-1, 2).sum(1), torch.zeros(BINS // 2, dtype=torch.float64)])
            self.top *= 2
        if self.top:
            self.counts += torch.histc(x.abs().float(), BINS, 0.0, self.top)
        else:
            self.counts[0] += x.numel()

    @property
    def largest(self) -> float:
        return max(-self.low, self.high)

    def reach(self, calibration: Calibration) -> float:
        """The end of the range, which will begin at 0 where nothing is negative, else be symmetric."""
        choose: dict[Calibration, Callable[[], float]] = {
            "minmax": lambda: self.largest,
            "percentile": self._within_percent,
            "error": self._of_least_error,
        }
        return min(choose[calibration](), self.largest)

    def _within_percent(self) -> float:
        """Of so many numbers a bin end is the least that holds them."""
        within = self.counts.cumsum(0) / self.counts.sum()
        return self.top / BINS * (1 + int((within < PERCENT / 100).sum()))

    def _of_least_error(self) -> float:
        """Of evenly spread candidates, that with the least sum of squared errors by rounding and by cutting off."""
        values = (torch.arange(BINS, dtype=torch.float64) + 0.5) * (self.top / BINS)
        ends = self.largest * torch.arange(1, CANDIDATES + 1, dtype=torch.float64) / CANDIDATES
        steps = UNSIGNED_STEPS if self.low >= 0 else STEPS
        step = ends[:, None] / steps
        errors = (values - step * (values / step).round().clamp(max=steps)).square() @ self.counts
        return float(ends[errors.argmin()])


def _least(a: float, b: float) -> float:
    """NaN where one of them is."""
    return math.nan if math.isnan(a) or math.isnan(b) else min(a, b)


def activation_ranges(
    program: Program,
    pixels: Tensor,
    calibration: Calibration = "minmax",
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Ranges:
    """The range of the input and of every floating-point result, over all pictures.

    Args:
        pixels: (N, 3, R, R) RGB in 0 ... 255.

    Raises VigError for a result that fp16 cannot hold.
    """
    found: dict[str, Magnitudes] = {}

    def count(info: OpInfo, value: Tensor) -> None:
        if value.is_floating_point():
            found.setdefault(info.name, Magnitudes()).add(value)

    feature = program.inputs[0]
    kinds = {info.name: info.op_type for info in program.operations}
    for i, picture in enumerate(pixels):
        on_progress("calibrating", i, len(pixels))
        program.run({feature.name: picture[None].float()}, tap=count)
    ranges = {feature.name: {"rmin": float(pixels.min()), "rmax": float(pixels.max())}}
    for name, magnitudes in found.items():
        check_fp16(kinds[name], name, magnitudes.largest)
        end = magnitudes.reach(calibration)
        ranges[name] = {"rmin": max(magnitudes.low, -end), "rmax": min(magnitudes.high, end)}
    return ranges


def check_images(count: int, name: str = "") -> None:
    """Raise ConfigError for too few pictures to calibrate on."""
    if count < MIN_IMAGES:
        whose = f"{name}: " if name else ""
        hint = f"Give at least {MIN_IMAGES}, or leave the activations in fp16: --weights-only."
        raise ConfigError(f"{whose}{count} pictures are too few to calibrate on.", hint)


def check_fp16(op_type: str, name: str, largest: float) -> None:
    """Raise VigError for a result that fp16 cannot hold."""
    if not largest < FP16_MAX:  # not a number is no less than it either
        raise VigError(
            f"{op_type} '{name}' reaches {largest:.3g}, beyond fp16, which ends at 65504.",
            "vig export --precision mixed keeps it in fp32; or train with weight decay, and quantize again.",
        )

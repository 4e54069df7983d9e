"""How the numbers of a package were made smaller: plain data that the package carries, and `vig verify` holds it to."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vigcli.config.load import Strict

Calibration = Literal["minmax", "percentile", "error"]
LEAST_WEIGHTS = 2048  # of a tensor that gets a palette or zeros; smaller ones are most of them depthwise


class Compression(Strict):
    """What was done to the weights and to the activations.

    Attributes:
        weight_bits: 8: whole numbers, symmetric, with a scale for each output channel; 4 or 6: a palette of 2^bits
            values for each tensor or group; 16: as they were.
        group_channels: output channels that share a palette, or their greatest common divisor with this; None: all.
        sparsity_ratio: the share of a tensor's weights, the smallest, that are zero and not stored.
        activation_bits: 8: quantized around convolutions, linear layers, pools and sums, from 0 where nothing is
            negative, else symmetric.
        calibration: how the ranges of activations were chosen; None without 8-bit activations.
        num_images: that were calibrated on.
        qat: whether the network was trained with its quantization, and the ranges are those of the training.
        kept: results of operations that stay in fp16 altogether: the first layers, and what `max_drop_points` asks for.
        max_drop_points: of top-1, that chose what more is kept; None: nothing is.
    """

    weight_bits: Literal[4, 6, 8, 16] = 16
    group_channels: Annotated[int, Field(ge=1)] | None = None
    sparsity_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    activation_bits: Literal[8, 16] = 16
    calibration: Calibration | None = None
    num_images: Annotated[int, Field(ge=0)] = 0
    qat: bool = False
    kept: tuple[str, ...] = ()
    max_drop_points: float | None = None

    @model_validator(mode="after")
    def _sound(self) -> Compression:
        if self.weight_bits == self.activation_bits == 16 and not self.sparsity_ratio:
            raise ValueError("nothing is compressed")
        if self.group_channels is not None and not self.has_palettes:
            raise ValueError("groups of channels share palettes, of which there are none")
        if (self.calibration is not None) != (self.activation_bits == 8 and not self.qat):
            raise ValueError("a calibration is what 8-bit activations need, unless they were trained")
        return self

    @property
    def is_plain_int8(self) -> bool:
        """Whether it is W8A8 and nothing else, which is what networks are trained for."""
        return self.weight_bits == self.activation_bits == 8 and not self.sparsity_ratio

    @property
    def has_palettes(self) -> bool:
        return self.weight_bits in (4, 6)

    @property
    def least_ios(self) -> Literal[16, 17, 18]:
        """The first iOS that runs it."""
        joint = self.sparsity_ratio > 0 and self.weight_bits < 16
        if joint or self.group_channels is not None:
            return 18
        return 17 if self.activation_bits == 8 else 16

    @property
    def name(self) -> str:
        """`int8` (W8A8), `w8`, `w4`, `w4a8`, `sparse50`, `sparse50-w8`, ... ; `-qat` where it was trained, `-mixed`
        where what hurts most stays in fp16."""
        numbers = f"w{self.weight_bits}" + ("a8" if self.activation_bits == 8 else "")
        sparse = f"sparse{100 * self.sparsity_ratio:g}" if self.sparsity_ratio else ""
        if self.weight_bits == self.activation_bits == 8:
            numbers = "int8"
        numbers = "" if numbers == "w16" else numbers
        besides = "qat" if self.qat else "", "" if self.max_drop_points is None else "mixed"
        return "-".join(filter(None, (sparse, numbers, *besides)))

    @property
    def text(self) -> str:
        """In words: `50 % of the weights zero, 8-bit weights, 8-bit activations`."""
        parts = []
        if self.sparsity_ratio:
            parts.append(f"{100 * self.sparsity_ratio:g} % of the weights zero")
        if self.has_palettes:
            whose = f" for {self.group_channels} channels each" if self.group_channels else ""
            parts.append(f"weights of {self.weight_bits}-bit palettes{whose}")
        elif self.weight_bits == 8:
            parts.append("8-bit weights")
        if self.activation_bits == 8:
            parts.append("8-bit activations")
        return ", ".join(parts)

    @property
    def text_with_ranges(self) -> str:
        """The same, and how the ranges of activations were chosen."""
        ranges = f"by {self.calibration}" if self.calibration else "of the training"
        return self.text if self.activation_bits == 16 else f"{self.text} (ranges {ranges})"

    def as_trained(self) -> Compression:
        """The same with the ranges of a training in place of calibrated ones."""
        return self.model_copy(update={"qat": True, "calibration": None})

    def group_of(self, channels: int) -> int:
        """How many of a tensor's output channels share a palette."""
        return channels if self.group_channels is None else math.gcd(channels, self.group_channels)

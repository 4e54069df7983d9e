"""The record of a quantize run, as `vig quantize` writes it and `vig report compress` reads it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from vigcli.config.compression import Compression
from vigcli.config.load import Strict
from vigcli.config.recipe_parts import NonNegative

RESULT_FILE = "quantize.json"
Bytes = Annotated[int, Field(gt=0, le=10**12)]
Percent = Annotated[float, Field(ge=0, le=100)]


class Record(Strict):
    """What is read of a quantize.json; fields with a default are missing where an older vig wrote it.

    Attributes:
        checkpoint: that was compressed, or that a `--qat` run started from.
        data: `emoji10`, or the folder of the pictures.
        difference_points_95: of top-1 to the fp32 network's, with its interval.
        first_layers: results that every compression keeps in fp16.
        latency_table: its name; `latency_device` is what it prices.
        latency_outside_fit: what is extrapolated.
    """

    model_config = ConfigDict(extra="ignore")

    network: str
    checkpoint: str
    checkpoint_sha256: str = ""
    data: str = ""
    num_images: Annotated[int, Field(gt=0)]
    compression: Compression
    minimum_ios: int
    first_layers: tuple[str, ...] | None = None
    size_bytes: Bytes
    size_bytes_fp16: Bytes
    top1_percent_fp32: Percent
    top1_percent_fp16: Percent
    top1_percent_package: Percent
    difference_points_95: tuple[float, float, float]
    agreement_percent: Percent
    agreement_percent_fp16: Percent
    snr_db: float
    seconds: NonNegative | None = None
    latency_table: str = ""
    latency_device: str = ""
    latency_kind: str = ""
    latency_accuracy: str = ""
    latency_outside_fit: tuple[str, ...] = ()
    latency_ms_fp16: NonNegative | None
    latency_ms: NonNegative | None

    @model_validator(mode="after")
    def _sound(self) -> Record:
        points, low, high = self.difference_points_95
        if not low <= points <= high:
            raise ValueError("difference_points_95 is not within its interval")
        return self

    @property
    def calibration(self) -> str | None:
        """How the ranges of activations were chosen; None where there are none."""
        if self.compression.qat:
            return "trained"
        how = self.compression.calibration
        return how and f"{how}, {self.compression.num_images} pictures"

    @property
    def num_kept(self) -> int | None:
        """Results in fp16 beyond those of the first layers; None where that was not noted."""
        if self.first_layers is None:
            return 0 if self.compression.max_drop_points is None else None
        return len(set(self.compression.kept) - set(self.first_layers))

    @property
    def shared(self) -> dict[str, Any]:
        """What runs have alike that are compared in one block. The figures keep apart what is named alike or not at
        all, as in an older run."""
        return {
            "network": self.network,
            "checkpoint": self.checkpoint_sha256 or self.checkpoint,
            **{name: getattr(self, name) for name in _SHARED},
        }


_SHARED = (
    "data", "num_images", "top1_percent_fp32", "latency_table", "latency_device", "latency_kind", "latency_ms_fp16",
)  # fmt: skip

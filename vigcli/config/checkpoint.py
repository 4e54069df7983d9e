"""What a checkpoint says of itself, readable without loading a weight."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vigcli.config.archs import AnyArch
from vigcli.config.load import Strict
from vigcli.config.recipe import Preprocessing


class Quantization(Strict):
    """What weights were trained to be quantized with.

    Attributes:
        ranges: of activations, what is not cut off, from 0 or symmetric about it, by the results of the fp16 package.
    """

    ranges: dict[str, tuple[Annotated[float, Field(le=0)], Annotated[float, Field(gt=0)]]]


class CheckpointMeta(Strict):
    """The metadata of a checkpoint, stored as one JSON text in the safetensors header.

    Attributes:
        arch: rebuilds the network.
        labels: class names in the order of the logits; empty when they are not known.
        dataset: what it was trained on; null for drawn and imported weights.
        metrics: figures measured when it was saved (`top1_percent`, `num_images`, ...).
        parents: hashes of the files that it was made from.
        quantization: of a network that was trained in its int8 package's place; None of another.
        provenance: argv, versions, seed and date of the run that wrote it; of an import also the file.
    """

    format: Literal[1] = 1
    arch: AnyArch
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing = Preprocessing()
    dataset: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    parents: tuple[str, ...] = ()
    quantization: Quantization | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)

    @property
    def is_drawn(self) -> bool:
        """Whether the weights come from no training that is known, and from nobody else's file."""
        return self.dataset is None and "imported" not in self.provenance

    @model_validator(mode="after")
    def _sound(self) -> CheckpointMeta:
        if self.labels and len(self.labels) != self.arch.num_classes:
            raise ValueError(f"{len(self.labels)} labels do not name {self.arch.num_classes} classes")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("a label names two classes")  # a package's probabilities are kept by label
        return self

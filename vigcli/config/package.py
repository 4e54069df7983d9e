"""What a package says of itself, and what can be asked of one: plain data, readable without a converter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vigcli.config.archs import TimmConfig, variant_name
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.config.compression import Compression
from vigcli.config.recipe import Channels, Preprocessing
from vigcli.errors import ConfigError, UsageError

UniformPrecision = Literal["fp16", "fp32"]
Precision = Literal[UniformPrecision, "mixed"]
MinimumIos = Literal[16, 17, 18]
Input = Literal["image", "tensor"]
Output = Literal["probabilities", "logits", "features"]


class PackageMeta(CheckpointMeta):
    """What a package says of itself, stored as JSON among its user-defined metadata.

    Attributes:
        checkpoint_sha256: the hash of the checkpoint that it was made from.
        precision: of what it computes; `int8` has fp16 around its quantized operations, `mixed` has fp32 among fp16.
        minimum_ios: the least iOS that runs it.
        input: an image of 0 ... 255 in 8 bits, or a tensor of the same numbers in RGB.
        output: probabilities with the class labels, plain logits, or the feature maps of the backbone.
        batch: pictures that it takes at once.
        fp32_results: of a mixed package, the results that stay in fp32.
        compression: what was made smaller; `int8` has one always, `fp16` may.
    """

    checkpoint_sha256: str
    precision: Literal[Precision, "int8"]
    minimum_ios: MinimumIos = 16
    input: Input = "image"
    output: Output = "probabilities"
    batch: Annotated[int, Field(ge=1)] = 1
    fp32_results: tuple[str, ...] = ()
    compression: Compression | None = None

    @model_validator(mode="after")
    def _precise(self) -> PackageMeta:
        has_int8 = self.compression is not None and self.compression.activation_bits == 8
        if (self.precision == "int8") != has_int8:
            raise ValueError("int8 is what has 8-bit activations")
        return self

    @property
    def priced_as(self) -> str:
        """What a latency table has to know: the precision, and what is done with the weights."""
        done = self.compression
        if done is None or (done.is_plain_int8 and done.max_drop_points is None):  # whether it was trained so or not
            return self.precision
        return done.name

    @property
    def given_channels(self) -> Channels:
        """The order of the channels of what is put in. CoreML puts those of an image into any order that a package
        asks for; a tensor is RGB always."""
        return self.preprocessing.channels if self.input == "image" else "RGB"

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(B, 3, R, R)"""
        return self.batch, 3, self.arch.resolution, self.arch.resolution


def planned(
    checkpoint: CheckpointMeta,
    checkpoint_sha256: str,
    precision: Precision,
    minimum_ios: MinimumIos,
    input: Input,
    output: Output,
    batch: int,
) -> PackageMeta:
    """What the package of a checkpoint will say of itself. Raises ConfigError where no picture goes in."""
    if checkpoint.arch.in_chans != 3:
        raise ConfigError(
            f"arch.in_chans is {checkpoint.arch.in_chans}: an image has 3.", "Export a network of RGB input."
        )
    return PackageMeta(
        **{name: getattr(checkpoint, name) for name in CheckpointMeta.model_fields},
        checkpoint_sha256=checkpoint_sha256,
        precision=precision,
        minimum_ios=minimum_ios,
        input=input,
        output=output,
        batch=batch,
    )


def check_batch(input: Input, output: Output, batch: int) -> None:
    """Raise UsageError for several pictures where a CoreML package takes one."""
    wanted = {"--input tensor": input == "image", "--logits": output == "probabilities"}
    missing = " ".join(option for option, is_missing in wanted.items() if is_missing)
    if batch > 1 and missing:
        what = f"--batch {batch}: an image input and class labels are of one picture."
        raise UsageError(what, f"Add {missing}, or leave --batch out.")


def class_labels(meta: CheckpointMeta) -> list[str]:
    """The names of the classes; numbers where the checkpoint does not know them."""
    return list(meta.labels) or [str(i) for i in range(meta.arch.num_classes)]


def preprocessing_text(meta: PackageMeta) -> str:
    """What an app must do with a picture before it hands it to the package."""
    crop = crop_text(meta.preprocessing, meta.arch.resolution)
    return f"{crop}, {meta.given_channels}, 0 to 255; normalization is inside"


def crop_text(preprocessing: Preprocessing, resolution: int) -> str:
    """How a picture becomes a square."""
    side, way = preprocessing.short_side(resolution), preprocessing.interpolation
    return f"resize the short side to {side} px ({way}), centre crop {resolution} x {resolution}"


def network_name(meta: CheckpointMeta) -> str:
    """`mobilevigv2_s`, `timm:fastvit_t8`; of a network without a name its family."""
    arch = meta.arch
    return f"timm:{arch.name}" if isinstance(arch, TimmConfig) else variant_name(arch) or arch.family


def licence_text(meta: CheckpointMeta) -> str:
    """What is known of the licence of the weights."""
    if file := _noted(meta, "imported", "file"):
        return f"Weights: as the authors of {file} license them."
    if meta.is_drawn or meta.dataset is None:
        return "Weights: drawn at random, or of unknown origin; no licence is known."
    return f"Weights: trained on {_DATA_LICENCES.get(meta.dataset, meta.dataset)}; no licence is stated."


_DATA_LICENCES = {"emoji10": "emoji10 (Noto Emoji, Apache-2.0)"}


def version_text(meta: CheckpointMeta) -> str:
    """The version of vig that made the weights; empty where it is not known."""
    return _noted(meta, "versions", "vig")


def _noted(meta: CheckpointMeta, part: str, key: str) -> str:
    found = meta.provenance.get(part)
    return str(found.get(key, "")) if isinstance(found, dict) else ""


LABELLED = ("classLabel", "classLabel_probs")  # what a package that knows its classes gives in place of a tensor


def output_texts(meta: PackageMeta, names: Iterable[str]) -> dict[str, str]:
    """Of every output by its name what it is."""
    size = meta.arch.resolution
    texts = {
        "logits": f"({meta.batch}, {meta.arch.num_classes}) logits, before softmax",
        "probabilities": f"({meta.batch}, {meta.arch.num_classes}) probabilities",
        "classLabel": "the likeliest class",
        "classLabel_probs": "the probability of every class",
    }
    strides = {name: int(name.removeprefix("stride")) for name in names if name.startswith("stride")}
    maps = {name: f"feature map at stride {stride} of {size} px" for name, stride in strides.items()}
    return {name: maps.get(name) or texts.get(name, "") for name in names}

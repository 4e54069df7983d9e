"""What eight bits cost operation by operation, and which of them to keep in fp16 so that accuracy drops no more than is
allowed; told by the network that rounds where its package does (`vigcli.compress.rounded`), on training pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vigcli.archs import inference_form
from vigcli.archs.checkpoint import Checkpoint
from vigcli.compress.calibrate import Ranges
from vigcli.compress.qat import calibrated_roundings
from vigcli.compress.quantize import Progress, Source
from vigcli.compress.rounded import Rounded, Roundings
from vigcli.config.compression import Compression
from vigcli.config.recipe import Preprocessing
from vigcli.coreml.noise import NOTHING, Ratio
from vigcli.train.evaluate import normalized

BATCH = 32
HARM_PICTURES = 64  # on which operations are put in order


class Harm(NamedTuple):
    """What rounding around one operation alone does to the logits: their signal-to-noise ratio."""

    op: str
    db: float


class Kept(NamedTuple):
    """What stays in fp16.

    Attributes:
        harms: of every operation, the worst first; `num_kept` of them stay.
        drop_points: by how many points top-1 then falls, on the training pictures that decided.
    """

    harms: tuple[Harm, ...]
    num_kept: int
    drop_points: float

    @property
    def ops(self) -> tuple[str, ...]:
        return tuple(harm.op for harm in self.harms[: self.num_kept])


def mixed(
    checkpoint: Checkpoint,
    source: Source,
    compression: Compression,
    pixels: Tensor,
    ranges: Ranges | None,
    deciding: tuple[Tensor, Tensor],
    max_drop_points: float,
    on_progress: Progress,
    original: Checkpoint | None = None,
) -> tuple[Compression, Ranges | None, Kept]:
    """A compression that keeps in fp16 what hurts most, with its ranges; the given ones where nothing has to be kept.

    Args:
        pixels: (N, 3, R, R) uint8 RGB to calibrate on, unless `ranges` are known.
        deciding: pictures like those and their classes, on which the drop is held; never those that are measured on.
        original: whose top-1 may not drop, where the checkpoint learned in its package's place; default: its own.
    """
    meta = checkpoint.meta
    roundings = calibrated_roundings(checkpoint, source, compression, pixels, ranges, on_progress)
    network = inference_form(meta.arch, checkpoint.model)
    before = None if original is None else inference_form(original.meta.arch, original.model)
    probe = Probe(network, roundings, meta.preprocessing, *deciding, before)
    kept = keep_within(probe, max_drop_points, on_progress)
    if not kept.num_kept:
        return compression, ranges, kept
    images = 0 if compression.qat else len(pixels)
    more = {"kept": kept.ops, "max_drop_points": max_drop_points, "num_images": images}
    return compression.model_copy(update=more), roundings.ranges, kept


def keep_within(probe: Probe, max_drop_points: float, on_progress: Progress) -> Kept:
    """Which operations to keep in fp16, the fewest of the worst that do, so that top-1 falls by no more than so many
    points."""
    harms = probe.harms(HARM_PICTURES, on_progress)
    tried: dict[int, float] = {}

    def is_enough(kept: Sequence[str]) -> bool:
        on_progress("ways to keep some in fp16", len(tried), len(harms).bit_length() + 1)
        tried[len(kept)] = probe.drop_points(kept)
        return tried[len(kept)] <= max_drop_points

    count = fewest(harms, is_enough)
    drop = tried[count] if count in tried else probe.drop_points([harm.op for harm in harms])
    return Kept(tuple(harms), count, drop)


class Probe:
    """A network beside its rounded form, on pictures that are not measured on later.

    Args:
        network: deployed, in evaluation mode.
        pixels, labels: (N, 3, R, R) uint8 RGB and their classes (N,).
        original: whose top-1 may not drop; default: the network's.
    """

    def __init__(
        self,
        network: nn.Module,
        roundings: Roundings,
        preprocessing: Preprocessing,
        pixels: Tensor,
        labels: Tensor,
        original: nn.Module | None = None,
    ):
        self.network, self.roundings, self.preprocessing = network, roundings, preprocessing
        self.pixels, self.labels = pixels, labels
        self.due = self._logits(network, len(pixels))
        self.before = self.due if original is None else self._logits(original, len(pixels))

    def harms(self, num_pictures: int, on_progress: Progress) -> list[Harm]:
        """Of every operation, the worst first, on the first pictures."""
        found, ops = [], self.roundings.ops
        for i, op in enumerate(ops):
            on_progress("operations", i, len(ops))
            logits = self._logits(Rounded(self.network, self.roundings.of([op])), num_pictures)
            found.append(Harm(op, _ratio(logits, self.due[:num_pictures]).db))
        return sorted(found, key=lambda harm: harm.db)

    def drop_points(self, kept: Sequence[str]) -> float:
        """By how many points top-1 falls where these operations stay in fp16 and all others do not."""
        logits = self._logits(Rounded(self.network, self.roundings.without(kept)), len(self.pixels))
        return drop_points(self.before, logits, self.labels)

    def _logits(self, network: nn.Module, count: int) -> Tensor:
        predict = normalized(network, self.preprocessing)
        return torch.cat([predict(batch) for batch in self.pixels[:count].split(BATCH)])


def drop_points(due: Tensor, scores: Tensor, labels: Tensor) -> float:
    """By how many points top-1 of scores (N, num_classes) is below that of others."""
    right, was_right = ((x.argmax(1) == labels).float().mean() for x in (scores, due))
    return 100 * float(was_right - right)


def fewest(harms: Sequence[Harm], is_enough: Callable[[Sequence[str]], bool]) -> int:
    """How many of the worst operations have to be kept; all of them where fewer are not enough."""
    low, high = 0, len(harms)
    if is_enough([]):
        return 0
    while high - low > 1:  # `low` is not enough, `high` is
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough([harm.op for harm in harms[:middle]]) else (middle, high)
    return high


def _ratio(logits: Tensor, due: Tensor) -> Ratio:
    """What a softmax does not see, the mean of a picture's logits, is left out."""
    return NOTHING.plus(Ratio.of(*(x - x.mean(1, keepdim=True) for x in (logits, due))))

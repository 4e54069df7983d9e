"""Top-1 of anything that maps pixels to scores: a torch network, a CoreML package, an int8 simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vigcli.config.recipe import Preprocessing
from vigcli.errors import ConfigError, VigError
from vigcli.nn.heads import mean_of_heads
from vigcli.train.data import normalize

Predict = Callable[[Tensor], Tensor]
"""uint8 pixels (B, 3, R, R) -> (B, num_classes) logits or probabilities."""


class NotANumberError(VigError):
    """The network's scores are NaN."""


class DivergedError(VigError):
    """Loss, weights or scores have left the finite numbers."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was predicted for which pictures, in the order in which they came.

    Attributes:
        predictions, labels: class indices (N,).
    """

    predictions: Tensor
    labels: Tensor

    @property
    def num_images(self) -> int:
        return len(self.labels)

    @property
    def num_correct(self) -> int:
        return int((self.predictions == self.labels).sum())

    @property
    def top1_percent(self) -> float:
        return 100 * self.num_correct / self.num_images

    def interval_percent(self) -> tuple[float, float]:
        """The 95 % interval of the top-1, for pictures drawn like these (Wilson 1927)."""
        return wilson_percent(self.num_correct, self.num_images)


def evaluate(predict: Predict, batches: Iterable[tuple[Tensor, Tensor]]) -> Evaluation:
    """Score `predict` on batches of uint8 pixels (B, 3, R, R) and classes (B,).

    Raises NotANumberError for scores that are not numbers: an argmax of them would be an answer all the same.
    """
    predictions, labels = [], []
    for pixels, target in batches:
        scores = predict(pixels)
        if scores.shape[0] != len(target) or scores.ndim != 2:
            raise ValueError(f"scores of shape {tuple(scores.shape)} for {len(target)} pictures")
        if scores.isnan().any():
            raise NotANumberError("The network's output is not a number (NaN).", "Its weights or scales are damaged.")
        predictions.append(scores.argmax(1).cpu())
        labels.append(target.cpu())
    if not labels:
        raise ConfigError("There is no picture to evaluate on.", "Choose other data with --data.")
    return Evaluation(torch.cat(predictions), torch.cat(labels))


def normalized(model: nn.Module, preprocessing: Preprocessing) -> Predict:
    """A torch network on the pixels' scale: it runs in evaluation mode on its own device, and keeps its mode."""

    @torch.inference_mode()
    def predict(pixels: Tensor) -> Tensor:
        training, device = model.training, next(model.parameters()).device
        x = normalize(pixels.to(device), preprocessing).contiguous(memory_format=torch.channels_last)
        try:
            return mean_of_heads(model.eval()(x)).float()
        finally:
            model.train(training)

    return predict


def agreement_percent(a: Evaluation, b: Evaluation) -> float:
    """The share of pictures for which two evaluations give the same answer, right or wrong."""
    if not torch.equal(a.labels, b.labels):
        raise ValueError("the two evaluations saw different pictures")
    return 100 * float((a.predictions == b.predictions).double().mean())


def wilson_percent(num_correct: int, num_images: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share, in percent; 95 % by default."""
    share = num_correct / num_images
    centre = share + z * z / (2 * num_images)
    spread = z * math.sqrt(share * (1 - share) / num_images + z * z / (4 * num_images**2))
    scale = 100 / (1 + z * z / num_images)
    return max(0.0, scale * (centre - spread)), min(100.0, scale * (centre + spread))

"""Top-1 and top-5 of anything that maps pixels to scores: a torch network, a package, an ONNX file, a simulation."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vigcli.config.recipe import Preprocessing
from vigcli.errors import ConfigError, VigError
from vigcli.nn.heads import mean_of_heads
from vigcli.train.intervals import Right, wilson_percent
from vigcli.train.preprocess import normalize

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
        ranks: how many classes were scored above the right one (N,); of equals the first counts as higher.
        seconds: that the predictions took, without the reading of pictures.
    """

    predictions: Tensor
    labels: Tensor
    ranks: Tensor
    seconds: float = 0.0

    @property
    def num_images(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> Right:
        return (self.predictions == self.labels).numpy()

    def num_correct(self, top: int = 1) -> int:
        return int((self.ranks < top).sum())

    def top_percent(self, top: int = 1) -> float:
        """The share of pictures whose class is among the `top` highest."""
        return 100 * self.num_correct(top) / self.num_images

    @property
    def top1_percent(self) -> float:
        return self.top_percent(1)

    @property
    def images_per_s(self) -> float:
        return self.num_images / max(self.seconds, 1e-9)

    def interval_percent(self, top: int = 1) -> tuple[float, float]:
        """The 95 % interval of the share, for pictures drawn like these (Wilson 1927)."""
        return wilson_percent(self.num_correct(top), self.num_images)

    def by_class(self) -> dict[int, Right]:
        """For every class that has pictures, in order: which of them were answered rightly."""
        return {int(c): self.right[(self.labels == c).numpy()] for c in self.labels.unique()}

    def confusions(self) -> list[tuple[int, int, int]]:
        """(class, what it was taken for, pictures), the most frequent first."""
        wrong = self.predictions != self.labels
        pairs = Counter(zip(self.labels[wrong].tolist(), self.predictions[wrong].tolist(), strict=True))
        return [(*pair, count) for pair, count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))]


def evaluate(
    predict: Predict,
    batches: Iterable[tuple[Tensor, Tensor]],
    on_images: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Score `predict` on batches of uint8 pixels (B, 3, R, R) and classes (B,).

    Args:
        on_images: called after every batch with the number of pictures so far.

    Raises NotANumberError for scores that are not numbers: an argmax of them would be an answer all the same.
    """
    predictions, labels, ranks = [], [], []
    seconds, done = 0.0, 0
    for pixels, target in batches:
        start = time.perf_counter()
        scores = scores_of(predict, pixels).cpu()
        seconds += time.perf_counter() - start
        predictions.append(scores.argmax(1))
        labels.append(target.cpu())
        ranks.append(_ranks(scores, labels[-1]))
        done += len(target)
        on_images(done)
    if not labels:
        raise ConfigError("There is no picture to evaluate on.", "Choose other data with --data.")
    return Evaluation(torch.cat(predictions), torch.cat(labels), torch.cat(ranks), seconds)


def scores_of(predict: Predict, pixels: Tensor) -> Tensor:
    """(B, num_classes) scores of uint8 pixels (B, 3, R, R). Raises NotANumberError."""
    scores = predict(pixels)
    if scores.shape[0] != len(pixels) or scores.ndim != 2:
        raise ValueError(f"scores of shape {tuple(scores.shape)} for {len(pixels)} pictures")
    if scores.isnan().any():
        raise NotANumberError("The network's output is not a number (NaN).", "Its weights or scales are damaged.")
    return scores


def _ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes stand before the right one, (B,), where of equal scores the first is the higher, as in argmax:
    what was rounded to fp16 or int8 has many equals."""
    own = scores.gather(1, labels[:, None])
    before = torch.arange(scores.shape[1]) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(1)


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


def class_order(name: str, classes: Sequence[str], labels: Sequence[str], num_classes: int) -> list[int]:
    """The order of a network's scores in which the classes of the pictures come first, in theirs.

    Args:
        name: of the pictures, for the message.
        labels: the names of the network's classes; empty where it does not know them: then both are in one order.

    Raises ConfigError for pictures of classes that the network does not know, and for another number of classes where
    it knows no names.
    """
    if labels:
        places = {label: place for place, label in enumerate(labels)}
        strange = [label for label in classes if label not in places]
        if strange:
            what = f"{name}: {_some(strange)}: no class of the network, which knows {_some(labels)}."
            raise ConfigError(what, "Name the folders as the network names its classes, or choose other data: --data.")
        first = [places[label] for label in classes]
        return first + sorted(set(range(num_classes)) - set(first))
    if len(classes) != num_classes:
        what = f"{name}: holds {len(classes)} classes, but the network has {num_classes}, whose names it does not know."
        raise ConfigError(what, "Choose other data with --data.")
    return list(range(num_classes))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def agreement_percent(a: Evaluation, b: Evaluation) -> float:
    """The share of pictures for which two evaluations give the same answer, right or wrong."""
    if not torch.equal(a.labels, b.labels):
        raise ValueError("the two evaluations saw different pictures")
    return 100 * float(np.mean((a.predictions == b.predictions).numpy()))

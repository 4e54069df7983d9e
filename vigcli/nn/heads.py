"""Classifiers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vigcli.nn.blocks import ConvNorm
from vigcli.nn.deploy import Foldable, with_weights


class MeanOfHeads(Foldable):
    """Two 1x1 classifiers, the second for distillation.

    Training gives both logits, evaluation their mean, which is one classifier with the mean of the weights.
    """

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.fc = nn.Conv2d(width, num_classes, 1)
        self.fc_dist = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits, distilled = self.fc(x).flatten(1), self.fc_dist(x).flatten(1)  # (B, C, 1, 1) -> (B, num_classes)
        return (logits, distilled) if self.training else (logits + distilled) / 2

    def fold(self, keep_norm: bool) -> nn.Module:
        heads = self.fc, self.fc_dist
        weight, bias = (sum(getattr(head, name).double() for head in heads) / 2 for name in ("weight", "bias"))
        return nn.Sequential(with_weights(self.fc, weight, bias), nn.Flatten())


def classifier(width: int, num_classes: int, distilled: bool) -> nn.Module:
    """A 1x1 convolution, or two of them: (B, C, 1, 1) -> (B, num_classes) logits."""
    single = nn.Sequential(nn.Conv2d(width, num_classes, 1), nn.Flatten())
    return MeanOfHeads(width, num_classes) if distilled else single


class Head(nn.Sequential):
    """Global average pool, 1x1 convolution with batch norm and GELU, dropout on request, classifier.

    (B, C, H, W) -> (B, num_classes).
    """

    def __init__(
        self, in_shape: tuple[int, int, int], width: int, num_classes: int, distilled: bool, dropout: float = 0.0
    ):
        pool = nn.AdaptiveAvgPool2d(1)  # (B, C, H, W) -> (B, C, 1, 1)
        act = nn.Sequential(nn.GELU(), nn.Dropout(dropout)) if dropout else nn.GELU()
        super().__init__(pool, ConvNorm(in_shape[0], width), act, classifier(width, num_classes, distilled))


class PooledHead(nn.Sequential):
    """1x1 convolution with batch norm and SiLU unless `width` is 0, global average pool, dropout, classifier.

    MobileViT Table 4: (B, C, H, W) -> (B, num_classes).
    """

    def __init__(
        self, in_shape: tuple[int, int, int], width: int, num_classes: int, distilled: bool, dropout: float = 0.0
    ):
        expand = nn.Sequential(ConvNorm(in_shape[0], width, bias=False), nn.SiLU()) if width else nn.Identity()
        pool = nn.AdaptiveAvgPool2d(1)  # (B, C, H, W) -> (B, C, 1, 1)
        last = classifier(width or in_shape[0], num_classes, distilled)
        super().__init__(expand, pool, nn.Dropout(dropout), last)


def mean_of_heads(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """One (B, num_classes) tensor of what a network with one or two heads gives."""
    return torch.stack(output).mean(0) if isinstance(output, tuple) else output

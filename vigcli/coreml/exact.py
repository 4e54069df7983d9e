"""A checkpoint's own network, in its training form and in float64: what a conversion to fp32 is held to."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vigcli.archs import backbone
from vigcli.archs.checkpoint import Checkpoint
from vigcli.config.package import Output
from vigcli.coreml.convert import Deployable
from vigcli.nn.decisions import given_decisions, largest_regret

TOLERANCE = 1e-5  # of the largest score of a picture


class Exact:
    """The network, and how far a conversion was from it so far.

    Attributes:
        error: the largest error of a score, relative to the picture's largest.
        regret: the most by which a choice of the conversion was worse than the network's own.
    """

    def __init__(self, checkpoint: Checkpoint, output: Output):
        network: nn.Module = copy.deepcopy(checkpoint.model)
        if output == "features":
            network = backbone(checkpoint.meta.arch, network)
        self.network = Deployable(network, checkpoint.meta.preprocessing, softmax=False).double().eval()
        self.error = self.regret = 0.0

    def compare(self, pixels: Tensor, results: Sequence[Tensor], decisions: Iterable[Tensor]) -> list[float]:
        """The relative error of every picture, run with the choices of the conversion.

        Args:
            pixels: (B, 3, R, R) RGB in 0 ... 255.
            results: what the conversion gave: logits, or the feature maps.
        """
        with torch.no_grad(), given_decisions(self.network, decisions):
            due = self.network(pixels.double())
        self.regret = _worst([self.regret, largest_regret(self.network)])
        pairs = list(zip(results, [due] if isinstance(due, Tensor) else due, strict=True))
        errors = [_worst([_relative(result, x, i) for result, x in pairs]) for i in range(len(pixels))]
        self.error = _worst([self.error, *errors])
        return errors


def _relative(result: Tensor, due: Tensor, picture: int) -> float:
    due = due[picture]
    difference = result.double().reshape(-1, *due.shape)[picture] - due
    return float(difference.abs().max() / due.abs().max().clamp_min(1e-30))


def _worst(errors: Iterable[float]) -> float:
    """The greatest; infinite where one is not finite."""
    return max(error if math.isfinite(error) else math.inf for error in errors)

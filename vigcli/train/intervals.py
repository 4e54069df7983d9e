"""How sure a measured top-1 is, and the difference of two on the same pictures. Plain data, without torch."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Right = NDArray[np.bool_]
"""(N,): which pictures were answered rightly."""


class Difference(NamedTuple):
    """One network's top-1 minus another's, in points, with its 95 % interval."""

    points: float
    low: float
    high: float

    @property
    def is_told(self) -> bool:
        """Whether the interval excludes equality."""
        return not self.low <= 0 <= self.high

    def __str__(self) -> str:
        verdict = "" if self.is_told else ", which cannot be told from none"
        return f"{self.points:+.1f} points (95 % interval {self.low:+.1f} to {self.high:+.1f}){verdict}"


def wilson_percent(num_correct: int, num_images: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share, in percent; 95 % by default."""
    share = num_correct / num_images
    centre = share + z * z / (2 * num_images)
    spread = z * math.sqrt(share * (1 - share) / num_images + z * z / (4 * num_images**2))
    scale = 100 / (1 + z * z / num_images)
    return max(0.0, scale * (centre - spread)), min(100.0, scale * (centre + spread))


def paired_difference(a: Right, b: Right, z: float = 1.959964) -> Difference:
    """a's top-1 minus b's on the same pictures (N,).

    Only pictures that one of them got right and the other wrong count; the interval is Wald's after half a picture was
    added to each of the four cells (Agresti and Min, Statistics in Medicine 24, 2005).
    """
    gained, lost, count = int((a & ~b).sum()), int((b & ~a).sum()), len(a)
    points = 100 * (gained - lost) / count
    sum_, gap, total = gained + lost + 1, gained - lost, count + 2
    spread = z * math.sqrt(sum_ - gap**2 / total)
    return Difference(points, 100 * (gap - spread) / total, 100 * (gap + spread) / total)

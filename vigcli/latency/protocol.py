"""From timings to the milliseconds of one block: ModelBench's trimmed means, and the slope that the dispatch drops out
of. Taking the timings is left to `vigcli.coreml.device`.

Every inference carries a dispatch of about half a millisecond, many times what a block takes, so a block is never
timed alone. Two packages are timed, of the same kind of graph with `few` and with `many` copies of the block, and

    block = (T(many) - T(few)) / (many - few)

A block that gives the shape it takes is chained: `few` = n, `many` = 2 n copies, each with its own weights.

A block that changes the shape (stem, downsampling, head) cannot follow itself. It is put once behind a partner, a
small layer that keeps its input's shape, and the partner alone is timed too: `few` = 0, `many` = 1. Both packages are
dispatched once and take in the same tensor; they differ by the block, and by handing out a tensor of the block's
output shape in place of one of its input shape. So such a row is `block + out(output shape) - out(input shape)`, where
`out` is what it costs to hand out a tensor. Along a network these terms cancel, because every block's output shape is
the next one's input shape: the sum over its blocks is off by `out(logits) - out(image)` alone, whatever is between
them, which belongs to a table's fixed milliseconds. A single row may for the same reason come out too low, and is
refused where nothing is left of it. Adapters back to the input's shape, which would allow a chain,
cannot do better: around a cycle of shapes only sums of a block and its adapter are seen, never the two apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from vigcli.config.load import Strict
from vigcli.errors import NotMeasurableError


class Protocol(Strict):
    """How a package is timed. The default is that of ModelBench as the MobileOne paper's authors describe it.

    Attributes:
        rounds: times that the model is loaded anew; MobileViGv2 (arXiv:2406.05850) has 50.
        iterations: inferences of a round, of which the first warms up and is dropped.
        trim: of the others as many of the fastest and of the slowest are dropped as well.
    """

    rounds: Annotated[int, Field(ge=2, le=1000)] = 20
    iterations: Annotated[int, Field(ge=2, le=10_000)] = 50
    trim: Annotated[int, Field(ge=0)] = 10

    @model_validator(mode="after")
    def _something_is_left(self) -> Protocol:
        if 2 * self.trim >= self.iterations - 1:
            raise ValueError(
                f"trim = {self.trim} leaves nothing of {self.iterations} iterations\n"
                f"Take {(self.iterations - 2) // 2} at most, or more iterations."
            )
        return self

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds of {self.iterations} inferences, the first dropped, {self.trim} low and high trimmed"
        )


class Timing(NamedTuple):
    """Milliseconds with the standard error of their mean, and how many inferences are in it after trimming."""

    ms: float
    plus_minus_ms: float
    num_runs: int


class UnresolvedError(NotMeasurableError):
    """The timings do not tell a block from nothing: its milliseconds are no more than their error."""


def trimmed_mean(samples: Sequence[float], low: int = 10, high: int = 10) -> float:
    """The mean of one round's inferences, in the unit of the samples: without the first one, which warms up, and
    without the `low` fastest and the `high` slowest of the others.

    Raises ValueError where nothing is left, or for a sample that is no time.
    """
    times = np.asarray(samples, float)
    if times.ndim != 1 or not (np.isfinite(times) & (times > 0)).all():
        raise ValueError("an inference took no time, or none that is a number")
    if len(times) - 1 <= low + high:
        raise ValueError(f"{len(times)} inferences leave nothing after a warm-up and {low} + {high} trimmed")
    kept = np.sort(times[1:])[low : len(times) - 1 - high]
    return float(kept.mean())


def timing(rounds: Sequence[Sequence[float]], trim: int = 10) -> Timing:
    """The mean over rounds of their trimmed means, and its standard error by the rounds' spread; both in ms.

    Inferences of a round share a load, a clock and a temperature, so rounds and not inferences are the sample.
    Raises ValueError for fewer than two rounds, whose spread is not known.
    """
    if len(rounds) < 2:
        raise ValueError(f"{len(rounds)} round has no spread")
    means = np.array([trimmed_mean(samples, trim, trim) for samples in rounds])
    num_runs = sum(len(samples) - 1 - 2 * trim for samples in rounds)
    return Timing(float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means))), num_runs)


def slope(few: Timing, many: Timing, num_few: int, num_many: int) -> Timing:
    """One block's ms, from packages of `num_few` and `num_many` copies of it; what both carry drops out.

    Raises UnresolvedError where it is not above zero, or not above its standard error.
    """
    if not 0 <= num_few < num_many:
        raise ValueError(f"{num_few} and {num_many} copies give no slope")
    copies = num_many - num_few
    ms = (many.ms - few.ms) / copies
    plus_minus_ms = float(np.hypot(few.plus_minus_ms, many.plus_minus_ms)) / copies
    if not ms > plus_minus_ms:
        raise UnresolvedError(
            f"{num_many} copies take {many.ms:.4f} ms and {num_few} take {few.ms:.4f} ms: {ms:.4f} ms a block is "
            f"within its error of {plus_minus_ms:.4f} ms.",
            "Measure more rounds, or longer chains, on a machine that is cool and does nothing else.",
        )
    return Timing(ms, plus_minus_ms, few.num_runs + many.num_runs)

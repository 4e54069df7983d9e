"""A network timed on this machine, to stand beside what a table predicts; `vigcli.measure.bench` does the timing."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from vigcli.archs import build, inference_form
from vigcli.config.archs import ArchConfig
from vigcli.measure.bench import Machine, Session, Timing, rounds, this_machine, timing

NUM_ROUNDS = 15


class MeasuredHere(NamedTuple):
    """Milliseconds of fp32 on one thread of this machine's CPU, and the share of them that half the rounds span."""

    timing: Timing
    machine: Machine

    def __str__(self) -> str:
        found = self.timing
        return (
            f"{found.ms:.2f} ms ±{found.plus_minus_ms:.2f}, half of {found.num_rounds} rounds within "
            f"{100 * found.spread_ratio:.1f} %; {self.machine.cpu}, one thread, ONNX Runtime, fp32"
        )

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.timing._asdict(), "precision": "fp32", "machine": self.machine._asdict()}


def measure_here(config: ArchConfig) -> MeasuredHere:
    """Time a network as it is deployed, with weights that were not trained.

    Raises UnavailableError without ONNX Runtime, NotMeasurableError for a network that cannot be exported.
    """
    machine = this_machine()
    network = inference_form(config, build(config))
    shape = (config.in_chans, config.resolution, config.resolution)
    call = Session(network, shape, f"this {config.family}")
    found = itertools.islice(rounds({"network": call}, seed=0), NUM_ROUNDS)
    return MeasuredHere(timing([of_round["network"] for of_round in found]), machine)

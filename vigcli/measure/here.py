"""Networks timed on this machine, to stand beside what a table predicts; `vigcli.measure.bench` does the timing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
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
    return measure_all({"network": config})["network"]


def measure_all(
    configs: Mapping[str, ArchConfig], on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, MeasuredHere]:
    """Time networks in the same rounds, so that what slows the machine down meets them all; progress counts rounds.

    Raises as `measure_here` does.
    """
    machine = this_machine()
    calls = {}
    for name, config in configs.items():
        network = inference_form(config, build(config))
        calls[name] = Session(network, (config.in_chans, config.resolution, config.resolution), f"this {config.family}")
    found = []
    for of_round in itertools.islice(rounds(calls, seed=0), NUM_ROUNDS):
        found.append(of_round)
        on_progress(len(found), NUM_ROUNDS)
    return {name: MeasuredHere(timing([of_round[name] for of_round in found]), machine) for name in configs}

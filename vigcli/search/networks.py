"""A network that a search speaks of, counted, priced and scored by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vigcli.config.archs import PUBLISHED, VARIANTS, ArchConfig
from vigcli.latency.table import LatencyEstimate
from vigcli.measure.count import ParamCounts
from vigcli.measure.profile import profile
from vigcli.search.columns import NO_LIMITS, Columns, Limits, score_of
from vigcli.search.effects import Effect, effects
from vigcli.search.score import load_score


@dataclass(frozen=True)
class Network:
    """A network that the search speaks of, in full: `top1_percent` is predicted for ImageNet-1k.

    Attributes:
        latencies: by each table; `latency` is the greatest.
        memory_bytes: the most fp16 activations alive at once.
        published_top1: in percent, where a paper prints it.
    """

    name: str
    config: ArchConfig
    params: ParamCounts
    macs: int
    latencies: tuple[LatencyEstimate, ...]
    top1_percent: float
    size_bytes: float
    memory_bytes: int
    published_top1: float | None = None
    effects: tuple[Effect, ...] = ()

    @property
    def latency(self) -> LatencyEstimate:
        return max(self.latencies, key=lambda estimate: estimate.ms)

    @property
    def error_points(self) -> float:
        """Nine of ten networks that the score had not seen were within so many points of its prediction."""
        return load_score().interval(self.config.family).points_90

    def keeps(self, budget_ms: float, limits: Limits) -> bool:
        """Whether every table prices it at or below the budget, and it has no more than the limits."""
        figures = self.params.inference, self.macs, self.size_bytes / 1e6, self.memory_bytes / 1e6
        return self.latency.ms <= budget_ms and all(has <= most for has, most in zip(figures, limits, strict=True))

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "arch": self.config.model_dump(mode="json"),
            "params": self.params._asdict(),
            "macs": self.macs,
            "weights_bytes": round(self.size_bytes),
            "peak_activation_bytes": self.memory_bytes,
            "latency_ms": round(self.latency.ms, 4),
            "latency_range_ms": [round(self.latency.low_ms, 4), round(self.latency.high_ms, 4)],
            "latency_kind": self.latency.kind,
            "latency_outside_fit": list(self.latency.outside),
            "latencies": [
                {"device": e.device, "ms": round(e.ms, 4), "range_ms": [round(e.low_ms, 4), round(e.high_ms, 4)]}
                for e in self.latencies
            ],
            "top1_percent": round(self.top1_percent, 2),
            "top1_plus_minus": self.error_points,
            "top1_kind": "predicted",
            "top1_percent_published": self.published_top1,
        }


def describe(name: str, config: ArchConfig, columns: Columns) -> Network:
    """A network counted, priced and scored by itself."""
    counted = profile(config)
    total = columns.network(config)
    top1 = float(score_of(total[None], config)[0])
    known = PUBLISHED.get(name)
    return Network(
        name,
        config,
        counted.params,
        counted.macs,
        tuple(counted.latency(table) for table in columns.tables),
        top1,
        sum(block.trace.weight_mb for block in counted.blocks) * 1e6,
        counted.peak_bytes,
        None if known is None or config != VARIANTS[name] else known.top1,
        effects(config),
    )


def nearest_published(published: Sequence[Network], budget_ms: float, limits: Limits = NO_LIMITS) -> Network:
    """The slowest published network that keeps budget and limits, else the fastest of all."""
    below = [network for network in published if network.keeps(budget_ms, limits)]
    return max(below, key=lambda n: n.latency.ms) if below else min(published, key=lambda n: n.latency.ms)

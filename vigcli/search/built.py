"""The top candidates of a search really built, counted, and timed on this machine: a check on what was summed up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vigcli.config.archs import ArchConfig
from vigcli.errors import NotMeasurableError
from vigcli.latency.table import LatencyEstimate, LatencyTable, load_table
from vigcli.measure.count import BuiltCount, count_built
from vigcli.measure.here import MeasuredHere, measure_all
from vigcli.measure.profile import profile
from vigcli.search.job import SearchResult
from vigcli.search.networks import Network

NUM_MORE = 3  # of the front that are timed, besides the networks that the answer names
CPU_TABLE = "cpu-x86"


class Built(NamedTuple):
    """A candidate that was built.

    Attributes:
        predicted_ms: on the device of the budget: never to be set against `here`.
        here: milliseconds of this machine's CPU, where they were asked for.
        foretold: what a table of a CPU says of it, beside `here`.
    """

    label: str
    config: ArchConfig
    predicted_ms: float
    counts: BuiltCount
    here: MeasuredHere | None = None
    foretold: LatencyEstimate | None = None

    def record(self) -> dict[str, Any]:
        """For JSON."""
        here = {"measured_here": self.here.record()} if self.here else {}
        table = {"cpu_table_ms": round(self.foretold.ms, 4), "cpu_table": self.foretold.device} if self.foretold else {}
        return {
            "label": self.label,
            "predicted_ms": round(self.predicted_ms, 4),
            **self.counts._asdict(),
            **here,
            **table,
        }


def build_top(
    result: SearchResult, timed: bool, on_progress: Callable[[str, int, int], None] = lambda what, done, total: None
) -> tuple[Built, ...]:
    """Build and count the networks that a search names; if asked to, time them and some of its front.

    Raises UnavailableError for a timing without ONNX Runtime.
    """
    chosen = top_candidates(result, NUM_MORE if timed else 0)
    built = []
    for number, (label, (config, ms)) in enumerate(chosen.items()):
        on_progress("building", number, len(chosen))
        counted, found = profile(config), count_built(config)
        summed = counted.params.total, counted.params.deployed, counted.macs
        assert found == summed, f"{config} is {found} built, and {summed} block by block"
        built.append(Built(label, config, ms, found))
    if not timed:
        return tuple(built)
    here = measure_all(
        {label: config for label, (config, _) in chosen.items()},
        lambda done, total: on_progress("timing here", done, total),
    )
    table = _cpu_table(result.tables)
    return tuple(one._replace(here=here[one.label], foretold=_foretold(one.config, table)) for one in built)


def top_candidates(result: SearchResult, num_more: int) -> dict[str, tuple[ArchConfig, float]]:
    """By what they are: the networks of the answer, and so many spread over the front; with predicted milliseconds."""

    def of(network: Network) -> tuple[ArchConfig, float]:
        return network.config, max(latency.ms for latency in network.latencies)

    chosen = {"best": of(result.best)}
    if result.second is not None:
        chosen["second"] = of(result.second)
    if result.nearest.config != result.best.config:
        chosen[result.nearest.name] = of(result.nearest)
    known = [config for config, _ in chosen.values()]
    front = [(config, ms) for ms, _, config in result.front if config not in known]
    spread = [round((i + 1) * (len(front) - 1) / (num_more + 1)) for i in range(num_more if front else 0)]
    for number, place in enumerate(dict.fromkeys(spread), 1):
        chosen[f"front {number}"] = front[place]
    return chosen


def _cpu_table(tables: Sequence[LatencyTable]) -> LatencyTable:
    return next((table for table in tables if table.compute_unit.startswith("CPU")), None) or load_table(CPU_TABLE)


def _foretold(config: ArchConfig, table: LatencyTable) -> LatencyEstimate | None:
    try:
        return profile(config).latency(table)
    except NotMeasurableError:
        return None

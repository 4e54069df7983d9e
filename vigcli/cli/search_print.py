"""What `vig search` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vigcli.cli.output import say, table
from vigcli.units import format_bytes, format_count

if TYPE_CHECKING:
    from vigcli.search.job import SearchResult
    from vigcli.search.measured import Resolution


def print_answer(result: SearchResult, proxies: dict[str, Any] | None) -> None:
    """The networks side by side, and what is to be known before they are believed."""
    from vigcli.search.page import title

    known = (
        ("best found", result.best),
        ("second", result.second),
        ("nearest published" if result.nearest_keeps else "published, over limits", result.nearest),
        ("yours", result.start),
    )
    rows = []
    for label, network in known:
        if network is not None:
            latencies = [
                f"{e.ms:.2f} ({e.low_ms:.2f} to {e.high_ms:.2f}){' *' if e.outside else ''}" for e in network.latencies
            ]
            rows.append((
                label, title(network), format_count(network.params.inference), format_count(network.macs),
                format_bytes(network.size_bytes), *latencies, f"{network.top1_percent:.1f} ±{network.error_points:.1f}",
            ))  # fmt: skip
    config, kind = result.best.config, result.best.latency.kind
    coverage = f"{result.interval.coverage_percent:g} %"
    prices = [f"ms {kind} ({coverage})"] if len(result.tables) == 1 else [f"ms {t.device}" for t in result.tables]
    devices = "; ".join(f"{t.device}, {t.os}, {t.precision}" for t in result.tables)
    table(
        (
            "", "network: depths of each stage x widths", "params", "MACs", "fp16 weights", *prices,
            "top-1 % predicted (90 %)",
        ),
        rows,
        title=f"{devices}; {config.resolution} px, {config.num_classes} classes",
    )  # fmt: skip
    if result.choices:
        chosen = ", ".join(f"{path}={str(value).lower()}" for path, value in result.choices.items())
        click.echo(f"chosen besides: {chosen}")
    _explain(result)
    if proxies is not None:
        scores = [(name, f"{value:.3f}") for name, value in proxies["scores"].items()]
        table(("", proxies["name"]), scores)
        say(proxies["note"])


def _explain(result: SearchResult) -> None:
    """What is to be known before the answer is believed."""
    from vigcli.search.explain import why_better
    from vigcli.search.members import last_part
    from vigcli.search.score import TIE_POINTS, load_score

    best, nearest = result.best, result.nearest
    for network in (best, nearest):
        if network.latency.outside:
            outside = ", ".join(network.latency.outside)
            say(f"* {network.name}: OUTSIDE the fitted range ({outside}): do not trust its price.")
    for latency_table in result.tables:
        say(f"ms, {latency_table.device}: {latency_table.error_text}. Measure the winner on the device.")
    distillation = "with distillation" if getattr(best.config, "distilled", False) else "without distillation"
    say(f"top-1: what the score expects of 300 epochs of ImageNet-1k {distillation}, not of the data you train on.")
    if best.top1_percent < result.front[-1][1] - 1e-9:
        greatest = f"the greatest prediction under the budget is {result.front[-1][1]:.1f} %"
        say(f"A tie within {TIE_POINTS} points goes to the shape closest to a published one; {greatest}.")
    told: dict[tuple[str, Any, str], float] = {}
    for effect in best.effects:
        told[effect[0], effect.value, effect.source] = (
            told.get((effect[0], effect.value, effect.source), 0) + effect.points
        )
    for (path, value, source), points in told.items():
        say(f"In it: {points:+.2f} points for {path}={str(value).lower()} ({source}).")
    if result.by_ablations:
        known = [
            f"{e.field}={str(e.value).lower()} {e.points:+.2f}"
            for e in load_score().effects
            if e.family == best.config.family and e.field in map(last_part, result.by_ablations)
        ]
        genes, sizes = ", ".join(result.by_ablations), ", ".join(dict.fromkeys(known))
        say(f"By published ablations, single runs: {genes} (points a stage against the published pattern: {sizes}).")
    for network in result.doubtful:
        outside = ", ".join(network.latency.outside)
        found = f"the best {network.config.family}, {network.latency.ms:.2f} ms"
        say(f"Not compared: {found} by prices outside what was fitted ({outside}).")
    for exact in result.exact:
        proof = "proven" if exact.proven else f"not proven in time: at most {exact.gap_points:.2f} points more are left"
        say(f"The greatest predicted top-1 under the budget is {exact.score:.2f} %, {proof}.")
    if result.kept:
        say(f"Neither sees {', '.join(result.kept)}: kept as published.")
    if result.undecided:
        say(f"Undecided without data: {', '.join(result.undecided)}: kept as published.")
    for label, other in (("second", result.second), ("nearest published", nearest if result.nearest_keeps else None)):
        if other is not None and other.config != best.config and not result.tells_apart(other):
            gap, ms = best.top1_percent - other.top1_percent, best.latency.ms / other.latency.ms - 1
            say(f"Best and {label} cannot be told apart: {gap:+.2f} points and {100 * ms:+.0f} % of latency.")
    gap = best.top1_percent - nearest.top1_percent
    if gap > best.error_points:
        parts = sorted(why_better(best.config, nearest.config).items(), key=lambda part: -abs(part[1]))
        reasons = ", ".join(f"{points:+.1f} by {part}" for part, points in parts if abs(points) >= 0.05)
        say(f"Best is {gap:.1f} points above {nearest.name}, more than the score's error: {reasons}.")
    if result.apart:
        ms, score, _ = result.apart[-1]
        say(f"Kept apart, shape never trained: the score would go to {score:.1f} % at {ms:.2f} ms there.")
    chance = max((score for _, score in result.random_front), default=None)
    versus = f"the best of as many random ones scores {chance:.1f} %" if chance else "as many random ones found none"
    size = f"{result.space_size:,}" if result.space_size < 1e6 else f"{result.space_size:.1e}"
    say(f"{result.num_evaluated:,} evaluations in a space of {size} networks; {versus}.")
    if not result.beats_random:
        small = "; so small a space both exhaust" if result.space_size < result.num_evaluated else ""
        say(f"The evolution did NOT beat random search here{small}.")


def print_resolution(resolution: Resolution) -> None:
    """The ranking by short training."""
    rows = [
        (
            row.rank, f"{row.name}{' (published)' if row.place is None else ''}", row.epochs, row.images,
            f"{row.top1_percent:.1f} ({row.interval_percent[0]:.1f} to {row.interval_percent[1]:.1f})",
            str(row.versus_published or ""),
        )
        for row in resolution.rows
    ]  # fmt: skip
    columns = ("rank", "network", "epochs", "pictures", "top-1 % measured (95 %)", "against the published one")
    click.echo()
    table(columns, rows, title=f"Trained shortly on {resolution.dataset}, {resolution.resolution} px")
    for note in resolution.notes():
        say(note)

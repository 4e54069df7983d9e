"""What `vig prune` answers: what the network cost before and after, and what that cost in accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vigcli.cli.output import say, table
from vigcli.cli.prune_options import Asked
from vigcli.errors import NotMeasurableError
from vigcli.units import format_count

if TYPE_CHECKING:
    from vigcli.compress.analyze import Sensitivity
    from vigcli.latency.table import LatencyTable
    from vigcli.measure.profile import Profile
    from vigcli.train.evaluate import Evaluation

SHOWN = 12  # groups; prune.json and --json have all

Measured = tuple["Evaluation", "Evaluation"]


def figures(asked: Asked, after: Profile) -> dict[str, Any]:
    """What the network cost, and costs."""
    both = asked.before, after
    return {
        "limit": asked.limit,
        "cost": [asked.cost.of(one) for one in both],
        "params": [one.params.deployed for one in both],
        "macs": [one.macs for one in both],
        "latency": [_price(asked.table, one) for one in both],
        "criterion": asked.criterion,
        "steps": asked.steps,
    }


def _price(prices: LatencyTable, network: Profile) -> dict[str, Any] | None:
    """Price, interval and doubts; None where the table does not know it."""
    try:
        found = network.latency(prices)
    except NotMeasurableError:
        return None
    return found._asdict()


def accuracy(measured: Measured | None) -> dict[str, Any]:
    """What both networks got right, and the difference."""
    if measured is None:
        return {"top1_percent": None}
    from vigcli.train.evaluate import agreement_percent
    from vigcli.train.intervals import paired_difference

    before, after = measured
    return {
        "num_images": before.num_images,
        "top1_percent": [before.top1_percent, after.top1_percent],
        "points": list(paired_difference(after.right, before.right)),
        "agreement_percent": agreement_percent(before, after),
    }


def print_figures(asked: Asked, answer: dict[str, Any], measured: Measured | None = None) -> None:
    """The network before and after, and the price in accuracy where it was measured."""
    rows = [(name, *map(format_count, answer[key])) for name, key in (("params, deployed", "params"), ("MACs", "macs"))]
    rows.append((f"ms, {asked.table.device}, {asked.table.kind}", *map(_price_text, answer["latency"])))
    if measured is not None:
        ends = [one.interval_percent() for one in measured]
        texts = [f"{x.top1_percent:.1f} ({a:.1f} to {b:.1f})" for x, (a, b) in zip(measured, ends, strict=True)]
        rows.append((f"top-1 % of {measured[0].num_images}, measured", *texts))
    assert asked.limit is not None
    table(
        ("", "before", "after"),
        rows,
        title=f"{asked.path}, pruned to {asked.cost.text(asked.limit)} by {asked.criterion}",
    )
    if measured is not None:
        from vigcli.train.intervals import Difference

        say(f"The price: {Difference(*answer['points'])}; agreement {answer['agreement_percent']:.1f} %.")
    say(f"ms: {asked.table.error_text}.")
    if doubts := dict.fromkeys(doubt for price in answer["latency"] if price for doubt in price["outside"]):
        say(f"*: outside what the table was fitted to ({', '.join(doubts)}): do not trust it.")


def _price_text(price: dict[str, Any] | None) -> str:
    if price is None:
        return "not known"
    return f"{price['ms']:.3f} ({price['low_ms']:.2f} to {price['high_ms']:.2f}){' *' if price['outside'] else ''}"


def print_groups(groups: dict[str, list[int]]) -> None:
    """The groups that lost the greatest share."""
    shares = {name: after / before for name, (before, after) in groups.items() if after < before}
    changed = sorted(shares, key=lambda name: shares[name])  # of equals the first in the network comes first
    rows = [(name, *groups[name], f"{100 * shares[name]:.0f}") for name in changed[:SHOWN]]
    click.echo()
    table(("channels of", "before", "after", "% kept"), rows)
    more = f"{len(changed) - SHOWN} more lost channels, " if len(changed) > SHOWN else ""
    say(f"Of {len(groups)} groups, {more}{len(groups) - len(changed)} lost none.")


def print_sensitivity(asked: Asked, found: list[Sensitivity], whole: Evaluation) -> None:
    """The accuracy that each group's cuts leave, those that hurt least first."""
    from vigcli.compress.analyze import RATIOS

    columns = [f"top-1 % without {100 * ratio:.0f} %" for ratio in RATIOS]
    saved = [f"saves at {100 * ratio:.0f} %" for ratio in RATIOS]
    rows = [
        (one.group, one.num_units, *(None if cut is None else f"{cut.top1_percent:.1f}" for cut in one.cuts),
         *(None if cut is None else asked.cost.text(cut.saved) for cut in one.cuts))
        for one in found
    ]  # fmt: skip
    low, high = whole.interval_percent()
    title = f"{asked.path}: {whole.top1_percent:.1f} % ({low:.1f} to {high:.1f}) of {whole.num_images} pictures"
    table(("channels of", "units", *columns, *saved), rows, title=title)
    say(f"One group is cut at a time, by {asked.criterion}, without fine-tuning. ms: {asked.table.error_text}.")

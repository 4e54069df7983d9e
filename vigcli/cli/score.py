"""`vig score`: what the predicted top-1 is made of, where it comes from, and how wrong it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vigcli.cli.options import json_option, set_option
from vigcli.cli.output import emit_json, say, table
from vigcli.errors import UsageError, VigError
from vigcli.units import format_count

if TYPE_CHECKING:
    from vigcli.search.explain import Explanation
    from vigcli.search.score import Errors, Score

WORSE_POINTS, WORSE_TAU, MOVED = 0.01, 0.005, 0.001  # what may differ between two machines


@click.group()
def command() -> None:
    """Predict ImageNet-1k top-1 without data, from size and published ablations, or hold the prediction to its claims.

    Example:  vig score show mobilevigv2_s
    """


@command.command()
@click.argument("names", nargs=-1, required=True, metavar="NETWORK...")
@set_option
@json_option
def show(names: tuple[str, ...], settings: tuple[str, ...], as_json: bool) -> None:
    """Predict the top-1 of networks (names, timm:NAME, or checkpoints), and say what the prediction is made of.

    Example:  vig score show mobilevigv2_s mobilevigv2_b
    """
    from vigcli.search.effects import CAVEAT
    from vigcli.search.score import NOT_IN_THE_SCORE, TIE_POINTS

    found = {name: _explained(name, settings) for name in names}
    if as_json:
        emit_json([_record(name, e) for name, e in found.items()])
        return
    rows: list[tuple[Any, ...]] = [
        (
            name, format_count(int(e.size.params)), format_count(int(e.size.macs)), e.size.path_layers,
            f"{100 * e.size.depthwise_share:.1f}", f"{e.top1_percent:.1f} ±{e.interval.points_90:.1f}",
            f"±{e.interval.points_80:.1f}", e.published.top1_percent, e.published.source,
        )
        for name, e in found.items()
    ]  # fmt: skip
    columns: tuple[str, ...] = (
        "network", "params", "MACs", "layers", "depthwise %", "top-1 % predicted (90 %)", "(80 %)",
        "top-1 % published", "source",
    )  # fmt: skip
    table(columns, rows, title="What the score sees, and what it expects")
    click.echo()
    rows = [(name, *(f"{points:+.2f}" for points in e.points.values())) for name, e in found.items()]
    parts = next(iter(found.values())).points
    table(("network", *parts), rows, title="Points of top-1 by part, against the mean of the networks it was fitted to")
    rows = [
        (name, effect.path, effect.stage, str(effect.value).lower(), f"{effect.points:+.2f}", effect.source)
        for name, e in found.items()
        for effect in e.effects
    ]
    if rows:
        click.echo()
        columns = ("network", "path", "stage", "value", "points", "published ablation")
        table(columns, rows, title="Points by published ablations, against what the family's networks have there")
        say(f"ablations: {CAVEAT}.")
    for name, e in found.items():
        if e.outside:
            say(f"{name}: OUTSIDE what the score was fitted to ({', '.join(e.outside)}): do not trust it.")
        if e.undecided:
            say(f"{name}: nothing published speaks of its {', '.join(e.undecided)}: worth nothing here.")
    say("predicted: for ImageNet-1k and the training that published networks had; what no paper trained is unknown.")
    say(f"A gap below {TIE_POINTS} points is a tie; `vig score fit --check` says how often the order is right.")
    say(f"The formula does not see width against resolution, nor {', '.join(NOT_IN_THE_SCORE)}.")


def _record(name: str, found: Explanation) -> dict[str, Any]:
    return {
        "name": name,
        **found.size._asdict(),
        **found.published.recipe,
        "top1_percent": round(found.top1_percent, 2),
        "top1_kind": "predicted",
        "top1_plus_minus": found.interval.model_dump(),
        "published_top1_percent": found.published.top1_percent,
        "published_source": found.published.source,
        "points": {part: round(points, 3) for part, points in found.points.items()},
        "effects": [effect._asdict() for effect in found.effects],
        "undecided": list(found.undecided),
        "outside": list(found.outside),
    }


def _explained(name: str, settings: tuple[str, ...]) -> Explanation:
    """The prediction for what a name or a checkpoint is; what is published is of other weights than a checkpoint's."""
    from pathlib import Path

    from vigcli.cli.load import arch_with, picked_checkpoint
    from vigcli.search.explain import explain

    if not Path(name).exists() and not name.endswith(".safetensors"):
        return explain(arch_with(name, settings))
    if settings:
        raise UsageError(f"{name}: its architecture is fixed.", "--set goes with a network's name.")
    from vigcli.archs.checkpoint import read_meta

    found = explain(read_meta(picked_checkpoint(name)).arch)
    return found._replace(published=found.published._replace(top1_percent=None, source=None))


@command.command()
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Default: the built-in file.")
@click.option("--check", is_flag=True, help="Write nothing; fail where the file claims more than the fit gives.")
@json_option
def fit(output: str | None, check: bool, as_json: bool) -> None:
    """Fit the score to the published networks, predicting families that a fit has not seen, and read the ablations.

    Example:  vig score fit --check
    """
    if output is not None and check:
        raise UsageError("-o is where the score is written.", "Leave out --check.")
    from vigcli.config.load import dump
    from vigcli.files import write_text
    from vigcli.paths import builtin_folder
    from vigcli.search.ablations import published_effects
    from vigcli.search.score import PATH, load_score
    from vigcli.search.score_fit import load_study

    folder = builtin_folder("space") / "published"
    fitted = load_study(folder, builtin_folder("table") / "published").fit(folder / "accuracy.csv")
    fitted = fitted.model_copy(update={"effects": published_effects(fitted)})
    claimed = load_score() if check else fitted
    worse = [*_worse(claimed.errors, fitted.errors), *_moved(claimed, fitted)]
    if not check:
        path = output or builtin_folder("space") / PATH
        first = "# Predicted ImageNet-1k top-1 of a network from its size: fitted by `vig score fit` to accuracy.csv"
        write_text(path, f"{first}\n{dump(fitted)}")
        say(f"Wrote {path}.")
    if as_json:
        emit_json({**fitted.model_dump(mode="json"), "worse": worse})
    else:
        _print(fitted, claimed)
    if worse:
        what = f"the score's file claims what the fit does not give: {', '.join(worse)}."
        raise VigError(what, "Fit it again: `vig score fit`.")


def _figures(errors: Errors) -> dict[str, tuple[float, int | None]]:
    """What a table prints of errors: the figure, and of how many pairs."""
    found: dict[str, tuple[float, int | None]] = {
        "mean error, points": (errors.mae_points, None), "tau, all pairs": (errors.tau, None),
    }  # fmt: skip
    for label, order in (
        ("tau, equal MACs", errors.equal_macs), ("tau, equal params", errors.equal_params),
        ("tau, both equal", errors.equal_both), ("tau, equal published latency", errors.equal_latency),
        ("tau inside own families", errors.own_families),
    ):  # fmt: skip
        found[label] = order.tau, order.num_pairs
    return found


def _worse(claimed: Errors, found: Errors) -> list[str]:
    claims = _figures(claimed)
    return [
        f"{label} {value:g} for {claims[label][0]:g}"
        for label, (value, _) in _figures(found).items()
        if (value > claims[label][0] + WORSE_POINTS if "points" in label else value < claims[label][0] - WORSE_TAU)
    ]


def _moved(claimed: Score, found: Score) -> list[str]:
    """What of the formula, the intervals and the effects is not what the fit gives."""
    pairs = {name: (claimed.coefficients.get(name), value) for name, value in found.coefficients.items()}
    pairs |= {"intercept": (claimed.intercept, found.intercept)}
    pairs |= {f"offset of {name}": (claimed.offset(name), offset.s) for name, offset in found.family_offsets.items()}
    moved = [name for name, (one, other) in pairs.items() if one is None or abs(one - other) > MOVED]
    for name in ("new_family", "known_family"):
        one, other = getattr(claimed, name), getattr(found, name)
        moved += [name] if max(other.points_80 - one.points_80, other.points_90 - one.points_90) > WORSE_POINTS else []
    effects = [
        [e.model_copy(update={"points": 0.0, "credited_points": 0.0}) for e in s.effects] for s in (claimed, found)
    ]
    near = effects[0] == effects[1] and all(
        abs(one.points - other.points) <= WORSE_POINTS
        for one, other in zip(claimed.effects, found.effects, strict=True)
    )
    return moved if near else [*moved, "effects"]


def _print(fitted: Score, claimed: Score) -> None:
    title = f"{fitted.num_rows} networks of {fitted.num_families} families, each predicted without its family"
    ours, alone, claims = _figures(fitted.errors), _figures(fitted.size_alone), _figures(claimed.errors)
    rows: list[tuple[Any, ...]] = [
        (label, f"{value:.3f}", f"{alone[label][0]:.3f}", f"{claims[label][0]:.3f}", pairs)
        for label, (value, pairs) in ours.items()
    ]
    table(("", "the score", "params, MACs alone", "claimed", "pairs"), rows, title=title)
    click.echo()
    terms = {"intercept": fitted.intercept, **fitted.coefficients}
    rows = [
        (name, f"{x:+.6f}", f"{fitted.means[name]:.3f}" if name in fitted.means else None) for name, x in terms.items()
    ]
    table(("term", "coefficient", "mean"), rows, title="-ln(100 - top1) is the sum of")
    click.echo()
    rows = [(name, f"{offset.s:+.4f}", offset.num_rows) for name, offset in fitted.family_offsets.items()]
    table(("family", "offset", "networks"), rows)
    click.echo()
    rows = [
        (
            f"{gap.from_points:g} to {gap.below_points:g}" if gap.below_points else f"{gap.from_points:g} and more",
            f"{gap.right_percent:.0f}", gap.num_pairs,
        )
        for gap in fitted.right_order
    ]  # fmt: skip
    table(("predicted gap, points", "right order, %", "pairs"), rows, title="At equal MACs")
    click.echo()
    rows = [
        (
            e.family, e.field, str(e.value).lower(), ",".join(map(str, e.stages)), f"{e.published_points:+.2f}",
            f"{e.credited_points:+.2f}", f"{e.points:+.3f}", e.source,
        )
        for e in fitted.effects
    ]  # fmt: skip
    columns = ("family", "field", "value", "stages", "published", "by size", "each stage", "source")
    table(columns, rows, title="Published ablations, in points of top-1, less what the formula credits")
    for label, interval in (("of a family with an offset", fitted.known_family), ("of another", fitted.new_family)):
        say(f"A network {label}: ±{interval.points_80} points cover 80 %, ±{interval.points_90} cover 90 %.")

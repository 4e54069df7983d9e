"""`vig table`: look at latency tables and hold them to what they claim; `table_fit` makes calibrated ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vigcli.cli.options import json_option
from vigcli.cli.output import emit_json, fields, say, table
from vigcli.cli.table_build import build
from vigcli.cli.table_device import add
from vigcli.cli.table_fit import calibrate, fit
from vigcli.errors import ConfigError

if TYPE_CHECKING:
    from vigcli.latency.table import LatencyTable


@click.group()
def command() -> None:
    """Look at latency tables, make them, or hold them to what they claim.

    Example:  vig table show
    """


command.add_command(build)
command.add_command(add)
command.add_command(fit)
command.add_command(calibrate)


@command.command("ls")
@json_option
def list_(as_json: bool) -> None:
    """List the built-in tables: device, how its milliseconds are known and how wrong they are.

    Example:  vig table ls
    """
    from vigcli.latency.table import load_table
    from vigcli.paths import builtin_names

    found = {name: load_table(name) for name in builtin_names("table")}
    if as_json:
        emit_json({
            name: {
                **t.model_dump(include={"device", "os", "runtime", "precision", "kind", "num_rows", "date"}),
                "accuracy": {by: a.model_dump() for by, a in t.accuracy.items()},
            }
            for name, t in found.items()
        })  # fmt: skip
        return
    rows = [
        (name, t.device, t.os, t.runtime, t.precision, t.kind, len(t.rows), f"{_error_here(t):.1f}", t.date)
        for name, t in found.items()
    ]
    table(("table", "device", "OS", "runtime", "precision", "kind", "rows", "error %", "date"), rows)
    say("error: mean, of networks of that device that were held out. `vig table show TABLE` says more.")


def _error_here(found: LatencyTable) -> float:
    """Percent, of whole networks that the table had not seen."""
    return next(
        found.accuracy[by].mape_percent for by in ("device", "networks", *found.accuracy) if by in found.accuracy
    )


@command.command()
@click.argument("name", default="iphone13-mini")
@click.option("--blocks", is_flag=True, help="Every row.")
@click.option("--picture", type=click.Path(dir_okay=False), help="Draw predicted against published milliseconds.")
@json_option
def show(name: str, blocks: bool, picture: str | None, as_json: bool) -> None:
    """Say where the milliseconds of table NAME come from and how wrong they may be.

    Example:  vig table show "iPhone 13 mini"
    """
    from vigcli.latency.table import ACCURACY_OF, load_table

    found = load_table(name)
    if as_json:
        emit_json(found.model_dump(mode="json"))
        return
    model = found.calibration
    place = (
        f"{found.device}, {found.soc}, {found.os}, {found.runtime}, {found.compute_unit}, {found.precision}, batch 1"
    )
    measured = sum(row.kind == "measured" for row in found.rows.values())
    made_with = ", ".join(f"{tool} {version}" for tool, version in found.tools.items())
    fields([
        ("device", place),
        ("kind", found.error_text), ("protocol", found.protocol), ("source", found.source),
        ("made", f"{found.date} with {made_with}"),
        *((("pattern", model.pattern), ("scope", model.scope), *(("note", note) for note in model.notes))
          if model else ()),
        ("interval", f"x/÷ {found.interval.factor} covers {found.interval.coverage_percent:g} %"
         + (f"; of a new family x/÷ {model.new_family_interval.factor} covers "
            f"{model.new_family_interval.coverage_percent:g} %" if model else "")),
        ("each inference", f"{found.fixed_ms:.3f} ms"),
        ("rows", f"{len(found.rows)} blocks, {measured} of them measured"),
    ])  # fmt: skip
    click.echo()
    columns = ("predicted", "rows", "error %", "within 10 %", "tau")
    errors = [
        (
            ACCURACY_OF.get(by, by),
            a.num_rows,
            f"{a.mape_percent:.2f}",
            f"{a.within_10_percent:.0f}",
            f"{a.kendall_tau:.3f}",
        )
        for by, a in found.accuracy.items()
    ]
    table(columns, errors, title="What was predicted without having been seen")
    if model:
        click.echo()
        columns = ("member", "fixed ms", "act ms/MB", "spill ms/MB", "weight ms/MB")
        members = [
            (label, f"{m.fixed_ms:.3f}", f"{m.act_ms_per_mb:.5f}", f"{m.spill_ms_per_mb:.4f}",
             f"{m.weight_ms_per_mb:.4f}")
            for label, m in [*((f"{m.fusion} {m.combine}", m) for m in model.members), ("second", model.cross_check)]
        ]  # fmt: skip
        title = f"The calibrated model: {model.scale:g} times the mean of its members; the second opinion"
        table(columns, members, title=title)
    if blocks:
        click.echo()
        rows = [(s, f"{r.ms:.4f}", f"±{r.plus_minus_ms:.4f}", r.kind, r.num_runs) for s, r in found.rows.items()]
        table(("block", "ms", "±", "kind", "runs"), rows)
    if picture:
        from vigcli.latency.crossvalidation import between_labs
        from vigcli.measure.pictures import draw_predictions
        from vigcli.measure.tables import DEVICES, Study
        from vigcli.paths import builtin_folder

        known = next((key for key, device in DEVICES.items() if device.device == found.device), None)
        if known is None:
            raise ConfigError(f"{found.device}: no published milliseconds to draw.", f"Take {', '.join(DEVICES)}.")
        study = Study(builtin_folder("table") / "published")
        draw_predictions(found.device, study.predictions(known), between_labs(study.rows).mape, picture)
        say(f"Wrote {picture}.")


@command.command()
@click.argument("names", nargs=-1)
@click.option("--space", "space_names", multiple=True, metavar="SPACE", help="Default: every built-in space.")
@json_option
def check(names: tuple[str, ...], space_names: tuple[str, ...], as_json: bool) -> None:
    """Hold tables NAMES (default: the built-in ones) to their form, and to knowing every block of the spaces.

    A calibrated table has a row for each; a measured one may lack a row that lies between others of its kind.

    Example:  vig table check --space mobilevigv2
    """
    from vigcli.config.archs import arch_config
    from vigcli.config.space import named_spaces
    from vigcli.config.space_blocks import space_specs
    from vigcli.latency.table import load_table
    from vigcli.measure.coverage import coverage_of
    from vigcli.paths import builtin_names

    spaces = {space.name: (arch_config(space.base).family, space_specs(space)) for space in named_spaces(space_names)}
    records = []
    for name in names or builtin_names("table"):
        found = load_table(name)
        records += [
            {"table": name, "space": space, **coverage_of(found, *blocks)._asdict()} for space, blocks in spaces.items()
        ]
    if as_json:
        emit_json(records)
    else:
        rows = [
            (r["table"], r["space"], r["num_blocks"], r["num_rows"], r["num_measured"], r["num_between"],
             len(r["missing"]))
            for r in records
        ]  # fmt: skip
        table(("table", "space", "blocks", "rows", "measured", "between rows", "missing"), rows)
    short = next((r for r in records if r["missing"]), None)
    if short is not None:
        missing = short["missing"]
        raise ConfigError(
            f"{short['table']}: does not know {len(missing)} of {short['num_blocks']} blocks of {short['space']}, such "
            f"as {missing[0]}.",
            "Make the table again: `vig table fit` a calibrated one, `vig table build` a measured one.",
        )

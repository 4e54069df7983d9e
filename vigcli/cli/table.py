"""`vig table`: look at a latency table, or fit it again."""

from __future__ import annotations

import click

from vigcli.cli.options import json_option
from vigcli.cli.output import emit_json, fields, say, table
from vigcli.cli.table_build import build
from vigcli.errors import ConfigError, did_you_mean


@click.group()
def command() -> None:
    """Look at a latency table, or fit it again to the published measurements.

    Example:  vig table show
    """


command.add_command(build)


@command.command()
@click.argument("name", default="iphone13-mini")
@json_option
def show(name: str, as_json: bool) -> None:
    """Say where the milliseconds of table NAME come from and how wrong they may be.

    Example:  vig table show "iPhone 13 mini"
    """
    from vigcli.latency.table import load_table

    found = load_table(name)
    if as_json:
        emit_json(found.model_dump(mode="json"))
        return
    errors = [
        f"{e.mape_percent} % mean, {e.within_10_percent} % of rows within 10 %, tau {e.kendall_tau} (held out by {by})"
        for by, e in found.held_out
    ]
    fields([
        ("device", f"{found.device}, {found.soc}, {found.os}, {found.compute_unit}, {found.precision}, batch 1"),
        ("kind", f"{found.kind}: not measured block by block"),
        ("protocol", found.protocol), ("source", found.source), ("pattern", found.pattern), ("scope", found.scope),
        ("error", "; ".join(errors)),
        ("interval", f"x/÷ {found.interval.factor} covers {found.interval.coverage_percent:g} %"),
        ("each inference", f"{found.fixed_ms:.3f} ms"),
        ("rows", f"{len(found.rows)} blocks"),
    ])  # fmt: skip
    click.echo()
    columns = ("member", "fixed ms", "act ms/MB", "spill ms/MB", "weight ms/MB")
    rows = [
        (f"{m.fusion} {m.combine}", f"{m.fixed_ms:.3f}", f"{m.act_ms_per_mb:.5f}", f"{m.spill_ms_per_mb:.4f}",
         f"{m.weight_ms_per_mb:.4f}") for m in found.model
    ]  # fmt: skip
    table(columns, rows, title="The calibrated model: the mean of its members")


@command.command()
@click.argument("name", default="iphone13-mini")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Default: the built-in file itself.")
@json_option
def fit(name: str, output: str | None, as_json: bool) -> None:
    """Fit table NAME to the published measurements and write it, with a row for each block of the built-in spaces.

    Example:  vig table fit iphone13-mini -o mine.yaml
    """
    from vigcli.config.load import dump
    from vigcli.config.space import load_space
    from vigcli.files import write_text
    from vigcli.measure.tables import DEVICES, fit_table
    from vigcli.paths import builtin_folder, builtin_names, find_file

    if name not in DEVICES:
        raise ConfigError(f"'{name}': no published measurements to fit.", did_you_mean(name, DEVICES))
    spaces = [load_space(find_file("space", space)) for space in builtin_names("space")]
    fitted = fit_table(name, builtin_folder("table") / "published", spaces)
    path = output or builtin_folder("table") / f"{name}.yaml"
    first = f"# {fitted.device}, {fitted.os}, Neural Engine: calibrated to published measurements by `vig table fit`"
    write_text(path, f"{first}\n{dump(fitted)}")
    say(f"Wrote {path}: {len(fitted.rows)} rows, {fitted.held_out.network.mape_percent} % on held-out networks.")
    if as_json:
        held_out = fitted.held_out.model_dump(mode="json")
        emit_json({"path": str(path), "num_rows": len(fitted.rows), "held_out": held_out})

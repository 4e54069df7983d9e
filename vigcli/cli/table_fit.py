"""`vig table fit` and `calibrate`: tables by a model, from published measurements or from a few of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vigcli.cli.options import json_option
from vigcli.cli.output import emit_json, say, table
from vigcli.errors import ConfigError, UsageError, VigError, did_you_mean

if TYPE_CHECKING:
    from vigcli.latency.calibration import Accuracy

WORSE_PERCENT, WORSE_TAU = 0.1, 0.01  # what may differ between two machines


@click.command()
@click.argument("names", nargs=-1)
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Of a single table; default: the built-in file.")
@click.option("--check", is_flag=True, help="Write nothing; fail where a table claims more than the fit gives.")
@json_option
def fit(names: tuple[str, ...], output: str | None, check: bool, as_json: bool) -> None:
    """Fit tables NAMES (default: all) to the published measurements, with a row for each block of the built-in spaces.

    Example:  vig table fit --check
    """
    from vigcli.config.load import dump
    from vigcli.config.space import named_spaces
    from vigcli.files import write_text
    from vigcli.latency.reproduced import reproduced
    from vigcli.latency.table import ACCURACY_OF, load_table
    from vigcli.measure.tables import DEVICES, Study, accuracy_of
    from vigcli.paths import builtin_folder

    for name in names:
        if name not in DEVICES:
            raise ConfigError(f"'{name}': no published measurements to fit.", did_you_mean(name, DEVICES))
    if output is not None and (len(names) != 1 or check):
        raise UsageError("-o is where one table is written.", "Name one table, without --check.")
    say("Fitting, and predicting what was held out: half a minute.")
    study = Study(builtin_folder("table") / "published")
    spaces = named_spaces()
    records: list[dict[str, Any]] = []
    rows: list[tuple[Any, ...]] = []
    for name in names or DEVICES:
        fitted = study.table(name, spaces)
        claimed = load_table(name).accuracy if check else fitted.accuracy
        if not check:
            path = output or builtin_folder("table") / f"{name}.yaml"
            first = f"# {fitted.device}, {fitted.os}, Neural Engine: calibrated to published measurements"
            write_text(path, f"{first} by `vig table fit`\n{dump(fitted)}")
            say(f"Wrote {path}: {len(fitted.rows)} rows, scale {fitted.calibration.scale:g}.")  # type: ignore[union-attr]
        for by, found in fitted.accuracy.items():
            claim = claimed.get(by)  # a table of an older vig may claim less
            worse = claim is not None and (
                found.mape_percent > claim.mape_percent + WORSE_PERCENT
                or found.kendall_tau < claim.kendall_tau - WORSE_TAU
            )
            records.append({"table": name, "held_out": by, **found.model_dump(), "worse": worse})
            verdict = "not claimed" if claim is None else "WORSE" if worse else "ok"
            row = (
                ACCURACY_OF[by], *_figures(found), claim and f"{claim.mape_percent:.2f}",
                claim and f"{claim.kendall_tau:.3f}", verdict,
            )  # fmt: skip
            of_all = ("(all devices)", *row)
            if by == "device" or worse:
                rows.append((name, *row))
            elif of_all not in rows:  # what the tables share stands once
                rows.append(of_all)
    again = [(figure, accuracy_of(figure.here)) for figure in reproduced(study.all_rows, study.captured)]
    if as_json:
        emit_json([
            *records,
            *({"study": x.model, "held_out": x.by, **here.model_dump(), "study_percent": x.theirs_percent,
               "study_tau": x.theirs_tau} for x, here in again),
        ])  # fmt: skip
    else:
        columns = ("table", "not seen by the fit", "rows", "error %", "within 10 %", "tau", "claimed %", "tau", "")
        table(columns, rows)
        click.echo()
        heads = ("model", "not seen by the fit", "rows", "error %", "within 10 %", "tau", "study %", "tau")
        rows = [(x.model, ACCURACY_OF[x.by], *_figures(here), x.theirs_percent, x.theirs_tau) for x, here in again]
        table(heads, rows, title="The study that proposed the model: its rows and its lists of ops, fitted here")
    bad = [f"{r['table']} ({r['held_out']})" for r in records if r["worse"]]
    if bad:
        raise VigError(f"worse than what the table claims: {', '.join(bad)}.", "Fit it again: `vig table fit`.")


def _figures(found: Accuracy) -> tuple[str | int, ...]:
    return found.num_rows, f"{found.mape_percent:.2f}", f"{found.within_10_percent:.0f}", f"{found.kendall_tau:.3f}"


@click.command()
@click.option("--anchors", required=True, type=click.Path(dir_okay=False), help="network,resolution,latency_ms")
@click.option("--table", "base_name", default="iphone13-mini", show_default=True, help="Whose model is scaled.")
@click.option("--device", required=True, help='What the new table is called: "iPhone 15 Pro".')
@click.option("--soc", default="unknown", show_default=True)
@click.option("--os", "system", default="unknown", show_default=True)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="The new table.")
@json_option
def calibrate(anchors: str, base_name: str, device: str, soc: str, system: str, output: str, as_json: bool) -> None:
    """Make the table of a new device from 3 to 5 whole networks that were measured on it.

    Example:  vig table calibrate --anchors my.csv --device mine -o my.yaml
    """
    from vigcli.config.load import dump
    from vigcli.files import write_text
    from vigcli.latency.table import load_table
    from vigcli.measure.tables import calibrate as calibrated
    from vigcli.measure.tables import read_anchors

    base, path = load_table(base_name), Path(anchors)
    found = read_anchors(path, base)
    about = {"device": device, "soc": soc, "os": system, "protocol": "the user's measurements of whole networks"}
    made = calibrated(base, found, about, path)
    assert made.calibration is not None
    assert base.calibration is not None
    factor = made.calibration.scale / base.calibration.scale
    write_text(output, f"# {device}: calibrated by {len(found)} networks measured on it\n{dump(made)}")
    if as_json:
        emit_json({"path": output, "scale": made.calibration.scale, "accuracy": made.accuracy["device"].model_dump()})
        return
    rows = [
        (a.name, a.resolution, f"{a.measured_ms:.2f}", f"{a.base_ms * factor:.2f}",
         f"{100 * (a.base_ms * factor / a.measured_ms - 1):+.1f}")
        for a in found
    ]  # fmt: skip
    table(
        ("anchor", "px", "measured ms", "by the table", "off %"), rows, title=f"{device}: {factor:.3f} x {base.device}"
    )
    say(f"Each anchor predicted by the others: {made.accuracy['device'].mape_percent:g} % mean error; on published")
    say("devices 3 to 5 anchors gave 5 to 9 % at the better labs and 13 to 16 % at the worse.")
    click.echo(f"Next:  vig search --budget 1.0ms --table {output}")

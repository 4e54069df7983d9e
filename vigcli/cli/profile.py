"""`vig profile`: counts and prices of every network, or of one in detail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vigcli.cli.options import json_option, num_classes_option, resolution_option, set_option, tables_option
from vigcli.cli.output import emit_json, fields, say, table
from vigcli.cli.profile_package import AppleOptions, Operations, apple_options, is_package, profile_on_apple
from vigcli.errors import InfeasibleError, UsageError, did_you_mean
from vigcli.units import format_bytes, format_count, parse_latency_ms


@click.command()
@click.argument("subject", required=False)
@click.option("--budget", metavar="MS", help="End with exit code 4 when SUBJECT is slower: 1.0ms.")
@click.option("--measure", is_flag=True, help="Time SUBJECT on this machine's CPU too, as fp32 on one thread.")
@click.option("--picture", type=click.Path(dir_okay=False), help="Draw the milliseconds of SUBJECT's blocks, a PNG.")
@click.option("--paper", is_flag=True, help="Set our counts beside the published ones, by the counter of each paper.")
@tables_option
@set_option
@resolution_option
@num_classes_option
@apple_options
@json_option
def command(
    subject: str | None,
    budget: str | None,
    measure: bool,
    picture: str | None,
    paper: bool,
    table_names: tuple[str, ...],
    settings: tuple[str, ...],
    resolution: int | None,
    num_classes: int | None,
    as_json: bool,
    **apple: Any,
) -> None:
    """Count parameters, MACs and memory and price the latency: of every registered network, or of SUBJECT by blocks.

    SUBJECT is a network's name, timm:NAME, a recipe, a checkpoint, or a CoreML package, of which operations and what is
    reported to leave the Neural Engine are told as well.

    With --device mac or iphone: a package on Apple hardware, operation by operation, into a new run of runs/.

    Example:  vig profile timm:mobilenetv2_100 --budget 1.0ms
    """
    asked = AppleOptions(**apple)
    budget_ms = parse_latency_ms(budget) if budget is not None else None
    changed = budget is not None or measure or picture or settings or resolution or num_classes
    if paper:
        if changed:
            raise UsageError(
                "papers print figures of their own networks alone.",
                "Leave out --budget, --measure, --set and the like.",
            )
        _paper(subject, as_json)
        return
    if asked.device is not None:
        if changed:
            raise UsageError(
                f"--device {asked.device} runs a package as it is.",
                "Leave out --budget, --measure, --set and the like.",
            )
        profile_on_apple(subject, asked, as_json)
        return
    if any(asked):
        raise UsageError("--units, --rounds, --dry-run and the like are of a Mac or iPhone.", "Add --device mac.")
    from vigcli.latency.table import load_table

    tables = [load_table(name) for name in dict.fromkeys(table_names)]
    if subject is None:
        if changed:
            raise UsageError(
                "without a network there is nothing to change, time, draw or hold to a budget.", "Name a network."
            )
        _all(tables, as_json)
        return
    operations = Operations(subject) if is_package(subject) else None
    if operations is not None and operations.why_no_price:
        if changed:
            raise UsageError(f"{subject}: has no price: it is {operations.why_no_price}.", "Name it alone.")
        operations.emit(as_json)
    else:
        config, precision = _config(subject, operations, settings, resolution, num_classes)
        _one(subject, config, precision, tables, budget_ms, as_json, measure, operations)
        if picture:
            from vigcli.measure.pictures import draw_blocks
            from vigcli.measure.profile import profile

            draw_blocks(subject, profile(config).blocks, tables, picture)
            say(f"Wrote {picture}.")


def _config(
    subject: str, operations: Operations | None, settings: tuple[str, ...], resolution: int | None,
    num_classes: int | None,
) -> tuple[Any, str | None]:  # fmt: skip
    """The architecture that a name, recipe, checkpoint or package has, and the precision of what is a package."""
    from vigcli.cli.load import arch_with

    path = Path(subject)
    if not path.exists() and path.suffix not in (".safetensors", ".mlpackage", ".yaml"):
        return arch_with(subject, settings, resolution, num_classes), None
    if settings or resolution or num_classes:
        raise UsageError(f"{subject}: its architecture is fixed.", "--set and --resolution go with a network's name.")
    if path.suffix == ".yaml":
        from vigcli.config.recipe import load_recipe

        return load_recipe(path).arch_config(), None
    if operations is not None and operations.meta is not None:
        return operations.meta.arch, operations.meta.priced_as
    from vigcli.archs.checkpoint import read_meta
    from vigcli.cli.load import picked_checkpoint

    return read_meta(picked_checkpoint(subject)).arch, None


def _all(tables: list[Any], as_json: bool) -> None:
    from vigcli.config.archs import PUBLISHED, VARIANTS
    from vigcli.measure.profile import profile

    records = []
    for name, config in VARIANTS.items():
        counted, published = profile(config), PUBLISHED[name]
        latencies = [_latency(counted.latency(latency_table)) for latency_table in tables]
        records.append({
            "name": name, "resolution": config.resolution, **_counts(counted, config), **latencies[0],
            "latencies": latencies, "published": published._asdict(),
        })  # fmt: skip
    if as_json:
        emit_json(records)
        return
    columns = (
        "network", "px", "params", "inference", "deployed", "MACs", "thop",
        *(f"{t.kind} ms" if t is tables[0] else t.device for t in tables), "paper M", "GMACs", "ms", "top-1 %",
    )  # fmt: skip
    rows = [
        (
            r["name"], r["resolution"],
            format_count(r["params_total"]), format_count(r["params_inference"]), format_count(r["params_deployed"]),
            format_count(r["macs"]), format_count(r["macs_thop"]),
            *(f"{found['latency_ms']:.2f}{' *' if found['latency_outside_fit'] else ''}" for found in r["latencies"]),
            r["published"]["params_m"], r["published"]["gmacs"],
            r["published"]["latency_ms"] if r["published"]["device"] == tables[0].device else None,
            r["published"]["top1"],
        )
        for r in records
    ]  # fmt: skip
    table(columns, rows, title=f"{tables[0].device}, {tables[0].os}, {tables[0].precision}, batch 1")
    say("params: total (all heads), at inference as papers count (one head, norms kept), deployed (norms folded).")
    say("MACs: convolution, linear and matmul of the deployed form; thop: the training form, norms added, no matmul.")
    say("--paper sets the counts beside the published ones, whose counters differ; --json has every digit, and memory.")
    for latency_table in tables:
        _say_errors(latency_table)
    if any(found["latency_outside_fit"] for r in records for found in r["latencies"]):
        say("*: outside the fitted range, do not trust.")


def _one(
    subject: str,
    config: Any,
    precision: str | None,
    tables: list[Any],
    budget_ms: float | None,
    as_json: bool,
    measure: bool,
    operations: Operations | None = None,
) -> None:
    from vigcli.measure.here import measure_here
    from vigcli.measure.profile import profile

    counted, latency_table = profile(config), tables[0]
    # Asked for a budget, a precision that a table does not know is an error; else its milliseconds are left out.
    estimates = [
        counted.latency(t, precision) if budget_ms is not None or precision in (None, t.precision) else None
        for t in tables
    ]
    here = measure_here(config) if measure else None
    prices = [
        [t.block_ms(b.signature, b.trace) if e is not None else None for t, e in zip(tables, estimates, strict=True)]
        for b in counted.blocks
    ]
    over = [e for e in estimates if e is not None and budget_ms is not None and e.ms > budget_ms]
    if as_json:
        blocks = [
            {
                "name": b.name,
                "signature": b.signature,
                "params": b.params,
                "macs": b.trace.macs,
                "act_mb": round(b.trace.act_mb, 4),
                "weight_mb": round(b.trace.weight_mb, 5),
                "ms": of[0] and round(of[0].ms, 5),
                "plus_minus_ms": of[0] and round(of[0].plus_minus_ms, 5),
                "latencies_ms": [p and round(p.ms, 5) for p in of],
                **(operations.block_record(b.name) if operations else {}),
            }
            for b, of in zip(counted.blocks, prices, strict=True)
        ]
        record = {
            "name": subject,
            "arch": config.model_dump(mode="json"),
            **_counts(counted, config),
            **_latency(estimates[0]),
            "latencies": [_latency(estimate) for estimate in estimates],
            **({"measured_here": here.record()} if here else {}),
            **(operations.record() if operations else {}),
        }
        fixed_ms = latency_table.fixed_ms if estimates[0] is not None else None
        emit_json(
            {
                **record,
                "precision": precision or latency_table.precision,
                "blocks": blocks,
                "fixed_ms": fixed_ms,
                "over_budget": bool(over),
            }
        )
    else:
        rows = [
            (
                b.name, b.what, format_count(b.params), format_count(b.trace.macs),
                f"{b.trace.act_mb:.2f}", f"{b.trace.weight_mb:.3f}",
                *(cell for p in of for cell in ((f"{p.ms:.4f}", f"±{p.plus_minus_ms:.4f}") if p else ("", ""))),
                *(operations.cells(b.name) if operations else ()),
            )
            for b, of in zip(counted.blocks, prices, strict=True)
        ]  # fmt: skip
        more = operations.columns if operations else ()
        if operations:
            rows += [
                (name, "", "", "", "", "", *("" for _ in (*prices[0], *prices[0])), *operations.cells(name))
                for name in operations.found.num_ops if name not in {b.name for b in counted.blocks}
            ]  # fmt: skip
        fixed = [f"{t.fixed_ms:.4f}" if e is not None else "" for t, e in zip(tables, estimates, strict=True)]
        if any(fixed):
            fixed_cells = (cell for ms in fixed for cell in (ms, ""))
            rows.append(("(each inference)", "", "", "", "", "", *fixed_cells, *("" for _ in more)))
        heads = ["ms"] if len(tables) == 1 else [f"{t.device} ms" for t in tables]
        priced = (column for head in heads for column in (head, "±"))
        table(
            ("block", "what", "params", "MACs", "act MB", "weight MB", *priced, *more),
            rows,
            title=f"{subject}, deployed, {config.resolution} px{f', {precision}' if precision else ''}",
        )
        click.echo()
        counts = _counts(counted, config)
        fields([
            ("params", f"{counts['params_total']:,} total, {counts['params_trainable']:,} trainable, "
                       f"{counts['params_inference']:,} at inference, {counts['params_deployed']:,} deployed"),
            ("MACs", f"{counts['macs']:,} (thop: {counts['macs_thop']:,})"),
            ("weights", f"{format_bytes(2 * counts['params_deployed'])} in fp16"),
            ("activations", f"{format_bytes(counts['peak_activation_bytes'])} at their peak, op by op"),
            ("moved", f"{format_bytes(counts['moved_bytes'])} of activations and weights in a forward pass, unfused"),
            *(("latency", str(e or f"not known: the table of {t.device} is of {t.precision}, not {precision}"))
              for e, t in zip(estimates, tables, strict=True)),
            *([("measured here", str(here))] if here else []),
        ])  # fmt: skip
        if precision not in (None, "fp16"):
            say(f"Megabytes and bytes are those of fp16; the package is {precision}.")
        if operations:
            operations.print_findings()
        for estimate, latency_table in zip(estimates, tables, strict=True):
            if estimate is not None:
                _say_errors(latency_table)
    if over:
        found = ", ".join(f"{estimate.ms:.2f} ms ({estimate.kind}, {estimate.device})" for estimate in over)
        raise InfeasibleError(
            f"{subject} does not meet {budget_ms:g} ms: {found}.",
            "`vig search --budget` finds one that does.",
        )


def _paper(name: str | None, as_json: bool) -> None:
    from vigcli.config.archs import ABLATIONS, PUBLISHED, UNEXPLAINED
    from vigcli.measure.counters import DIFFERENCES, ablation_params, paper_row

    if name is not None and name not in PUBLISHED:
        raise UsageError(f"no paper's figures of '{name}' are known.", did_you_mean(name, PUBLISHED) or _LIST)
    rows = [paper_row(known) for known in PUBLISHED if name in (None, known)]
    ablations = [(ablation, ablation_params(ablation)) for ablation in ABLATIONS if name in (None, ablation.base)]
    if as_json:
        records = [_ablation_record(ablation, params) for ablation, params in ablations]
        emit_json({"variants": [_paper_record(row) for row in rows], "ablations": records})
        return
    columns = ("network", "params M", "counted", "true", "GMACs", "counted", "true", "counters", "explained")
    cells = [(row.name, *_three(row.params), *_three(row.macs), _counters(row), _explained(row)) for row in rows]
    table(columns, cells, title="published, by the counter that the paper used, and true")
    if ablations:
        click.echo()
        heads = ("ablation", "top-1 %", "params M", "counted", "true", "explained", "network", "--set")
        table(
            heads,
            [_ablation_row(ablation, params) for ablation, params in ablations],
            title="the papers' ablations, each a network and its --set",
        )
    say("explained: the counter's figure rounds to the published one; cut off: it was not rounded, but cut.")
    say("true: every parameter, and convolution, linear and matmul, of the training form (all heads).")
    for counter in dict.fromkeys(x.counter for row in rows for x in (row.params, row.macs) if x.counter in DIFFERENCES):
        say(f"{counter}: {DIFFERENCES[counter]}")
    for row in rows:
        if row.name in UNEXPLAINED:
            say(f"{row.name}: {UNEXPLAINED[row.name]}")


_LIST = "`vig ls archs` lists the networks."


def _three(figure: Any) -> tuple[str | None, str, str]:
    return figure.printed, f"{figure.counted / figure.unit:.3f}", f"{figure.true / figure.unit:.3f}"


def _counters(row: Any) -> str:
    return ", ".join(dict.fromkeys((row.params.counter, row.macs.counter)))


def _explained(row: Any) -> str:
    """Whether what the counters give rounds to what is published, or is cut off to it."""
    answers = [_explanation(figure) for figure in (row.params, row.macs)]
    return next(text for start in ("no", "yes, cut off", "yes") for text in answers if text.startswith(start))


def _explanation(figure: Any) -> str:
    if figure.explained == "no":
        return f"no: {figure.printed}, counted {figure.counted / figure.unit:.{figure.decimals}f}"
    return "yes, cut off" if figure.explained == "cut off" else "yes"


def _ablation_row(ablation: Any, params: Any) -> tuple[str | float | None, ...]:
    settings = " ".join(f"{path}={str(value).lower()}" for path, value in ablation.changes.items())
    explained = _explanation(params) if params.printed else None
    return (f"{ablation.table}: {ablation.row}", ablation.top1, *_three(params), explained, ablation.base, settings)


def _ablation_record(ablation: Any, params: Any) -> dict[str, Any]:
    figures = {"published_m": params.published, "counter": params.counter, "counted": params.counted}
    return {**ablation._asdict(), "params": {**figures, "true": params.true, "explained": params.explained}}


def _paper_record(row: Any) -> dict[str, Any]:
    from vigcli.config.archs import PUBLISHED
    from vigcli.measure.counters import all_counts

    def record(figure: Any, unit: str) -> dict[str, Any]:
        return {
            f"published_{unit}": figure.published, "counter": figure.counter, "counted": figure.counted,
            "true": figure.true, "explained": figure.explained,
        }  # fmt: skip

    figures = {"params": record(row.params, "m"), "macs": record(row.macs, "g")}
    return {"name": row.name, "source": PUBLISHED[row.name].source, **figures, "counters": all_counts(row.name)}


def _counts(counted: Any, config: Any) -> dict[str, int]:
    from vigcli.measure.count import thop_macs

    params = {f"params_{form}": value for form, value in counted.params._asdict().items()}
    memory = {"peak_activation_bytes": counted.peak_bytes, "moved_bytes": counted.moved_bytes}
    return {**params, "macs": counted.macs, "macs_thop": thop_macs(config), **memory}


def _latency(estimate: Any) -> dict[str, Any]:
    if estimate is None:
        return {"latency_ms": None, "latency_kind": "not known"}
    return {
        "latency_ms": round(estimate.ms, 4),
        "latency_range_ms": [round(estimate.low_ms, 4), round(estimate.high_ms, 4)],
        "latency_kind": estimate.kind,
        "latency_device": estimate.device,
        "latency_outside_fit": list(estimate.outside),
    }


def _say_errors(latency_table: Any) -> None:
    interval = latency_table.interval
    spread = "" if latency_table.calibration is None else " ± of a calibrated row is the spread of the model's members."
    covers = f"x/÷ {interval.factor} covers {interval.coverage_percent:g} %"
    say(f"ms of the {latency_table.device}: {latency_table.error_text}; {covers}.{spread}")

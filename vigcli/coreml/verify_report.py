"""What `vig verify` found, as JSON and as a page: the verdict first, then every stage, picture and operation.

The page is self-contained (`vigcli.runs.html`). Finding it out is left to `vigcli.coreml.verify`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vigcli.coreml.exact import TOLERANCE
from vigcli.coreml.simulate import MAX_REGRET
from vigcli.coreml.verify import CAVEAT, MARGIN_RATIO, TWIN_INPUTS, VerifyReport
from vigcli.files import write_json, write_text
from vigcli.runs.drawing import BLUE, INK, RED, drawing, svg
from vigcli.runs.html import Html, breakable, element, figure, listing, page, section, table

JSON_FILE, PAGE_FILE = "verify.json", "verify.html"
WORST_INPUTS = 10  # that the page has a row for
PROVED = (
    "The conversion: an fp32 package of the checkpoint gives the checkpoint's scores.",
    "The package has that package's operations, wiring, attributes, weights, inputs, outputs, labels and metadata.",
    "Its values, picture by picture, lie within what its precision accounts for.",
)
NOT_PROVED = (
    "That Apple's runtime computes the same: no package of vig was ever run by it here.",
    "That the interpreter reads every operation as Apple does. It computes the package and its twin alike, so that a "
    "reading which is wrong shows only where the twin is held to the checkpoint.",
    "That the network is any good, or that these pictures are like yours.",
)


def write_report(
    run: Path, report: VerifyReport, names: Sequence[str], files: Mapping[str, str], record: Mapping[str, Any]
) -> None:
    """Write both into a run directory.

    Args:
        names: of the pictures.
        files: the paths of the package and of the checkpoint, by what they are.
        record: provenance, as `run.yaml` has it.
    """
    write_json(run / JSON_FILE, {**files, **as_json(report, names)})
    write_text(run / PAGE_FILE, report_page(report, names, files["package"], record))


def as_json(report: VerifyReport, names: Sequence[str]) -> dict[str, Any]:
    """Everything that was found; what is not finite is null."""
    worst, rounding = report.worst, report.rounding
    return {
        **summary(report),
        "stages": {stage: found and vars(found) for stage, found in report.stages.items()},
        "worst_op": worst and worst.info.name,
        "worst_op_db": worst and _round(worst.held.db),
        "integers": rounding and {
            "count": rounding.num,
            "turned_percent": 100 * rounding.num_turned / max(rounding.num, 1),
            "largest_distance_steps": _finite(0.5 + rounding.regret),
            "where": rounding.where and rounding.where.name,
        },
        "inputs": [
            {
                "name": name, "snr_db": _round(one.db), "fp32_snr_db": _round(one.fp32_db),
                "relative_error": _finite(one.relative_error), "margin_ratio": one.margin_ratio,
                "same_class": one.same_class,
            }
            for name, one in zip(names, report.inputs, strict=False)
        ],
        "ops": [
            {
                "name": op.info.name, "type": op.info.op_type, "snr_db": _round(op.held.db),
                "fp32_snr_db": _round(op.fp32.db),
            }
            for op in report.ops
        ],
    }  # fmt: skip


def summary(report: VerifyReport) -> dict[str, Any]:
    """The figures of a verdict."""
    return {
        "passed": report.passed,
        "precision": report.meta.precision,
        "compression": report.meta.compression and report.meta.compression.model_dump(mode="json"),
        "num_inputs": len(report.inputs),
        "num_ops": report.num_ops,
        "twin_relative_error": _finite(report.twin_error),
        "twin_tolerance": TOLERANCE,
        "snr_db": _round(report.snr_db),
        "min_snr_db": report.min_db,
        "fp32_snr_db": _round(report.fp32_snr_db),
        "other_first_class": report.num_other_class,
        "changed_choices_percent": report.changed_percent,
        "first_divergence": report.divergence and vars(report.divergence),
        "note": CAVEAT,
    }


def _round(db: float | None) -> float | None:
    return None if db is None else round(db, 1)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# ------------------------------------------------------------------------------------------------ in words


def verdict(report: VerifyReport) -> str:
    """One sentence."""
    found = report.divergence
    if found is None:
        return "The package is what its checkpoint says."
    return f"The package DIVERGES: {found.op_type} '{found.name}': {found.why}."


def lines(report: VerifyReport) -> list[tuple[str, str]]:
    """What was held to what, and what it measured: a name and a text each."""
    meta, worst, rounding = report.meta, report.worst, report.rounding
    what = "the same compression, simulated" if meta.compression else "its fp32 twin"
    found = [
        *([("compression", meta.compression.text_with_ranges)] if meta.compression else []),
        ("fp32 twin", f"{report.twin_error:.1e} of the largest score off the checkpoint (held to {TOLERANCE:g})"),
        ("graph", f"{report.num_ops} operations, compared one by one, weights and constants included"),
    ]
    if report.inputs:
        found.append((
            f"{meta.compression.name if meta.compression else meta.precision} package",
            f"{report.snr_db:.1f} dB and more against {what}, each picture (held to {report.min_db:g} dB)",
        ))  # fmt: skip
    if meta.compression and report.inputs:
        found.append(("against fp32", f"{report.fp32_snr_db:.1f} dB and more: reported, not held"))
    if rounding and rounding.num:
        turned = 100 * rounding.num_turned / rounding.num
        furthest = f"none further than {0.5 + rounding.regret:.2f} steps from its value (held to {0.5 + MAX_REGRET:g})"
        found.append(("integers", f"{turned:.2f} % rounded to the other side, {furthest}"))
    if worst:
        text = f"{worst.info.name} ({worst.info.op_type}), {worst.held.db:.1f} dB"
        held = "" if meta.precision == "int8" else "; reported: where the pictures hold, no operation is held"
        found.append(("worst operation", text + held))
    if report.changed_percent is not None:
        text = "(of neighbours in their order, and clusters) would fall otherwise; run with the twin's"
        found.append(("choices", f"{report.changed_percent:.2f} % {text}"))
    if meta.output != "features" and report.inputs:
        held = "" if meta.compression else f", held where it leads by {100 * MARGIN_RATIO:g} %"
        found.append(("first class", f"another in {report.num_other_class} of {len(report.inputs)} pictures{held}"))
    found.append(("inputs", f"{len(report.inputs)} pictures at {meta.arch.resolution} px"))
    return found


# ------------------------------------------------------------------------------------------------ the page


_STAGES = {
    "reading": "the package's files as vig's reader and coremltools' read them",
    "twin": f"an fp32 package of the checkpoint against the checkpoint, in double precision, on {TWIN_INPUTS} pictures",
    "description": "inputs, outputs, labels, metadata",
    "graph": "kinds, wiring, attributes and weights of the operations",
    "scales": "the scales of int8 through the graph",
    "values": "the package run on the pictures",
}


def report_page(report: VerifyReport, names: Sequence[str], package: str, record: Mapping[str, Any]) -> Html:
    """The whole document."""
    return page(
        f"Verification: {package}",
        element("p", verdict(report), class_="lead"),
        element("p", CAVEAT),
        section("Found", table(("", ""), [(name, text) for name, text in lines(report)])),
        section("Stages", _stages(report)),
        section("Pictures", _inputs_picture(report), _inputs(report, names)),
        section("Operations", _ops_picture(report), _ops(report)),
        section("What this proves", listing(PROVED)),
        section("What it does not prove", listing(NOT_PROVED)),
        section("Where it comes from", _origin(report, record)),
    )


def _stages(report: VerifyReport) -> Html:
    rows = [
        (stage, _STAGES[stage], "as it should be" if found is None else f"{found.op_type} '{found.name}': {found.why}")
        for stage, found in report.stages.items()
        if stage != "scales" or report.meta.precision == "int8"
    ]
    return table(("stage", "what was held", "found"), rows)


def _inputs_picture(report: VerifyReport) -> Html | None:
    if not report.inputs:
        return None
    errors = [one.relative_error for one in report.inputs if 0 < one.relative_error < math.inf]
    with drawing(3.6, rows=2, share_x=False) as (plot, (left, right)):
        _histogram(left, [one.db for one in report.inputs], "signal-to-noise ratio of a picture's scores, dB")
        left.axvline(report.min_db, color=RED, lw=0.9, ls=":", label=f"held to {report.min_db:g} dB")
        left.legend()
        _histogram(right, [math.log10(error) for error in errors], "largest error of a picture's scores")
        right.locator_params(axis="x", nbins=6)  # so few that three digits tell ticks apart
        right.xaxis.set_major_formatter(lambda power, _: f"{10**power:.3g}")
        drawn = svg(plot)
    caption = "Pictures by the noise of their scores, and by their largest error against the fp32 twin, relative to "
    return figure(drawn, f"{caption}the largest score.", "inputs")


def _histogram(axes: Any, values: Sequence[float], what: str) -> None:
    if values:
        axes.hist(values, bins=min(24, 4 + len(values) // 2), color=BLUE, edgecolor=INK, linewidth=0.4)
    axes.set_xlabel(what)
    axes.set_ylabel("number")


def _inputs(report: VerifyReport, names: Sequence[str]) -> Html | None:
    int8 = report.meta.precision == "int8"
    rows = [
        (
            breakable(name), f"{one.db:.1f}", *([f"{one.fp32_db:.1f}"] if int8 else []), f"{one.relative_error:.1e}",
            None if one.margin_ratio is None else f"{100 * one.margin_ratio:.1f}",
            {None: None, True: "yes", False: "no"}[one.same_class],
        )
        for one, name in sorted(zip(report.inputs, names, strict=False), key=lambda pair: pair[0].db)
    ][:WORST_INPUTS]  # fmt: skip
    if not rows:
        return None
    against = ["dB against fp32"] if int8 else []
    columns = ("picture", "dB", *against, "largest error", "lead of the first class, %", "same first class")
    return table(columns, rows, f"The {len(rows)} pictures of the least ratio; all are in verify.json.")


def _ops_picture(report: VerifyReport) -> Html | None:
    if not report.ops:
        return None
    with drawing(2.2) as (plot, axes):
        _histogram(axes, [op.held.db for op in report.ops], "signal-to-noise ratio of an operation's result, dB")
        drawn = svg(plot)
    return figure(drawn, "Operations by the noise of their results over all pictures.", "ops")


def _ops(report: VerifyReport) -> Html | None:
    if not report.ops:
        return None
    compressed = report.meta.compression is not None
    rows = [
        (breakable(op.info.name), op.info.op_type, f"{op.held.db:.1f}", *([f"{op.fp32.db:.1f}"] if compressed else []))
        for op in report.ops
    ]
    columns = ("result", "operation", "dB", *(["dB against fp32"] if compressed else []))
    caption = (
        "In the order in which they run, without casts, choices and the label. 150 dB: no noise; -150 dB: not finite."
    )
    return table(columns, rows, caption)


def _origin(report: VerifyReport, record: Mapping[str, Any]) -> Html:
    rows: list[tuple[str, str]] = []
    if argv := record.get("argv"):
        rows.append(("command", element("code", f"vig {shlex.join(argv[1:])}")))
    rows += [(key, str(record[key])) for key in ("date", "platform") if key in record]
    if versions := record.get("versions"):
        rows.append(("versions", ", ".join(f"{name} {number}" for name, number in versions.items())))
    rows.append(("checkpoint", element("code", f"sha256 {report.meta.checkpoint_sha256}")))
    return table(("", ""), rows)

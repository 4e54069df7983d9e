"""`vig verify`: is a package what its checkpoint says?"""

from __future__ import annotations

import click

from vigcli.cli.options import Integer, json_option
from vigcli.cli.output import emit_json, fields, progress, say
from vigcli.errors import VigError


@click.command()
@click.argument("package_name", metavar="[PACKAGE]", required=False)
@click.option(
    "--checkpoint",
    "checkpoint_name",
    type=click.Path(),
    help="What it was made from; default: found in runs/ by its hash.",
)
@click.option("--inputs", type=Integer(32), default=32, show_default=True, help="Pictures to run.")
@json_option
def command(package_name: str | None, checkpoint_name: str | None, inputs: int, as_json: bool) -> None:
    """Run PACKAGE (default: the newest) op by op and hold it to the checkpoint that it was made from.

    Example:  vig verify runs/0003-export/fp16.mlpackage
    """
    from vigcli.archs.checkpoint import load_checkpoint
    from vigcli.cli.load import checkpoint_of, picked_package
    from vigcli.config.recipe import Data
    from vigcli.coreml.convert import package_meta
    from vigcli.coreml.verify import CAVEAT, OVERFLOW, TWIN_TOLERANCE, verify
    from vigcli.train.data import load_split

    package = picked_package(package_name)
    meta = package_meta(package)
    path = checkpoint_of(package, meta.checkpoint_sha256, checkpoint_name)
    say(f"Taking {package} and {path}.")
    pixels, _ = load_split(Data(source="emoji10"), "val", meta.preprocessing, meta.arch.resolution, limit=inputs)
    with progress() as advance:
        report = verify(package, load_checkpoint(path), pixels, advance)
    answer = {
        "package": str(package),
        "passed": report.passed,
        "precision": meta.precision,
        "num_inputs": report.num_inputs,
        "num_ops": report.num_ops,
        "twin_relative_error": report.twin_error,
        "twin_tolerance": TWIN_TOLERANCE,
        "snr_db": round(report.snr_db, 1),
        "min_snr_db": report.min_snr_db,
        "worst_op": report.worst[0],
        "worst_op_db": round(report.worst[1], 1),
        "changed_choices_percent": report.changed_percent,
        "first_divergence": None if report.divergence is None else vars(report.divergence),
        "note": CAVEAT,
    }
    if as_json:
        emit_json(answer)
    else:
        held = (
            f"held to {report.min_snr_db:g} dB" if report.min_snr_db else "reported, not held: int8 trades it for size"
        )
        changed = report.changed_percent
        choices = (
            f"{changed or 0:.2f} % (of neighbours in their order, and clusters) would fall otherwise in "
            f"{meta.precision}; run with the twin's"
        )
        fields([
            ("fp32 twin", f"{report.twin_error:.1e} of the largest logit off (held to {TWIN_TOLERANCE:g})"),
            ("graph", f"{report.num_ops} operations, compared one by one, weights and constants included"),
            (f"{meta.precision} package", f"{report.snr_db:.1f} dB against its twin ({held})"),
            ("worst operation", f"{report.worst[0]}, {report.worst[1]:.1f} dB"),
            *([("choices", choices)] if changed is not None else []),
            ("inputs", f"{report.num_inputs} pictures at {meta.arch.resolution} px"),
            ("verdict", "the package is what its checkpoint says" if report.passed else "DIVERGES"),
        ])  # fmt: skip
        say(CAVEAT)
    if report.divergence is not None:
        d = report.divergence
        hint = "Export it again; was it edited?"
        if d.why == OVERFLOW:
            hint = "Export it with --precision fp32, or train it: drawn weights are of no scale."
        raise VigError(f"{package}: {d.op_type} '{d.name}' diverges: {d.why}.", hint)

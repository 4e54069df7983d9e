"""What `vig quantize` found, as a table, in words and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigcli.cli.output import fields, say, table
from vigcli.errors import NotMeasurableError
from vigcli.units import format_bytes

if TYPE_CHECKING:
    from vigcli.compress.measure import Cost, LayerNoise
    from vigcli.config.package import PackageMeta
    from vigcli.latency.table import LatencyEstimate, LatencyTable
    from vigcli.train.evaluate import Evaluation

WORST_LAYERS = 5

Prices = dict[str, "LatencyEstimate | None"]
"""By precision as a table names it, fp16 first and the package's last; None for what it does not know."""


def priced(meta: PackageMeta, latency_table: LatencyTable) -> Prices:
    """What a table says of the fp16 package and of the compressed one."""
    from vigcli.measure.profile import profile

    counted = profile(meta.arch)
    prices: Prices = {}
    for precision in ("fp16", meta.priced_as):
        try:
            prices[precision] = counted.latency(latency_table, precision)
        except NotMeasurableError:
            prices[precision] = None
    return prices


def as_record(found: Cost, prices: Prices) -> dict[str, Any]:
    """The figures of a run, without its layers."""
    fp16, own = prices.values()
    evaluations = {"fp32": found.base.fp32, "fp16": found.base.fp16, "package": found.package}
    return {
        "size_bytes": found.size_bytes,
        "size_bytes_fp16": found.base.size_bytes,
        "times_smaller": round(found.times_smaller, 3),
        **{f"top1_percent_{what}": one.top1_percent for what, one in evaluations.items()},
        "difference_points_95": list(found.difference),
        "agreement_percent": found.agreement_percent,
        "agreement_percent_fp16": found.base.agreement_percent,
        "snr_db": found.snr_db,
        "simulated_db": round(found.simulated_db, 2),
        "latency_ms_fp16": fp16 and round(fp16.ms, 4),
        "latency_ms": own and round(own.ms, 4),
        "ran_by": found.ran_by,
    }


def as_origin(prices: Prices, name: str, latency_table: LatencyTable) -> dict[str, Any]:
    """Which table the milliseconds are from, and what is extrapolated."""
    return {
        "latency_table": name,
        "latency_device": latency_table.device,
        "latency_kind": latency_table.kind,
        "latency_accuracy": latency_table.error_text,
        "latency_outside_fit": list(dict.fromkeys(why for price in prices.values() if price for why in price.outside)),
    }


def show(found: Cost, meta: PackageMeta, package: Path, prices: Prices) -> None:
    """A row for the network, its fp16 package and this one; what the package lost, and where."""
    from vigcli.config.package import preprocessing_text

    fp16, own = (_milliseconds(price) for price in prices.values())
    base = found.base
    rows = [
        ("fp32 network", _share(base.fp32), "", "", ""),
        ("fp16 package", _share(base.fp16), f"{base.agreement_percent:.1f}", format_bytes(base.size_bytes), fp16),
        (package.name, _share(found.package), f"{found.agreement_percent:.1f}", format_bytes(found.size_bytes), own),
    ]
    columns = ("", "top-1 % (95 %)", "agreement %", "size", "ms")
    table(columns, rows, title=f"{package}, measured on {found.package.num_images} pictures")
    known = [(f"ms of {name}", str(price)) for name, price in prices.items() if price]
    fields([
        *known,
        ("size", f"{found.times_smaller:.2f} times smaller than fp16"),
        ("against fp32", str(found.difference)),
        ("signal to noise", f"{found.snr_db:.1f} dB of the scores against fp32, the middle picture"),
        ("simulation", f"{found.simulated_db:.1f} dB and more against the same compression, simulated"),
        *(("" if i else "worst layers", _layer(layer)) for i, layer in enumerate(found.worst_layers[:WORST_LAYERS])),
    ])  # fmt: skip
    say(f"The packages were run by {found.ran_by}.")
    if unknown := [name for name, price in prices.items() if price is None]:
        say(f"Milliseconds of {' and '.join(unknown)}: not known to the latency table.")
    say(f"Wrote {package} and quantize.json, with every layer. Input: {preprocessing_text(meta)}.")


def _milliseconds(price: LatencyEstimate | None) -> str:
    return "not known" if price is None else f"{price.ms:.3f}{' *' if price.outside else ''}"


def _share(evaluation: Evaluation) -> str:
    low, high = evaluation.interval_percent()
    return f"{evaluation.top1_percent:.1f} ({low:.1f} to {high:.1f})"


def _layer(layer: LayerNoise) -> str:
    where = f" of {layer.block}" if layer.block else ""
    return f"{layer.snr_db:.1f} dB  {layer.op_type} '{layer.name}'{where}"

"""Pictures of latency tables and of what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from vigcli.files import replacing
from vigcli.latency.calibrated import Row
from vigcli.latency.table import LatencyTable
from vigcli.measure.profile import BlockProfile

OUTLIER = 0.2


def draw_blocks(name: str, blocks: Sequence[BlockProfile], tables: Sequence[LatencyTable], path: Path | str) -> None:
    """The milliseconds of a network's blocks, a bar for each table; a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = [block.name for block in blocks]
    figure, axes = plt.subplots(figsize=(7.5, 1.2 + 0.16 * len(labels) * (1 + len(tables))), layout="constrained")
    height = 0.8 / len(tables)
    for i, table in enumerate(tables):
        prices = [table.block_ms(block.signature, block.trace) for block in blocks]
        places = [row + (i - (len(tables) - 1) / 2) * height for row in range(len(labels))]
        axes.barh(
            places, [price.ms for price in prices], height, xerr=[price.plus_minus_ms for price in prices],
            error_kw={"lw": 0.8}, label=f"{table.device}, {table.kind}; and {table.fixed_ms:.3f} ms each inference",
        )  # fmt: skip
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel(f"ms ({name}; ± of a calibrated block is the spread of the model's members)")
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(axis="x", alpha=0.25)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


def draw_predictions(
    device: str, predictions: Sequence[tuple[Row, float]], labs_disagree: float, path: Path | str
) -> None:
    """Predicted against published milliseconds of a device, each network held out of its prediction; a PNG.

    Args:
        labs_disagree: mean relative difference between labs on the same network, a ratio: the noise floor.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 6.5), layout="constrained")
    every = [value for row, ms in predictions for value in (row.latency_ms, ms)]
    low, high = 0.9 * min(every), 1.1 * max(every)
    axes.fill_between(
        (low, high), (low / (1 + labs_disagree), high / (1 + labs_disagree)),
        (low * (1 + labs_disagree), high * (1 + labs_disagree)), color="#dddddd",
        label=f"labs disagree by ±{100 * labs_disagree:.1f} %",
    )  # fmt: skip
    axes.plot((low, high), (low, high), color="black", lw=0.8)
    for group in dict.fromkeys(row.group for row, _ in predictions):
        points = [(row.latency_ms, ms) for row, ms in predictions if row.group == group]
        axes.plot(*zip(*points, strict=True), "o", ms=5, label=group)
    for row, ms in predictions:
        if abs(math.log(ms / row.latency_ms)) > math.log(1 + OUTLIER):
            late = row.latency_ms > 0.7 * high  # its name would leave the picture on the right
            offset, side = ((-6, -3), "right") if late else ((6, -9), "left")
            name, place = row.builder.split(":")[-1], (row.latency_ms, ms)
            axes.annotate(name, place, xytext=offset, textcoords="offset points", fontsize=7, ha=side)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes.set_xlabel(f"published, ms ({device})")
    axes.set_ylabel("predicted, ms (the network held out of the fit)")
    axes.legend(fontsize=8, loc="upper left")
    axes.grid(alpha=0.25, which="both")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)

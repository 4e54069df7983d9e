"""Compressed packages side by side: what `vig quantize` measured, as rows and as a page with pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vigcli.config.compression import Compression
from vigcli.config.load import parse_as
from vigcli.errors import ConfigError, VigError
from vigcli.runs.drawing import BLUE, QUIET, RED, drawing, svg
from vigcli.runs.html import Html, element, figure, page, section, table
from vigcli.train.intervals import Difference

RESULT_FILE = "quantize.json"
COLUMNS = (
    "", "MB", "times smaller", "top-1 %", "against fp32, points (95 %)", "agreement %", "signal to noise, dB",
    "made in s", "ms",
)  # fmt: skip


class Row(NamedTuple):
    """One package of a network.

    Attributes:
        method: `int8`, `w8`, `sparse50-w8`, ...; `fp16` for what all are compared with.
        difference: of top-1 to the fp32 network's, on the same pictures; None of the fp16 package.
        agreement_percent: with the fp32 network.
        snr_db: of the scores against fp32.
        seconds: that it took to make; None where it was not noted.
        latency_ms: as a table predicts it; None where it does not know the precision.
    """

    network: str
    method: str
    size_bytes: int
    top1_percent: float
    difference: Difference | None
    agreement_percent: float
    snr_db: float | None
    seconds: float | None
    latency_ms: float | None
    num_images: int

    def cells(self, largest: int) -> tuple[Any, ...]:
        """What a table shows of it; `largest` is the size of the fp16 package."""
        gap = self.difference
        return (
            self.method,
            f"{self.size_bytes / 1e6:.2f}",
            f"{largest / self.size_bytes:.2f}",
            f"{self.top1_percent:.1f}",
            gap and f"{gap.points:+.1f} ({gap.low:+.1f} to {gap.high:+.1f})",
            f"{self.agreement_percent:.1f}",
            None if self.snr_db is None else f"{self.snr_db:.1f}",
            None if self.seconds is None else f"{self.seconds:.0f}",
            "not known" if self.latency_ms is None else f"{self.latency_ms:.3f}",
        )


def read_rows(paths: Iterable[Path]) -> dict[str, list[Row]]:
    """The packages of every network, the fp16 package first, then from large to small.

    Args:
        paths: run directories of `vig quantize`, or their quantize.json.

    Raises ConfigError for what is none.
    """
    found: dict[str, dict[str, Row]] = {}
    for path in paths:
        for row in _rows_of(path / RESULT_FILE if path.is_dir() else path):
            found.setdefault(row.network, {})[row.method] = row  # of two runs alike the later
    return {network: sorted(rows.values(), key=_order) for network, rows in found.items()}


def _rows_of(file: Path) -> tuple[Row, Row]:
    """The fp16 package of a run, and the compressed one."""
    hint = "Name a run of vig quantize, or leave it out to take all in runs/."
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: is no result of vig quantize.", hint) from error
    try:
        method = parse_as(Compression, record["compression"], str(file)).name
        shared = {"network": record["network"], "num_images": record["num_images"]}
        fp16 = Row(
            method="fp16", size_bytes=record["size_bytes_fp16"], top1_percent=record["top1_percent_fp16"],
            difference=None, agreement_percent=record["agreement_percent_fp16"], snr_db=None, seconds=None,
            latency_ms=record["latency_ms_fp16"], **shared,
        )  # fmt: skip
        own = Row(
            method=method, size_bytes=record["size_bytes"], top1_percent=record["top1_percent_package"],
            difference=Difference(*record["difference_points_95"]), agreement_percent=record["agreement_percent"],
            snr_db=record["snr_db"], seconds=record.get("seconds"), latency_ms=record["latency_ms"], **shared,
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{file}: is no result of vig quantize: {error} is missing.", hint) from error
    return fp16, own


def _order(row: Row) -> tuple[bool, int]:
    return row.method != "fp16", -row.size_bytes


def front(rows: Sequence[Row]) -> list[Row]:
    """The packages than which none is smaller and no less accurate, from small to large."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.size_bytes, -row.top1_percent)):
        if not best or row.top1_percent > best[-1].top1_percent:
            best.append(row)
    return best


def report_page(networks: dict[str, list[Row]]) -> Html:
    """The whole document: of every network a picture, and a table of its packages."""
    count = sum(len(rows) - 1 for rows in networks.values())
    what = f"{count} compressed {'package' if count == 1 else 'packages'} of {', '.join(networks)}"
    return page(
        "Compressed packages",
        element("p", f"{what}, each measured by running it.", class_="lead"),
        element("p", _KEY, class_="quiet"),
        *(_of_network(i, network, rows) for i, (network, rows) in enumerate(networks.items())),
    )


_KEY = (
    "Top-1 is of validation pictures, never of those that ranges come from; its difference to the fp32 network is "
    "paired, and told only where its interval leaves out 0. Agreement: pictures with the fp32 network's answer. "
    "Signal to noise: of the scores, the middle picture. The line joins packages than which none is smaller "
    "and as accurate. Packages ran in vig's interpreter unless their runs say otherwise; it was never compared with "
    "Apple's runtime."
)


def _of_network(number: int, network: str, rows: Sequence[Row]) -> Html:
    shown = f"Top-1 by size, on {rows[0].num_images} pictures; bars: the paired 95 % interval."
    cells = [row.cells(rows[0].size_bytes) for row in rows]
    return section(network, figure(draw_front(network, rows), shown, f"front{number}"), table(COLUMNS, cells))


def draw_front(network: str, rows: Sequence[Row]) -> str:
    """Top-1 of a network's packages by their size, as SVG."""
    with drawing(3.2) as (drawn, axes):
        joined = front(rows)
        axes.plot([row.size_bytes / 1e6 for row in joined], [row.top1_percent for row in joined], color=QUIET, lw=0.9)
        for row in rows:
            size, top1, gap = row.size_bytes / 1e6, row.top1_percent, row.difference
            colour = RED if gap is not None and gap.is_told else BLUE
            bars = None if gap is None else [[gap.points - gap.low], [gap.high - gap.points]]
            axes.errorbar([size], [top1], yerr=bars, fmt="o", ms=4, lw=0.8, color=colour)
            axes.annotate(row.method, (size, top1), xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.set_xlim(left=0)
        axes.set_xlabel("size, MB")
        axes.set_ylabel("top-1, %")
        return svg(drawn)


def found_runs(root: Path) -> list[Path]:
    """The results under a folder of runs, the oldest first. Raises VigError where there is none."""
    if found := sorted(root.glob(f"*/{RESULT_FILE}")):
        return found
    raise VigError(f"{root}/: holds no result of vig quantize.", "Make one first: vig quantize --int8.")

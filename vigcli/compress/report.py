"""Compressed packages side by side: what `vig quantize` measured, as rows and as a page with pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vigcli.config.load import parse_as, parse_yaml, read_text
from vigcli.config.quantize_record import RESULT_FILE, Record
from vigcli.errors import ConfigError
from vigcli.runs.drawing import BLUE, PAPER, QUIET, drawing, svg
from vigcli.runs.html import Html, element, figure, page, section, table
from vigcli.runs.rundir import RUN_FILE
from vigcli.train.intervals import Difference

HINT = "Name a run of vig quantize or a folder of such runs; to make one: vig quantize --int8."


class Row(NamedTuple):
    """The fp32 network, its fp16 package or a compressed one.

    Attributes:
        run: its name; None of what the others are compared with.
        package: `int8`, `w8`, `sparse50-w8`, ...; `fp16`, `fp32`.
        minimum_ios: of fp16 the least of the runs with the same package.
        num_kept: results in fp16 beyond those of the first layers.
        times_smaller: than the fp16 package for the same iOS.
        difference: of top-1 to the fp32 network's, on the same pictures.
        agreement_percent: with the fp32 network.
        snr_db: of the scores against fp32.
        seconds: that it took to make; None where it was not noted.
        latency_ms: as a table predicts it; None where it does not know the precision.
        is_outside: whether the network lies outside of what the table was fitted to.
    """

    package: str
    top1_percent: float
    run: str | None = None
    minimum_ios: int | None = None
    calibration: str | None = None
    num_kept: int | None = None
    size_bytes: int | None = None
    times_smaller: float | None = None
    difference: Difference | None = None
    agreement_percent: float | None = None
    snr_db: float | None = None
    seconds: float | None = None
    latency_ms: float | None = None
    is_outside: bool = False

    @property
    def cells(self) -> tuple[Any, ...]:
        """What a table shows of it."""
        gap, ms = self.difference, self.latency_ms
        known = None if self.size_bytes is None else "not known"  # no table prices fp32
        return (
            self.run,
            self.package,
            self.minimum_ios,
            self.calibration,
            self.num_kept,
            self.size_bytes and f"{self.size_bytes / 1e6:.2f}",
            self.times_smaller and f"{self.times_smaller:.2f}",
            f"{self.top1_percent:.1f}",
            gap and f"{gap.points:+.1f} ({gap.low:+.1f} to {gap.high:+.1f})",
            None if self.agreement_percent is None else f"{self.agreement_percent:.1f}",
            None if self.snr_db is None else f"{self.snr_db:.1f}",
            None if self.seconds is None else f"{self.seconds:.0f}",
            known if ms is None else f"{ms:.3f}{' *' if self.is_outside else ''}",
        )


class Block(NamedTuple):
    """Runs that may be compared: of one checkpoint, on the same pictures, priced by one table.

    Attributes:
        runs: names and records, at least one.
    """

    runs: list[tuple[str, Record]]

    @property
    def first(self) -> Record:
        return self.runs[0][1]

    @property
    def about(self) -> str:
        """Checkpoint, pictures and table, in a sentence."""
        one = self.first
        table_text = f"table {one.latency_table}: {one.latency_device}" if one.latency_table else "table not noted"
        parts = (
            f"checkpoint {one.checkpoint} ({one.checkpoint_sha256[:8] or 'hash not noted'})",
            f"measured on {one.num_images} pictures of {one.data or 'data that was not noted'}",
            f"{table_text}{', ' if one.latency_accuracy else ''}{one.latency_accuracy}",
        )
        return "; ".join(parts)

    @property
    def doubts(self) -> str:
        """What the asterisk of a price means; empty where there is none."""
        found = dict.fromkeys(doubt for _, record in self.runs for doubt in record.latency_outside_fit)
        return f"*: outside what the table was fitted to ({', '.join(found)}): do not trust it." if found else ""

    @property
    def columns(self) -> tuple[str, ...]:
        one = self.first
        return (
            "", "run", "package", "iOS", "calibration", "kept in fp16", "MB", "times smaller", "top-1 %",
            "against fp32, points (95 %)", "agreement %", "signal to noise, dB", "seconds to make",
            f"ms, {one.latency_device or 'device not noted'}{', ' if one.latency_kind else ''}{one.latency_kind}",
        )  # fmt: skip

    @property
    def rows(self) -> list[Row]:
        """The fp32 network, its fp16 packages where they differ, then those of every run from large to small."""
        halves: dict[Row, Row] = {}
        for _, one in sorted(self.runs, key=lambda run: run[1].minimum_ios):
            half = Row(
                "fp16", one.top1_percent_fp16, size_bytes=one.size_bytes_fp16, times_smaller=1.0,
                agreement_percent=one.agreement_percent_fp16, latency_ms=one.latency_ms_fp16,
                is_outside=bool(one.latency_outside_fit),
            )  # fmt: skip
            halves.setdefault(half, half._replace(minimum_ios=one.minimum_ios))
        own = [
            Row(
                one.compression.name, one.top1_percent_package, run, one.minimum_ios, one.calibration, one.num_kept,
                one.size_bytes, one.size_bytes_fp16 / one.size_bytes, Difference(*one.difference_points_95),
                one.agreement_percent, one.snr_db, one.seconds, one.latency_ms, bool(one.latency_outside_fit),
            )
            for run, one in sorted(self.runs, key=lambda run: -run[1].size_bytes)
        ]  # fmt: skip
        return [Row("fp32", self.first.top1_percent_fp32), *halves.values(), *own]

    @property
    def cells(self) -> list[tuple[Any, ...]]:
        """Of a table, with the numbers that points have in the picture; that of fp32 is a line."""
        return [(number or "", *row.cells) for number, row in enumerate(self.rows)]

    def as_json(self) -> dict[str, Any]:
        one = self.first
        names = {"checkpoint": one.checkpoint, "checkpoint_sha256": one.checkpoint_sha256}
        return {**one.shared, **names, "rows": [row._asdict() for row in self.rows]}


def read_blocks(paths: Iterable[Path]) -> list[Block]:
    """The runs of `vig quantize`, each once, in blocks of those that may be compared.

    Args:
        paths: run directories, folders of them, or their quantize.json.

    Raises ConfigError for what is none.
    """
    found: dict[tuple[Any, ...], Block] = {}
    for file in dict.fromkeys(file.resolve() for path in paths for file in _results(path)):
        record = _read(file)
        found.setdefault(tuple(record.shared.values()), Block([])).runs.append((file.parent.name, record))
    return list(found.values())


def _results(path: Path) -> list[Path]:
    """The results that a path names, the oldest first."""
    own = path / RESULT_FILE
    if path.suffix == ".mlpackage":
        beside = path.parent / RESULT_FILE
        raise ConfigError(f"{path}: is a package, not a run.", f"Name what was measured: {beside}, or its folder.")
    if not path.is_dir() or own.is_file():
        return [own if path.is_dir() else path]
    if found := sorted(path.glob(f"*/{RESULT_FILE}")):
        return found
    raise ConfigError(f"{path}/: holds no result of vig quantize.", HINT)


def _read(file: Path) -> Record:
    try:
        record = parse_as(Record, json.loads(file.read_text()))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: is no result of vig quantize.", HINT) from error
    except ConfigError as error:
        raise ConfigError(f"{file}: is no result of vig quantize: {error}", HINT) from error
    known = record.checkpoint_sha256 or _noted_hash(file.with_name(RUN_FILE))
    return record.model_copy(update={"checkpoint_sha256": known})


def _noted_hash(run_file: Path) -> str:
    """The hash of a run's checkpoint, which an older vig wrote to its run.yaml alone; empty without it."""
    try:
        noted, _ = parse_yaml(read_text(run_file), str(run_file))
        return str(noted["parents"][0])
    except (ConfigError, LookupError, TypeError):
        return ""


def front(rows: Sequence[Row]) -> list[Row]:
    """The packages than which none is smaller and no less accurate, from small to large."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.size_bytes or 0, -row.top1_percent)):
        if row.size_bytes is not None and (not best or row.top1_percent > best[-1].top1_percent):
            best.append(row)
    return best


def report_page(blocks: Sequence[Block]) -> Html:
    """The whole document: of every block a picture, and a table of its packages."""
    count = sum(len(block.runs) for block in blocks)
    networks = ", ".join(dict.fromkeys(block.first.network for block in blocks))
    what = f"{count} compressed {'package' if count == 1 else 'packages'} of {networks}"
    return page(
        "Compressed packages",
        element("p", f"{what}, each measured by running it.", class_="lead"),
        element("p", _KEY, class_="quiet"),
        *(_section(number, block) for number, block in enumerate(blocks)),
    )


_KEY = (
    "Top-1 is of validation pictures, never of those that ranges come from; its difference to the fp32 network is "
    "paired, with its 95 % interval: one that reaches 0 cannot be told from none. Agreement: pictures with the fp32 "
    "network's answer. Signal to noise: of the scores, the middle picture. Kept in fp16: operations besides the first "
    "layer. Only runs of one checkpoint, on the same pictures, priced by one table, stand together; a network trained "
    "by --qat stands with the checkpoint that it was trained from. Packages ran in vig's interpreter unless their runs "
    "say otherwise; it was never compared with Apple's runtime."
)
_CAPTION = (
    "Top-1 by size; the numbers are those of the table. The dashed line is the fp32 network; bars, the paired 95 % "
    "intervals, that reach it cannot be told from it. The line joins packages than which none is smaller and "
    "as accurate."
)


def _section(number: int, block: Block) -> Html:
    return section(
        block.first.network,
        element("p", f"{block.about[0].upper()}{block.about[1:]}."),
        figure(draw_front(block.rows), _CAPTION, f"front{number}"),
        table(block.columns, block.cells),
        element("p", block.doubts) if block.doubts else None,
    )


def draw_front(rows: Sequence[Row]) -> str:
    """Top-1 of packages by their size, as SVG; numbered by their places in `rows`; the fp32 network is a line."""
    with drawing(3.2) as (drawn, axes):
        joined = front(rows)
        axes.plot(
            [(row.size_bytes or 0) / 1e6 for row in joined], [row.top1_percent for row in joined], color=QUIET, lw=0.9
        )
        points: dict[str, tuple[float, float]] = {}
        for number, row in enumerate(rows):
            gap = row.difference
            if row.size_bytes is None:
                axes.axhline(row.top1_percent, color=QUIET, ls="--", lw=0.9)
                continue
            bars = None if gap is None else [[gap.points - gap.low], [gap.high - gap.points]]
            points[str(number)] = row.size_bytes / 1e6, row.top1_percent
            axes.errorbar(*([x] for x in points[str(number)]), yerr=bars, fmt="o", ms=4, lw=0.8, color=BLUE)
        axes.set_xlim(left=0)
        axes.set_xlabel("size, MB")
        axes.set_ylabel("top-1, %")
        drawn.draw_without_rendering()  # the layout decides where points come to lie
        scale = 72 / drawn.dpi
        whole = axes.get_window_extent()
        marks = [tuple(axes.transData.transform(point) * scale) for point in points.values()]
        places = label_places(
            list(points), marks, (whole.x0 * scale, whole.y0 * scale), (whole.x1 * scale, whole.y1 * scale)
        )
        for name, mark, place in zip(points, marks, places, strict=True):
            if place is not None:
                axes.annotate(
                    name, points[name], xytext=(place[0] - mark[0], place[1] - mark[1]), textcoords="offset points",
                    fontsize=LABEL, ha="center", va="center", zorder=4,
                    bbox={"fc": PAPER, "alpha": 0.7, "lw": 0, "pad": 0.3},
                    arrowprops={"arrowstyle": "-", "lw": 0.4, "color": QUIET, "shrinkA": 0, "shrinkB": 2},
                )  # fmt: skip
        return svg(drawn)


Point = tuple[float, float]
LABEL = 7  # points high


def label_size(name: str) -> Point:
    """Width and height of a label with some air, in points; a digit is narrower than 0.65 of its height."""
    return 0.65 * LABEL * len(name) + 2, LABEL + 1


def label_places(names: Sequence[str], marks: Sequence[Point], low: Point, high: Point) -> list[Point | None]:
    """Centres of labels, each as near to its mark as it can be without covering another label or a mark.

    Args:
        marks, low, high: in points; labels stay between the corners `low` and `high`. One that finds no room has None.
    """
    taken = [(mark, (4.0, 4.0)) for mark in marks]
    places: list[Point | None] = []
    for name, mark in zip(names, marks, strict=True):
        size = label_size(name)
        place = next((at for at in _around(mark, math.dist(low, high)) if _is_free(at, size, taken, low, high)), None)
        places.append(place)
        if place is not None:
            taken.append((place, size))
    return places


def _around(mark: Point, farthest: float) -> Iterable[Point]:
    """Places on wider and wider rings."""
    for ring in range(1, int(farthest / LABEL) + 1):
        for i in range(12):
            angle = math.pi / 6 * (i + 1)
            yield mark[0] + (ring + 0.2) * LABEL * math.cos(angle), mark[1] + (ring + 0.2) * LABEL * math.sin(angle)


def _is_free(at: Point, size: Point, taken: Iterable[tuple[Point, Point]], low: Point, high: Point) -> bool:
    inside = all(low[i] + size[i] / 2 <= at[i] <= high[i] - size[i] / 2 for i in (0, 1))
    return inside and all(
        any(abs(at[i] - other[i]) >= (size[i] + extent[i]) / 2 for i in (0, 1)) for other, extent in taken
    )

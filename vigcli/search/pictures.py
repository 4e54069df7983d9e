"""Pictures of a search: the front, the milliseconds of the winners' blocks, and how the search went."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigcli.files import replacing
from vigcli.latency.calibrated import family
from vigcli.latency.table import Interval, LatencyTable
from vigcli.measure.profile import BlockProfile
from vigcli.runs.drawing import AMBER, BLUE, CYAN, GREEN, INK, LINE, PAPER, QUIET, RED, VIOLET, drawing, svg
from vigcli.search.job import SearchResult
from vigcli.search.networks import Network

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = BLUE, RED, GREEN, VIOLET, AMBER, CYAN  # of blocks, in the order in which they are met


def draw_front(result: SearchResult, path: Path | None = None) -> str:
    """The front with what it is compared with and how wrong it may be; as SVG, and as a PNG where `path` is given."""
    with drawing(4.6) as (figure, axes):
        left, right = _limits(result)
        _front(axes, result, right)
        points = [(ms(n), n.top1_percent, n.name) for n in result.published if left <= ms(n) <= right]
        axes.plot(*_columns(points), "s", ms=5, color=RED, label="published networks, priced and scored alike")
        others = [
            (ms(result.best), result.best.top1_percent),
            *result.random_front,
            *(point[:2] for point in result.front),
        ]
        for network, colour in ((result.nearest, RED), (result.best, BLUE)):
            others += _cross(axes, network, colour)
        if result.second is not None:
            axes.plot(ms(result.second), result.second.top1_percent, "P", ms=8, color=GREEN, label="second")
        axes.plot(ms(result.best), result.best.top1_percent, "*", ms=13, color=BLUE, label="best")
        axes.axvline(result.budget_ms, color=INK, lw=0.9, ls=":", label=f"budget {result.budget_ms:g} ms")
        scores = [score for _, score, _ in (*result.front, *points)]
        axes.set_xlim(left, right)
        axes.set_ylim(min(scores) - 1, max(scores) + result.best.error_points + 0.3)
        axes.set_xlabel(f"latency, ms ({_devices(result)})")
        axes.set_ylabel("ImageNet-1k top-1, % (predicted)")
        figure.legend(loc="outside lower center", ncols=2)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once: names below need their places, and drawing again costs
        _name(axes, points, others, result.budget_ms)
        if path is not None:
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})
        return svg(figure)


def ms(network: Network) -> float:
    """The milliseconds that a budget holds a network to: the most over the tables."""
    return max(latency.ms for latency in network.latencies)


def interval_of(result: SearchResult, network: Network, number: int) -> Interval:
    """How wrong the price of a network by one of the tables may be; more where its family was not fitted."""
    if not result.tables:
        return result.interval
    table = result.tables[number]
    new = table.calibration is not None and family(network.config.family) not in table.calibration.families
    return table.calibration.new_family_interval if table.calibration and new else table.interval


def _limits(result: SearchResult) -> tuple[float, float]:
    """The picture spans the front up to the budget, its interval, and the published networks next to it."""
    inside = [result.front[0][0], ms(result.nearest), ms(result.best)]
    highest = max(latency.high_ms for latency in result.best.latencies)
    return 0.94 * min(inside), 1.06 * max(*inside, highest, result.budget_ms)


def _front(axes: Axes, result: SearchResult, right: float) -> None:
    latency = [latency for latency, _, _ in result.front] + [max(result.budget_ms, result.front[-1][0])]
    score = [score for _, score, _ in result.front]
    score.append(score[-1])
    error = result.best.error_points
    low, high = ([s + sign * error for s in score] for sign in (-1, 1))
    axes.fill_between(
        latency,
        low,
        high,
        step="post",
        color=BLUE,
        alpha=0.12,
        lw=0,
        label=f"the score's error, ±{error:.1f} (90 %)",
    )
    axes.plot(latency, score, drawstyle="steps-post", lw=1.6, color=BLUE, label=f"front, {len(result.front)} networks")
    if result.random_front:
        label = f"front of {result.num_evaluated:,} random networks"
        axes.plot(*_columns(result.random_front), ".", ms=5, color=QUIET, label=label)
    apart = [(latency, score) for latency, score, _ in result.apart if latency <= right]
    if apart:
        axes.plot(*_columns(apart), "d", ms=4, mfc="none", color=VIOLET, label="kept apart: shape never trained")


def _cross(axes: Axes, network: Network, colour: str) -> list[tuple[float, float]]:
    """How wrong both figures of a network may be, as bars; returns points along them."""
    worst, score = max(network.latencies, key=lambda latency: latency.ms), network.top1_percent
    across = [[worst.ms - worst.low_ms], [worst.high_ms - worst.ms]]
    axes.errorbar(
        [worst.ms], [score], xerr=across, yerr=network.error_points, color=colour, lw=0.8, capsize=2, alpha=0.7
    )
    shares = [i / 20 for i in range(21)]
    along = [(worst.low_ms + share * (worst.high_ms - worst.low_ms), score) for share in shares]
    return along + [(worst.ms, score + (2 * share - 1) * network.error_points) for share in shares]


def _devices(result: SearchResult) -> str:
    best = result.best.latencies
    devices = " and ".join(dict.fromkeys(latency.device for latency in best))
    which = "the slower of " if len(best) > 1 else ""
    kinds = " and ".join(dict.fromkeys(latency.kind for latency in best))
    intervals = [interval_of(result, result.best, number) for number in range(len(best))]
    covers = "bars: " + " and ".join(
        dict.fromkeys(f"x/÷ {i.factor:g} covers {i.coverage_percent:g} %" for i in intervals)
    )
    return f"{which}{devices}; {kinds};\n{covers}"


def _columns(points: Sequence[Sequence[Any]]) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]


def _name(
    axes: Axes, points: Sequence[tuple[float, float, str]], others: Sequence[tuple[float, float]], line: float
) -> None:
    """Names beside their points, each where it covers the fewest names and marks, not the line, and stays inside."""
    marks = [axes.transData.transform(point[:2]) for point in (*points, *others)]
    whole, line_at = axes.get_window_extent(), axes.transData.transform((line, 0))[0]
    behind = {"fc": PAPER, "alpha": 0.7, "lw": 0, "pad": 0.5}
    taken: list[Any] = []

    def cost(box: Any) -> float:
        leaves = box.x0 < whole.x0 or box.x1 > whole.x1 or box.y0 < whole.y0 or box.y1 > whole.y1
        covered = sum(box.contains(*mark) for mark in marks) + (box.x0 < line_at < box.x1)
        return 20 * leaves + 10 * sum(box.overlaps(other) for other in taken) + covered

    for x, y, name in points:
        tried = [
            axes.annotate(
                name, (x, y), xytext=offset, textcoords="offset points", fontsize=8, ha=across, va=upright, bbox=behind
            )
            for offset, across, upright in _SIDES
        ]
        boxes = [text.get_window_extent().padded(2) for text in tried]
        chosen = min(range(len(tried)), key=lambda i: cost(boxes[i]))  # the first of the cheapest
        taken.append(boxes[chosen])
        for i, text in enumerate(tried):
            if i != chosen:
                text.remove()


_SIDES = (
    ((6, -3), "left", "top"), ((-6, 3), "right", "bottom"), ((6, 3), "left", "bottom"), ((-6, -3), "right", "top"),
    ((0, -8), "center", "top"), ((0, 8), "center", "bottom"),
    ((6, -10), "left", "top"), ((-6, -10), "right", "top"),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ blocks


def kind_of_block(block: BlockProfile) -> str:
    """`inverted residual` of `inverted_residual[expansion=4] 64x28x28`."""
    return re.split(r"[\[ ]", block.signature)[0].replace("_", " ")


def stage_of_block(block: BlockProfile) -> str:
    """`stage 2` of `stages[1].blocks[0]`, else the block's own name."""
    found = re.match(r"stages\[(\d+)\]", block.name)
    return f"stage {int(found[1]) + 1}" if found else block.name


def draw_blocks(networks: Mapping[str, Sequence[BlockProfile]], table: LatencyTable) -> str:
    """The milliseconds of each stage, block by block, one network under another; as SVG."""
    inside = [b for blocks in networks.values() for b in blocks if b.name.startswith("stages")]
    colours = {kind: KINDS[i % len(KINDS)] for i, kind in enumerate(dict.fromkeys(map(kind_of_block, inside)))}
    num_rows = sum(2 + len({stage_of_block(block) for block in blocks}) for blocks in networks.values())
    with drawing(0.9 + 0.19 * num_rows) as (figure, axes):
        names: dict[float, str] = {}  # by the row at which they stand
        row = 0.0
        for title, blocks in networks.items():
            axes.text(0, row, title, fontsize=8, fontweight="bold", va="center")
            for stage in dict.fromkeys(map(stage_of_block, blocks)):
                row += 1
                names[row] = stage
                _bar(axes, row, [block for block in blocks if stage_of_block(block) == stage], table, colours)
            row += 1
            names[row] = "each inference"
            axes.barh(row, table.fixed_ms, 0.75, color=LINE)
            row += 1.3
        for kind, colour in colours.items():
            axes.barh(0, 0, color=colour, label=kind)
        axes.set_yticks(list(names), list(names.values()), fontsize=7)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(row - 0.7, -0.7)
        axes.set_xlabel(f"ms ({table.device}; {table.kind})")
        figure.legend(loc="outside lower center", ncols=3)
        return svg(figure)


def _bar(
    axes: Axes, row: float, blocks: Sequence[BlockProfile], table: LatencyTable, colours: Mapping[str, str]
) -> None:
    prices = [table.block_ms(block.signature, block.trace).ms for block in blocks]
    starts = [sum(prices[:i]) for i in range(len(prices))]
    shades = [colours.get(kind_of_block(block), QUIET) for block in blocks]
    axes.barh([row] * len(blocks), prices, 0.75, left=starts, color=shades, edgecolor=PAPER, lw=0.5)


# ------------------------------------------------------------------------------------------------ history


def draw_history(history: Sequence[Mapping[str, Any]]) -> str:
    """The best score and the front's hypervolume against the candidates that were evaluated; as SVG."""
    with drawing(3.4, rows=2) as (figure, (score, volume)):
        for axes, key, label in (
            (score, "best_top1_percent", "best top-1, %\n(predicted)"),
            (volume, "hypervolume", "hypervolume\nof the front"),
        ):
            known = [(step["num_evaluated"], step[key]) for step in history if step.get(key) is not None]
            axes.plot(*_columns(known), drawstyle="steps-post", color=BLUE, lw=1.4)
            axes.set_ylabel(label, fontsize=8)
        volume.xaxis.set_major_formatter("{x:,.0f}")
        volume.set_xlabel("candidates")
        figure.align_ylabels()
        return svg(figure)

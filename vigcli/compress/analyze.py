"""How much accuracy hangs on each group of channels: the network with one group cut at a time, measured and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from vigcli.compress.allocate import Cost
from vigcli.compress.groups import Group, Pruner
from vigcli.compress.widths import full
from vigcli.files import replacing
from vigcli.measure.profile import profile
from vigcli.runs.drawing import INK, drawing

RATIOS = (0.25, 0.5, 0.75)  # of a group's units, that leave


class Cut(NamedTuple):
    """The network with so many units left in one group, its most important ones."""

    kept: int
    saved: float
    top1_percent: float


class Sensitivity(NamedTuple):
    """Of one group; `cuts` are those of `RATIOS`, None where no width is near enough."""

    group: str
    num_units: int
    cuts: tuple[Cut | None, ...]


def analyze(
    pruner: Pruner,
    importance: Mapping[str, Tensor],
    cost: Cost,
    whole: float,
    top1_percent: Callable[[nn.Module], float],
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Sensitivity]:
    """Every group by itself at every ratio: what it saves of the cost, of which the network has `whole`, and what
    accuracy is left."""
    everything = full(pruner.groups)
    found = []

    def cut(name: str, kept: int) -> Cut:
        model, config = pruner.pruned({**everything, name: kept}, importance)
        return Cut(kept, whole - cost.of(profile(config)), top1_percent(model))

    for done, group in enumerate(pruner.groups):
        on_progress("cutting groups", done, len(pruner.groups))
        cuts = tuple(None if kept is None else cut(group.name, kept) for kept in _kept(group))
        found.append(Sensitivity(group.name, group.num_units, cuts))
    return found


def _kept(group: Group) -> list[int | None]:
    """The width nearest to each ratio; None where another ratio is nearer to it, or it is the whole."""

    def nearest_to(due: float) -> int:
        return min(group.widths, key=lambda width: abs(width - due))

    wanted = [(1 - ratio) * group.num_units for ratio in RATIOS]
    nearest = [nearest_to(due) for due in wanted]
    owner = {kept: min(range(len(wanted)), key=lambda i: abs(wanted[i] - kept)) for kept in nearest}
    return [kept if owner[kept] == i and kept < group.num_units else None for i, kept in enumerate(nearest)]


def draw(found: Sequence[Sensitivity], top1_percent: float, title: str, path: Path | str) -> None:
    """The accuracy that is left, a row for each group and a column for each ratio; a PNG.

    Raises UnavailableError without matplotlib.
    """
    shown = [[cut.top1_percent if cut else float("nan") for cut in one.cuts] for one in found]
    with drawing(1.2 + 0.2 * len(found)) as (figure, axes):
        image = axes.imshow(shown, vmin=0, vmax=top1_percent, cmap="RdYlBu", aspect="auto")
        axes.grid(False)
        axes.set_xticks(range(len(RATIOS)), [f"{100 * ratio:.0f} %" for ratio in RATIOS])
        axes.set_yticks(range(len(found)), [f"{one.group} ({one.num_units})" for one in found], fontsize=6)
        axes.set_xlabel(f"of one group's units removed ({title})")
        for row, one in enumerate(found):
            for column, cut in enumerate(one.cuts):
                if cut is not None:
                    share = cut.top1_percent / top1_percent if top1_percent else 0.0
                    ink = INK if 0.2 < share < 0.8 else "white"  # both ends of the colours are dark
                    axes.text(column, row, f"{cut.top1_percent:.0f}", ha="center", va="center", fontsize=6, color=ink)
        figure.colorbar(image, label=f"top-1 % without fine-tuning; whole: {top1_percent:.1f}")
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=150, format="png")

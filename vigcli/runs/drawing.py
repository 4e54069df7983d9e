"""Pictures for `vigcli.runs.html`: matplotlib figures in the page's colours, as SVG; what they show is others' part."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vigcli.errors import UnavailableError
from vigcli.runs.html import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, QUIET, LINE, PAPER, BLUE, RED, GREEN, VIOLET, AMBER, CYAN = (light for light, _ in COLOURS.values())
WIDTH = 5.4  # inches: its text can be read at the width of a phone
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": QUIET, "axes.labelcolor": INK, "axes.grid": True, "axes.axisbelow": True, "grid.color": LINE,
    "grid.linewidth": 0.6, "xtick.color": QUIET, "ytick.color": QUIET, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "text.color": INK, "font.size": 9, "legend.frameon": False, "legend.fontsize": 8,
    "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none", "svg.hashsalt": "vig",
    "text.parse_math": False, "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER,
}  # fmt: skip


@contextlib.contextmanager
def drawing(height: float, rows: int = 1, share_x: bool = True) -> Iterator[tuple[Figure, Any]]:
    """A figure and its axes, closed at the end. Raises UnavailableError without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise UnavailableError("matplotlib is not installed.", "pip install matplotlib") from error
    with matplotlib.rc_context(_STYLE):
        figure, axes = plt.subplots(rows, 1, figsize=(WIDTH, height), layout="constrained", sharex=share_x)
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def svg(figure: Figure) -> str:
    """The figure as text; the same figure gives the same text."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()

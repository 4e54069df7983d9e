"""A run's history as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vigcli.errors import UnavailableError
from vigcli.files import replacing
from vigcli.train.loop import EpochRecord


def curves(history: Sequence[EpochRecord], path: Path | str) -> None:
    """Draw training loss and validation top-1 over the epochs as a PNG. Raises UnavailableError without matplotlib."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise UnavailableError("Drawing needs matplotlib.", "pip install 'vig[train]'") from error
    epochs = [record["epoch"] + 1 for record in history]
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.add_subplot()
    right = left.twinx()
    left.plot(epochs, [record["train_loss"] for record in history], "o-", color="tab:blue", markersize=3)
    right.plot(epochs, [record["val_top1_percent"] for record in history], "s-", color="tab:orange", markersize=3)
    left.set_xlabel("epoch")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylabel("training loss", color="tab:blue")
    right.set_ylabel("validation top-1 (%)", color="tab:orange")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")

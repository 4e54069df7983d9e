"""A run's history and its last answers as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vigcli.errors import UnavailableError
from vigcli.files import replacing
from vigcli.train.evaluate import Evaluation
from vigcli.train.state import EpochRecord

_NAMED = 40  # classes, up to which there is room for their names


def curves(history: Sequence[EpochRecord], path: Path | str) -> None:
    """Draw training loss and validation top-1 over the epochs as a PNG. Raises UnavailableError without matplotlib."""
    figure = _figure((7, 4))
    from matplotlib.ticker import MaxNLocator

    epochs = [record["epoch"] + 1 for record in history]
    left = figure.add_subplot()
    right = left.twinx()
    left.plot(epochs, [record["train_loss"] for record in history], "o-", color="tab:blue", markersize=3)
    right.plot(epochs, [record["val_top1_percent"] for record in history], "s-", color="tab:orange", markersize=3)
    left.set_xlabel("epoch")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylabel("training loss", color="tab:blue")
    right.set_ylabel("validation top-1 (%)", color="tab:orange")
    _save(figure, path)


def confusion(evaluation: Evaluation, labels: Sequence[str], path: Path | str) -> None:
    """Draw how often the pictures of a class (rows) were taken for each (columns), in percent of the row, as a PNG."""
    count = len(labels)
    pairs = evaluation.labels * count + evaluation.predictions
    matrix = torch.bincount(pairs, minlength=count * count).reshape(count, count).double()
    shares = 100 * matrix / matrix.sum(1, keepdim=True).clamp_min(1)
    is_small = count <= _NAMED
    figure = _figure((2 + 0.5 * count, 1.5 + 0.5 * count) if is_small else (9, 8))
    axes = figure.add_subplot()
    image = axes.imshow(shares.numpy(), vmin=0, vmax=100, cmap="Blues")
    figure.colorbar(image, label="% of the class's pictures")
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    if is_small:
        axes.set_xticks(range(count), labels, rotation=45, ha="right")
        axes.set_yticks(range(count), labels)
        for row, column in ((row, column) for row in range(count) for column in range(count) if matrix[row, column]):
            share = float(shares[row, column])
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", color="white" if share > 50 else "black")
    _save(figure, path)


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnavailableError("Drawing needs matplotlib.", "pip install 'vig[train]'") from error
    return Figure(figsize=size, layout="constrained")


def _save(figure: Any, path: Path | str) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")

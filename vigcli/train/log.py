"""What a run says while it trains, for other programs: one JSON object a line, and TensorBoard's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigcli.errors import UnavailableError, VigError
from vigcli.files import write_text

if TYPE_CHECKING:
    from vigcli.train.loop import TrainEvent

LOG_FILE = "log.jsonl"


class JsonLog:
    """Appends to `log.jsonl`: for every step `step`, `epoch`, `loss`, `lr`, `resolution`, `images_per_s`; for every
    epoch its record."""

    def __init__(self, folder: Path):
        self.path = folder / LOG_FILE

    def cut(self, step: int) -> None:
        """Keep what was said up to a step: what came after it was lost with the state."""
        if self.path.exists():
            kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            write_text(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, record: dict[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise VigError(f"{self.path}: cannot be written: {error.strerror}.", "Free disk space.") from error


def _step_of(line: str) -> float:
    """The step that a line is of; none is as late as half a line."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class TensorBoard:
    """Writes what `tensorboard --logdir RUN` shows."""

    def __init__(self, folder: Path):
        """Raises UnavailableError without the package."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UnavailableError(
                "--tensorboard needs the package tensorboard.", "pip install 'vig[train]'"
            ) from error
        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, event: TrainEvent) -> None:
        """One step, or an epoch that was evaluated."""
        if event.val_top1_percent is not None:
            values = {"epoch/train_loss": event.loss, "epoch/val_top1_percent": event.val_top1_percent}
        else:
            values = {"step/loss": event.loss, "step/lr": event.lr, "step/images_per_s": event.images_per_s}
        for name, value in values.items():
            self.writer.add_scalar(name, value, event.step)
        self.writer.flush()

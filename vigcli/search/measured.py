"""What short trainings say: the ranking that they make, and how sure it is.

Plain data; `resolve.py` does the training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vigcli.train.intervals import Difference


def _rounded(difference: Difference | None) -> list[float] | None:
    return None if difference is None else [round(points, 2) for points in difference]


@dataclass(frozen=True)
class Row:
    """One network of a contest, measured.

    Attributes:
        place: of the network among those that were handed over, or None for the published one.
        rung: the last one at whose end it was measured, from 1.
        epochs, images: trained until there.
        top1_percent, interval_percent: on the held-out pictures, there; Wilson's interval, 95 %.
        top1_by_rung: at the end of each rung so far.
        versus_published: top-1 minus the published network's after the same training; None for itself.
        diverged: its training left the finite numbers, and its top-1 is that of no answer.
        rank: from 1, the published network among the others.
    """

    name: str
    place: int | None
    rung: int
    epochs: int
    images: int
    top1_percent: float
    interval_percent: tuple[float, float]
    top1_by_rung: tuple[float, ...]
    versus_published: Difference | None
    diverged: bool
    rank: int

    def as_json(self) -> dict[str, Any]:
        return {
            "rank": self.rank,
            "name": self.name,
            "is_published": self.place is None,
            "rung": self.rung,
            "epochs": self.epochs,
            "images": self.images,
            "top1_percent": round(self.top1_percent, 2),
            "top1_kind": "measured",
            "top1_interval_95": [round(bound, 2) for bound in self.interval_percent],
            "top1_by_rung": [round(top1, 2) for top1 in self.top1_by_rung],
            "versus_published_points": _rounded(self.versus_published),
            "diverged": self.diverged,
        }


@dataclass(frozen=True)
class Resolution:
    """How a contest ended.

    Attributes:
        rows: by rank: who came further first, then who has more pictures right.
        winner: the first of the networks that were searched and did not diverge; None where none is known yet.
        versus_second: the winner's top-1 minus that of the next one searched that came as far.
        versus_itself: the published network's top-1 from another seed minus its top-1, which is luck alone.
        finished: False where it was stopped; the ranking is then of the last rung that all of it ended.
        guess_percent: top-1 of always answering the commonest class of the held-out pictures.
        resolution: pixels a side.
        budget, schedule: what everyone was given, as sentences.
    """

    rows: tuple[Row, ...]
    winner: Row | None
    versus_second: Difference | None
    versus_itself: Difference | None
    finished: bool
    dataset: str
    num_held_out: int
    guess_percent: float
    resolution: int
    budget: str
    schedule: str

    @property
    def is_told(self) -> bool:
        """Whether winner and published network differ by more than the choice of pictures, and than one seed's luck."""
        gap = self.winner.versus_published if self.winner else None
        luck = abs(self.versus_itself.points) if self.versus_itself else 0.0
        return gap is not None and gap.is_told and abs(gap.points) > luck

    def as_json(self) -> dict[str, Any]:
        return {
            "winner": self.winner and self.winner.name,
            "finished": self.finished,
            "dataset": self.dataset,
            "num_held_out": self.num_held_out,
            "guess_percent": round(self.guess_percent, 2),
            "resolution": self.resolution,
            "budget": self.budget,
            "schedule": self.schedule,
            "versus_second_points": _rounded(self.versus_second),
            "versus_itself_points": _rounded(self.versus_itself),
            "is_told_from_published": self.is_told,
            "rows": [row.as_json() for row in self.rows],
        }

    def notes(self) -> tuple[str, ...]:
        """What a reader of the ranking must know, a sentence each."""
        notes = [
            f"Ranked by top-1 measured after short training on {self.dataset}, in place of the predicted top-1"
            f"{'' if self.finished else '; stopped before its end'}. {self.schedule}"
        ]
        published = next((row for row in self.rows if row.place is None), None)
        if self.winner is not None and self.winner.versus_published is not None and published is not None:
            notes.append(f"{self.winner.name} against {published.name}: {self.winner.versus_published}.")
        if self.winner is not None and self.versus_second is not None:
            notes.append(f"{self.winner.name} against the second: {self.versus_second}.")
        if self.versus_itself is not None and published is not None:
            notes.append(
                f"{published.name} against itself from another seed: {self.versus_itself.points:+.1f} points. "
                "What differs by no more may be luck of the seed."
            )
        notes.append(f"Intervals are of the choice of {self.num_held_out:,} held-out pictures alone.")
        if self.winner is not None and self.winner.interval_percent[0] <= self.guess_percent:
            notes.append(
                f"The winner cannot be told from always answering the commonest class ({self.guess_percent:.1f} %): "
                "train for longer."
            )
        if diverged := [row.name for row in self.rows if row.diverged]:
            notes.append(f"Dropped because training diverged: {', '.join(diverged)}.")
        return tuple(notes)

"""Short trainings that put a measured ranking in the place of the predicted one: `vig search --data`.

Successive halving (arXiv:1502.07943): all contestants are trained alike for a rung, the better part of them goes on
from where it stopped. The nearest published network is trained beside them, from two seeds, and stays to the end. Loop,
pictures and evaluation are those of `vig train`; who the contestants are is `contest.py`'s matter.

A supernet with shared weights would plug in at `_Job.outcome`: another way to know how a contestant does at a rung.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vigcli.archs.checkpoint import load_checkpoint
from vigcli.errors import ConfigError
from vigcli.files import write_json
from vigcli.search.contest import Contest, Contestant
from vigcli.search.measured import Resolution, Row
from vigcli.train.data import eval_batches, num_workers
from vigcli.train.evaluate import DivergedError, Evaluation, evaluate, normalized
from vigcli.train.intervals import Difference, Right, paired_difference, wilson_percent
from vigcli.train.loop import CHECKPOINT_FILE, TrainEvent, train
from vigcli.train.sampler import steps_per_epoch
from vigcli.train.state import STATE_FILE

RESOLUTION_FILE, FOLDER = "resolution.json", "contest"
Progress = Callable[[str, int, int, str], None]
"""what, pictures done, pictures in all, note."""


class _Outcome(NamedTuple):
    """How a contestant did at the end of a rung."""

    right: Right
    diverged: bool


def resolve(
    contest: Contest,
    run: Path,
    *,
    on_progress: Progress = lambda what, done, total, note: None,
    should_stop: Callable[[], bool] = lambda: False,
    provenance: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Resolution:
    """Train the contestants; what `run` holds of the same contest is not trained again.

    When `should_stop` says so, the state is saved and the resolution is of what is known, `finished` False; the same
    call goes on from there. `run` keeps `resolution.json`, brought up to date after every rung, and in `contest/` each
    network's checkpoint and its figures. A network whose training diverges is dropped; raises VigError where all do.
    """
    job = _Job(contest, run, on_progress, should_stop, dict(provenance or {}), device)
    known: dict[Contestant, list[_Outcome]] = {}
    field = list(contest.contestants)
    for number in range(len(contest.rungs)):
        reached: dict[Contestant, _Outcome] = {}
        for contestant in (*contest.beside, *field):
            outcome = job.outcome(number, contestant)
            if outcome is None:
                return _saved(contest, known or {who: [how] for who, how in reached.items()}, run, finished=False)
            reached[contestant] = outcome
        for contestant, outcome in reached.items():
            known.setdefault(contestant, []).append(outcome)
        if not (sound := [contestant for contestant in field if not reached[contestant].diverged]):
            raise DivergedError("The training of every network diverged.", "Lower optimizer.lr in the recipe.")
        is_last = number == len(contest.rungs) - 1
        sound.sort(key=lambda contestant: -int(reached[contestant].right.sum()))  # stable: else as predicted
        stay = [] if is_last else sound[: contest.rungs[number + 1].contestants]
        job.forget([contestant for contestant in reached if is_last or contestant not in (*contest.beside, *stay)])
        resolution = _saved(contest, known, run, finished=is_last)
        field = stay
    return resolution


@dataclass
class _Job:
    """The trainings of a contest, one at a time, and their files."""

    contest: Contest
    run: Path
    on_progress: Progress
    should_stop: Callable[[], bool]
    provenance: dict[str, Any]
    device: str
    done: int = 0  # pictures, by this call

    def __post_init__(self) -> None:
        self.left = self.contest.num_images  # for this call to train on, those that are done included

    def outcome(self, number: int, contestant: Contestant) -> _Outcome | None:
        """Train a contestant to the end of a rung, unless it has been; None where the caller asked to stop."""
        rung, images, folder = self.contest.rungs[number], self.contest.images_of(number), self._folder(contestant)
        file = folder / f"after_{rung.epochs}_epochs.json"
        if file.is_file():
            self.left -= images
            return self._read(file, contestant)
        before = rung.epochs * self.contest.images_an_epoch - images
        _, size = steps_per_epoch(self.contest.recipe, len(self.contest.pictures))
        note = f"rung {number + 1}/{len(self.contest.rungs)}  {contestant.name}"

        def on_event(event: TrainEvent) -> None:
            done = self.done + event.step * size - before
            top1 = event.val_top1_percent
            how = f"loss {event.loss:.3f}" if top1 is None else f"top-1 {top1:.1f} %"
            self.on_progress("training pictures", done, self.left, f"{note}  {how}")

        try:
            result = train(
                self.contest.recipe_of(contestant), folder, on_event=on_event, should_stop=self.should_stop,
                provenance=self.provenance, device=self.device, resume=(folder / STATE_FILE).is_file(),
                until_epoch=rung.epochs, opened=(self.contest.pictures, self.contest.held_out),
            )  # fmt: skip
        except DivergedError:
            outcome = _Outcome(np.zeros(len(self.contest.held_out), bool), True)
        else:
            if len(result.history) < rung.epochs:
                return None
            evaluation = result.evaluation or self._evaluated(folder)  # where it was stopped just before it was noted
            outcome = _Outcome((evaluation.predictions == evaluation.labels).numpy(), False)
        self.done += images
        text = "".join("01"[answer] for answer in outcome.right.astype(int))
        write_json(file, {"key": self._key(contestant), "diverged": outcome.diverged, "right": text})
        return outcome

    def forget(self, contestants: Sequence[Contestant]) -> None:
        """Remove the optimizer's state of those that are not trained any further; it is thrice a network's size."""
        for contestant in contestants:
            (self._folder(contestant) / STATE_FILE).unlink(missing_ok=True)

    def _read(self, file: Path, contestant: Contestant) -> _Outcome:
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            key, outcome = data["key"], _Outcome(np.array([c == "1" for c in data["right"]]), data["diverged"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file}: is damaged.", "Remove it, and this rung is trained again.") from error
        if key != self._key(contestant):
            what = f"{file}: was measured with another recipe or other pictures."
            raise ConfigError(what, "Resume with the options of the run, or start a new one.")
        return outcome

    def _evaluated(self, folder: Path) -> Evaluation:
        recipe, held_out = self.contest.recipe, self.contest.held_out
        model = load_checkpoint(folder / CHECKPOINT_FILE).model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        batches = eval_batches(held_out, recipe.preprocessing, recipe.resolution, workers=num_workers(recipe.data))
        return evaluate(normalized(model, recipe.preprocessing), batches)

    def _folder(self, contestant: Contestant) -> Path:
        text = f"{contestant.seed} {contestant.config.model_dump_json()}"
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return self.run / FOLDER / f"{re.sub(r'[^A-Za-z0-9_.=-]+', '_', contestant.name)[:40]}-{digest}"

    def _key(self, contestant: Contestant) -> str:
        """What a measurement depends on, the machine aside."""
        fixed = self.contest.recipe_of(contestant).model_dump(mode="json", exclude={"data": {"root", "workers"}})
        pictures, held_out = self.contest.pictures, self.contest.held_out
        text = json.dumps([fixed, pictures.labels, len(pictures), len(held_out)])
        return hashlib.sha256(text.encode()).hexdigest()


def _saved(contest: Contest, known: Mapping[Contestant, Sequence[_Outcome]], run: Path, finished: bool) -> Resolution:
    """The ranking of what is known, written into the run."""
    predicted = {contestant: place for place, contestant in enumerate((*contest.contestants, contest.published))}

    def order(who: Contestant) -> tuple[int, bool, int, int]:
        last = known[who][-1]
        return -len(known[who]), last.diverged, -int(last.right.sum()), predicted[who]

    published, again = contest.beside
    ranked = sorted((who for who in known if who != again), key=order)
    rows = tuple(_row(contest, known, who, rank) for rank, who in enumerate(ranked, 1))
    searched = [who for who in ranked if who != published]

    def difference(a: Contestant, b: Contestant) -> Difference | None:
        is_fair = a in known and b in known and len(known[a]) == len(known[b])
        return paired_difference(known[a][-1].right, known[b][-1].right) if is_fair else None

    data, commonest = contest.recipe.data, max(Counter(contest.held_out.targets).values())
    resolution = Resolution(
        rows,
        next((row for row in rows if row.place is not None and not row.diverged), None),
        difference(*searched[:2]) if searched[1:] else None,
        difference(again, published),
        finished,
        Path(data.root).name if data.root else data.source,
        len(contest.held_out),
        100 * commonest / len(contest.held_out),
        contest.recipe.resolution,
        contest.budget_text,
        contest.schedule_text,
    )
    write_json(run / RESOLUTION_FILE, resolution.as_json())
    return resolution


def _row(contest: Contest, known: Mapping[Contestant, Sequence[_Outcome]], who: Contestant, rank: int) -> Row:
    outcomes, reference = known[who], known.get(contest.published, ())
    last, rung = outcomes[-1], len(outcomes)
    is_published, epochs = who == contest.published, contest.rungs[rung - 1].epochs
    counts = [int(outcome.right.sum()) for outcome in outcomes]
    return Row(
        who.name,
        None if is_published else contest.places[contest.contestants.index(who)],
        rung,
        epochs,
        epochs * contest.images_an_epoch,
        100 * counts[-1] / len(last.right),
        wilson_percent(counts[-1], len(last.right)),
        tuple(100 * count / len(last.right) for count in counts),
        None if is_published else paired_difference(last.right, reference[rung - 1].right),
        last.diverged,
        rank,
    )

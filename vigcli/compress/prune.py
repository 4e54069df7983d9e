"""Pruning as a job: a checkpoint brought under a budget at once, or in steps with fine-tuning after each.

Which units leave is the matter of `allocate` and `groups`, training that of `vigcli.train`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vigcli.archs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vigcli.compress.allocate import Allocation, Cost, allocate
from vigcli.compress.groups import Pruner
from vigcli.compress.importance import CRITERIA
from vigcli.compress.widths import Widths
from vigcli.config.recipe import Data, Recipe
from vigcli.measure.profile import profile
from vigcli.train.data import load_split
from vigcli.train.loop import CHECKPOINT_FILE, TrainEvent, train
from vigcli.train.preprocess import normalize
from vigcli.train.state import STATE_FILE

START_FILE, DONE_FILE = "pruned.safetensors", "done"  # of a step: before its fine-tuning, and that it has ended
RECORD = "pruned"  # in a checkpoint's provenance: by group the units before and after
DISTILLATION = {"kind": "soft", "alpha": 0.5, "temperature": 2.0}  # of a recipe that says nothing of it
SCORED_IMAGES = 256  # training pictures, for the criteria that ask for some
_BATCH = 32

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What to prune to, and how.

    Attributes:
        limit: of `cost`, in its unit.
        data: where criteria that ask for pictures take them; None where they are not at hand.
        recipe: of the fine-tuning after each of the `steps`; None prunes once and trains nothing.
    """

    cost: Cost
    limit: float
    criterion: str
    data: Data | None = None
    recipe: Recipe | None = None
    steps: int = 1

    def limits(self, whole: float) -> list[float]:
        """The budget of each step: what can be pruned at all shrinks by the same factor in each."""
        fixed, steps = self.cost.fixed, self.steps
        factor = max(self.limit - fixed, 0.0) / (whole - fixed)
        return [*(fixed + (whole - fixed) * factor ** (i / steps) for i in range(1, steps)), self.limit]


@dataclass(frozen=True)
class Plan:
    """What pruning once leaves of a network."""

    checkpoint: Checkpoint
    pruner: Pruner
    importance: Mapping[str, Tensor]
    allocation: Allocation

    @property
    def groups(self) -> dict[str, list[int]]:
        """By group the units before and after."""
        return {group.name: [group.num_units, self.allocation.kept[group.name]] for group in self.pruner.groups}

    def pruned(self, before: Mapping[str, list[int]]) -> Checkpoint:
        """The smaller network, before any training; `before` is the record of earlier steps."""
        model, config = self.pruner.pruned(self.allocation.kept, self.importance)
        now = {name: [before.get(name, units)[0], units[1]] for name, units in self.groups.items()}
        record = {**before, **now}  # what is as narrow as can be is in no group any more
        meta = self.checkpoint.meta
        provenance = {**meta.provenance, RECORD: record}
        changes = {"arch": config, "metrics": {}, "quantization": None, "provenance": provenance}
        return Checkpoint(model, meta.model_copy(update=changes))


def plan(
    checkpoint: Checkpoint, request: Request, limit: float, on_progress: Advance = lambda what, done, total: None
) -> Plan:
    """Which units stay so that a network keeps a limit.

    Raises ConfigError for a network that cannot be pruned, InfeasibleError with the smallest that can be reached, and
    NotMeasurableError for a table that does not price pruned blocks.
    """
    pruner = Pruner(checkpoint.model, checkpoint.meta.arch)
    importance = scored(pruner, checkpoint, request.criterion, request.data)
    known = Widths(pruner, on_progress)
    return Plan(checkpoint, pruner, importance, allocate(pruner, importance, request.cost, limit, known))


def scored(pruner: Pruner, checkpoint: Checkpoint, criterion: str, data: Data | None) -> dict[str, Tensor]:
    """The importance of every unit of every group, by training pictures where the criterion asks for some."""
    if data is None or not CRITERIA[criterion].needs_batches:
        return pruner.importance(criterion)
    meta = checkpoint.meta
    found = load_split(data, "train", meta.preprocessing, meta.arch.resolution, limit=SCORED_IMAGES)
    pixels, classes = (tensor.split(_BATCH) for tensor in found)
    batches = [(normalize(x, meta.preprocessing), y) for x, y in zip(pixels, classes, strict=True)]
    return pruner.importance(criterion, batches)


def prune(
    path: Path,
    request: Request,
    run: Path,
    provenance: Mapping[str, Any],
    digest: str,
    *,
    on_progress: Advance = lambda what, done, total: None,
    on_event: Callable[[int, TrainEvent], None] = lambda step, event: None,
    should_stop: Callable[[], bool] = lambda: False,
    device: str = "cpu",
) -> Path | None:
    """Write the pruned network of a checkpoint into the folder `run`, and go on with what stands there already.

    Gives its path, or None where `should_stop` ended the fine-tuning. Raises as `plan` does, before anything is
    trained.

    Args:
        digest: the hash of the checkpoint at `path`, whose network teaches the pruned one.
    """
    found, record = load_checkpoint(path), dict[str, list[int]]()
    limits = request.limits(request.cost.of(profile(found.meta.arch)))
    if len(limits) > 1 and not (run / "step-1").is_dir():
        plan(found, request, request.limit, on_progress)  # a limit that is out of reach is told now
    for step, limit in enumerate(limits, 1):
        folder = run / f"step-{step}"
        start = folder / START_FILE
        if request.recipe is None:
            found = plan(found, request, limit, on_progress).pruned(record)
        elif not start.is_file():
            save_checkpoint(start, *plan(found, request, limit, on_progress).pruned(record))
        if request.recipe is not None:
            found = load_checkpoint(start)
            recipe = fine_tuning(request.recipe, found, start, path)
            told = {**provenance, RECORD: found.meta.provenance[RECORD]}
            watch = functools.partial(on_event, step)
            if not _trained(recipe, folder, told, watch, should_stop, device):
                return None
            found = load_checkpoint(folder / CHECKPOINT_FILE)
        record = found.meta.provenance[RECORD]
    meta = found.meta.model_copy(update={"parents": (digest,), "provenance": {**provenance, RECORD: record}})
    save_checkpoint(run / CHECKPOINT_FILE, found.model, meta)
    return run / CHECKPOINT_FILE


def fine_tuning(recipe: Recipe, pruned: Checkpoint, start: Path, teacher: Path) -> Recipe:
    """A recipe for a pruned network: from its weights, with soft distillation from the network that it was.

    A recipe with a distillation of its own keeps its kind, weight and temperature. Pictures are prepared as the network
    knows them.
    """
    own = recipe.distillation
    kind = {name: getattr(own, name) for name in DISTILLATION} if own is not None else DISTILLATION
    has_teacher = pruned.meta.preprocessing.channels == "RGB"  # recipes know none of BGR pictures
    changes = {
        "preprocessing": pruned.meta.preprocessing.model_dump(),
        "weights": str(start),
        "distillation": {**kind, "teacher": str(teacher)} if has_teacher else None,
    }
    return recipe.with_network(pruned.meta.arch).changed(changes)


def _trained(
    recipe: Recipe, folder: Path, provenance: Mapping[str, Any], on_event: Callable[[TrainEvent], None],
    should_stop: Callable[[], bool], device: str,
) -> bool:  # fmt: skip
    """Whether the fine-tuning has come to its end."""
    if (folder / DONE_FILE).is_file():
        return True
    result = train(
        recipe, folder, on_event=on_event, should_stop=should_stop, provenance=provenance, device=device,
        resume=(folder / STATE_FILE).is_file(),
    )  # fmt: skip
    if result.finished:
        (folder / DONE_FILE).touch()
    return result.finished

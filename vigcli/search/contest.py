"""Who is trained on what, and for how long, where a search is resolved with data; `resolve.py` does it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from vigcli.archs import build
from vigcli.config.archs import ArchConfig
from vigcli.config.load import get_path
from vigcli.config.recipe import Data, Recipe
from vigcli.config.space import Choice, SearchSpace
from vigcli.errors import ConfigError, UsageError
from vigcli.measure.profile import profile
from vigcli.train.data import EMBEDDED, Pictures, open_data, steps_per_epoch, train_batches
from vigcli.train.objective import Objective

if TYPE_CHECKING:
    from vigcli.search.job import SearchResult

TOP, ETA, EPOCHS = 8, 2, 4
IMAGES, HELD_OUT = 2_000, 2_000  # pictures of each split of a folder
RECIPE = "emoji10"  # made for few steps; one for ImageNet warms up for longer than a contest lasts


class Named(Protocol):
    """A network by name and configuration."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> ArchConfig: ...


class Contestant(NamedTuple):
    """A network that is trained, from the recipe's seed and `seed`."""

    name: str
    config: ArchConfig
    seed: int = 0


class Rung(NamedTuple):
    """So many contestants, and those beside them, are trained until so many epochs are behind them."""

    contestants: int
    epochs: int


def rungs_of(contestants: int, epochs: int, eta: int) -> tuple[Rung, ...]:
    """The rungs: of each the part 1/eta goes on, with eta times the pictures, as long as two are left to compare.

    The epochs are few and whole, so that with a small budget there are fewer rungs.
    """
    counts = [contestants]
    while (left := -(-counts[-1] // eta)) >= 2 and left < counts[-1] and eta ** len(counts) <= epochs:
        counts.append(left)
    last = len(counts) - 1
    return tuple(Rung(count, epochs // eta ** (last - i)) for i, count in enumerate(counts))


def variants_of(config: ArchConfig, genes: Mapping[str, Sequence[Choice]], limit: int = 4) -> list[Contestant]:
    """The network with one undecided gene (path -> choices) changed, `limit` such networks at most.

    Every gene has its first variant before one has a second; what is unsound or changes nothing is left out. Prices
    change with the genes: whether a variant meets the budget is the caller's to check.
    """
    data = config.model_dump(mode="json")
    turns = [
        [(path, choice) for choice in choices if choice != get_path(data, path)] for path, choices in genes.items()
    ]
    found: dict[ArchConfig, str] = {config: ""}
    for turn in range(max(map(len, turns), default=0)):
        for path, choice in (choices[turn] for choices in turns if turn < len(choices)):
            try:
                found.setdefault(config.changed({path: choice}), f"{path}={json.dumps(choice).strip(chr(34))}")
            except ConfigError:
                continue
    return [Contestant(label, variant) for variant, label in found.items() if label][:limit]


def contestants_of(result: SearchResult, spaces: Sequence[SearchSpace], top: int) -> list[Contestant]:
    """Whom a search sends: its top candidates, a quarter of the places to the best with another choice for a gene that
    is undecided, where that meets the budget."""
    genes = {path: choices for space in spaces for path, choices in space.genes.items() if path in result.undecided}
    others = [
        other
        for other in variants_of(result.best.config, genes, 4 * top)
        if all(profile(other.config).latency(table).ms <= result.bound_ms for table in result.tables)
    ][: top // 4]
    return [*(Contestant(*named) for named in result.candidates(top - len(others))), *others]


@dataclass(frozen=True)
class Contest:
    """Who is trained on what, for how long, before anything is.

    Attributes:
        contestants: in the order of their predicted worth, which decides between equal measurements.
        places: theirs among the networks that were handed over, of which equal ones are trained once.
        recipe: that of all of them, but for `arch`.
        pictures, held_out: what is trained on in every epoch, and what is evaluated on.
    """

    contestants: tuple[Contestant, ...]
    places: tuple[int, ...]
    published: Contestant
    recipe: Recipe
    pictures: Pictures
    held_out: Pictures
    rungs: tuple[Rung, ...]

    @property
    def beside(self) -> tuple[Contestant, Contestant]:
        """Who is trained to the end in any case: the published network, and it again from another seed.

        What the two differ by no other network's difference may be mistaken for.
        """
        again = Contestant(f"{self.published.name} from another seed", self.published.config, 1)
        return self.published, again

    @property
    def images_an_epoch(self) -> int:
        steps, size = steps_per_epoch(self.recipe, len(self.pictures))
        return steps * size

    def images_of(self, rung: int) -> int:
        """Pictures that one contestant is trained on in a rung, by itself."""
        before = self.rungs[rung - 1].epochs if rung else 0
        return (self.rungs[rung].epochs - before) * self.images_an_epoch

    @property
    def num_images(self) -> int:
        """Pictures of all trainings together."""
        return sum((rung.contestants + len(self.beside)) * self.images_of(i) for i, rung in enumerate(self.rungs))

    def recipe_of(self, contestant: Contestant) -> Recipe:
        return self.recipe.model_copy(update={"arch": contestant.config, "seed": self.recipe.seed + contestant.seed})

    def predicted_seconds(self) -> float:
        """Of the whole contest on this machine's CPU, from one step of the published network, timed now.

        The others are near it in latency. An evaluated picture is counted as a third of a trained one.
        """
        recipe = self.recipe_of(self.published)
        _, size = steps_per_epoch(recipe, len(self.pictures))
        few = recipe.model_copy(update={"batch_size": min(size, 16), "data": recipe.data.changed({"workers": 0})})
        model, objective = build(self.published.config, seed=0).train(), Objective(few, "cpu")
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        seconds = 0.0
        with torch.random.fork_rng(devices=[]):
            for _ in range(2):  # the first warms up
                start = time.perf_counter()
                x, target = next(iter(train_batches(few, self.pictures, 0)))
                objective(model, x.contiguous(memory_format=torch.channels_last), target).backward()
                seconds = (time.perf_counter() - start) / len(x)
        epochs = self.num_images / self.images_an_epoch
        return seconds * (self.num_images + epochs * len(self.held_out) / 3)

    @property
    def budget_text(self) -> str:
        """The sentence to print before: what everyone is given."""
        parts = [f"{rung.contestants} for {rung.epochs}" for rung in self.rungs]
        return (
            f"Short training: {', '.join(parts)} epochs of {self.images_an_epoch:,} pictures at "
            f"{self.recipe.resolution} px, {self.published.name} from two seeds beside them to the end; "
            f"{self.num_images:,} pictures in all, evaluated on {len(self.held_out):,} held-out ones after every epoch."
        )

    @property
    def schedule_text(self) -> str:
        """The sentence on the schedule, without which a rung's figures are not to be understood."""
        schedule = f"One cosine over {self.recipe.epochs} epochs for all"
        if len(self.rungs) == 1:
            return f"{schedule}."
        return f"{schedule}: a rung goes on where the one before ended, so who was dropped was measured at a high rate."


def contest_of(
    networks: Sequence[Named],
    published: Named,
    recipe: Recipe,
    data: str,
    *,
    epochs: int = EPOCHS,
    eta: int = ETA,
    images: int | None = None,
    held_out: int | None = None,
    resolution: int | None = None,
    seed: int = 0,
) -> Contest:
    """The contest of `networks` (best predicted first) and the published one on `data`, a folder or `emoji10`.

    `recipe` is shortened: warm-up and cool-down in proportion, no average of weights, no teacher; the rate and the
    batch stay. `images` and `held_out` limit the two splits; all of emoji10 is taken and `IMAGES` of a folder's unless
    given. All networks are trained at `resolution`, by default the published one's, with the classes of the data.
    Raises UsageError, UnavailableError and ConfigError.
    """
    bounds = {"--epochs": (epochs, 1), "--eta": (eta, 2), "--images": (images, 2), "--held-out": (held_out, 1)}
    for option, (value, least) in bounds.items():
        if value is not None and value < least:
            raise UsageError(f"{option} {value}: too small.", f"At least {least}.")
    where = Data(source="emoji10", workers=0)
    if data != EMBEDDED:
        where = Data(source="folder", root=str(Path(data).resolve()), workers=recipe.data.workers)
        images, held_out = images or IMAGES, held_out or HELD_OUT
    pictures, val = open_data(where, "train").part(images), open_data(where, "val").part(held_out)
    changes = {"resolution": resolution or published.config.resolution, "num_classes": len(pictures.labels)}
    reference = Contestant(published.name, _changed(published, changes))
    others: dict[ArchConfig, tuple[str, int]] = {}
    for place, network in enumerate(networks):
        others.setdefault(_changed(network, changes), (network.name, place))
    others.pop(reference.config, None)
    if not others:
        raise UsageError(
            f"--data: the search has nothing but {published.name} to train.", "Raise --budget or widen the space."
        )
    contestants = tuple(Contestant(name, config) for config, (name, _) in others.items())
    places = tuple(place for _, place in others.values())
    short = _shortened(recipe, reference.config, where, epochs, seed)
    return Contest(contestants, places, reference, short, pictures, val, rungs_of(len(contestants), epochs, eta))


def _changed(network: Named, changes: Mapping[str, Any]) -> ArchConfig:
    try:
        return network.config.changed(changes)
    except ConfigError as error:
        raise ConfigError(f"{network.name} cannot be trained on these pictures: {error}", error.hint) from error


def _shortened(recipe: Recipe, config: ArchConfig, data: Data, epochs: int, seed: int) -> Recipe:
    schedule = recipe.schedule.shortened(epochs / recipe.epochs)
    changes = {
        "data": data, "epochs": epochs, "schedule": schedule, "ema_decay": None, "distillation": None, "seed": seed,
    }  # fmt: skip
    return Recipe.parse(recipe.with_network(config).model_copy(update=changes).model_dump(mode="json"))

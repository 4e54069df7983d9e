"""What `vig prune` was asked for, from what was typed to typed objects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vigcli.cli.output import say
from vigcli.errors import UnavailableError, UsageError
from vigcli.units import parse_latency_ms

if TYPE_CHECKING:
    from vigcli.archs.checkpoint import Checkpoint
    from vigcli.compress.allocate import Cost
    from vigcli.compress.prune import Request
    from vigcli.config.recipe import Data, Recipe
    from vigcli.latency.table import LatencyTable
    from vigcli.measure.profile import Profile

CRITERIA = ("magnitude", "bn_scale", "taylor", "hessian", "group_norm")


class Asked(NamedTuple):
    """What a user asked for, loaded.

    Attributes:
        limit: of the cost; None for an analysis.
        data: to measure accuracy on; None where it is not at hand.
        table: that prices the network.
        before: the network as it is.
    """

    path: Path
    checkpoint: Checkpoint
    cost: Cost
    limit: float | None
    data: Data | None
    recipe: Recipe | None
    table: LatencyTable
    before: Profile
    criterion: str
    steps: int
    device: str

    @property
    def request(self) -> Request:
        from vigcli.compress.prune import Request

        assert self.limit is not None
        return Request(self.cost, self.limit, self.criterion, self.data, self.recipe, self.steps)


def asked_for(
    *,
    checkpoint_name: str | None,
    budget: str | None,
    macs: float | None,
    params: float | None,
    table_name: str,
    criterion: str | None,
    analyze: bool,
    recipe_name: str | None,
    settings: tuple[str, ...],
    steps: int,
    data_root: str | None,
    device: str,
) -> Asked:
    _check(budget, macs, params, analyze, recipe_name, settings, steps)
    budget_ms = parse_latency_ms(budget) if budget is not None else None
    from vigcli.archs.checkpoint import load_checkpoint
    from vigcli.cli.load import named, picked_checkpoint, picked_device
    from vigcli.compress.allocate import MACS, PARAMS, latency_cost
    from vigcli.latency.table import load_table
    from vigcli.measure.profile import profile

    path = picked_checkpoint(checkpoint_name)
    checkpoint = load_checkpoint(path)
    drawn = "; its weights were drawn, not trained" if checkpoint.meta.is_drawn else ""
    say(f"Taking {named(path, checkpoint.meta)}{drawn}.")
    table = load_table(table_name)
    before = profile(checkpoint.meta.arch)
    share = macs if macs is not None else params
    cost = MACS if macs is not None else PARAMS if params is not None else latency_cost(table)
    limit = budget_ms if share is None else share * cost.of(before)
    recipe = _recipe(recipe_name, settings, data_root)
    data = recipe.data if recipe is not None else _data(checkpoint, data_root)
    _check_pictures(checkpoint, data)
    criterion = criterion or ("magnitude" if data is None else "taylor")
    return Asked(path, checkpoint, cost, limit, data, recipe, table, before, criterion, steps, picked_device(device))


def _check(
    budget: str | None, macs: float | None, params: float | None, analyze: bool, recipe: str | None,
    settings: tuple[str, ...], steps: int,
) -> None:  # fmt: skip
    """Raise UsageError for options that do not go together."""
    given = [option for option in (budget, macs, params) if option is not None]
    if analyze and (given or recipe is not None):
        raise UsageError("--analyze prunes nothing.", "Leave out the budget and the recipe.")
    if not analyze and len(given) != 1:
        what = "several budgets are given" if given else "a budget is needed"
        raise UsageError(f"{what}.", "Give one of --budget 0.8ms, --macs 0.5 and --params 0.5, or --analyze.")
    for option, share in (("--macs", macs), ("--params", params)):
        if share is not None and not 0 < share < 1:
            raise UsageError(f"{option} {share:g}: is no share of the network.", "Write one above 0 and below 1: 0.5.")
    if recipe is None and (settings or steps > 1):
        raise UsageError("--steps and --set are of fine-tuning.", "Name a recipe for it: --recipe emoji10.")


def _recipe(name: str | None, settings: tuple[str, ...], data_root: str | None) -> Recipe | None:
    """The recipe of the fine-tuning, with the data that it is to take."""
    if name is None:
        return None
    from vigcli.cli.load import data_changes
    from vigcli.config.recipe import load_recipe
    from vigcli.paths import find_file

    recipe = load_recipe(find_file("recipe", name), settings)
    if data_root is None:
        return recipe
    return recipe.changed(data_changes(data_root))


def _data(checkpoint: Checkpoint, data_root: str | None) -> Data | None:
    from vigcli.cli.load import data_of

    try:
        found: Data = data_of(checkpoint.meta, data_root)
    except UnavailableError as error:
        say(f"Accuracy is not measured: {error} {error.hint}")
        return None
    return found


def _check_pictures(checkpoint: Checkpoint, data: Data | None) -> None:
    """Complain of pictures of other classes before anything is computed."""
    if data is None:
        return
    from vigcli.train.data import check_classes, open_data

    for split in ("train", "val"):
        check_classes(open_data(data, split), checkpoint.meta.arch.num_classes, checkpoint.meta.labels)

"""What a recipe asks that only the built network and the length of the run can answer, said before the first step."""

from __future__ import annotations

from torch import nn

from vigcli.archs import build
from vigcli.config.load import join_path
from vigcli.config.recipe import Recipe
from vigcli.config.recipe_parts import module_name
from vigcli.errors import ConfigError, did_you_mean


def check(recipe: Recipe, total_steps: int) -> None:
    """Raise ConfigError where the recipe cannot be trained in so many steps; no weight is allocated."""
    warmup = recipe.schedule.warmup_steps or 0  # in epochs it is checked by the recipe itself
    if warmup >= total_steps:
        what = f"warm-up takes {warmup} steps, and the run has {total_steps}."
        raise ConfigError(what, "Shorten it with --set schedule.warmup_steps, or train for more epochs.")
    if recipe.freeze:
        _check_freeze(recipe)
    if recipe.multiscale:
        _check_multiscale(recipe)


def frozen_parts(recipe: Recipe, network: nn.Module) -> list[nn.Module]:
    """The modules that `freeze` names. Raises ConfigError for a part that the network does not have."""
    modules = dict(network.named_modules())
    for i, path in enumerate(recipe.freeze):
        if module_name(path) not in modules:
            known = [_path(name) for name in modules if 0 < len(name.split(".")) <= 1 + path.count("[")]
            raise ConfigError(
                f"freeze[{i}]: the network has no part '{path}'.", did_you_mean(path, filter(None, known))
            )
    return [modules[module_name(path)] for path in recipe.freeze]


def _path(name: str) -> str:
    """`stages[0]` for torch's `stages.0`."""
    return join_path(int(part) if part.isdigit() else part for part in name.split("."))


def _check_freeze(recipe: Recipe) -> None:
    network = build(recipe.arch_config(), device="meta")
    for part in frozen_parts(recipe, network):
        part.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError("freeze: nothing is left to learn.", "Leave the head out of it.")


def _check_multiscale(recipe: Recipe) -> None:
    """One set of weights must serve all resolutions: a table with a row for every token does not."""

    def shapes(resolution: int) -> dict[str, tuple[int, ...]]:
        network = build(recipe.arch_config(resolution), device="meta")
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    wanted = shapes(recipe.resolution)
    for resolution in recipe.multiscale:
        found = shapes(resolution)
        if changed := next((name for name in wanted if found.get(name) != wanted[name]), None):
            what = f"multiscale: {changed} of the network has another size at {resolution} px."
            raise ConfigError(what, "Its weights serve one resolution: set multiscale to [].")

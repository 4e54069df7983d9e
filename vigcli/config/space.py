"""Search spaces: configuration paths and their choices, checked when loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from vigcli.config.archs import ArchConfig, ArchName, TimmConfig, arch_config
from vigcli.config.load import Strict, get_path, parse_as, read_yaml, set_path
from vigcli.errors import ConfigError, UsageError

Choice = int | float | bool | str


class TrainedShapes(Strict):
    """Candidates keep to the range of these variants, widened on either side by the share `widen`."""

    variants: Annotated[tuple[ArchName, ...], Field(min_length=1)]
    widen: Annotated[float, Field(ge=0, le=1)] = 0.25


class SearchSpace(Strict):
    """Genes (configuration path -> choices) around a base network."""

    base: ArchName
    genes: Annotated[dict[str, Annotated[tuple[Choice, ...], Field(min_length=1)]], Field(min_length=1)]
    trained_shapes: TrainedShapes | None = None

    @property
    def size(self) -> int:
        """The number of networks, shape rules aside."""
        return math.prod(len(choices) for choices in self.genes.values())

    def config(self, base: ArchConfig, candidate: Sequence[int]) -> ArchConfig:
        """The configuration that a candidate (an index into every gene's choices) stands for."""
        values = {path: choices[i] for (path, choices), i in zip(self.genes.items(), candidate, strict=True)}
        return base.changed(values)

    def nearest_choice(self, data: Any, path: str) -> int:
        """The index of a gene's choice that is nearest to the value that plain data has there."""
        value, choices = get_path(data, path), self.genes[path]
        if value in choices:
            return choices.index(value)
        numbers = [c for c in choices if isinstance(c, int | float)]
        return choices.index(min(numbers, key=lambda c: abs(c - value))) if len(numbers) == len(choices) else 0

    def sound_at(self, base: ArchConfig) -> SearchSpace:
        """The space without the choices that the base's resolution does not bear, such as a reach that links nothing.

        Raises ConfigError when a gene has no choice left.
        """
        genes = {path: tuple(c for c in choices if _is_sound(base, path, c)) for path, choices in self.genes.items()}
        for path, choices in genes.items():
            if not choices:
                raise ConfigError(
                    f"{path}: no choice of the space is sound at {base.resolution} px.",
                    "Choose another resolution, or add choices to the space.",
                )
        return self.model_copy(update={"genes": genes})


def _is_sound(base: ArchConfig, path: str, choice: Choice) -> bool:
    """Whether one choice can be built with the graph blocks that its stage may have."""
    try:
        base.changed({path: choice})
        return True
    except ConfigError:
        return False


def load_space(path: Path | str) -> SearchSpace:
    """A search-space file, every path and value checked against its base. Raises ConfigError with file:line."""
    data, lines = read_yaml(path)
    if data is None:
        raise ConfigError(f"{path}: is empty.", "`vig cp` gives a file to start from.")
    space = parse_as(SearchSpace, data, str(path), lines)
    base = arch_config(space.base)
    if isinstance(base, TimmConfig):
        hint = "`vig ls archs` lists the networks that can be searched around."
        raise ConfigError(f"{path}:{lines[('base',)]}: base: a network of timm has no parts to choose.", hint)
    plain = base.model_dump(mode="json")
    for gene, choices in space.genes.items():
        where = f"{path}:{lines[('genes', gene)]}: genes"
        try:
            get_path(plain, gene)
        except (ConfigError, UsageError) as error:
            raise ConfigError(f"{where}: {error}", error.hint) from None
        if len(set(choices)) != len(choices):
            raise ConfigError(f"{where}: {gene}: a choice stands twice.", "Keep one of the two.")
        for choice in choices:
            changed = base.model_dump(mode="json")
            set_path(changed, gene, choice)
            try:
                parse_as(type(base), changed)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}", error.hint) from None
    for variant in space.trained_shapes.variants if space.trained_shapes else ():
        if type(arch_config(variant)) is not type(base):
            what = f"trained_shapes: {variant} is of another family than {space.base}."
            raise ConfigError(f"{path}:{lines[('trained_shapes',)]}: {what}", "Leave it out.")
    return space


def encode(space: SearchSpace, base: ArchConfig, config: ArchConfig) -> tuple[int, ...] | None:
    """A configuration as a candidate (an index into every gene's choices), or None when it is not in the space."""
    if type(config) is not type(base):
        return None
    data = config.model_dump(mode="json")
    values = [get_path(data, path) for path in space.genes]
    if any(value not in choices for value, choices in zip(values, space.genes.values(), strict=True)):
        return None
    candidate = tuple(choices.index(v) for v, choices in zip(values, space.genes.values(), strict=True))
    return candidate if space.config(base, candidate) == config else None

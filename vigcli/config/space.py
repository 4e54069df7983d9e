"""Search spaces: configuration paths and their choices, checked when loaded."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from vigcli.config.archs import VARIANTS, ArchConfig, ArchName, TimmConfig, arch_config
from vigcli.config.load import Location, Strict, get_path, parse_as, read_yaml, set_path
from vigcli.errors import ConfigError, UsageError
from vigcli.paths import builtin_names, find_builtin, find_file

Choice = int | float | bool | str
SAMPLES = 200  # networks that are tried before a space is said to have none


class TrainedShapes(Strict):
    """Candidates keep to the range of these variants, widened on either side by the share `widen`."""

    variants: Annotated[tuple[ArchName, ...], Field(min_length=1)]
    widen: Annotated[float, Field(ge=0, le=1)] = 0.25


class SearchSpace(Strict):
    """Genes (configuration path -> choices) around a base network."""

    name: str = ""
    """Of the file, where it is not given."""
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


class MixedSpace(Strict):
    """Several spaces, of any families, that are searched one after another."""

    spaces: Annotated[tuple[str, ...], Field(min_length=1)]
    """Built-in names, or paths from where the file is."""


def load_spaces(path: Path | str) -> tuple[SearchSpace, ...]:
    """The members of a mixed space, or a plain one alone; see `load_space`. Raises ConfigError with file:line."""
    data, places = read_yaml(path)
    if not is_mixed(data):
        return (_checked(path, data, places),)
    members = parse_as(MixedSpace, data, str(path), places).spaces
    found: dict[str, SearchSpace] = {}
    for i, member in enumerate(members):
        where = f"{places[('spaces', i)]}: spaces[{i}]"
        try:
            file = find_builtin("space", member) or find_file("space", str(Path(path).parent / member))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}", error.hint) from None
        held, held_places = read_yaml(file)
        if is_mixed(held):
            raise ConfigError(f"{where}: {member} is mixed itself.", "List its members instead.")
        space = _checked(file, held, held_places)
        if space.name in found:
            raise ConfigError(f"{where}: a space '{space.name}' stands twice.", "Keep one, or give it another name.")
        found[space.name] = space
    return tuple(found.values())


def load_space(path: Path | str) -> SearchSpace:
    """A plain search-space file, every path and value checked against its base. Raises ConfigError with file:line."""
    data, places = read_yaml(path)
    if is_mixed(data):
        raise ConfigError(f"{places[('spaces',)]}: mixes spaces, and one is wanted.", "Name one of its members.")
    return _checked(path, data, places)


def named_spaces(names: Iterable[str] = ()) -> tuple[SearchSpace, ...]:
    """The spaces of several names or files, members of mixed ones among them, each once; all built-in ones of none."""
    files = [find_file("space", name) for name in tuple(names) or builtin_names("space")]
    found: list[SearchSpace] = []
    for file in files:
        found += [space for space in load_spaces(file) if space not in found]
    return tuple(found)


def space_for(config: ArchConfig) -> SearchSpace:
    """The built-in space of a configuration's family, to search around it: its own values are among the choices.

    The space's `base` is still a name: give `config` itself where a base is asked for.

    Raises ConfigError for a family without a built-in space.
    """
    for space in named_spaces():
        if type(arch_config(space.base)) is type(config):
            data = config.model_dump(mode="json")
            genes = {path: _with(choices, get_path(data, path)) for path, choices in space.genes.items()}
            return space.model_copy(update={"genes": genes})
    known = ", ".join(sorted({arch_config(space.base).family for space in named_spaces()}))
    raise ConfigError(
        f"no built-in space is of the family {config.family}.", f"Write one: `vig cp mobilevigv2`. There are {known}."
    )


def _with(choices: tuple[Choice, ...], value: Choice) -> tuple[Choice, ...]:
    if value in choices:
        return choices
    joined = (*choices, value)
    numbers = all(isinstance(choice, int | float) for choice in joined)
    return tuple(sorted(joined)) if numbers else joined


def variants_inside(space: SearchSpace) -> tuple[str, ...]:
    """The published networks of the space."""
    base = arch_config(space.base)
    return tuple(name for name, config in VARIANTS.items() if encode(space, base, config) is not None)


def is_mixed(data: Any) -> bool:
    """Whether what a file holds means to be a mixed space."""
    return isinstance(data, dict) and "spaces" in data


def _checked(path: Path | str, data: Any, places: Mapping[Location, str]) -> SearchSpace:
    space = parse_as(SearchSpace, data, str(path), places)
    if not space.name:
        space = space.model_copy(update={"name": Path(path).stem})
    base = arch_config(space.base)
    if isinstance(base, TimmConfig):
        hint = "`vig ls archs` lists the networks that can be searched around."
        raise ConfigError(f"{places[('base',)]}: base: a network of timm has no parts to choose.", hint)
    plain = base.model_dump(mode="json")
    for gene, choices in space.genes.items():
        where = f"{places[('genes', gene)]}: genes"
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
            raise ConfigError(f"{places[('trained_shapes',)]}: {what}", "Leave it out.")
    try:
        sample(space, base, random.Random(0).randrange)
    except ConfigError as error:
        raise ConfigError(f"{places[('genes',)]}: genes: {error}", error.hint) from None
    return space


def sample(space: SearchSpace, base: ArchConfig, draw: Callable[[int], int]) -> ArchConfig:
    """A random network of the space: choices that do not go together are drawn again.

    Args:
        draw: of n, one of 0 to n - 1 by chance.

    Raises ConfigError where `SAMPLES` networks gave none.
    """
    for _ in range(SAMPLES):
        try:
            return space.config(base, [draw(len(choices)) for choices in space.genes.values()])
        except ConfigError as error:
            last = error
    raise ConfigError(f"no network of the space can be built: {last}", last.hint)


def encode(space: SearchSpace, base: ArchConfig, config: ArchConfig) -> tuple[int, ...] | None:
    """A configuration as a candidate (an index into every gene's choices), or None when it is not in the space."""
    if type(config) is not type(base):
        return None
    data = config.model_dump(mode="json")
    values = [get_path(data, path) for path in space.genes]
    if any(value not in choices for value, choices in zip(values, space.genes.values(), strict=True)):
        return None
    candidate = tuple(choices.index(v) for v, choices in zip(values, space.genes.values(), strict=True))
    return candidate if space.config(base, candidate).is_network(config) else None

"""Architectures as frozen plain data: one configuration class a family, and the named variants of the papers.

A configuration lists its blocks (`segments`), each with a signature that latency tables key their rows by; how a
block computes is the matter of `vigcli.archs` and `vigcli.nn`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from vigcli.config.archs import clustervig, greedyvig, mobilevig, mobilevit, vig
from vigcli.config.archs.base import Ablation, ArchConfig, BlockSpec, CountedWith, Published, StageShape
from vigcli.config.archs.clustervig import ClusterViGConfig
from vigcli.config.archs.greedyvig import GreedyViGConfig
from vigcli.config.archs.mobilevig import MobileViGConfig, MobileViGv2Config
from vigcli.config.archs.mobilevit import MobileViTConfig, MobileViTv2Config, MobileViTv3Config
from vigcli.config.archs.vig import PyramidViGConfig, ViGConfig
from vigcli.config.load import parse_as
from vigcli.errors import ConfigError, did_you_mean

__all__ = [
    "ABLATIONS", "COUNTED_WITH", "PUBLISHED", "UNEXPLAINED", "VARIANTS", "Ablation", "AnyArch", "ArchConfig",
    "ArchName", "BlockSpec", "CountedWith", "Published", "StageShape",
]  # fmt: skip


class TimmConfig(ArchConfig):
    """A network of timm by its name, for comparison: `timm:fastvit_t8`."""

    stride: ClassVar[int] = 1  # timm's own to judge

    family: Literal["timm"] = "timm"
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.]+$", max_length=100)]
    """As `timm.list_models()` has it."""

    def layout(self) -> tuple[tuple[BlockSpec, ...], ...]:
        raise NotImplementedError("a timm network is traced whole")


AnyArch = Annotated[
    MobileViGConfig
    | MobileViGv2Config
    | GreedyViGConfig
    | ViGConfig
    | PyramidViGConfig
    | ClusterViGConfig
    | MobileViTConfig
    | MobileViTv2Config
    | MobileViTv3Config
    | TimmConfig,
    Field(discriminator="family"),
]

VARIANTS: dict[str, AnyArch] = {
    **mobilevig.VARIANTS,
    **greedyvig.VARIANTS,
    **vig.VARIANTS,
    **clustervig.VARIANTS,
    **mobilevit.VARIANTS,
}
PUBLISHED: dict[str, Published] = {
    **mobilevig.PUBLISHED,
    **greedyvig.PUBLISHED,
    **vig.PUBLISHED,
    **clustervig.PUBLISHED,
    **mobilevit.PUBLISHED,
}
COUNTED_WITH: dict[str, CountedWith] = {
    **mobilevig.COUNTED_WITH,
    **greedyvig.COUNTED_WITH,
    **vig.COUNTED_WITH,
    **clustervig.COUNTED_WITH,
    **mobilevit.COUNTED_WITH,
}
ABLATIONS = (*mobilevig.ABLATIONS, *mobilevit.ABLATIONS)
UNEXPLAINED: dict[str, str] = {**vig.UNEXPLAINED, **clustervig.UNEXPLAINED, **mobilevit.UNEXPLAINED}
"""Published figures that no counter gives, and what is known of them."""


def arch_config(name: str) -> AnyArch:
    """The configuration that a name means: a variant of the papers, or `timm:NAME`.

    Raises ConfigError with the nearest known name.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    if name.startswith("timm:"):
        return parse_as(TimmConfig, {"name": name.removeprefix("timm:")}, name)
    return _unknown(name)


def _unknown(name: str) -> AnyArch:
    family = [variant for variant, config in VARIANTS.items() if name.startswith(f"{config.family}_")]
    hint = did_you_mean(name, family or VARIANTS) or "`vig ls archs` lists them."
    raise ConfigError(f"'{name}' is no known network.", hint)


def _known(name: str) -> str:
    try:
        arch_config(name)
    except ConfigError as error:
        raise ValueError(f"{error}\n{error.hint}") from None
    return name


ArchName = Annotated[str, AfterValidator(_known)]
"""A name that `arch_config` knows."""


def variant_name(config: ArchConfig) -> str | None:
    """The published variant that a configuration is, whatever its resolution, classes and dropout."""
    for name, variant in VARIANTS.items():
        same = {"resolution": variant.resolution, "num_classes": variant.num_classes, "in_chans": variant.in_chans}
        if type(config) is type(variant) and variant.is_network(config.model_copy(update=same)):
            return name
    return None

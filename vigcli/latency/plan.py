"""What is to be measured on a device, as plain data: packages, and the pairs of them that give a block's milliseconds.

`vigcli.coreml.chains` makes it of a search space and writes the packages.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from vigcli.config.archs import BlockSpec
from vigcli.config.load import Strict
from vigcli.latency.interpolate import Features
from vigcli.latency.protocol import Protocol

Shape = tuple[int, int, int]


class Package(Strict):
    """A package of the plan.

    Attributes:
        kind, options: of the block, as in `BlockSpec`; of a partner alone they do not matter, and stand empty.
        copies: of the block; 0 is the partner alone.
        partner: whether the partner stands before the copies.
        sha256: of the package as written; empty before.
    """

    kind: str
    in_shape: Shape
    options: tuple[tuple[str, Any], ...]
    copies: Annotated[int, Field(ge=0, le=64)]
    partner: bool
    sha256: str = ""

    @property
    def spec(self) -> BlockSpec:
        return BlockSpec(self.kind, self.in_shape, self.options)


class Block(Strict):
    """A block of the plan: the packages, by file name, that its milliseconds are the difference of."""

    few: str
    many: str
    features: Features


class Plan(Strict):
    """What is measured, and how. Written as `plan.json` beside the packages.

    Attributes:
        family: of the space's base, whose blocks these are.
        every: every so many-th block of the space is here.
        tools: versions of what converted the packages.
        blocks: by signature; packages: by file name.
    """

    format: Literal[1] = 1
    base: str
    family: str
    every: Annotated[int, Field(ge=1)]
    precision: Literal["fp16", "fp32"]
    minimum_ios: Literal[16] = 16
    protocol: Protocol
    tools: dict[str, str]
    packages: dict[Annotated[str, Field(pattern=r"^[\w-]+\.mlpackage$")], Package]
    blocks: Annotated[dict[str, Block], Field(min_length=1)]

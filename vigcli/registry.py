"""What can be named: literal tables `name -> "module:attribute"`, listed without importing torch, resolved on use."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple


class Family(NamedTuple):
    """Where a family's parts are."""

    config: str  # the frozen configuration, plain data
    network: str  # the nn.Module that it builds
    block: str  # a BlockSpec -> the nn.Module of that block
    official: str  # a configuration -> the authors' parameter names and ours


FAMILIES = {
    "mobilevigv2": Family(
        "vigcli.config.archs:MobileViGv2Config",
        "vigcli.archs.mobilevigv2:MobileViGv2",
        "vigcli.archs.mobilevigv2:build_block",
        "vigcli.archs.mobilevigv2:official_prefixes",
    ),
}


def resolve(reference: str) -> Any:
    """The object that `module:attribute` names."""
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)

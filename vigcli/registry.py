"""What can be named: literal tables `name -> "module:attribute"`, listed without importing torch, resolved on use."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple


class Family(NamedTuple):
    """Where a family's parts are."""

    config: str  # the frozen configuration, plain data
    blocks: str  # the kinds of its blocks -> the nn.Module of each
    initialize: str  # gives a module its first weights
    official: str  # a configuration -> published parameter names and ours, one mapping for each publisher


def _family(config: str, module: str) -> Family:
    return Family(config, *(f"{module}:{name}" for name in ("BLOCKS", "initialize", "official_names")))


FAMILIES = {
    "mobilevig": _family("vigcli.config.archs:MobileViGConfig", "vigcli.archs.mobilevig"),
    "mobilevigv2": _family("vigcli.config.archs:MobileViGv2Config", "vigcli.archs.mobilevigv2"),
    "greedyvig": _family("vigcli.config.archs:GreedyViGConfig", "vigcli.archs.greedyvig"),
    "vig": _family("vigcli.config.archs:ViGConfig", "vigcli.archs.vig"),
    "pvig": _family("vigcli.config.archs:PyramidViGConfig", "vigcli.archs.pvig"),
    "clustervig": _family("vigcli.config.archs:ClusterViGConfig", "vigcli.archs.clustervig"),
    "mobilevit": _family("vigcli.config.archs:MobileViTConfig", "vigcli.archs.mobilevit"),
    "mobilevitv2": _family("vigcli.config.archs:MobileViTv2Config", "vigcli.archs.mobilevit"),
    "mobilevitv3": _family("vigcli.config.archs:MobileViTv3Config", "vigcli.archs.mobilevit"),
}

PROXIES = {  # training-free scores: (network in training form, batches of random pictures and classes) -> number
    "zico": "vigcli.search.proxies:zico",
    "naswot": "vigcli.search.proxies:naswot",
}


def resolve(reference: str) -> Any:
    """The object that `module:attribute` names."""
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)

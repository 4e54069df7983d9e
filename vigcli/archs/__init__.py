"""Networks: a configuration in, a plain `nn.Module` out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vigcli.archs.network import Features, Network, block_module
from vigcli.config.archs import AnyArch, ArchConfig, BlockSpec, TimmConfig, arch_config
from vigcli.nn.widths import shrink
from vigcli.registry import FAMILIES, resolve

if TYPE_CHECKING:
    from vigcli.archs.external import TimmFeatures


def build(
    arch: str | ArchConfig,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
    features_only: bool = False,
) -> nn.Module:
    """A network by name (`mobilevigv2_s`, `timm:fastvit_t8`) or configuration, with weights drawn from `seed`.

    Gives (B, num_classes) logits in evaluation, or with `features_only` what `backbone` gives. `overrides` maps
    configuration paths to values; on the device "meta" no weight is allocated. Raises ConfigError for an unknown name
    or an unsound configuration.
    """
    config = resolved(arch, overrides)
    network = _build(config, seed, device)
    return backbone(config, network) if features_only else network


def _build(config: ArchConfig, seed: int, device: str) -> nn.Module:
    if isinstance(config, TimmConfig):
        from vigcli.archs.external import build_timm

        model = build_timm(config.name, config.num_classes, config.resolution, config.in_chans, device)
        shrink(model, config.pruned)
        return model
    resolve(FAMILIES[config.family].blocks)  # before the device is set: imports must not run under it
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return Network(config)


def backbone(config: ArchConfig, network: nn.Module) -> Features | TimmFeatures:
    """A network of that configuration without its head: images in, the list of feature maps out, finest first.

    One map at each stride from 4 on, the last of that stride; isotropic networks have one alone. The modules are the
    network's own; in its training or its inference form. Raises ConfigError for a network of timm without feature maps.
    """
    if isinstance(config, TimmConfig):
        from vigcli.archs.external import TimmFeatures

        return TimmFeatures(network, config.name)
    assert isinstance(network, Network)
    return Features(network)


def resolved(arch: str | ArchConfig, overrides: Mapping[str, Any] | None = None) -> AnyArch:
    """The configuration that a name or configuration means once `overrides` are applied.

    A network of timm that is named has the resolution that timm runs it at.
    """
    config = arch_config(arch) if isinstance(arch, str) else arch
    if isinstance(arch, str) and isinstance(config, TimmConfig):
        from vigcli.archs.external import native_resolution

        overrides = {"resolution": native_resolution(config.name)} | dict(overrides or {})
    return config.changed(overrides) if overrides else config  # type: ignore[return-value]


def build_block(family: str, spec: BlockSpec, device: str = "cpu") -> nn.Module:
    """One block of a family by itself."""
    resolve(FAMILIES[family].blocks)
    with torch.device(device):
        return block_module(family, spec)


def inference_form(config: ArchConfig, model: nn.Module) -> nn.Module:
    """The form that is counted, timed and exported, as an equal copy: deployed, or timm's own re-parameterization."""
    if isinstance(config, TimmConfig):
        from vigcli.archs.external import reparameterize

        return reparameterize(model)
    from vigcli.nn.deploy import deploy

    return deploy(model)

"""The authors' checkpoints: read under their names they give the authors' logits; others are refused by name."""

from __future__ import annotations

import golden
import pytest
import timm
import torch
from torch import Tensor, nn

from vigcli.archs import build
from vigcli.archs.official import load_official
from vigcli.config.archs import VARIANTS
from vigcli.errors import ConfigError

TIMM = {f"timm:{name}" for name in timm.list_models()}


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    return golden.weights(golden.read("mobilevigv2_ti")["keys"])


@pytest.fixture
def model() -> nn.Module:
    return build("mobilevigv2_ti", device="meta").to_empty(device="cpu").double()


@pytest.mark.parametrize("name", golden.NAMES)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_logits_are_the_authors(name: str, prefix: str) -> None:
    reference = golden.read(name)
    model = build(name, {"resolution": reference["resolution"]}).double().eval()
    load_official(model, {prefix + key: value for key, value in golden.weights(reference["keys"]).items()})
    with torch.no_grad():
        logits = model(golden.images(reference["resolution"]))[0]
    expected = torch.tensor(reference["logits"], dtype=torch.float64)
    assert (logits - expected).abs().max() <= 1e-6 * expected.abs().max()


def refused(model: nn.Module, weights: dict[str, Tensor], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        load_official(model, weights)
    assert "another variant" in caught.value.hint


def test_a_missing_key_is_named(model: nn.Module, official: dict[str, Tensor]) -> None:
    without = {key: value for key, value in official.items() if key != "dist_head.weight"}
    refused(model, without, r"head\.3\.fc_dist\.weight: the checkpoint lacks this weight")


def test_a_key_too_many_is_named(model: nn.Module, official: dict[str, Tensor]) -> None:
    refused(
        model, official | {"backbone.9.0.conv.weight": torch.zeros(1)}, r"backbone\.9\.0\.conv\.weight: the network"
    )
    refused(model, official | {"stem": torch.zeros(1)}, "stem: the network has no such weight")


def test_a_wrong_shape_is_named(model: nn.Module, official: dict[str, Tensor]) -> None:
    for shape in ((16, 3, 5, 5), (3, 16, 3, 3), (432,)):
        refused(model, official | {"stem.stem.0.weight": torch.zeros(shape)}, r"stem\.stem\.0\.weight: shape")


def test_another_variants_checkpoint_is_refused(official: dict[str, Tensor]) -> None:
    refused(build("mobilevigv2_m", device="meta"), official, ": ")


@pytest.mark.parametrize("name", [name for name in VARIANTS if f"timm:{name}" in TIMM])
def test_the_logits_are_those_of_timms_network(name: str) -> None:
    """The same networks published under other names: an opponent at every size, with the very same weights."""
    theirs = build(f"timm:{name}").double().eval()
    weights = golden.weights([(key, list(value.shape)) for key, value in theirs.state_dict().items()])
    theirs.load_state_dict(weights)
    model = build(name).double().eval()
    load_official(model, weights)
    x = golden.images(VARIANTS[name].resolution)
    with torch.no_grad():
        logits, expected = model(x), theirs(x)
    assert (logits - expected).abs().max() <= 1e-12 * expected.abs().max()

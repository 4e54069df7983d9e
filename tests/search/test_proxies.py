"""Training-free scores: closed forms, what may not change them, and that they work for every family."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigcli.archs import build
from vigcli.config.archs import PUBLISHED, VARIANTS, ArchConfig
from vigcli.errors import ConfigError, UsageError, VigError
from vigcli.nn.blocks import DropPath
from vigcli.registry import FAMILIES, PROXIES
from vigcli.search import proxies
from vigcli.search.proxies import LIMITS, naswot, note, proxy_scores, quiet, random_batches, tie_order, zico

Batch = tuple[Tensor, Tensor]


def batches(count: int = 3, shape: tuple[int, ...] = (5, 3), classes: int = 2, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    draw = [
        (torch.randn(shape, generator=generator), torch.randint(classes, shape[:1], generator=generator))
        for _ in range(count)
    ]
    return [(x.double(), target) for x, target in draw]


def small(family: str) -> ArchConfig:
    """The smallest variant of a family at the smallest resolution that it bears."""
    own = [name for name, config in VARIANTS.items() if config.family == family]
    name = min(own, key=lambda name: PUBLISHED[name].params_m)
    for resolution in (64, 96, 160):
        try:
            return VARIANTS[name].changed({"resolution": resolution, "num_classes": 10})
        except ConfigError:
            continue
    raise AssertionError(family)


# ---------------------------------------------------------------------------------------------------- ZiCo


def by_hand(first: np.ndarray, second: np.ndarray, data: list[Batch]) -> float:
    """ZiCo of logits = second @ first @ x, the gradients written out."""
    gradients: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for x, target in ((x.numpy(), target.numpy()) for x, target in data):
        logits = x @ first.T @ second.T
        share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        error = (share - np.eye(len(second))[target]) / len(x)
        gradients[0].append(second.T @ error.T @ x)
        gradients[1].append(error.T @ x @ first.T)
    total = 0.0
    for of_layer in gradients:
        stacked = np.stack(of_layer)
        total += math.log((np.abs(stacked).mean(0) / np.sqrt(stacked.var(0))).sum())
    return total


def test_zico_of_two_linear_layers_is_the_closed_form() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    first, second = (layer.weight.detach().numpy() for layer in model if isinstance(layer, nn.Linear))
    assert zico(model, batches()) == pytest.approx(by_hand(first, second, batches()), rel=1e-12)


def test_zico_counts_weights_of_layers_alone() -> None:
    """Biases, norms, frozen weights and layers that nothing reaches give nothing."""
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    expected = zico(bare, batches())
    bare.append(nn.Linear(2, 2, bias=False).double())
    with torch.no_grad():
        bare[3].weight.copy_(torch.eye(2))
    bare[3].requires_grad_(False)
    bare[1].register_module("unused", nn.Linear(7, 7).double())
    assert zico(bare, batches()) == pytest.approx(expected, rel=1e-12)


def test_zico_asks_neither_order_nor_scale_of_the_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).double()
    data = batches()
    expected = zico(model, data)
    assert zico(model, data[::-1]) == pytest.approx(expected, rel=1e-12)
    assert zico(model, [(x.flip(0), target.flip(0)) for x, target in data]) == pytest.approx(expected, rel=1e-9)

    class Heads(nn.Module):
        """Two that agree: their mean loss is the loss of one."""

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return model(x), model(x)

    two = Heads()
    two.inner = model
    assert zico(two, data) == pytest.approx(expected, rel=1e-9)
    assert zico(model, data[:1] * 3) == 0  # a gradient that never varies


def test_zico_refuses_gradients_that_are_no_numbers() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).double()
    broken = [(x * math.nan, target) for x, target in batches()]
    with pytest.raises(VigError, match="not finite"):
        zico(model, broken)


# ---------------------------------------------------------------------------------------------------- NASWOT


class Functional(nn.Module):
    """An activation that no module tells of, one in place, and a sigmoid, which has no switch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 60), nn.Linear(60, 50), nn.Linear(50, 40)
        self.act = nn.ReLU(inplace=True)

    def inputs(self, x: Tensor) -> list[Tensor]:
        a = self.first(x)
        b = self.second(F.gelu(a))
        return [a, b, self.third(F.relu(b)) * torch.sigmoid(x.sum())]

    def forward(self, x: Tensor) -> Tensor:
        x_sum = x.sum()
        return F.silu(self.third(self.act(self.second(F.gelu(self.first(x))))) * torch.sigmoid(x_sum))


def test_naswot_is_the_naive_kernel() -> None:
    torch.manual_seed(0)
    model = Functional().double()
    data = batches(1, (6, 3))
    codes = (torch.cat(model.inputs(data[0][0]), 1) > 0).tolist()
    kernel = np.array([[sum(a == b for a, b in zip(one, other, strict=True)) for other in codes] for one in codes])
    expected = math.log(abs(np.linalg.det(kernel.astype(float))))
    assert naswot(model, data) == pytest.approx(expected, rel=1e-9)


def test_naswot_asks_neither_order_nor_scale() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.SiLU(), nn.Conv2d(4, 4, 3, bias=False), nn.ReLU()).double()
    data = batches(1, (4, 3, 8, 8))
    expected = naswot(model, data)
    assert naswot(model, [(data[0][0].flip(0), data[0][1])]) == pytest.approx(expected, rel=1e-9)
    with torch.no_grad():
        model[2].weight.mul_(3.0)
    assert naswot(model, data) == pytest.approx(expected, rel=1e-12)
    assert naswot(model, [(data[0][0][[0, 1, 1]], data[0][1])]) == -math.inf


def test_wide_layers_are_added_without_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double()
    data = batches(1, (4, 3, 8, 8))
    whole = naswot(model, data)
    monkeypatch.setattr(proxies, "_EXACT_COLUMNS", 7)
    assert naswot(model, data) == whole


# ---------------------------------------------------------------------------------------------------- networks


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "BATCH_SIZE", 2)
    monkeypatch.setattr(proxies, "NUM_BATCHES", 2)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_scores(family: str) -> None:
    """Finite, the same again from other global random states, which they leave alone, and others from other seeds."""
    config = small(family)
    for name in PROXIES:
        torch.manual_seed(1)
        before = torch.get_rng_state()
        (first,) = proxy_scores(name, [config], 0)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert math.isfinite(first)
        assert proxy_scores(name, [config], 0) == [first]
    assert proxy_scores("naswot", [config], 1) != [first]


def test_dropout_is_off_and_batch_norm_on() -> None:
    model = quiet(build("mobilevit_xxs", {"resolution": 64, "dropout": 0.1}))
    kinds = {type(module): module.training for module in model.modules()}
    assert kinds[nn.BatchNorm2d]
    assert not kinds[nn.Dropout]
    drops = [m for m in quiet(build("mobilevigv2_ti")).modules() if isinstance(m, DropPath)]
    assert drops
    assert not any(m.training for m in drops)


@pytest.mark.usefixtures("few")
def test_progress_and_unknown_names() -> None:
    seen: list[tuple[str, int, int]] = []
    config = small("mobilevit")
    scores = proxy_scores("naswot", [config, config], 0, lambda *step: seen.append(step))
    assert scores[0] == scores[1]
    assert seen == [("naswot", 0, 2), ("naswot", 1, 2), ("naswot", 2, 2)]
    with pytest.raises(UsageError, match="zicko") as unknown:
        proxy_scores("zicko", [], 0)
    assert "zico" in unknown.value.hint


def test_every_proxy_has_its_limit_printed() -> None:
    assert set(LIMITS) == set(PROXIES)
    assert "0.44" in note("zico", 16, 32.0)
    assert "32 s for 16 networks (2.0 s each" in note("zico", 16, 32.0)
    assert "does not help" in note("naswot", 0, 0.0)


def test_random_batches_are_those_of_the_seed() -> None:
    config = small("mobilevit")
    (x, target), *_ = random_batches(config, 3)
    assert x.shape == (proxies.BATCH_SIZE, 3, 64, 64)
    assert torch.equal(random_batches(config, 3)[0][0], x)
    assert not torch.equal(random_batches(config, 4)[0][0], x)
    assert target.max() < config.num_classes


@pytest.mark.parametrize(
    ("top1", "proxy", "expected"),
    [
        ([80.0, 79.8, 79.0], [1, 2, 9], [1, 0, 2]),
        ([80.0, 79.4, 79.0], [1, 2, 9], [0, 2, 1]),
        ([79.0, 80.0], [5, 1], [1, 0]),
        ([80.0, 80.0, 80.0], [1, 1, 2], [2, 0, 1]),
        ([], [], []),
    ],
)
def test_a_proxy_orders_ties_alone(top1: list[float], proxy: list[float], expected: list[int]) -> None:
    assert tie_order(top1, proxy, 0.5) == expected

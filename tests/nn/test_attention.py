"""Transformer blocks against the formulas of the papers, token by token, and timm's own layers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigcli.nn.attention import MobileViTBlock, MultiHeadAttention, SeparableAttention
from vigcli.nn.deploy import deploy


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomized(module: nn.Module) -> nn.Module:
    """Float64 weights and statistics that make every part count."""
    module = module.double().eval()
    for i, (key, value) in enumerate(module.state_dict().items()):
        if value.is_floating_point():
            value.copy_(
                drawn(*value.shape, seed=i).abs() + 0.5
                if key.endswith("running_var")
                else drawn(*value.shape, seed=i) / 3
            )
    return module


def block(
    attention: str = "multi_head", grid: tuple[int, int] = (6, 6), patch: int = 2, **options: object
) -> MobileViTBlock:
    settings = {
        "ffn_expansion": 2, "local_conv": "dense", "fusion": "input", "fusion_kernel": 3, "residual": False,
        "num_heads": 2, "width": 8, "depth": 2,
    }  # fmt: skip
    return MobileViTBlock((6, *grid), attention=attention, patch=patch, **(settings | options))  # type: ignore[arg-type]


def test_multi_head_attention_is_the_formula() -> None:
    """Attention Is All You Need, Eq. 1, one head, one query at a time."""
    layer, x = randomized(MultiHeadAttention(6, 2)), drawn(2, 5, 6)
    assert isinstance(layer, MultiHeadAttention)
    qkv = (x @ layer.qkv.weight.T + layer.qkv.bias).detach().numpy()
    expected = np.zeros((2, 5, 6))
    for b, head, i in itertools.product(range(2), range(2), range(5)):
        q, k, v = (qkv[b, :, part * 6 + head * 3 : part * 6 + head * 3 + 3] for part in range(3))
        weights = np.exp([q[i] @ k[j] / math.sqrt(3) for j in range(5)])
        expected[b, i, head * 3 : head * 3 + 3] = sum(w * v[j] for j, w in enumerate(weights / weights.sum()))
    out = torch.from_numpy(expected) @ layer.proj.weight.T + layer.proj.bias
    assert (layer(x) - out).abs().max() <= 1e-13
    assert (deploy(nn.Sequential(layer))(x) - out).abs().max() <= 1e-13


def test_separable_attention_is_the_formula() -> None:
    """MobileViTv2 Eq. 2: scores over the tokens, one context vector, gated by the values; each place by itself."""
    layer, x = randomized(SeparableAttention(4)), drawn(1, 4, 5, 3)
    assert isinstance(layer, SeparableAttention)
    for place in range(3):
        tokens = x[0, :, :, place].T  # (N, C)
        projected = tokens @ layer.qkv.weight.flatten(1).T + layer.qkv.bias
        scores, keys, values = projected[:, :1].softmax(0), projected[:, 1:5], projected[:, 5:]
        mixed = F.relu(values) * (scores * keys).sum(0)
        out = mixed @ layer.proj.weight.flatten(1).T + layer.proj.bias
        assert (layer(x)[0, :, :, place].T - out).abs().max() <= 1e-13


@pytest.mark.parametrize("patch", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", [(12, 12), (12, 24)])
def test_unfolding_puts_a_place_of_every_patch_together(patch: int, grid: tuple[int, int]) -> None:
    module, x = block(grid=grid, patch=patch), drawn(2, 3, *grid)
    patches = module._unfold(x)
    assert patches.shape == (2, 3, grid[0] * grid[1] // patch**2, patch**2)
    for n, p in ((0, 0), (1, patch**2 - 1), (patches.shape[2] - 1, patch - 1)):
        row, column = divmod(n, grid[1] // patch)
        down, right = divmod(p, patch)
        assert torch.equal(patches[:, :, n, p], x[:, :, row * patch + down, column * patch + right])
    assert torch.equal(module._fold(patches), x)


@pytest.mark.parametrize("patch", [4, 5])
@pytest.mark.parametrize("attention", ["multi_head", "separable"])
def test_a_patch_that_does_not_fit_has_the_map_resized(attention: str, patch: int) -> None:
    """MobileViT Table 6: bilinear, to the next multiple of the patch and back."""
    module, x = randomized(block(attention, patch=patch)), drawn(2, 6, 6, 6)
    assert isinstance(module, MobileViTBlock)
    larger = -(-6 // patch) * patch
    local = module.local(x)
    resized = F.interpolate(local, (larger, larger), mode="bilinear", align_corners=False)
    assert torch.equal(module._unfold(local), block(attention, (larger, larger), patch)._unfold(resized))
    assert module(x).shape == x.shape


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("fusion", ["input", "local", "none"])
@pytest.mark.parametrize("local_conv", ["dense", "depthwise"])
@pytest.mark.parametrize("attention", ["multi_head", "separable"])
def test_every_form_of_the_block_learns_and_deploys(
    attention: str, local_conv: str, fusion: str, residual: bool
) -> None:
    """The steps of MobileViTv3 Table 5 and all others in between."""
    kernel = 1 if fusion == "none" else 3
    module = block(attention, local_conv=local_conv, fusion=fusion, fusion_kernel=kernel, residual=residual)
    model, x = nn.Sequential(randomized(module)), drawn(2, 6, 6, 6)
    expected = model(x)
    with torch.no_grad():
        for keep_norm in (False, True):
            assert (deploy(model, keep_norm)(x) - expected).abs().max() <= 1e-12 * expected.abs().max()
        zero = module.fuse[0].conv if isinstance(module.fuse, nn.Sequential) else None  # type: ignore[union-attr]
        assert zero is None or zero.weight.shape[1] > 6  # what is joined is seen
    expected.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_the_input_is_added_and_nothing_else() -> None:
    with_it, without = (randomized(block(residual=residual)) for residual in (True, False))
    x = drawn(1, 6, 6, 6)
    assert (with_it(x) - without(x) - x).abs().max() <= 1e-12

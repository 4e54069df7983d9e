"""Blocks against the formulas of the papers, written as one would by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vigcli.nn.blocks import ConvNorm, DropPath, InvertedResidual, ResidualBranch
from vigcli.nn.deploy import deploy, fold_norm
from vigcli.nn.graph import ConditionalEncoding, GraphBlock, MaxRelative, mgc_links, svga_links
from vigcli.nn.heads import MeanOfHeads, mean_of_heads


def rolled_max_relative(x: Tensor, mixer: str, reach: int, sign: int) -> Tensor:
    """As the authors' code computes it: the greatest difference, not below zero. MobileViGv2 takes x_j - x_i (Eq. 2),
    MobileViG the opposite sign."""
    greatest = torch.zeros_like(x)
    for dim in (2, 3):
        size = x.shape[dim]
        shifts = (reach, -reach) if mixer == "mgc" else range(reach, size, reach)
        for by in shifts:
            greatest = torch.maximum(greatest, sign * (torch.roll(x, by, dim) - x))
    return greatest


@pytest.mark.parametrize(
    ("mixer", "reach", "grid"),
    [
        ("mgc", 2, (7, 7)),
        ("mgc", 8, (28, 28)),
        ("mgc", 4, (14, 14)),
        ("mgc", 8, (12, 12)),  # further than half of the grid
        ("mgc", 5, (3, 3)),  # further than the grid
        ("mgc", 2, (5, 9)),
        ("svga", 2, (7, 7)),
        ("svga", 3, (13, 5)),
        ("svga", 2, (14, 14)),
        ("svga", 6, (7, 7)),
    ],
)
@pytest.mark.parametrize(("difference", "sign"), [("neighbour", 1), ("token", -1)])
def test_max_relative_is_the_formula(mixer: str, reach: int, grid: tuple[int, int], difference: str, sign: int) -> None:
    x = torch.randn(2, 5, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(reach))
    ours = MaxRelative({"mgc": mgc_links, "svga": svga_links}[mixer], reach, difference, grid)(x)
    assert (ours - rolled_max_relative(x, mixer, reach, sign)).abs().max() <= 1e-14
    assert ours.min() == 0 if mixer == "mgc" else ours.min() >= 0
    assert ours.max() > 1


def test_links_stay_on_the_axis() -> None:
    assert mgc_links(2, 7) == [2, 5]
    assert mgc_links(9, 7) == [2, 5]
    assert svga_links(2, 7) == [2, 4, 6]


def randomized(module: nn.Module) -> nn.Module:
    """Float64 weights and statistics that make every part count."""
    generator = torch.Generator().manual_seed(0)
    module = module.double().eval()
    for key, value in module.state_dict().items():
        if value.is_floating_point():
            drawn = 0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(drawn.abs() + 0.5 if key.endswith("running_var") else drawn)
    return module


@pytest.mark.parametrize(
    "block",
    [
        ConvNorm(6, 8, 3, 2),
        ConvNorm(8, 8, 3, groups=8),
        InvertedResidual((6, 7, 7), 4),
        GraphBlock((6, 7, 7), "mgc", 4, True, 7, reach=2, difference="neighbour"),
        GraphBlock((6, 7, 7), "svga", 2, False, 3, 2, reach=2, difference="token"),
        GraphBlock((6, 7, 7), "svga", 2, True, 0, 2, reach=3, difference="token"),
        GraphBlock((6, 7, 7), "fc", 2, True, cpe=3, mixer_expansion=3),
        GraphBlock((6, 7, 7), "none", 2, True),
        MeanOfHeads(6, 5),
        ConditionalEncoding(6, 5),
    ],
    ids=lambda block: type(block).__name__,
)
def test_the_deployed_form_is_equal(block: nn.Module) -> None:
    module = nn.Sequential(randomized(block))
    chans = 8 if isinstance(block, ConvNorm) and block.conv.groups > 1 else 6
    x = torch.randn(2, chans, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = module(x)
        for keep_norm in (False, True):
            deployed = deploy(module, keep_norm)
            assert (deployed(x) - expected).abs().max() <= 1e-12 * expected.abs().max()
    num_norms = sum(isinstance(m, nn.BatchNorm2d) for m in deploy(module).modules())
    assert num_norms == 0
    assert torch.equal(module(x), expected)


def test_a_convolution_without_bias_folds() -> None:
    conv = nn.Conv2d(3, 4, 3, bias=False)
    norm = randomized(nn.BatchNorm2d(4))
    assert isinstance(norm, nn.BatchNorm2d)
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(fold_norm(conv.double(), norm)(x), norm(conv(x)), rtol=1e-12, atol=1e-12)
    assert conv.bias is None


def test_drop_path_drops_whole_pictures_and_keeps_the_mean() -> None:
    layer = DropPath(0.25).train()
    torch.manual_seed(0)
    y = layer(torch.ones(4000, 2, 3, 3))
    kept = y[:, 0, 0, 0]
    assert torch.equal(y, kept[:, None, None, None].expand_as(y))
    assert set(kept.tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert float(kept.mean()) == pytest.approx(1, abs=0.03)
    assert torch.equal(layer.eval()(y), y)


def test_a_dropped_branch_leaves_its_input() -> None:
    block = ResidualBranch(nn.Sequential(ConvNorm(3, 3)), 3, drop_path=1 - 1e-9).train()
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(block(x), x)


def test_two_heads_give_a_pair_in_training_and_their_mean_in_evaluation() -> None:
    heads, x = MeanOfHeads(6, 5).train(), torch.randn(2, 6, 1, 1)
    pair = heads(x)
    assert [len(part) for part in pair] == [2, 2]
    torch.testing.assert_close(heads.eval()(x), sum(pair) / 2)
    torch.testing.assert_close(mean_of_heads(pair), sum(pair) / 2)
    assert torch.equal(mean_of_heads(x), x)

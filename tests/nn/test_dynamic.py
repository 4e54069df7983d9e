"""Dynamic graphs against loops over pictures, tokens and neighbours, written from what the authors' code does."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigcli.nn.cluster import Degc
from vigcli.nn.decisions import given_decisions, largest_regret, noted_decisions
from vigcli.nn.deploy import deploy
from vigcli.nn.dynamic import GROUPS, KnnGraph, MaskedGraph, MaskedMaxRelative, relative_positions, unit
from vigcli.nn.graph import GraphBlock
from vigcli.nn.stems import PositionedStem


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def smooth(*shape: int, seed: int = 0) -> Tensor:
    """Neighbours that are alike, so that masks let some through."""
    return F.avg_pool2d(drawn(*shape, seed=seed), 3, 1, 1) + 0.05 * drawn(*shape, seed=seed + 1)


def randomized(module: nn.Module) -> nn.Module:
    """Float64 weights and statistics that make every part count; what is frozen stays."""
    module = module.double().eval()
    for i, (key, value) in enumerate(module.state_dict().items()):
        if value.is_floating_point() and not key.endswith("relative_pos"):
            new = drawn(*value.shape, seed=i)
            value.copy_(new.abs() + 0.5 if key.endswith("running_var") else new / 3)
    return module


# ---------------------------------------------------------------------------------------------------- DAGC


def masked_max_relative(x: Tensor, reach: int) -> Tensor:
    """One picture (C, H, W), token by token; the distance is the sum over channels."""
    _, rows, columns = x.shape
    half = -(-rows // 2), -(-columns // 2)

    def distance(i: tuple[int, int], j: tuple[int, int]) -> float:
        return sum(abs(float(a - b)) for a, b in zip(x[:, i[0], i[1]], x[:, j[0], j[1]], strict=True))

    tokens = list(itertools.product(range(rows), range(columns)))
    far = [distance((r, c), ((r - half[0]) % rows, (c - half[1]) % columns)) for r, c in tokens]
    mean = sum(far) / len(far)
    deviation = math.sqrt(sum((d - mean) ** 2 for d in far) / (len(far) - 1))
    out = torch.zeros_like(x)
    for r, c in tokens:
        links = [((r - i) % rows, c) for i in range(0, rows, reach)] + [
            (r, (c - j) % columns) for j in range(0, columns, reach)
        ]
        for j in links:
            if distance((r, c), j) < mean - deviation:
                out[:, r, c] = torch.maximum(out[:, r, c], x[:, j[0], j[1]] - x[:, r, c])
    return out


@pytest.mark.parametrize(
    ("reach", "grid"),
    [
        (1, (7, 7)),
        (2, (7, 7)),
        (2, (8, 8)),
        (4, (8, 8)),
        (3, (8, 5)),
        (2, (5, 6)),
        (4, (5, 7)),
        (1, (2, 3)),
        (6, (7, 7)),
    ],
)
def test_dagc_is_the_loop(reach: int, grid: tuple[int, int]) -> None:
    x = smooth(2, 6, *grid, seed=reach)
    layer = MaskedMaxRelative(reach, grid)
    with noted_decisions(layer) as masks:
        ours = layer(x)
    expected = torch.stack([masked_max_relative(picture, reach) for picture in x])
    assert (ours - expected).abs().max() <= 1e-12
    assert ours.min() >= 0
    if min(grid) >= 5:
        assert 0.02 < float(torch.cat([mask.flatten() for mask in masks]).double().mean()) < 0.9  # some, and not all


def test_shifts_back_are_spared_their_distances() -> None:
    layer, x = MaskedMaxRelative(2, (8, 8)), smooth(1, 4, 8, 8)
    assert [(by, dim, both) for by, dim, _, both in layer.links] == [
        (by, dim, both) for dim in (2, 3) for by, both in ((2, True), (4, False))
    ]
    with noted_decisions(layer) as masks:
        layer(x)
    assert len(masks) == 4  # of six links
    assert len(MaskedMaxRelative(3, (8, 8)).links) == 4  # 3 and 6: neither is the other's way back


def test_small_features_are_no_matter_to_the_mask() -> None:
    """In fp16 the squares of distances of 0.002 would vanish; a picture scaled is the same picture."""
    layer, x = MaskedMaxRelative(2, (8, 8)), smooth(1, 4, 8, 8)
    assert (layer(x * 2.0**-9) * 2.0**9 - layer(x)).abs().max() <= 1e-12
    half = layer(x.half() * 2.0**-9).double() * 2.0**9
    assert float(((half > 0) != (layer(x.half().double()) > 0)).double().mean()) < 0.02


def test_a_picture_without_features_has_no_neighbours() -> None:
    assert not MaskedMaxRelative(2, (8, 8))(torch.full((1, 3, 8, 8), 0.7)).any()


# ---------------------------------------------------------------------------------------------------- kNN


def knn_graph(graph: KnnGraph, x: Tensor) -> Tensor:
    """One picture (C, H, W), token by token, up to the grouped convolution."""
    width, rows, columns = x.shape
    r = graph.reduction
    nodes = [
        x[:, i : i + r, j : j + r].mean((1, 2)) for i, j in itertools.product(range(0, rows, r), range(0, columns, r))
    ]
    joined = torch.zeros(2 * width, rows, columns, dtype=x.dtype)
    for n, (row, column) in enumerate(itertools.product(range(rows), range(columns))):
        token = x[:, row, column]
        distances = [float((token / token.norm() - node / node.norm()).square().sum()) for node in nodes]
        if graph.relative_pos is not None:
            distances = [d + float(p) for d, p in zip(distances, graph.relative_pos[0, n], strict=True)]
        order = sorted(range(len(nodes)), key=distances.__getitem__)
        kept = order[: graph.neighbours * graph.dilation : graph.dilation]
        assert len(kept) == graph.neighbours
        m = torch.stack([nodes[j] - token for j in kept]).amax(0)
        joined[0::2, row, column], joined[1::2, row, column] = token, m
    return joined


@pytest.mark.parametrize("positions", [0, 6, 4])  # a table of the grid, and one of another that is interpolated
@pytest.mark.parametrize(
    ("grid", "neighbours", "dilation", "reduction"),
    [((6, 6), 4, 1, 1), ((6, 6), 3, 2, 1), ((7, 5), 5, 3, 1), ((6, 6), 4, 2, 2), ((6, 6), 9, 1, 2), ((6, 9), 2, 2, 3)],
)
def test_knn_is_the_loop(grid: tuple[int, int], neighbours: int, dilation: int, reduction: int, positions: int) -> None:
    graph = randomized(KnnGraph((8, *grid), 12, neighbours, dilation, reduction, positions))
    assert isinstance(graph, KnnGraph)
    x = drawn(3, 8, *grid, seed=7)
    joined = torch.stack([knn_graph(graph, picture) for picture in x])
    with torch.no_grad():
        expected = F.gelu(graph.proj(joined))
        assert (graph(x) - expected).abs().max() <= 1e-12
        assert (graph(x[1:2]) - expected[1:2]).abs().max() <= 1e-12  # without the others of its batch
        deployed = deploy(nn.Sequential(graph))
        assert (deployed(x) - expected).abs().max() <= 1e-12
    assert not deployed[0].proj.weight.equal(graph.proj.conv.weight)  # type: ignore[union-attr, operator]
    if graph.relative_pos is not None and reduction < 3 and neighbours * dilation < 9:
        graph.relative_pos.data.zero_()
        assert (graph(x) - expected).abs().max() > 1e-3  # positions matter


def test_the_convolution_has_four_groups_of_interleaved_channels() -> None:
    graph = randomized(KnnGraph((8, 3, 3), 12, 2))
    assert isinstance(graph, KnnGraph)
    conv = graph.proj.conv
    assert isinstance(conv, nn.Conv2d)
    assert (conv.groups, tuple(conv.weight.shape)) == (GROUPS, (12, 4, 1, 1))  # a group reads x and m of two channels


@pytest.mark.parametrize(("width", "side", "reduction"), [(8, 4, 1), (8, 4, 2), (12, 6, 2)])
def test_positions_are_the_table(width: int, side: int, reduction: int) -> None:
    """P by hand, entry by entry: the first half from the column, the second from the row, sines before cosines."""
    quarter, tokens = width // 4, side * side
    table = torch.zeros(tokens, width, dtype=torch.float64)
    for n in range(tokens):
        row, column = divmod(n, side)
        for half, place in enumerate((column, row)):
            for i in range(quarter):
                angle = place / 10000 ** (i / quarter)
                table[n, 2 * half * quarter + i] = math.sin(angle)
                table[n, (2 * half + 1) * quarter + i] = math.cos(angle)
    alike = (2 * table @ table.T / width).float()
    if reduction > 1:
        size = tokens, tokens // reduction**2
        alike = F.interpolate(alike[None, None], size, mode="bicubic", align_corners=False)[0, 0]
    ours = relative_positions(width, side, (side, side), reduction)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours[0], -alike, rtol=0, atol=1e-6)
    assert relative_positions(width, side, (2 * side, side), reduction).shape == (
        1,
        2 * tokens,
        2 * tokens // reduction**2,
    )


def test_the_table_is_frozen_and_belongs_to_the_state() -> None:
    graph = KnnGraph((8, 4, 4), 8, 2, relative_pos=4)
    assert graph.relative_pos is not None
    assert not graph.relative_pos.requires_grad
    assert "relative_pos" in graph.state_dict()
    assert "relative_pos" not in KnnGraph((8, 4, 4), 8, 2).state_dict()
    assert KnnGraph((8, 4, 4), 8, 2, relative_pos=4).to("meta").relative_pos.shape == (1, 16, 16)  # type: ignore[union-attr]


def test_features_have_length_one() -> None:
    x = drawn(2, 5, 9)
    assert (unit(x) - F.normalize(x, dim=1)).abs().max() <= 1e-15
    assert not unit(torch.zeros(1, 5, 2, dtype=torch.float16)).isnan().any()


# ---------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize(
    "options",
    [
        {"mixer": "dagc", "reach": 2, "cpe": 7},
        {"mixer": "dagc", "reach": 1, "mixer_expansion": 2},
        {"mixer": "knn", "neighbours": 5, "dilation": 2, "mixer_expansion": 2},
        {"mixer": "knn", "neighbours": 3, "reduction": 2, "relative_pos": 8, "cpe": 3},
    ],
    ids=lambda options: f"{options['mixer']}",
)
def test_blocks_learn_and_deploy(options: dict[str, object]) -> None:
    block = randomized(GraphBlock((8, 8, 8), expansion=2, layer_scale=True, **options))  # type: ignore[arg-type]
    model, x = nn.Sequential(block), smooth(2, 8, 8, 8)
    expected = model(x)
    with torch.no_grad():
        for keep_norm in (False, True):
            assert (deploy(model, keep_norm)(x) - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deploy(model).modules())
    expected.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_deployment_leaves_the_trained_form_alone() -> None:
    model = nn.Sequential(randomized(KnnGraph((8, 4, 4), 8, 2, relative_pos=4)))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    deploy(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("stride", "convs"), [(16, 5), (4, 3)])
def test_a_stem_ends_in_positions(stride: int, convs: int) -> None:
    stem = randomized(PositionedStem((3, 32, 32), 16, stride))
    assert isinstance(stem, PositionedStem)
    assert sum(isinstance(m, nn.Conv2d) for m in stem.modules()) == convs
    x = drawn(2, 3, 32, 32)
    with torch.no_grad():
        y = stem(x)
        assert y.shape == (2, 16, 32 // stride, 32 // stride)
        assert torch.equal(y - stem.convs(x), (stem.convs(x) + stem.pos_embed) - stem.convs(x))
    assert not PositionedStem((3, 32, 32), 16, stride).pos_embed.any()


# ---------------------------------------------------------------------------------------------------- decisions


@pytest.mark.parametrize(
    "graph",
    [MaskedGraph((8, 6, 6), 8, 2), KnnGraph((8, 6, 6), 8, 3, 2), Degc((8, 6, 6), 8, 3, 3)],
    ids=["dagc", "knn", "degc"],
)
def test_a_network_decides_as_it_is_told_and_says_what_it_lost(graph: nn.Module) -> None:
    model, x = nn.Sequential(randomized(graph)), smooth(1, 8, 6, 6)
    with torch.no_grad():
        with noted_decisions(model) as own:
            expected = model(x)
        with given_decisions(model, own):
            assert torch.equal(model(x), expected)
        assert largest_regret(model) == 0
        others = [d.flip(-1) if d.dtype == torch.int64 else ~d for d in own]
        with given_decisions(model, others):
            assert not torch.equal(model(x), expected)
        assert largest_regret(model) > 0.01
        assert torch.equal(model(x), expected)
        with given_decisions(model, own):
            model(x)
        assert largest_regret(model) == 0  # it starts anew

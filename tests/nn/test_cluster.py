"""DEGC against plain loops over images, clusters and nodes, written from ClusterViG's Algorithm 1 and Table II."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn

from vigcli.archs import build
from vigcli.archs.official import load_official
from vigcli.config.archs import arch_config
from vigcli.nn import kmeans as kmeans_module
from vigcli.nn.cluster import LOCAL_UPDATES, Degc
from vigcli.nn.decisions import Decision
from vigcli.nn.deploy import deploy
from vigcli.nn.kmeans import gram, grid_labels, kmeans, memberships

Array = NDArray[np.float64]

GRID, WIDTH, HIDDEN, CLUSTERS, NEIGHBOURS = (5, 4), 8, 12, 4, 5
TOKENS = GRID[0] * GRID[1]
LABELS = {
    "even": [i % 4 for i in range(TOKENS)],
    "uneven": [0] * 9 + [1] * 6 + [2] * 3 + [3] * 2,
    "one node": [0] * 10 + [1] * 9 + [2],
    "empty": [1] * 12 + [3] * 8,
    "one cluster": [2] * TOKENS,
    "smaller than K": [i % 4 if i < 12 else 0 for i in range(TOKENS)],
}
updates = pytest.mark.parametrize("update", LOCAL_UPDATES)


def images(batch: int, seed: int = 0, grid: tuple[int, int] = GRID) -> Tensor:
    return torch.randn(batch, WIDTH, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def step(update: str = "mrgcn", **options: object) -> Degc:
    """In float64, with weights and statistics that make every part count."""
    generator = torch.Generator().manual_seed(1)
    degc = Degc((WIDTH, *GRID), HIDDEN, CLUSTERS, NEIGHBOURS, update, **options).double().eval()  # type: ignore[arg-type]
    for key, value in degc.state_dict().items():
        if value.is_floating_point():
            drawn = 0.5 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(drawn.abs() + 0.5 if key.endswith("running_var") else drawn)
    return degc


# ------------------------------------------------------------------------------------------------------ plain loops


class Weights:
    """A step's weights by name, and the layers that they make, a vector at a time."""

    def __init__(self, degc: Degc):
        self.of = {key: value.numpy() for key, value in degc.state_dict().items()}

    def mlp(self, name: str, x: Array) -> Array:
        """Linear layer in groups, batch norm with its statistics, GELU."""
        groups = sum(key.startswith(f"{name}.linear.heads.") and key.endswith("weight") for key in self.of)
        parts = []
        for g, part in enumerate(np.split(x, groups)):
            head = f"{name}.linear.heads.{g}"
            parts.append(self.of[f"{head}.weight"] @ part + self.of[f"{head}.bias"])
        mean, var = self.of[f"{name}.norm.running_mean"], self.of[f"{name}.norm.running_var"]
        y = (np.concatenate(parts) - mean) / np.sqrt(var + 1e-5)
        y = y * self.of[f"{name}.norm.weight"] + self.of[f"{name}.norm.bias"]
        return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in y])

    def linear(self, name: str, x: Array) -> Array:
        return self.of[f"{name}.weight"] @ x + self.of[f"{name}.bias"]


def nearest(v: int, nodes: list[int], x: Array, k: int) -> list[int]:
    """The k nodes whose normalized features are nearest to node v's."""
    unit = {u: x[u] / np.linalg.norm(x[u]) for u in nodes}
    return sorted(nodes, key=lambda u: float(np.linalg.norm(unit[u] - unit[v])))[:k]


def attended(w: Weights, z: dict[int, Array]) -> dict[int, Array]:
    """Eq. 2 and 3."""
    out = {}
    for i, target in z.items():
        scores, values = [], []
        for source in z.values():
            value = w.linear("attention.lin_l", source)
            paired = w.linear("attention.lin_r", target) + value
            scores.append(w.of["attention.att"] @ np.where(paired > 0, paired, 0.2 * paired))
            values.append(value)
        alpha = np.exp(np.array(scores) - max(scores))
        out[i] = sum(a * v for a, v in zip(alpha / alpha.sum(), values, strict=True)) + w.of["attention.bias"]
    return out


def updated(w: Weights, update: str, x: Array, v: int, near: list[int], z: Array) -> Array:
    """Table II."""
    if update == "edgeconv":
        return np.max([w.mlp("update.mlp", np.concatenate([x[v], x[u] - x[v], z])) for u in near], 0)
    if update == "mrgcn":
        greatest = np.max([x[u] - x[v] for u in near], 0)
        paired = np.array([number for pair in zip(x[v], greatest, strict=True) for number in pair])
        return w.mlp("update.mlp", np.concatenate([paired, z]))
    if update == "graphsage":
        said = np.max([w.mlp("update.mlp_phi", x[u]) for u in near], 0)
        return w.mlp("update.mlp", np.concatenate([x[v], said, z]))
    own, shared = 1 + w.of["update.eps"], 1 + w.of["update.delta"]
    return w.mlp("update.mlp", own * x[v] + np.sum([x[u] for u in near], 0) + shared * z)


def algorithm_1(degc: Degc, update: str, batch: Tensor, labels: list[list[int]]) -> Array:
    w, out = Weights(degc), []
    for image, of in zip(batch.numpy(), labels, strict=True):
        x = image.reshape(WIDTH, -1).T
        if degc.center_tokens:
            x = x - x.mean(0)
        parts = {i: [v for v in range(len(x)) if of[v] == i] for i in range(CLUSTERS) if i in of}
        z = attended(w, {i: x[nodes].mean(0) for i, nodes in parts.items()})
        rows = np.empty((len(x), HIDDEN))
        for i, nodes in parts.items():
            for v in nodes:
                rows[v] = updated(w, update, x, v, nearest(v, nodes, x, NEIGHBOURS), z[i])
        out.append(rows.T.reshape(HIDDEN, *GRID))
    return np.stack(out)


@updates
@pytest.mark.parametrize("center", [False, True], ids=["as is", "centred"])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_step_is_algorithm_1(update: str, center: bool, groups: int) -> None:
    """All partitions in one batch: each image has clusters of other sizes, some clusters have no node."""
    of = list(LABELS.values())
    x, degc = images(len(of)), step(update, groups=groups, center_tokens=center)
    with torch.no_grad():
        ours = degc(x, torch.tensor(of)).numpy()
    expected = algorithm_1(degc, update, x, of)
    assert np.abs(ours - expected).max() <= 1e-9 * np.abs(expected).max()


@updates
def test_the_numbers_of_the_clusters_mean_nothing(update: str) -> None:
    x, degc = images(3), step(update)
    labels = torch.randint(0, CLUSTERS, (3, TOKENS), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = degc(x, labels)
        for order in ([3, 0, 2, 1], [1, 2, 3, 0]):
            torch.testing.assert_close(degc(x, torch.tensor(order)[labels]), expected, rtol=1e-12, atol=1e-12)


@updates
@pytest.mark.parametrize("partition", ["kmeans", "grid"])
def test_an_image_is_computed_by_itself(update: str, partition: str) -> None:
    x, degc = images(6), step(update, partition=partition)
    x[2], x[4] = 100 * x[2], 0.01 * x[4]  # of other scales
    with torch.no_grad():
        whole = degc(x)
        for i in range(len(x)):
            torch.testing.assert_close(degc(x[i : i + 1])[0], whole[i], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(degc(x.flip(0)).flip(0), whole, rtol=1e-10, atol=1e-12)


@updates
def test_the_deployed_step_is_equal_and_every_weight_learns(update: str) -> None:
    x = images(2)
    for groups in (1, 4):
        module = nn.Sequential(step(update, groups=groups))
        with torch.no_grad():
            torch.testing.assert_close(deploy(module)(x), module(x), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(deploy(module, keep_norm=True)(x), module(x), rtol=1e-12, atol=1e-12)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in deploy(module).modules())
        (module.train()(x) * images(2, 3).repeat(1, 2, 1, 1)[:, :HIDDEN]).sum().backward()
        dead = [key for key, p in module.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        # What shifts all tokens alike is lost in the batch norm behind it, or in the softmax.
        assert [key for key in dead if "linear.heads" not in key or "bias" not in key] == []


def test_folding_draws_nothing() -> None:
    module, before = nn.Sequential(step()), torch.get_rng_state()
    deploy(module)
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------------------- partitions


def inertia(x: Array, labels: Array) -> float:
    return float(sum(((x[labels == i] - x[labels == i].mean(0)) ** 2).sum() for i in np.unique(labels)))


def clustered(x: Tensor, clusters: int, iterations: int = 20) -> Tensor:
    """(B, N) labels."""
    members = kmeans(gram(x.transpose(1, 2)), clusters, iterations, Decision())
    assert (members.sum(1) == 1).all()  # every token is in one cluster
    return members.int().argmax(1)


def real_features() -> Iterator[tuple[str, Tensor]]:
    """Patches of photographs, what an untrained network makes of them, and handwritten digits."""
    photos = [torch.tensor(np.array(image)) for image in load_sample_images().images]
    crops = torch.stack([p[r : r + 224, c : c + 224].permute(2, 0, 1) for p in photos for r, c in ((0, 0), (200, 400))])
    pixels = crops.float() / 255
    yield "patches", nn.functional.unfold(pixels, 16, stride=16).transpose(1, 2)
    with torch.no_grad():
        yield "network", build("clustervig_ti", {"depth": 1}).train().stem(pixels).flatten(2).transpose(1, 2)  # type: ignore[operator]
    yield "digits", torch.tensor(load_digits().data[: 4 * 196].reshape(4, 196, 64)).float()


@pytest.mark.parametrize("clusters", [4, 6])
@pytest.mark.parametrize("name", ["patches", "network", "digits"])
def test_the_inertia_is_that_of_scikit_learn(name: str, clusters: int) -> None:
    x = dict(real_features())[name]
    for tokens, labels in zip(x.numpy(), clustered(x, clusters).numpy(), strict=True):
        runs = [KMeans(clusters, n_init=1, random_state=seed).fit(tokens).inertia_ for seed in range(15)]
        assert inertia(tokens, labels) <= 1.02 * np.median(runs)


@pytest.mark.parametrize("clusters", [2, 4, 6, 9])
def test_separable_data_is_separated(clusters: int) -> None:
    generator = torch.Generator().manual_seed(clusters)
    centres = 20 * torch.randn(8, clusters, 16, generator=generator)
    truth = torch.randint(0, clusters, (8, 100), generator=generator)
    truth[:, :clusters] = torch.arange(clusters)  # none is empty, and sizes are uneven
    x = torch.stack([c[t] for c, t in zip(centres, truth, strict=True)]) + torch.randn(8, 100, 16, generator=generator)
    for found, true in zip(clustered(x, clusters), truth, strict=True):
        assert len({(int(a), int(b)) for a, b in zip(found, true, strict=True)}) == clusters


def test_nothing_is_drawn() -> None:
    x, before = images(4).flatten(2).transpose(1, 2), torch.get_rng_state()
    first, again = clustered(x, 4), clustered(x, 4)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


def test_k_means_stops_early_only_where_nothing_would_change(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.cat([images(8, seed, (7, 7)).flatten(2).transpose(1, 2) for seed in range(4)])
    early = clustered(x, 5)
    monkeypatch.setattr(kmeans_module, "_same", lambda before, now: False)
    assert torch.equal(clustered(x, 5), early)


@pytest.mark.parametrize("clusters", [1, 3, 6])
@pytest.mark.parametrize("tokens", [6, 7, 49])
def test_alike_and_few_tokens(clusters: int, tokens: int) -> None:
    for x in (torch.zeros(1, tokens, 3), torch.ones(2, tokens, 3), torch.randn(2, tokens, 3) * 1e3):
        labels = clustered(x, clusters, iterations=3)
        assert labels.max() < clusters
    distinct = clustered(torch.eye(6).repeat(1, 2, 1), 6)[0]
    assert len(set(distinct[:6].tolist())) == 6
    assert torch.equal(distinct[:6], distinct[6:])


def test_more_iterations_are_never_worse() -> None:
    x = images(5, 3, (7, 7)).flatten(2).transpose(1, 2)
    sums = [[inertia(t.numpy(), c.numpy()) for t, c in zip(x, clustered(x, 4, n), strict=True)] for n in (3, 5, 9, 20)]
    assert (np.diff(sums, axis=0) <= 1e-9).all()


def test_the_grid_is_cut_into_cells() -> None:
    quarters = grid_labels(14, 14, 4).reshape(14, 14)
    expected = torch.tensor([[2 * (row >= 7) + (column >= 7) for column in range(14)] for row in range(14)])
    assert torch.equal(quarters, expected)
    assert grid_labels(2, 3, 6).tolist() == [0, 1, 2, 3, 4, 5]
    for height, width, clusters in ((28, 28, 6), (7, 7, 4), (5, 8, 5), (3, 3, 1)):
        assert sorted(set(grid_labels(height, width, clusters).tolist())) == list(range(clusters))


def test_memberships() -> None:
    expected = [[[False, True, False], [True, False, False], [False, False, True]]]
    assert memberships(torch.tensor([[[1, 0, 2]]]), 3).tolist() == expected


def test_a_gram_matrix_holds_in_half_precision() -> None:
    products, column, row = gram(1e4 * images(2).flatten(2))
    assert products.abs().max() <= WIDTH
    for halves in (column[:, :, 0], row[:, 0]):
        torch.testing.assert_close(products.diagonal(dim1=1, dim2=2), 2 * halves)


# ---------------------------------------------------------------------------------------------------------- families


def test_neighbours_grow_as_in_the_authors_code() -> None:
    for name in ("clustervig_ti", "clustervig_s", "clustervig_b_hr"):
        config = arch_config(name)
        graphs = [dict(spec.options)["neighbours"] for spec in config.blocks() if spec.kind == "graph"]
        assert graphs == [int(k) for k in torch.linspace(9, 18, len(graphs))]


def test_degc_in_a_stage_of_another_family() -> None:
    changes = {"stages[3].mixer": "degc", "stages[3].clusters": 3, "stages[3].neighbours": 4, "num_classes": 5}
    config = arch_config("mobilevigv2_s").changed(changes)
    (block,) = {spec.counted() for spec in config.blocks() if ("mixer", "degc") in spec.options}
    assert block.signature.startswith("graph[mixer=degc clusters=3 neighbours=4 cpe=7 ")
    model = build(config).eval()
    assert sum(isinstance(module, Degc) for module in model.modules()) == 3
    with torch.no_grad():
        assert model(torch.randn(2, 3, 224, 224)).shape == (2, 5)
    assert "clusters" not in str([spec.options for spec in arch_config("mobilevigv2_s").blocks()])


@updates
def test_names_and_groups_of_the_released_weights(update: str) -> None:
    """Every local update under the authors' names; the released code has one group in every variant."""
    config = arch_config("clustervig_s").changed({"depth": 1, "local_update": update, "num_classes": 3})
    model = build(config)
    names = {f"stages.0.0.0.branch.2.{key}" for key in model.stages[0][0][0].branch[2].state_dict()}  # type: ignore[index,union-attr,operator]
    from vigcli.archs.clustervig import official_names

    (theirs,) = official_names(config)  # type: ignore[arg-type]
    renamed = {}
    for key, value in model.state_dict().items():
        prefix = max((ours for ours in theirs.values() if key.startswith(f"{ours}.") or key == ours), key=len)
        their = next(name for name, ours in theirs.items() if ours == prefix)
        renamed[their + key[len(prefix) :]] = value
    load_official(build(config, seed=1), renamed)
    where = "backbone.0.graphconv.layer."
    assert f"{where}nn_vertex.layer.lins.0.head_list.3.weight" in renamed
    assert (f"{where}nn_edge.layer.lins.0.head_list.0.bias" in renamed) == (update == "graphsage")
    assert ({f"{where}eps", f"{where}delta"} <= set(renamed)) == (update == "gin")
    assert len([name for name in renamed if name.startswith(where)]) == len(names)

"""The papers' counters against what the authors' own profilers gave on the authors' own code, to the digit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from torch import nn

from vigcli.config.archs import COUNTED_WITH, PUBLISHED, UNEXPLAINED, VARIANTS
from vigcli.measure import counters
from vigcli.measure.count import count_params
from vigcli.measure.counters import MAC_COUNTERS, PARAM_COUNTERS, Comparison, all_counts, paper_row, run
from vigcli.nn.attention import MultiHeadAttention
from vigcli.nn.kmeans import STARTS, TRIALS

COUNTS = json.loads((Path(__file__).parents[1] / "data" / "counts.json").read_text())


def counted(kind: str) -> pytest.MarkDecorator:
    """The variants of which the authors' code gave such a count."""
    return pytest.mark.parametrize("name", [name for name in VARIANTS if kind in COUNTS[name]])


@counted("params_sld")
def test_the_profiler_of_sldgroup(name: str) -> None:
    seen = run(VARIANTS[name])
    assert counters.sld_params(seen) == COUNTS[name]["params_sld"]
    graphs = [spec for spec in VARIANTS[name].blocks() if dict(spec.options).get("mixer") == "knn"]
    # It takes a GELU's channels times its height, and ViG's graphs have their tokens in one column there.
    columns = sum(2 * spec.in_shape[0] * (spec.in_shape[1] - 1) * spec.in_shape[2] for spec in graphs)
    assert counters.sld_macs(seen) + columns == COUNTS[name]["macs_sld"]


@counted("macs_cvnets_m")
def test_the_profilers_of_cvnets(name: str) -> None:
    by_paper = MAC_COUNTERS[COUNTED_WITH[name].macs](run(VARIANTS[name]))
    assert f"{by_paper / 1e6:.3f}" == COUNTS[name]["macs_cvnets_m"]


@counted("macs_fvcore")
def test_fvcore(name: str) -> None:
    """It counts a global mean that is a pooling layer, as SLDGroup's and ours are, and not cvnets' `torch.mean`."""
    seen = run(VARIANTS[name])
    (pool,) = seen.of(nn.AdaptiveAvgPool2d)
    theirs = math.prod(pool.in_shape) if "macs_cvnets_m" in COUNTS[name] else 0
    assert counters.fvcore_macs(seen) - theirs == COUNTS[name]["macs_fvcore"]


@counted("macs_layers")
def test_the_products_of_dynamic_graphs(name: str) -> None:
    """Convolutions and linear layers are those of the authors' code to the digit. Beside them the true count has the
    products that no counter of theirs sees, some of which are ours: k-means and k-NN share inner products."""
    config, seen = VARIANTS[name], run(VARIANTS[name])
    tokens, clusters, width = config.grid**2, config.clusters, config.width  # type: ignore[union-attr]
    layers = sum(op.macs for op in seen.trace.ops if op.kind != "mm")
    assert layers == COUNTS[name]["macs_layers"]
    picks, trials = STARTS * (clusters - 2), STARTS * clusters * (TRIALS + 1)
    lloyd = clusters * (config.kmeans_iterations - TRIALS + 1)  # type: ignore[union-attr]
    square = width + picks + trials + lloyd + clusters  # the last: which tokens are in one cluster
    features = 2 * clusters * tokens * width + clusters**2 * width  # means, what they say to tokens, attention
    features += tokens * (trials + lloyd)  # the squares of the centroids
    blocks = len(config.segments()[1])
    assert counters.true_macs(seen) - layers == blocks * (tokens**2 * square + features)
    assert count_params(config.changed({"groups": 1})).total == COUNTS[name]["params_released"]
    spared = 0  # by the deployed form
    if config.groups == 1:  # type: ignore[union-attr]
        hidden = 2 * width  # of the update, for which z' of a cluster is multiplied once and then said to its tokens
        spared = blocks * (hidden * width * (tokens - clusters) - clusters * tokens * (hidden - width))
    second_head = config.head_width * config.num_classes  # type: ignore[union-attr]
    assert counters.true_macs(seen) - COUNTS[name]["macs_inference"] == spared + second_head


@pytest.mark.parametrize("name", VARIANTS)
def test_the_true_counts(name: str) -> None:
    seen = run(VARIANTS[name])
    assert counters.true_params(seen) == COUNTS[name]["params_total"]
    assert counters.trainable_params(seen) == COUNTS[name].get("params_trainable", COUNTS[name]["params_total"])
    assert counters.true_macs(seen) == COUNTS[name]["macs_training"]


def test_thop_misses_the_products_of_attention() -> None:
    seen = run(VARIANTS["mobilevit_xxs"])
    products = sum(op.macs for op in seen.trace.ops if op.kind == "mm")
    norms = 4 * sum(math.prod(call.in_shape) for call in seen.of(nn.BatchNorm2d, nn.LayerNorm))
    (pool,) = seen.of(nn.AdaptiveAvgPool2d)
    pooled = math.prod(pool.in_shape) + math.prod(pool.out_shape)
    assert counters.thop_counted_macs(seen) == counters.true_macs(seen) - products + norms + pooled
    assert products > 70e6


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv3_s"])
def test_what_cvnets_0_1_mistakes(name: str) -> None:
    seen = run(VARIANTS[name])
    wrong = 0
    for call in seen.of(MultiHeadAttention):
        places, tokens, width = call.in_shape
        wrong += 2 * places * tokens * width * (width - tokens)
    assert counters.cvnets_0_1_macs(seen) - counters.cvnets_0_2_macs(seen) == wrong != 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_figure_is_explained_or_said_not_to_be(name: str) -> None:
    row = paper_row(name)
    assert ("no" in (row.params.explained, row.macs.explained)) == (name in UNEXPLAINED)
    if name in UNEXPLAINED:
        what, figure = ("params", row.params) if row.params.explained == "no" else ("macs", row.macs)
        assert figure.explained == "no"
        counts = all_counts(name)[what].values()
        assert figure.printed not in {f"{count / figure.unit:.{figure.decimals}f}" for count in counts}


def test_every_network_has_counters_that_exist() -> None:
    assert set(COUNTED_WITH) == set(PUBLISHED)
    assert {by.params for by in COUNTED_WITH.values()} <= set(PARAM_COUNTERS)
    assert {by.macs for by in COUNTED_WITH.values()} <= set(MAC_COUNTERS)


@pytest.mark.parametrize(
    ("published", "decimals", "counted", "explained"),
    [
        (1.3, 1, 1_272_024, "rounded"),
        (14.0, 1, 13_996_032, "rounded"),
        (1.14, 2, 1_145_288, "cut off"),
        (1.14, 2, 1_139_000, "rounded"),
        (1.14, 2, 1_151_000, "no"),
        (None, 3, 1_151_000, None),
    ],
)
def test_figures_are_compared_as_they_are_printed(
    published: float | None, decimals: int, counted: int, explained: str | None
) -> None:
    assert Comparison(published, decimals, 1e6, "true", counted, counted).explained == explained

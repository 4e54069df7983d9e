"""The search: arrays that say what the networks say, exact feasibility, fronts that keep every rule."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vigcli.config.archs import VARIANTS, ArchConfig, arch_config, variant_name
from vigcli.config.archs.mobilevig import MobileViGv2Config
from vigcli.config.fields import describe as describe_fields
from vigcli.config.load import get_path
from vigcli.config.recipe import load_recipe
from vigcli.config.space import SearchSpace, encode, load_space, named_spaces, space_for, variants_inside
from vigcli.errors import ConfigError, InfeasibleError
from vigcli.latency.table import LatencyTable, load_table
from vigcli.measure.profile import profile
from vigcli.paths import find_file
from vigcli.registry import FAMILIES
from vigcli.search.columns import MACS, NO_LIMITS, PARAMS, WEIGHT_MB, Columns, Limits
from vigcli.search.encoder import encode_space
from vigcli.search.encoding import Encoding, Population
from vigcli.search.evolution import Found, evolve, random_search
from vigcli.search.feasibility import cheapest, least
from vigcli.search.job import SearchResult, Settings, search
from vigcli.search.members import prepare
from vigcli.search.networks import describe, nearest_published
from vigcli.search.report import save
from vigcli.search.score import TIE_POINTS

TABLE = load_table("iphone13-mini")
COLUMNS = Columns([TABLE])
SHIPPED = [space.name for space in named_spaces()]
spaces = pytest.mark.parametrize("name", SHIPPED)

TRAINED = ("mobilevigv2_ti", "mobilevigv2_s")
GENES: dict[str, list[int]] = {
    "stages[0].width": [16, 32, 40],
    "stages[2].local_depth": [3, 6, 9],
    "stages[2].graph_depth": [0, 1, 2],
    "stages[2].width": [96, 128],
    "stages[3].width": [192, 256],
    "stages[3].reach": [1, 2],
    "head_width": [384, 512],
}


NUM_CANDIDATES = 4_000


def find(
    space: SearchSpace, budget_ms: float, tables: Sequence[LatencyTable] = (TABLE,), **settings: Any
) -> SearchResult:
    return search([space], tables, Settings(budget_ms, **{"num_candidates": NUM_CANDIDATES, **settings}))


def small_space(rules: bool, **genes: Any) -> SearchSpace:
    trained = {"trained_shapes": {"variants": TRAINED, "widen": 0.2}} if rules else {}
    return SearchSpace.parse({"base": "mobilevigv2_s", "genes": genes or GENES, **trained})


def encoded(space: SearchSpace, **changes: Any) -> Encoding:
    base = arch_config(space.base).changed(changes)
    names = space.trained_shapes.variants if space.trained_shapes else ()
    return encode_space(space, base, {name: VARIANTS[name].changed(changes) for name in names}, [TABLE])


def everything(encoding: Encoding) -> Population:
    return np.array(list(itertools.product(*(range(int(n)) for n in encoding.num_choices))))


def shares(config: MobileViGv2Config) -> np.ndarray:
    """(2, 4): the share of the MACs and of the weights that each stage has."""
    segments: list[list[Any]] = [[] for _ in range(6)]
    for block in profile(config).blocks:
        number = {"stem": 0, "head": 5}.get(block.name)
        segments[int(block.name[7]) + 1 if number is None else number].append(block.trace)
    sums = np.array([[sum(t.macs for t in part), sum(t.weight_mb for t in part)] for part in segments])
    return (sums / sums.sum(0))[1:-1].T


def keeps_the_rules(config: ArchConfig, widen: float = 0.2) -> bool:
    """The rules of `trained_shapes` and of the fitted range, written out for one network."""
    assert isinstance(config, MobileViGv2Config)
    trained = [VARIANTS[name] for name in TRAINED]

    def figures(c: ArchConfig) -> np.ndarray:
        assert isinstance(c, MobileViGv2Config)
        widths = [stage.width for stage in c.stages]
        depths = [stage.local_depth for stage in c.stages]
        graphs = [stage.graph_depth for stage in c.stages]
        ratios = [1.0, *(b / a for a, b in itertools.pairwise(widths))]
        return np.concatenate([depths, graphs, ratios, *shares(c)])

    known = np.stack([figures(c) for c in trained])
    low, high = (1 - widen) * known.min(0) - 1e-9, (1 + widen) * known.max(0) + 1e-9
    ours = figures(config)
    return bool(((low <= ours) & (ours <= high)).all()) and not describe("", config, COLUMNS).latency.outside


@pytest.fixture(scope="module", params=[True, False], ids=["rules", "free"])
def small(request: pytest.FixtureRequest) -> tuple[Encoding, Population, Any]:
    encoding = encoded(small_space(request.param))
    population = everything(encoding)
    return encoding, population, encoding.evaluate(population)


# ---------------------------------------------------------------------------------------------------- arrays


def test_every_candidate_is_priced_scored_and_judged_as_its_network(small: tuple[Encoding, Population, Any]) -> None:
    encoding, population, values = small
    assert len(population) == encoding.space.size == 432
    judged = 0
    for i in range(0, len(population), 7):
        config = encoding.config(population[i])
        fair = encoding.trained is None or keeps_the_rules(config)
        assert (values.violation[i] == 0) == fair, config
        judged += fair
        if fair:  # what a rule forbids is not priced
            network = describe("", config, COLUMNS)
            assert values.latency_ms[i] == pytest.approx(network.latency.ms, abs=1e-9)
            assert values.score[i] == pytest.approx(network.top1_percent, abs=1e-9)
    assert 0 < judged < len(range(0, len(population), 7)) + (encoding.trained is None)


def test_choices_that_no_rule_bears_are_left_out(small: tuple[Encoding, Population, Any]) -> None:
    encoding, population, values = small
    fewer = encoding.without_idle_choices()
    fair = {encoding.config(row) for row in population[values.violation == 0]}
    rest = everything(fewer)
    assert {fewer.config(row) for row in rest[fewer.evaluate(rest).violation == 0]} == fair
    assert fewer.space.size < encoding.space.size or encoding.trained is None


@pytest.mark.slow
@spaces
@pytest.mark.parametrize("changes", [{}, {"resolution": 192, "num_classes": 10}], ids=["published", "192 px"])
def test_a_shipped_space_is_priced_as_its_networks(name: str, changes: dict[str, int]) -> None:
    space = load_space(find_file("space", name))
    base = arch_config(space.base).changed(changes)
    trained = {v: VARIANTS[v].changed(changes) for v in space.trained_shapes.variants} if space.trained_shapes else {}
    encoding = encode_space(space.sound_at(base), base, trained, [TABLE]).without_idle_choices()
    generator = np.random.default_rng(1)
    population = generator.integers(0, encoding.num_choices, (40_000, len(encoding.num_choices)))
    values = encoding.evaluate(population)
    fair = np.flatnonzero(values.violation == 0)[:15]
    assert len(fair) >= 5
    doubts = {why for variant in trained.values() for why in describe("", variant, COLUMNS).latency.outside}
    assert encoding.price(population) == pytest.approx(values.latency_ms, rel=1e-12)
    for i in fair:
        network = describe("", encoding.config(population[i]), COLUMNS)
        assert values.latency_ms[i] == pytest.approx(network.latency.ms, abs=1e-9)
        assert values.score[i] == pytest.approx(network.top1_percent, abs=1e-9)
        assert set(network.latency.outside) <= doubts or not encoding.in_hull[0]


@spaces
def test_every_choice_of_a_shipped_space_is_sound(name: str) -> None:
    space = load_space(find_file("space", name))
    base = arch_config(space.base)
    plain = base.model_dump(mode="json")
    for path, choices in space.genes.items():
        assert get_path(plain, path) in choices, "the base is not in its own space"
        for choice in choices:
            assert get_path(base.changed({path: choice}).model_dump(mode="json"), path) == choice
    assert space.sound_at(base) == space
    assert space.size > 1000


@pytest.mark.slow
@spaces
def test_published_variants_in_a_space_are_recognised(name: str) -> None:
    space = load_space(find_file("space", name))
    base, inside = arch_config(space.base), variants_inside(space)
    encoding = encode_space(space, base, {n: VARIANTS[n] for n in inside}, [TABLE])
    assert len(inside) >= 3
    for variant in inside:
        candidate = encode(space, base, VARIANTS[variant])
        assert candidate is not None
        assert variant_name(encoding.config(candidate)) == variant
        values, known = encoding.evaluate(np.array([candidate])), describe(variant, VARIANTS[variant], COLUMNS).latency
        off_hull = {"activations", "weights", "ops", "GMACs"} & set(known.outside) and encoding.in_hull[0]
        assert (values.violation[0] > 0) == bool(off_hull)  # its shape is a trained one by definition
        assert values.latency_ms[0] == pytest.approx(known.ms, abs=1e-9)
    assert encode(space, base, base.changed({"num_classes": 7})) is None


# ---------------------------------------------------------------------------------------------------- feasibility


def test_the_cheapest_is_that_of_brute_force(small: tuple[Encoding, Population, Any]) -> None:
    encoding, _population, values = small
    fair = np.where(values.violation == 0, values.latency_ms, np.inf)
    found = cheapest(encoding)
    assert found is not None
    assert encoding.evaluate(np.array([found])).latency_ms[0] == pytest.approx(fair.min(), abs=1e-12)
    assert encoding.evaluate(np.array([found])).violation[0] == 0


def test_the_least_of_a_column_is_that_of_brute_force(small: tuple[Encoding, Population, Any]) -> None:
    encoding, population, values = small
    for column in (PARAMS, MACS, WEIGHT_MB):
        least_known = encoding.totals(population)[values.violation == 0, column].min()
        assert least(encoding, column) == pytest.approx(least_known, rel=1e-12)


def test_a_space_against_its_own_rules_has_no_cheapest() -> None:
    encoding = encoded(small_space(True, **{"stages[2].local_depth": [0, 1], "head_width": [384, 512]}))
    assert cheapest(encoding) is None
    with pytest.raises(InfeasibleError, match="keeps its own rules"):
        find(encoding.space, 1.0)


@pytest.mark.parametrize("changes", [{}, {"resolution": 160, "num_classes": 10}], ids=["published", "160 px"])
def test_an_infeasible_budget_is_answered_with_the_smallest_latency(changes: dict[str, int]) -> None:
    space = small_space(True)
    encoding = encoded(space, **changes)
    values = encoding.evaluate(everything(encoding))
    smallest = float(values.latency_ms[values.violation == 0].min())
    with pytest.raises(InfeasibleError, match=r"meets 0\.5 ms") as refused:
        find(space, 0.5, **changes)
    stated = re.search(r"smallest latency is ([0-9.]+) ms", str(refused.value))
    assert stated is not None
    assert 0 <= float(stated[1]) - smallest <= 1e-3
    assert find(space, float(stated[1]), **changes).best.latency.ms <= float(stated[1])
    hinted = re.search(r"--budget ([0-9.]+)ms", refused.value.hint)
    assert hinted is not None
    assert float(hinted[1]) >= smallest


# ---------------------------------------------------------------------------------------------------- evolution


def check_front(found: Found, encoding: Encoding, budget_ms: float) -> None:
    values = encoding.evaluate(found.candidates)
    assert np.array_equal(values.latency_ms, found.latency_ms)
    assert np.array_equal(values.score, found.score)
    assert (values.violation == 0).all()
    assert (values.latency_ms <= budget_ms).all()
    assert (np.diff(found.latency_ms) > 0).all()
    assert (np.diff(found.score) > 0).all()  # with the line above: none beats another


@pytest.mark.parametrize("budget_ms", [0.85, 0.95, 1.2])
def test_evolution_finds_the_true_front(small: tuple[Encoding, Population, Any], budget_ms: float) -> None:
    encoding, population, values = small
    fair = (values.violation == 0) & (values.latency_ms <= budget_ms)
    found = evolve(encoding, budget_ms, population[:0], np.random.default_rng(0), num_candidates=2_000)
    check_front(found, encoding, budget_ms)
    front = [
        (ms, score)
        for ms, score in zip(values.latency_ms[fair], values.score[fair], strict=True)
        if not ((values.latency_ms[fair] < ms) & (values.score[fair] >= score)).any()
        and not ((values.latency_ms[fair] <= ms) & (values.score[fair] > score)).any()
    ]
    assert sorted(set(front)) == list(zip(found.latency_ms, found.score, strict=True))


@pytest.mark.parametrize("budget_ms", [0.8, 1.6])
def test_a_front_of_the_shipped_space_keeps_budget_and_rules(budget_ms: float) -> None:
    space = load_space(find_file("space", "mobilevigv2"))
    assert space.trained_shapes is not None
    base = arch_config(space.base)
    encoding = encode_space(space, base, {n: VARIANTS[n] for n in space.trained_shapes.variants}, [TABLE])
    encoding = encoding.without_idle_choices()
    nothing = np.zeros((0, len(space.genes)), np.intp)
    generator = np.random.default_rng(3)
    found = evolve(encoding, budget_ms, nothing, generator, num_candidates=5_000)
    check_front(found, encoding, budget_ms)
    assert found.num_feasible >= 5_000
    chance = random_search(encoding, budget_ms, found.num_evaluated, generator)
    check_front(chance, encoding, budget_ms)
    assert found.score[-1] > chance.score[-1]


# ---------------------------------------------------------------------------------------------------- the job


@pytest.fixture(scope="module")
def result() -> SearchResult:
    return find(load_space(find_file("space", "mobilevigv2")), 1.0)


def test_a_search_keeps_its_budget_and_says_what_it_found(result: SearchResult) -> None:
    assert result.best.latency.ms <= 1.0
    assert not result.best.latency.outside
    assert all(ms <= 1.0 for ms, _, _ in result.front)
    assert [ms for ms, _, _ in result.front] == sorted(ms for ms, _, _ in result.front)
    assert [score for _, score, _ in result.front] == sorted(score for _, score, _ in result.front)
    assert result.front[-1][1] - TIE_POINTS <= result.best.top1_percent <= result.front[-1][1] + 1e-9
    assert result.second is not None
    assert result.second.config != result.best.config
    assert result.second.top1_percent >= result.best.top1_percent - 1e-9  # a tie may go to a closer shape
    assert result.nearest.name == "mobilevigv2_ti"
    assert result.beats_random
    assert result.best.latency == profile(result.best.config).latency(TABLE)
    assert result.num_feasible >= NUM_CANDIDATES


def test_what_nothing_decides_keeps_the_published_value(result: SearchResult) -> None:
    assert result.undecided == ("stages[1].reach", "stages[2].reach", "stages[3].reach")
    for _, _, config in result.front:
        assert isinstance(config, MobileViGv2Config)
        assert [stage.reach for stage in config.stages[1:]] == [8, 4, 2]


def test_every_table_must_keep_the_budget() -> None:
    tables = [TABLE, load_table("iphone12"), load_table("iphone14")]
    found = find(small_space(False), 1.0, tables)
    for _, _, config in found.front:
        assert max(profile(config).latency(table).ms for table in tables) <= 1.0
    assert [estimate.device for estimate in found.best.latencies] == [table.device for table in tables]
    assert found.best.latency.ms == max(estimate.ms for estimate in found.best.latencies)
    assert found.front[-1][1] < find(small_space(False), 1.0).front[-1][1]


@pytest.mark.parametrize(
    "limits",
    [Limits(params=6.5e6), Limits(macs=7e8), Limits(size_mb=12.0), Limits(params=7e6, macs=7e8, memory_mb=3.0)],
)
def test_limits_are_kept(limits: Limits) -> None:
    free, found = (find(small_space(False), 3.0, limits=some) for some in (NO_LIMITS, limits))
    for _, _, config in found.front:
        network = describe("", config, COLUMNS)
        figures = network.params.inference, network.macs, network.size_bytes / 1e6, network.memory_bytes / 1e6
        assert all(figure <= limit for figure, limit in zip(figures, limits, strict=True))
    assert found.front[-1][1] < free.front[-1][1]
    assert set(found.limits) == {text for name, text in LIMIT_TEXTS.items() if getattr(limits, name) < np.inf}


LIMIT_TEXTS = {
    "params": "params", "macs": "MACs", "size_mb": "MB of fp16 weights", "memory_mb": "MB of activations",
}  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(params=1e6), r"keeps --max-params: the least of any is [0-9.]+M"),
        (Limits(macs=1e6), r"keeps --max-macs: the least of any is [0-9.]+M"),
        (Limits(size_mb=0.5), r"keeps --max-size: the least of any is [0-9.]+MB"),
        (Limits(memory_mb=0.01), r"keeps --max-memory: the least of any is [0-9.]+MB"),
    ],
)
def test_a_limit_that_nothing_keeps_is_named_with_the_least(limits: Limits, message: str) -> None:
    with pytest.raises(InfeasibleError, match=message) as refused:
        find(small_space(True), 1.0, limits=limits)
    [(option, value, unit)] = re.findall(r"(--max-\w+) ([0-9.]+)(M|MB),", refused.value.hint)
    name = {"--max-params": "params", "--max-macs": "macs", "--max-size": "size_mb", "--max-memory": "memory_mb"}[
        option
    ]
    reachable = float(value) * (1e6 if unit == "M" else 1)
    assert find(small_space(True), 9.0, limits=Limits(**{name: reachable})).front


def test_several_limits_that_nothing_keeps_are_named_at_once() -> None:
    with pytest.raises(InfeasibleError) as refused:
        find(small_space(True), 1.0, limits=Limits(params=1e6, macs=9e12, size_mb=0.5))
    assert re.search(r"keeps --max-params: the least of any is [0-9.]+M, nor --max-size: ", str(refused.value))
    assert re.search(r"Try at least --max-params [0-9.]+M --max-size [0-9.]+MB, or", refused.value.hint)


def test_risk_moves_the_budget_by_the_table_s_error() -> None:
    for risk, name in ((-1.0, "high_ms"), (1.0, "low_ms")):
        found = find(small_space(False), 1.0, risk=risk)
        assert max(getattr(profile(config).latency(TABLE), name) for _, _, config in found.front) <= 1.0 + 1e-9
    low, even, high = (find(small_space(False), 1.0, risk=risk).front[-1][1] for risk in (-1.0, 0.0, 1.0))
    assert low < even < high


def test_a_search_around_a_network_of_the_user() -> None:
    mine = VARIANTS["mobilevigv2_s"].changed({"stages[2].width": 136, "head_width": 640})
    found = search([space_for(mine)], [TABLE], Settings(1.3, start=mine, num_candidates=NUM_CANDIDATES))
    assert found.start is not None
    assert found.start.config == mine
    assert found.front[-1][1] >= found.start.top1_percent - 1e-9
    assert found.start.latency.ms <= 1.3


def test_families_compete_in_a_mixed_space() -> None:
    spaces = [
        small_space(True),
        SearchSpace.parse({"name": "v1", "base": "mobilevig_s", "genes": {"head_width": [384, 512]}}),
    ]
    found = search(spaces, [TABLE], Settings(1.3, num_candidates=NUM_CANDIDATES))
    alone = [find(space, 1.3).front[-1][1] for space in spaces]
    assert found.front[-1][1] == pytest.approx(max(alone), abs=0.05)
    assert {network.config.family for network in found.published} == {"mobilevig", "mobilevigv2"}
    assert found.space_size == sum(space.size for space in spaces)


def test_a_member_whose_prices_are_doubtful_is_not_compared() -> None:
    dynamic = SearchSpace.parse({"name": "dynamic", "base": "clustervig_ti", "genes": {"head_width": [512, 1024]}})
    found = search([small_space(True), dynamic], [TABLE], Settings(30.0, num_candidates=NUM_CANDIDATES))
    assert {config.family for _, _, config in found.front} == {"mobilevigv2"}
    assert [network.config.family for network in found.doubtful] == ["clustervig"]
    assert search([dynamic], [TABLE], Settings(30.0, num_candidates=NUM_CANDIDATES)).best.latency.outside


def test_shapes_that_were_never_trained_are_kept_apart(result: SearchResult) -> None:
    assert result.apart
    rules = prepare(load_space(find_file("space", "mobilevigv2")), [TABLE]).full
    for ms, _, config in result.apart[::10]:
        candidate = encode(rules.space, rules.base, config)
        assert candidate is not None
        assert rules.evaluate(np.array([candidate])).violation[0] > 0
        assert rules.ignoring_shapes().evaluate(np.array([candidate])).violation[0] == 0
        assert ms <= 1.0
    assert not {config for *_, config in result.apart} & {config for *_, config in result.front}


def test_an_unseen_gene_takes_the_choice_nearest_to_the_published_value() -> None:
    space = small_space(False, **{"stages[1].reach": [3, 6, 9], "head_width": [384, 512]})
    found = find(space, 2.0)
    assert found.undecided == ("stages[1].reach",)
    assert {get_path(config.model_dump(mode="json"), "stages[1].reach") for _, _, config in found.front} == {9}


def test_an_unseen_gene_cannot_carry_the_answer_over_the_budget() -> None:
    """K = 3 has a link less than K = 2 in a narrow stage; a budget that only K = 3 meets gets less network."""
    genes = {"stages[3].reach": [2, 3], "stages[3].width": [128], "stages[3].mixer": ["svga"], "head_width": [384, 512]}
    largest = arch_config("mobilevigv2_s").changed({"stages[3].width": 128, "stages[3].mixer": "svga"})
    cheap, dear = (
        describe("", config, COLUMNS).latency.ms for config in (largest.changed({"stages[3].reach": 3}), largest)
    )
    assert 0 < dear - cheap < 0.005
    budget_ms = (cheap + dear) / 2
    found = find(small_space(False, **genes), budget_ms)
    assert found.undecided == ("stages[3].reach",)
    assert all(ms <= budget_ms for ms, _, _ in found.front)
    assert found.best.config == largest.changed({"head_width": 384})


@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_can_be_searched(family: str) -> None:
    name = next(name for name, config in VARIANTS.items() if config.family == family)
    last = len(VARIANTS[name].stage_shapes()) - 1
    width = VARIANTS[name].stage_shapes()[last].width
    paths = {field.path for field in describe_fields(VARIANTS[name])}
    depth = next(p for p in ("stages[i].local_depth", "stages[i].depth", "depth") if p in paths).replace("[i]", "[0]")
    wide = f"stages[{last}].width" if "stages[i].width" in paths else "width"
    genes = {wide: [width, 2 * width], depth: [1, 2, 3], "expansion": [2, 4]}
    found = find(SearchSpace.parse({"base": name, "genes": genes}), 90.0)
    assert found.best.config.family == family
    assert found.best.latency.ms <= 90
    assert found.front[-1][2].stage_shapes()[last].width == 2 * width
    assert (found.kept, found.by_ablations) == ((), ())


def test_choices_that_do_not_go_together_are_left_out() -> None:
    genes = {"stages[3].mixer": ["svga", "mgc", "none"], "stages[3].reach": [2, 6, 9], "stages[3].width": [192, 256]}
    found = find(small_space(False, **genes), 9.0)
    assert found.by_ablations == ("stages[3].mixer",)
    assert set(found.choices) <= {"stages[3].mixer", "stages[3].reach"}
    assert found.choices["stages[3].mixer"] in ("svga", "mgc", "none")
    for _, _, config in found.front:  # a svga link of 9 tokens on a grid of 7 cannot be built
        config.changed({})


def test_the_seed_decides(result: SearchResult) -> None:
    space = load_space(find_file("space", "mobilevigv2"))
    assert find(space, 1.0).front == result.front
    other = find(space, 1.0, seed=1)
    assert [score for _, score, _ in other.front] != [score for _, score, _ in result.front]
    assert other.best.top1_percent == pytest.approx(result.best.top1_percent, abs=0.2)


def test_a_search_at_another_resolution_and_number_of_classes() -> None:
    calls: list[tuple[str, int, int]] = []
    found = search(
        [load_space(find_file("space", "mobilevigv2"))], [TABLE],
        Settings(0.8, resolution=160, num_classes=10, num_candidates=NUM_CANDIDATES),
        on_progress=lambda what, done, total: calls.append((what, done, total)),
    )  # fmt: skip
    for config in (found.best.config, found.front[0][2], *(n.config for n in found.published)):
        assert (config.resolution, config.num_classes) == (160, 10)
    assert found.best.latency.ms <= 0.8
    assert found.best.latency == profile(found.best.config).latency(TABLE)
    assert {what for what, _, _ in calls} == {"counting", "evolving"}
    assert all(done <= total for _, done, total in calls)


def test_a_resolution_that_the_base_does_not_bear_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"K = 8 on a grid of 16"):
        find(small_space(False), 1.0, resolution=128)


def test_the_nearest_published_network() -> None:
    networks = [describe(name, config, COLUMNS) for name, config in VARIANTS.items() if "gv2" in name]
    assert nearest_published(networks, 1.5).name == "mobilevigv2_s"
    assert nearest_published(networks, 0.1).name == "mobilevigv2_ti"
    assert nearest_published(networks, 1.5, Limits(params=6e6)).name == "mobilevigv2_ti"


def test_a_network_of_one_head_gets_no_teacher(tmp_path: Path) -> None:
    space = SearchSpace.parse({"base": "mobilevit_xxs", "genes": {"head_width": [256, 320]}})
    save(find(space, 3.0), load_recipe(find_file("recipe", "v2_s")), "found", tmp_path)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.distillation, recipe.resolution) == (None, 256)


def test_what_a_search_leaves(result: SearchResult, tmp_path: Path) -> None:
    recipe = load_recipe(find_file("recipe", "v2_s"))
    summary = save(result, recipe, "found at 1 ms", tmp_path)
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again.arch_config() == result.best.config
    assert (tmp_path / "recipe.yaml").read_text().startswith("# found at 1 ms\n")
    stored = json.loads((tmp_path / "front.json").read_text())
    assert stored["best"]["latency_ms"] == pytest.approx(result.best.latency.ms, abs=1e-4)
    assert {key: value for key, value in stored.items() if key != "front"} == json.loads(json.dumps(summary))
    assert [type(result.best.config).parse(point["arch"]) for point in stored["front"]] == [c for *_, c in result.front]
    assert (tmp_path / "front.png").read_bytes()[:4] == b"\x89PNG"


def test_a_table_of_another_scale_moves_the_search() -> None:
    assert TABLE.calibration is not None
    scaled = TABLE.calibration.model_copy(update={"scale": 1.5 * TABLE.calibration.scale})
    slower: LatencyTable = TABLE.model_copy(
        update={"calibration": scaled, "rows": {}, "fixed_ms": scaled.fixed_ms, "num_rows": 0}
    )
    fast, slow = (find(small_space(False), 1.3, [table]) for table in (TABLE, slower))
    assert slow.best.top1_percent < fast.best.top1_percent

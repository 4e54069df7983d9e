"""The shipped latency tables: what their rows and prices rest on, and what they refuse or mark."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from vigcli.config.archs import VARIANTS, BlockSpec, arch_config
from vigcli.config.load import dump, dump_yaml
from vigcli.config.space import SearchSpace, named_spaces, variants_inside
from vigcli.config.space_blocks import space_specs
from vigcli.errors import ConfigError, NotMeasurableError
from vigcli.latency.calibration import Calibration
from vigcli.latency.interpolate import features_of
from vigcli.latency.table import LatencyTable, Row, distinguishable, kind_of, load_table, rows_for
from vigcli.latency.trace import Op, OpTrace
from vigcli.measure.count import count_block
from vigcli.measure.coverage import Coverage, coverage_of
from vigcli.measure.profile import profile
from vigcli.measure.tables import (
    DEVICES,
    Study,
    calibrate,
    read_anchors,
    space_blocks,
)
from vigcli.paths import builtin_folder, builtin_names

TABLES = {name: load_table(name) for name in builtin_names("table")}
tables = pytest.mark.parametrize("name", TABLES)
calibrated_tables = pytest.mark.parametrize("name", [name for name, table in TABLES.items() if table.calibration])
measured_tables = pytest.mark.parametrize("name", [name for name, table in TABLES.items() if not table.calibration])
SPACES = {space.name: space for space in named_spaces()}
spaces = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)

LEAVES = ("top-k, which leaves the Neural Engine", "a gather, which leaves the Neural Engine")


@functools.cache
def specs_of(name: str) -> dict[str, BlockSpec]:
    return space_specs(SPACES[name])


TRACE = OpTrace((Op("pw", 3_000_000, 400_000, 10**8),), (Op("pw", 2_500_000, 400_000, 10**8),), 1)


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return TABLES["iphone13-mini"]


def short(table: LatencyTable) -> LatencyTable:
    """The table with a few of its rows: reading all of them takes a second."""
    rows = dict(list(table.rows.items())[:4])
    return table.model_copy(update={"rows": rows, "num_rows": len(rows)})


def model_of(table: LatencyTable) -> Calibration:
    assert table.calibration is not None
    return table.calibration


def measured(signature: str, ms: float) -> dict[str, Row]:
    return {signature: Row(ms=ms, plus_minus_ms=0.01, kind="measured", num_runs=9, where="a bench")}


# ---------------------------------------------------------------------------------------------------- rows


@calibrated_tables
@spaces
def test_every_block_of_a_shipped_space_has_its_row(name: str, space: SearchSpace) -> None:
    shipped, family, specs = TABLES[name], arch_config(space.base).family, specs_of(space.name)
    assert specs.keys() <= shipped.rows.keys()
    sample = list(specs)[:: len(specs) // 20]
    traces = [(signature, count_block(family, specs[signature]).deployed) for signature in sample]
    computed = rows_for(model_of(shipped), traces)
    for signature in sample:
        if shipped.rows[signature].kind == "calibrated":
            assert shipped.rows[signature].ms == pytest.approx(computed[signature].ms, abs=2e-6)
            assert shipped.rows[signature].plus_minus_ms == pytest.approx(computed[signature].plus_minus_ms, abs=2e-6)


@measured_tables
@spaces
def test_every_block_of_a_shipped_space_is_measured_or_between_such(name: str, space: SearchSpace) -> None:
    shipped, family, specs = TABLES[name].model_copy(), arch_config(space.base).family, specs_of(space.name)
    assert all(row.num_runs > 0 for row in shipped.rows.values())
    for variant in variants_inside(space):
        assert {spec.signature for spec in arch_config(variant).blocks()} <= shipped.rows.keys()
    between = [signature for signature in specs if signature not in shipped.rows]
    for signature in between[:: len(between) // 15 + 1]:
        assert shipped.block_ms(signature, count_block(family, specs[signature]).deployed).how == "interpolated"


@pytest.mark.slow
@tables
@spaces
def test_a_shipped_table_knows_all_blocks_of_the_shipped_spaces(name: str, space: SearchSpace) -> None:
    found = coverage_of(TABLES[name].model_copy(), arch_config(space.base).family, specs_of(space.name))
    assert not found.missing
    assert found.num_blocks == found.num_rows + found.num_between


def test_a_block_that_a_table_does_not_know_is_told() -> None:
    """A calibrated table that lacks a row, and a measured one that lacks the biggest or all of a kind."""
    space = SPACES["mobilevig"]
    small = space.model_copy(update={"genes": {"stages[3].width": (192, 256, 320), "head_width": (384, 512)}})
    specs = space_specs(small)
    signatures = list(specs)
    shipped = TABLES["iphone13-mini"]
    assert coverage_of(shipped, "mobilevig", specs).missing == ()
    lacking = shipped.model_copy(update={"rows": {s: r for s, r in shipped.rows.items() if s != signatures[0]}})
    assert coverage_of(lacking, "mobilevig", specs).missing == (signatures[0],)
    features = {s: features_of(trace) for s, trace in space_blocks(small).items()}
    rows = {
        s: Row(ms=0.1, plus_minus_ms=0, kind="measured", num_runs=9, where="x", features=f) for s, f in features.items()
    }
    graphs = sorted((s for s in rows if s.startswith("graph")), key=lambda s: rows[s].features[0])  # type: ignore[index]

    def without(*dropped: str) -> Coverage:
        kept = {s: row for s, row in rows.items() if s not in dropped}
        return coverage_of(shipped.model_copy(update={"calibration": None, "rows": kept}), "mobilevig", specs)

    assert without(graphs[1]) == (len(rows), len(rows) - 1, len(rows) - 1, 1, ())
    assert without(graphs[-1]).missing == (graphs[-1],)
    assert set(without(*graphs).missing) == set(graphs)


@tables
def test_a_table_says_what_it_is(name: str) -> None:
    shipped = TABLES[name]
    assert shipped.unit == "ms"
    assert all((shipped.device, shipped.soc, shipped.os, shipped.compute_unit, shipped.protocol, shipped.source))
    assert all(row.ms > 0 for row in shipped.rows.values())
    assert (name in DEVICES) == (shipped.calibration is not None)
    judged = {"network", "family", "nested", "mobilevig", "labs", "device"}
    assert judged == set(shipped.accuracy) or shipped.kind == "measured"
    assert shipped.num_rows == len(shipped.rows)


def test_a_signature_means_one_block() -> None:
    """Rows are found by signature alone: no two families may build different blocks under one."""
    ops: dict[str, tuple[str, tuple[Op, ...]]] = {}
    for config in VARIANTS.values():
        for block in profile(config).blocks:
            found = tuple(op._replace(block="") for op in block.trace.ops)
            family, known = ops.setdefault(block.signature, (config.family, found))
            assert known == found, (block.signature, family, config.family)


# ---------------------------------------------------------------------------------------------------- prices


@pytest.mark.parametrize(
    ("name", "ms"),
    [("mobilevigv2_ti", 0.91), ("mobilevigv2_s", 1.10), ("mobilevigv2_m", 1.55), ("mobilevigv2_b", 2.71)],
)
def test_prices_of_the_published_variants(table: LatencyTable, name: str, ms: float) -> None:
    estimate = profile(VARIANTS[name]).latency(table)
    assert estimate.ms == pytest.approx(ms, abs=0.03)
    assert (estimate.low_ms, estimate.high_ms) == pytest.approx((estimate.ms / 1.12, estimate.ms * 1.12))
    assert estimate.outside == ()
    assert estimate.num_blocks == len(VARIANTS[name].blocks())
    assert estimate.measured_percent == 0
    assert str(estimate).endswith("iPhone 13 mini, calibrated")


def test_a_block_without_a_row_is_priced_by_the_model_and_not_counted_as_exact(table: LatencyTable) -> None:
    signature, row = next(iter(table.rows.items()))
    estimate = table.estimate("mobilevigv2", [(signature, TRACE), ("made[up=1] 3x3x3", TRACE)])
    members = model_of(table).members_ms(TRACE)
    assert (estimate.num_rows, estimate.num_blocks) == (1, 2)
    assert estimate.ms == pytest.approx(table.fixed_ms + row.ms + np.mean(members))
    price = table.block_ms("made[up=1] 3x3x3", TRACE)
    assert (price.how, price.kind) == ("model", "calibrated")
    assert price.plus_minus_ms == pytest.approx((max(members) - min(members)) / 2)


def test_a_price_follows_the_formula(table: LatencyTable) -> None:
    """One op of 3 MB (2.5 fused) and 0.4 MB of weights, by hand."""
    expected = []
    for m in model_of(table).members:
        act = 3.0 if m.fusion == "F0" else 2.5
        move = m.act_ms_per_mb * act + m.spill_ms_per_mb * np.mean([max(0, act - k) for k in (1, 2, 3)])
        weights = m.weight_ms_per_mb * 0.4
        expected.append(m.fixed_ms + (move + weights if m.combine == "sum" else max(move, weights)))
    assert table.estimate("mobilevigv2", [("x", TRACE)]).ms == pytest.approx(np.mean(expected))
    second = model_of(table).cross_check
    expected_ms = second.act_ms_per_mb * 3.0 + second.spill_ms_per_mb * 1.0 + second.weight_ms_per_mb * 0.4
    assert table.block_ms("x", TRACE).second_ms == pytest.approx(expected_ms)


def test_measured_rows_replace_calibrated_ones(table: LatencyTable) -> None:
    blocks = [(block.signature, block.trace) for block in profile(VARIANTS["mobilevigv2_ti"]).blocks]
    before = table.estimate("mobilevigv2", blocks)
    slow = next(signature for signature, _ in blocks if signature.startswith("head"))
    mixed = table.with_rows(measured(slow, 1.0))
    after = mixed.estimate("mobilevigv2", blocks)
    assert (mixed.kind, mixed.num_rows) == ("mixed", table.num_rows)
    assert {s for s in table.rows if table.rows[s] != mixed.rows[s]} == {slow}
    assert after.ms == pytest.approx(before.ms - table.block_ms(slow, dict(blocks)[slow]).ms + 1.0)
    assert after.measured_percent == pytest.approx(100 / after.ms)
    assert after.high_ms - after.ms == pytest.approx((after.ms - 1.0) * (table.interval.factor - 1))  # the rest's
    assert str(after).endswith(f"calibrated, {after.measured_percent:.0f} % measured")
    all_measured = table.with_rows({s: Row(ms=0.1, plus_minus_ms=0, kind="measured", num_runs=9, where="x") for s in
                                    table.rows})  # fmt: skip
    assert all_measured.kind == "measured"
    assert all_measured.estimate("mobilevigv2", blocks).kind == "measured"


def test_a_table_without_a_model_interpolates_and_knows_where_it_does_not(table: LatencyTable) -> None:
    blocks = space_blocks(SPACES["mobilevig"])
    rows = {
        s: Row(ms=0.01 + t.macs / 1e9 + 0.02 * t.act_mb, plus_minus_ms=0.001, kind="measured", num_runs=9, where="x",
               features=features_of(t))
        for s, t in blocks.items()
    }  # fmt: skip
    kept = {s: row for i, (s, row) in enumerate(rows.items()) if i % 7}
    bare = table.model_copy(
        update={"calibration": None, "rows": kept, "num_rows": len(kept), "kind": "measured", "fixed_ms": 0.0}
    )
    errors = []
    for s in rows.keys() - kept.keys():
        price = bare.block_ms(s, blocks[s])
        assert price.how in ("interpolated", "outside")
        errors.append(abs(price.ms / rows[s].ms - 1))
    assert np.median(errors) < 0.02
    for s in list(kept)[::20]:
        assert bare.block_ms(s, blocks[s]).how == "exact"
    bigger = OpTrace(tuple(op._replace(macs=100 * op.macs) for op in TRACE.ops), TRACE.fused, 1)
    assert bare.block_ms("inverted_residual[expansion=4] 9x9x9", bigger).how == "outside"
    assert bare.estimate("x", [("head[x=1] 1x1x1", TRACE)]).outside == ("1 blocks beyond the rows of their kind",)
    with pytest.raises(NotMeasurableError, match="no row for made"):
        bare.block_ms("made[up=1] 3x3x3", TRACE)


def test_a_second_model_that_disagrees_says_so(table: LatencyTable) -> None:
    model = model_of(table)
    other = model.cross_check.model_copy(update={"weight_ms_per_mb": 2 * model.cross_check.weight_ms_per_mb})
    doubted = table.model_copy(update={"calibration": model.model_copy(update={"cross_check": other})})
    (reason,) = profile(VARIANTS["mobilevigv2_s"]).latency(doubted).outside
    assert reason.startswith("a second model says +")


def test_operations_that_were_not_fitted_say_so(table: LatencyTable) -> None:
    choosing = OpTrace((*TRACE.ops, Op("topk", 1, 0, 0, "", "topk"), Op("grp", 1, 0, 0)), TRACE.fused, 1)
    doubts = ("operations that were not fitted (grp)", "top-k, which leaves the Neural Engine")
    price = table.block_ms("x", choosing)
    assert price.doubts == doubts
    assert table.estimate("mobilevigv2", [("x", choosing)] * 3).outside[-2:] == doubts  # once
    known = table.with_rows(measured("x", 1.0))
    assert known.block_ms("x", choosing).doubts == ()
    assert known.estimate("mobilevigv2", [("x", choosing)]).outside == ()  # nothing is left to the model
    rest = ("y", OpTrace(TRACE.ops, TRACE.fused, 1))
    assert not {*doubts} & {*known.estimate("mobilevigv2", [("x", choosing), rest]).outside}


@pytest.mark.parametrize("name", VARIANTS)
def test_attention_over_many_tokens_is_marked(table: LatencyTable, name: str) -> None:
    """MobileViT's is over 256, of which one lab says 1.5 ms and another 7.3; separable attention is over no pairs."""
    of_pairs = VARIANTS[name].family in ("mobilevit", "mobilevitv3") and "separable" not in str(VARIANTS[name])
    assert ("attention over 196 tokens and more" in profile(VARIANTS[name]).latency(table).outside) == of_pairs


def test_near_predictions_are_not_ranked() -> None:
    assert not distinguishable(1.0, 1.09)
    assert distinguishable(1.0, 1.11)
    assert distinguishable(1.11, 1.0)


def test_an_unknown_precision_is_refused(table: LatencyTable) -> None:
    with pytest.raises(NotMeasurableError, match="knows fp16, not int8"):
        table.estimate("mobilevigv2", [("x", TRACE)], precision="int8")


# ---------------------------------------------------------------------------------------------------- the fitted range


@pytest.mark.parametrize("feature", [0, 1, 2, 3])
@pytest.mark.parametrize("side", [0, 1])
def test_what_lies_outside_the_fitted_range_is_named(table: LatencyTable, feature: int, side: int) -> None:
    bounds = model_of(table).hull.bounds()
    values = [(low + high) / 2 for low, high in bounds]
    assert table.outside(*values) == ()
    values[feature] = bounds[feature][side]
    assert table.outside(*values) == ()
    values[feature] *= (0.99, 1.01)[side]
    assert table.outside(*values) == (("activations", "weights", "ops", "GMACs")[feature],)


def test_extrapolation_is_marked(table: LatencyTable) -> None:
    tiny = profile(VARIANTS["mobilevigv2_ti"].changed({"resolution": 96})).latency(table)
    assert "GMACs" in tiny.outside
    assert "OUTSIDE" in str(tiny)
    assert "GMACs" in str(tiny)


@pytest.mark.parametrize("name", ["vig_ti", "pvig_s", "greedyvig_s", "clustervig_ti"])
def test_families_that_were_not_fitted_are_marked(table: LatencyTable, name: str) -> None:
    estimate = profile(VARIANTS[name]).latency(table)
    assert "a family that was not fitted" in estimate.outside
    assert (set(LEAVES) <= set(estimate.outside)) == (not name.startswith("greedyvig"))
    assert not set(LEAVES) & set(estimate.outside) or not name.startswith("greedyvig")
    assert estimate.high_ms == pytest.approx(estimate.ms * model_of(table).new_family_interval.factor)


def test_a_graph_of_nearest_neighbours_is_marked_in_any_family(table: LatencyTable) -> None:
    knn = ("operations that were not fitted (grp)", *LEAVES)
    for mixer, marks in (("knn", knn), ("degc", LEAVES), ("dagc", ()), ("mgc", ())):
        config = VARIANTS["mobilevigv2_ti"].changed({"stages[3].mixer": mixer})
        outside = profile(config).latency(table).outside
        assert outside == marks or (mixer == "degc" and outside == ("ops", *marks))  # k-means is many operations


# ---------------------------------------------------------------------------------------------------- fitting


@pytest.fixture(scope="module")
def study() -> Study:
    return Study(builtin_folder("table") / "published")


@calibrated_tables
def test_fitting_again_gives_the_shipped_table(name: str, study: Study) -> None:
    shipped = TABLES[name]
    fitted = study.table(name, [SPACES["mobilevig"]])
    ours, theirs = model_of(fitted), model_of(shipped)
    assert len(ours.members) == len(theirs.members) == 4
    for one, other in zip((*ours.members, ours.cross_check), (*theirs.members, theirs.cross_check), strict=True):
        assert (one.fusion, one.combine, one.spill_from_mb) == (other.fusion, other.combine, other.spill_from_mb)
        for key in ("fixed_ms", "act_ms_per_mb", "spill_ms_per_mb", "weight_ms_per_mb"):
            assert getattr(one, key) == pytest.approx(getattr(other, key), rel=1e-3)
    assert ours.scale == pytest.approx(theirs.scale, rel=1e-3)
    for bounds, stored in zip(ours.hull.bounds(), theirs.hull.bounds(), strict=True):
        assert bounds == pytest.approx(stored, rel=1e-3)
    for by, claimed in shipped.accuracy.items():
        assert fitted.accuracy[by].mape_percent == pytest.approx(claimed.mape_percent, abs=0.1)
        assert fitted.accuracy[by].kendall_tau == pytest.approx(claimed.kendall_tau, abs=0.01)
    same = ("format", "unit", "device", "aliases", "soc", "os", "runtime", "compute_unit", "precision", "kind")
    for key in (*same, "protocol", "source", "interval"):
        assert getattr(fitted, key) == getattr(shipped, key), key
    for key in ("pattern", "scope", "notes", "families", "op_kinds", "out_of_scope", "new_family_interval"):
        assert getattr(ours, key) == getattr(theirs, key), key
    assert fitted.rows.keys() <= shipped.rows.keys()


@pytest.mark.parametrize(
    ("name", "scale"),  # the study's, over that of the iPhone 13 mini; it fitted the captured pattern
    [("iphone12", 1.105 / 1.008), ("iphone12-pro", 1.157 / 1.008), ("iphone14", 0.864 / 1.008)],
)
def test_scales_are_those_of_the_study(name: str, scale: float) -> None:
    assert model_of(TABLES[name]).scale == pytest.approx(scale, rel=0.05)


# ---------------------------------------------------------------------------------------------------- a new device


ANCHORS = ("mobilevigv2_ti", "mobilevig_m", "timm:mobilenetv2_100", "timm:fastvit_t8")


def write_anchors(path: Path, table: LatencyTable, factor: float, count: int = len(ANCHORS)) -> None:
    from vigcli.archs import resolved

    lines = ["network,resolution,latency_ms"]
    for i, name in enumerate(ANCHORS[:count]):
        config = resolved(name)
        ms = profile(config).latency(table).ms * factor * (1.02 if i % 2 else 0.98)
        lines.append(f"{name},{config.resolution},{ms:.4f}")
    path.write_text("\n".join(lines) + "\n")


def test_a_device_is_calibrated_by_its_anchors(table: LatencyTable, tmp_path: Path) -> None:
    write_anchors(tmp_path / "a.csv", table, 1.5)
    anchors = read_anchors(tmp_path / "a.csv", table)
    about = {"device": "iPhone X", "soc": "A0", "os": "iOS 20", "protocol": "mine"}
    made = calibrate(table, anchors, about, tmp_path / "a.csv")
    assert 1.45 < model_of(made).scale < 1.5  # shrunk towards 1
    assert made.rows.keys() == table.rows.keys()
    estimate, base = (profile(VARIANTS["mobilevigv2_s"]).latency(t) for t in (made, table))
    assert estimate.ms == pytest.approx(base.ms * model_of(made).scale, rel=1e-4)
    assert (made.device, made.accuracy["device"].num_rows) == ("iPhone X", 4)
    assert made.interval.factor >= table.interval.factor
    assert LatencyTable.model_validate_json(made.model_dump_json()) == made
    scattered = [anchors[0], *(anchor._replace(measured_ms=1.6 * anchor.measured_ms) for anchor in anchors[1:])]
    assert calibrate(table, scattered, about, tmp_path).interval.factor > made.interval.factor


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("network,resolution\nmobilevigv2_ti,224\n", "a.csv:2: there is no column 'latency_ms'"),
        ("network,resolution,latency_ms\nmobilevigv2_ti,224,-1\n", "a.csv:2: latency_ms = '-1' is no number above 0"),
        ("network,resolution,latency_ms\nmobilevigv2_ti,224,soon\n", "a.csv:2: latency_ms = 'soon'"),
        ("network,resolution,latency_ms\nmobilevigv2_ti,224\n", "a.csv:2: ends before the column 'latency_ms'"),
        ("network,resolution,latency_ms\nmobilevigv2_ti,224,1,2\n", "a.csv:2: has more cells than the header"),
        ("network,resolution,latency_ms\nmobilevigv2_ti,224.5,1\n", "a.csv:2: resolution = '224.5' is no whole number"),
        (
            "network,resolution,latency_ms\nmobilevigv2_ti,224,900\n",
            "a.csv:2: latency_ms = '900' is far from the 0.92 ms",
        ),
        ("network,resolution,latency_ms\nmobilevigv2_ti,224,0.0009\n", "a.csv:2: .* milliseconds are meant"),
        ("network,resolution,latency_ms\nmobilevigv9,224,1\n", "a.csv:2: .*mobilevigv9"),
        ("network,resolution,latency_ms\n", "a.csv: holds no rows"),
        ("", "a.csv: holds no rows"),
    ],
)
def test_anchors_that_are_none_are_refused(text: str, complaint: str, table: LatencyTable, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_anchors(tmp_path / "a.csv", table)


def test_too_few_anchors_are_refused(table: LatencyTable, tmp_path: Path) -> None:
    write_anchors(tmp_path / "a.csv", table, 1.5, count=2)
    with pytest.raises(ConfigError, match="2 networks are too few"):
        calibrate(table, read_anchors(tmp_path / "a.csv", table), {"device": "x"}, tmp_path / "a.csv")


# ---------------------------------------------------------------------------------------------------- names


@tables
def test_a_table_is_found_by_its_names_and_its_device(name: str, tmp_path: Path) -> None:
    shipped = TABLES[name]
    for known in (f"{name}.yaml", shipped.device.upper(), *shipped.aliases[-1:]):
        assert load_table(known) == shipped
    path = tmp_path / "mine.yaml"
    path.write_text(dump(short(shipped).model_copy(update={"device": "my phone"})))
    assert load_table(path).device == "my phone"
    assert load_table(path).rows == short(shipped).rows


def test_an_unknown_or_damaged_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="iphone13-min") as unknown:
        load_table("iphone13-min")
    assert "iphone13-mini" in unknown.value.hint
    with pytest.raises(ConfigError, match="toaster"):
        load_table("toaster")
    path = tmp_path / "mine.yaml"
    text = dump(short(TABLES["iphone13-mini"]))
    for old, new in (("unit: ms", "unit: us"), ("precision: fp16", "precision: fp8"), ("scale: 1.0", "scale: -1.0"),
                     ("format: 2", "format: 1"), ("soc: A15", "soc: ''"), ("date: 2", "date: x2"),
                     ("tools: {vig", "tools: {}  # {vig"), ("source: arXiv", "from: arXiv")):  # fmt: skip
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=rf"mine\.yaml:\d+: .*({old.split(':')[0]}|{new.split(':')[0]})"):
            load_table(path)


def test_a_table_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    text = dump(short(TABLES["iphone13-mini"]))
    path = tmp_path / "mine.yaml"
    path.write_text(text[: text.rstrip().rindex("\n")])
    with pytest.raises(ConfigError, match=r"mine\.yaml:\d+: num_rows = 4, but there are 3"):
        load_table(path)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"ms": 0.0, "plus_minus_ms": 0.0}, "ms"),
        ({"ms": -1.0, "plus_minus_ms": 0.0}, "ms"),
        ({"ms": 20_000.0, "plus_minus_ms": 0.0}, "ms"),
        ({"ms": 1.0, "plus_minus_ms": 0.0, "kind": "measured"}, "num_runs"),
        ({"ms": 1.0, "plus_minus_ms": 0.0, "kind": "measured", "num_runs": 3}, "where"),
        ({"ms": 1.0, "plus_minus_ms": 0.0, "num_runs": 3}, "calibrated row of 3 runs"),
    ],
)
def test_rows_that_say_too_little_are_refused(row: dict[str, object], complaint: str, tmp_path: Path) -> None:
    table = short(TABLES["iphone13-mini"]).model_dump(mode="json")
    table["rows"][next(iter(table["rows"]))] = row
    path = tmp_path / "mine.yaml"
    path.write_text(dump_yaml(table))
    with pytest.raises(ConfigError, match=complaint):
        load_table(path)


def test_a_table_says_what_its_rows_are() -> None:
    rows = TABLES["iphone13-mini"].rows
    assert kind_of(rows) == "calibrated"
    row = Row(ms=1.0, plus_minus_ms=0, kind="measured", num_runs=1, where="x")
    assert kind_of({"a": row}) == "measured"
    assert kind_of({**rows, "a": row}) == "mixed"
    assert row.model_dump() == {"ms": 1.0, "plus_minus_ms": 0.0, "kind": "measured", "num_runs": 1, "where": "x"}

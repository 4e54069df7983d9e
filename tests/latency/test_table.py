"""The shipped latency tables: what their rows and prices rest on, and what they refuse or mark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vigcli.config.archs import VARIANTS, arch_config
from vigcli.config.load import dump
from vigcli.config.space import load_space
from vigcli.errors import ConfigError, NotMeasurableError
from vigcli.latency.table import LatencyTable, Row, load_table, rows_for
from vigcli.latency.trace import Op, OpTrace
from vigcli.measure.profile import profile
from vigcli.measure.tables import DEVICES, fit_table, space_blocks
from vigcli.paths import builtin_folder, builtin_names, find_file

tables = pytest.mark.parametrize("name", builtin_names("table"))
spaces = pytest.mark.parametrize("space_name", builtin_names("space"))

TRACE = OpTrace((Op("pw", 3_000_000, 400_000, 10**8),), (Op("pw", 2_500_000, 400_000, 10**8),), 1)


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return load_table("iphone13-mini")


# ---------------------------------------------------------------------------------------------------- rows


@tables
@spaces
def test_every_block_of_a_shipped_space_has_its_row(name: str, space_name: str) -> None:
    shipped, space = load_table(name), load_space(find_file("space", space_name))
    blocks = space_blocks(space)
    assert blocks.keys() <= shipped.rows.keys()
    sample = list(blocks)[:: max(1, len(blocks) // 20)]
    assert len(sample) >= 20
    computed = rows_for(shipped, [(signature, blocks[signature]) for signature in sample])
    for signature in sample:
        if shipped.rows[signature].kind == "calibrated":
            assert shipped.rows[signature].ms == pytest.approx(computed[signature].ms, abs=2e-6)
            assert shipped.rows[signature].plus_minus_ms == pytest.approx(computed[signature].plus_minus_ms, abs=2e-6)


@spaces
def test_the_listed_blocks_are_all_that_a_network_of_the_space_can_have(space_name: str) -> None:
    space = load_space(find_file("space", space_name))
    base, blocks = arch_config(space.base), space_blocks(space)
    generator = np.random.default_rng(0)
    for _ in range(200):
        config = space.config(base, [int(generator.integers(len(choices))) for choices in space.genes.values()])
        assert {spec.signature for spec in config.blocks()} <= blocks.keys()


@tables
def test_a_table_says_what_it_is(name: str) -> None:
    shipped = load_table(name)
    assert shipped.unit == "ms"
    assert all((shipped.device, shipped.soc, shipped.os, shipped.compute_unit, shipped.protocol, shipped.source))
    assert all(row.ms > 0 for row in shipped.rows.values())
    assert name in DEVICES


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
    members = [table.scale * member.op_ms(TRACE) for member in table.calibrated.members]
    assert (estimate.num_rows, estimate.num_blocks) == (1, 2)
    assert estimate.ms == pytest.approx(table.fixed_ms + row.ms + np.mean(members))
    price = table.block_ms("made[up=1] 3x3x3", TRACE)
    assert (price.exact, price.kind) == (False, "calibrated")
    assert price.plus_minus_ms == pytest.approx((max(members) - min(members)) / 2)


def test_a_price_follows_the_formula(table: LatencyTable) -> None:
    """One op of 3 MB (2.5 fused) and 0.4 MB of weights, by hand."""
    expected = []
    for m in table.model:
        act = 3.0 if m.fusion == "F0" else 2.5
        move = m.act_ms_per_mb * act + m.spill_ms_per_mb * np.mean([max(0, act - k) for k in (1, 2, 3)])
        weights = m.weight_ms_per_mb * 0.4
        expected.append(m.fixed_ms + (move + weights if m.combine == "sum" else max(move, weights)))
    assert table.estimate("mobilevigv2", [("x", TRACE)]).ms == pytest.approx(np.mean(expected))
    slower = table.model_copy(update={"scale": 2.0})
    assert slower.estimate("mobilevigv2", [("x", TRACE)]).ms == pytest.approx(2 * np.mean(expected))


def test_measured_rows_replace_calibrated_ones(table: LatencyTable) -> None:
    blocks = [(block.signature, block.trace) for block in profile(VARIANTS["mobilevigv2_ti"]).blocks]
    before = table.estimate("mobilevigv2", blocks)
    slow = next(signature for signature, _ in blocks if signature.startswith("head"))
    rows = table.rows | {slow: Row(ms=1.0, plus_minus_ms=0.01, kind="measured")}
    after = table.model_copy(update={"rows": rows}).estimate("mobilevigv2", blocks)
    assert after.ms == pytest.approx(before.ms - table.block_ms(slow, dict(blocks)[slow]).ms + 1.0)
    assert after.measured_percent == pytest.approx(100 / after.ms)


def test_an_unknown_precision_is_refused(table: LatencyTable) -> None:
    with pytest.raises(NotMeasurableError, match="knows fp16, not int8"):
        table.estimate("mobilevigv2", [("x", TRACE)], precision="int8")


# ---------------------------------------------------------------------------------------------------- the fitted range


@pytest.mark.parametrize("feature", [0, 1, 2, 3])
@pytest.mark.parametrize("side", [0, 1])
def test_what_lies_outside_the_fitted_range_is_named(table: LatencyTable, feature: int, side: int) -> None:
    bounds = table.hull.bounds()
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
    assert ("top-k, which leaves the Neural Engine" in estimate.outside) == (not name.startswith("greedyvig"))
    assert estimate.high_ms == pytest.approx(estimate.ms * table.new_family_interval.factor)


def test_a_graph_of_nearest_neighbours_is_marked_in_any_family(table: LatencyTable) -> None:
    top_k = ("top-k, which leaves the Neural Engine",)
    for mixer, marks in (("knn", top_k), ("degc", top_k), ("dagc", ()), ("mgc", ())):
        config = VARIANTS["mobilevigv2_ti"].changed({"stages[3].mixer": mixer})
        outside = profile(config).latency(table).outside
        assert outside == marks or (mixer == "degc" and outside == ("ops", *marks))  # k-means is many operations


# ---------------------------------------------------------------------------------------------------- fitting


@tables
def test_fitting_again_gives_the_shipped_table(name: str) -> None:
    shipped = load_table(name)
    fitted = fit_table(name, builtin_folder("table") / "published", [load_space(find_file("space", "mobilevigv2"))])
    assert len(fitted.model) == len(shipped.model) == 4
    for ours, theirs in zip(fitted.model, shipped.model, strict=True):
        assert (ours.fusion, ours.combine) == (theirs.fusion, theirs.combine)
        for key in ("fixed_ms", "act_ms_per_mb", "spill_ms_per_mb", "weight_ms_per_mb"):
            assert getattr(ours, key) == pytest.approx(getattr(theirs, key), rel=1e-3)
    assert fitted.scale == pytest.approx(shipped.scale, rel=1e-3)
    for bounds, stored in zip(fitted.hull.bounds(), shipped.hull.bounds(), strict=True):
        assert bounds == pytest.approx(stored, rel=1e-3)
    for by, errors in shipped.held_out:
        assert getattr(fitted.held_out, by).mape_percent == pytest.approx(errors.mape_percent, abs=0.1)
        assert getattr(fitted.held_out, by).kendall_tau == pytest.approx(errors.kendall_tau, abs=0.01)
    same = ("format", "unit", "device", "aliases", "soc", "os", "compute_unit", "precision", "kind", "protocol")
    for key in (*same, "source", "pattern", "scope", "interval"):
        assert getattr(fitted, key) == getattr(shipped, key), key
    assert fitted.rows.keys() <= shipped.rows.keys()


# ---------------------------------------------------------------------------------------------------- names


@tables
def test_a_table_is_found_by_its_names_and_its_device(name: str, tmp_path: Path) -> None:
    shipped = load_table(name)
    for known in (name, f"{name}.yaml", shipped.device, shipped.device.upper(), *shipped.aliases):
        assert load_table(known) == shipped
    path = tmp_path / "mine.yaml"
    path.write_text(dump(shipped.model_copy(update={"device": "my phone"})))
    assert load_table(path).device == "my phone"
    assert load_table(path).rows == shipped.rows


def test_an_unknown_or_damaged_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="iphone13-min") as unknown:
        load_table("iphone13-min")
    assert "iphone13-mini" in unknown.value.hint
    with pytest.raises(ConfigError, match="toaster"):
        load_table("toaster")
    path = tmp_path / "mine.yaml"
    text = dump(load_table("iphone13-mini"))
    for old, new in (("unit: ms", "unit: us"), ("precision: fp16", "precision: int8"), ("scale: 1.0", "scale: -1.0")):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=rf"mine\.yaml.*{old.split(':')[0]}"):
            load_table(path)

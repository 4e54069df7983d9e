"""Making latency tables: the calibrated model fitted to published measurements, and a row for each block of a space."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vigcli import __version__
from vigcli.config.archs import ArchConfig, arch_config, mobilevig
from vigcli.config.space import SearchSpace
from vigcli.latency.calibrated import NOT_CORE_NETWORKS, Network, Row, core16, fit, hull, leave_one_out, load_published
from vigcli.latency.table import HeldOut, HeldOutError, Hull, Interval, LatencyTable, Member, rows_for
from vigcli.latency.trace import OpTrace
from vigcli.measure.count import count_block
from vigcli.measure.profile import profile


class Device(NamedTuple):
    """A device of the published measurements, by the lab whose rows give its scale."""

    device: str
    aliases: tuple[str, ...]
    soc: str
    os: str
    group: str
    protocol: str
    source: str


DEVICES = {
    "iphone13-mini": Device(
        "iPhone 13 mini",
        ("iphone13mini", "iphone-13-mini"),
        "A15",
        "iOS 16",
        "ip13mini_ios16_modelbench",
        "published with one decimal: ModelBench, 50 rounds of 50 inferences, 10 low and 10 high trimmed, batch 1",
        "arXiv:2406.05850 Table 1; scales and coefficients from eight labs' iOS 16 rows, see published/",
    ),
}

PATTERN = (
    "our own trace of our deployed form for MobileViG and MobileViGv2 in fitting and pricing alike (fewer ops than the "
    "authors' code that was measured: its published milliseconds are taken to hold for ours); the captured pattern for "
    "all others"
)
SCOPE = (
    "static fp16 graphs on the Neural Engine under iOS 16; not for top-k, gather or dynamic k-NN, iOS 15 and older, "
    "squeeze-excite networks at 300 px and more, or attention over many tokens; EfficientNet-like networks come out "
    "23 to 47 % too fast; two networks within 10 % of each other are not told apart"
)
INTERVAL = Interval(factor=1.12, coverage_percent=81)  # conformal, a new network of a known family
NEW_FAMILY_INTERVAL = Interval(factor=1.18, coverage_percent=87)  # and of a family that was not fitted
OUT_OF_SCOPE = {
    **dict.fromkeys(("efficientnet", "tf_efficientnet"), "squeeze-excite with SiLU comes out 23 to 47 % too fast"),
    **dict.fromkeys(NOT_CORE_NETWORKS, "a family left out of the fit"),
}


def own_traces() -> dict[Network, OpTrace]:
    """Our trace of the networks whose graphs we write with fewer ops, to replace the captured pattern in the fit."""
    traces = {}
    for name, config in mobilevig.VARIANTS.items():
        blocks = [block.trace for block in profile(config).blocks]
        ops, fused = ([op for trace in blocks for op in getattr(trace, kind)] for kind in ("ops", "fused"))
        traces[f"ext:{name}", config.resolution] = OpTrace(tuple(ops), tuple(fused), 0)
    return traces


def fit_table(name: str, published: Path, spaces: Iterable[SearchSpace]) -> LatencyTable:
    """The calibrated table of a device in `DEVICES`, with a row for every block of the spaces. Takes some seconds."""
    device = DEVICES[name]
    all_rows, captured = load_published(published)
    rows, traces = core16(all_rows), captured | own_traces()
    model = fit(rows, traces)
    table = LatencyTable(
        format=1,
        unit="ms",
        device=device.device,
        aliases=(name, *device.aliases),
        soc=device.soc,
        os=device.os,
        compute_unit="ALL (Neural Engine preferred)",
        precision="fp16",
        kind="calibrated",
        protocol=device.protocol,
        source=device.source,
        pattern=PATTERN,
        scope=SCOPE,
        fitted_with={"vig": __version__, "numpy": np.__version__, "rows": str(len(rows))},
        scale=round(model.scales[device.group], 6),
        interval=INTERVAL,
        new_family_interval=NEW_FAMILY_INTERVAL,
        families=tuple(sorted({row.family for row in rows})),
        out_of_scope=OUT_OF_SCOPE,
        held_out=HeldOut(network=_held_out(rows, traces, "network"), family=_held_out(rows, traces, "family")),
        hull=Hull(**{key: tuple(map(_four_digits, limits)) for key, limits in hull(rows, traces).items()}),  # type: ignore[arg-type]
        model=tuple(
            Member(fusion=m.fusion, combine=m.combine, **{k: _six(getattr(m, k)) for k in _COEFFICIENTS})  # type: ignore[arg-type]
            for m in model.members
        ),
        rows={},
    )
    blocks = itertools.chain.from_iterable(space_blocks(space).items() for space in spaces)
    return table.model_copy(update={"rows": rows_for(table, blocks)})


def _held_out(rows: Sequence[Row], traces: Mapping[Network, OpTrace], by: str) -> HeldOutError:
    errors = leave_one_out(rows, traces, by)
    return HeldOutError(
        mape_percent=round(100 * errors.mape, 2),
        within_10_percent=round(100 * errors.within_10_ratio, 1),
        kendall_tau=round(errors.tau, 3),
    )


_COEFFICIENTS = ("fixed_ms", "act_ms_per_mb", "spill_ms_per_mb", "weight_ms_per_mb")


def _six(value: float) -> float:
    return float(f"{value:.6g}")


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")


def space_blocks(space: SearchSpace) -> dict[str, OpTrace]:
    """Every block that a network of the space can have, at its base's resolution and classes."""
    base: ArchConfig = arch_config(space.base)
    found = {}
    for config in _covering(space, base):
        for spec in config.blocks():
            if spec.signature not in found:
                found[spec.signature] = count_block(config.family, spec).deployed
    return dict(sorted(found.items()))


def _covering(space: SearchSpace, base: ArchConfig) -> Iterable[ArchConfig]:
    """Configurations in which every pair of genes takes every pair of its choices: a block depends on two at most
    beyond the depths, which are put at their greatest."""
    deepest = {path: choices[-1] for path, choices in space.genes.items()}
    genes = [(path, choices) for path, choices in space.genes.items() if not path.endswith("depth")]
    for (first, ones), (second, twos) in itertools.combinations(genes, 2):
        for one, two in itertools.product(ones, twos):
            yield base.changed(deepest | {first: one, second: two})

"""The winner at each published network's own latency, beside it: the score must not decide what it cannot see."""

from __future__ import annotations

import pytest

from vigcli.config.archs import VARIANTS, ArchConfig
from vigcli.config.space import named_spaces
from vigcli.latency.table import load_table
from vigcli.search.columns import Columns
from vigcli.search.explain import why_better
from vigcli.search.job import Settings, search
from vigcli.search.members import Member, prepare
from vigcli.search.networks import describe

TABLE = load_table("iphone13-mini")
COLUMNS = Columns([TABLE])


def graph_blocks(config: ArchConfig) -> int:
    return sum(stage.global_depth for stage in config.stage_shapes())


@pytest.fixture(scope="module", params=[space.name for space in named_spaces()])
def member(request: pytest.FixtureRequest) -> tuple[str, Member]:
    space = next(space for space in named_spaces() if space.name == request.param)
    return request.param, prepare(space, [TABLE])


@pytest.mark.slow
def test_no_winner_loses_its_graph_or_its_reason(
    member: tuple[str, Member], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, prepared = member
    monkeypatch.setattr("vigcli.search.job.prepare", lambda *args: prepared)  # encoded once for all budgets
    encoding, fair = prepared.encoding, prepared.encoding.evaluate(prepared.seeds).violation == 0
    known = [encoding.config(candidate) for candidate in prepared.seeds[fair]]
    inside = [name for name, config in prepared.variants.items() if config in known]
    assert inside
    for variant in inside:
        published = describe(variant, VARIANTS[variant], COLUMNS)
        found = search([prepared.full.space], [TABLE], Settings(published.latency.ms + 1e-9, num_candidates=3_000))
        best, gap = found.best, found.best.top1_percent - published.top1_percent
        reasons = why_better(best.config, published.config)
        with capsys.disabled():
            print(f"\n{name}: {variant} {published.latency.ms:.2f} ms {published.top1_percent:.1f} %: winner "
                  f"{best.latency.ms:.2f} ms {best.top1_percent:.1f} %, {graph_blocks(best.config)} graph blocks of "
                  f"{graph_blocks(published.config)}", end="")  # fmt: skip
        assert graph_blocks(best.config) >= graph_blocks(published.config) / 2
        assert sum(reasons.values()) == pytest.approx(gap, abs=1e-6)  # what is said when it is above by much
        assert best.top1_percent >= published.top1_percent - 0.5 - 1e-9
        if gap > best.error_points:
            assert max(reasons.values()) > 0.3, reasons

"""Which operations suffer most, and how many of them stay in fp16."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tiny
import torch
from compressed import Made

from vigcli.archs import inference_form
from vigcli.compress.sensitivity import Harm, Probe, drop_points, fewest, keep_within

pytest.importorskip("coremltools", exc_type=ImportError)


def probe(made: Made, coarser: float = 1.0) -> tuple[Probe, str]:
    """A probe on pictures whose classes are what the network sees, and the operation whose result is rounded coarser,
    in units of its step."""
    network = inference_form(tiny.CONFIG, made.checkpoint.model)
    roundings, pixels = made.roundings, tiny.pixels(64, seed=9).to(torch.uint8)
    number = list(roundings.results)[20]
    planted = roundings.results[number]
    results = {**roundings.results, number: planted._replace(step=coarser * planted.step)}
    labels = torch.zeros(64, dtype=torch.int64)
    found = Probe(network, roundings._replace(results=results), made.checkpoint.meta.preprocessing, pixels, labels)
    found.labels = found.due.argmax(1)
    return found, min(planted.ops)


def test_a_coarse_rounding_is_the_worst(made: Made) -> None:
    planted, op = probe(made, coarser=40)
    harms = planted.harms(16, lambda *_: None)
    assert [harm.op for harm in harms[:3]].count(op) == 1
    assert sorted(harm.op for harm in harms) == sorted(made.roundings.ops)
    assert [harm.db for harm in harms] == sorted(harm.db for harm in harms)
    assert harms[0].db < harms[-1].db - 10


def test_as_few_stay_as_keep_the_drop(made: Made) -> None:
    planted, _ = probe(made, coarser=40)
    assert planted.drop_points([]) > 20
    kept = keep_within(planted, 15.0, lambda *_: None)
    assert 0 < kept.num_kept < len(kept.harms) // 2
    assert planted.drop_points(kept.ops) == kept.drop_points <= 15.0
    assert planted.drop_points(kept.ops[:-1]) > 15.0


def test_the_drop_is_that_of_the_network_before_it_learned(made: Made) -> None:
    """One that lost what no rounding costs keeps nothing by keeping all in fp16, and says so."""
    planted, _ = probe(made)
    planted.labels = (planted.labels + 1) % 10
    planted.before = torch.nn.functional.one_hot(planted.labels, 10).float()
    kept = keep_within(planted, 15.0, lambda *_: None)
    assert kept.num_kept == len(kept.harms)
    assert kept.drop_points == 100.0


def test_nothing_stays_where_nothing_is_lost(made: Made) -> None:
    assert keep_within(probe(made)[0], 100.0, lambda *_: None).ops == ()


@pytest.mark.parametrize("due", range(8))
def test_fewest_finds_the_least_number(due: int) -> None:
    harms = [Harm(f"op{i}", float(i)) for i in range(7)]
    asked: list[int] = []

    def is_enough(kept: Sequence[str]) -> bool:
        asked.append(len(kept))
        return len(kept) >= due

    assert fewest(harms, is_enough) == min(due, 7)
    assert len(asked) <= 4


def test_a_drop_is_in_points() -> None:
    scores, labels = torch.eye(4), torch.tensor([0, 1, 2, 3])
    assert drop_points(scores, scores, labels) == 0
    assert drop_points(scores, scores[[1, 0, 2, 3]], labels) == pytest.approx(50)
    assert drop_points(scores[[1, 0, 2, 3]], scores, labels) == pytest.approx(-50)

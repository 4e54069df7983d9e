"""Successive halving with short trainings: equal budgets, exact resumption, honest differences."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image

from vigcli.config.archs import VARIANTS, arch_config
from vigcli.config.recipe import Recipe, load_recipe
from vigcli.errors import ConfigError, UnavailableError, UsageError, VigError
from vigcli.paths import find_file
from vigcli.search import contest as contest_module
from vigcli.search import resolve as resolve_module
from vigcli.search.contest import RECIPE, Contest, Contestant, contest_of, rungs_of, variants_of
from vigcli.search.measured import Resolution
from vigcli.search.resolve import resolve
from vigcli.train.evaluate import DivergedError
from vigcli.train.intervals import Difference
from vigcli.train.loop import STATE_FILE, train

PUBLISHED = Contestant("published", tiny.CONFIG)
NETWORKS = [Contestant(f"found {width}", tiny.CONFIG.changed({"head_width": width})) for width in (8, 24, 32)]
SHIPPED = load_recipe(find_file("recipe", RECIPE)).changed({"batch_size": 8, "precision": "fp32"})


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def contest(**changes: Any) -> Contest:
    """Three networks and the published one, two rungs of one epoch more each: 3 steps of 8 an epoch."""
    options: dict[str, Any] = {"epochs": 2, "images": 24, "held_out": 24}
    return contest_of(NETWORKS, PUBLISHED, SHIPPED, "emoji10", **(options | changes))


# ---------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("contestants", "epochs", "eta", "expected"),
    [
        (8, 4, 2, [(8, 1), (4, 2), (2, 4)]),
        (8, 9, 3, [(8, 3), (3, 9)]),
        (8, 5, 2, [(8, 1), (4, 2), (2, 5)]),
        (8, 2, 2, [(8, 1), (4, 2)]),
        (8, 1, 2, [(8, 1)]),
        (3, 4, 2, [(3, 2), (2, 4)]),
        (2, 4, 2, [(2, 4)]),
        (1, 4, 2, [(1, 4)]),
        (3, 9, 5, [(3, 9)]),
    ],
)
def test_rungs(contestants: int, epochs: int, eta: int, expected: list[tuple[int, int]]) -> None:
    assert [tuple(rung) for rung in rungs_of(contestants, epochs, eta)] == expected


def test_rungs_are_sound_for_all_sizes() -> None:
    for contestants, epochs, eta in itertools.product(range(1, 20), range(1, 20), range(2, 5)):
        rungs = rungs_of(contestants, epochs, eta)
        counts, until = zip(*rungs, strict=True)
        assert counts[0] == contestants
        assert until[-1] == epochs
        assert all(a > b >= 2 for a, b in itertools.pairwise(counts))
        assert all(0 < a < b for a, b in itertools.pairwise(until))


def test_variants_change_one_gene_each() -> None:
    base = arch_config("mobilevigv2_ti")
    genes: dict[str, list[Any]] = {
        "stages[1].reach": [8, 4, 6, 14],
        "stages[2].reach": [2, 4],
        "head_width": [768, 512],
    }
    found = variants_of(base, genes, limit=9)
    for label, config, _ in found:
        path, _, value = label.partition("=")
        assert base.changed({path: int(value)}) == config
        assert config != base
    labels = [network.name for network in found]
    assert labels[0].startswith("stages[1].reach=")
    assert labels[1].startswith("stages[2].reach=")  # every gene has its turn
    assert len(set(labels)) == len(labels)
    assert not [label for label in labels if label == "stages[1].reach=14"]  # its two links would coincide
    assert variants_of(base, genes, limit=2) == found[:2]
    assert variants_of(base, {}) == []


def test_a_contest_trains_all_alike() -> None:
    known = Contestant("known", PUBLISHED.config.changed({"num_classes": 3}))
    given = [known, *NETWORKS, Contestant("again", NETWORKS[0].config)]
    made = contest_of(given, PUBLISHED, load_recipe(find_file("recipe", "v2_s")), "emoji10", epochs=3)
    assert [who.name for who in made.contestants] == [who.name for who in NETWORKS]
    assert made.places == (1, 2, 3)
    recipe = made.recipe
    assert (recipe.epochs, recipe.ema_decay, recipe.distillation) == (3, None, None)
    assert recipe.schedule.warmup_epochs == pytest.approx(0.2)  # 20 of 300
    assert recipe.optimizer.lr == 2e-3
    assert {made.recipe_of(who).num_classes for who in made.contestants} == {10}
    assert len(made.held_out) == 319
    text = contest().budget_text
    assert "3 for 1, 2 for 2 epochs of 24 pictures at 96 px" in text
    assert contest().num_images == 24 * (5 + 4)
    assert f"{24 * 9} pictures in all" in text
    assert contest().predicted_seconds() > 0


def test_unsound_contests_are_refused(tmp_path: Path) -> None:
    for options, what in (({"epochs": 0}, "--epochs 0"), ({"eta": 1}, "--eta 1"), ({"held_out": 0}, "--held-out 0")):
        with pytest.raises(UsageError, match=what):
            contest(**options)
    with pytest.raises(UsageError, match="nothing but published"):
        contest_of([PUBLISHED], PUBLISHED, SHIPPED, "emoji10")
    with pytest.raises(UnavailableError, match="no such folder"):
        contest_of(NETWORKS, PUBLISHED, SHIPPED, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="5 pictures are too few for its 10 classes"):
        contest(images=5)
    with pytest.raises(ConfigError, match=r"published cannot be trained on these pictures: .*100"):
        contest(resolution=100)


def test_a_folder_is_taken_in_part_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, label, i in itertools.product(("train", "val"), ("cat", "dog"), range(9)):
        (tmp_path / split / label).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / split / label / f"{i}.png")
    monkeypatch.setattr(contest_module, "IMAGES", 10)
    monkeypatch.setattr(contest_module, "HELD_OUT", 6)
    made = contest_of(NETWORKS, PUBLISHED, SHIPPED, str(tmp_path))
    assert (len(made.pictures), len(made.held_out)) == (10, 6)
    assert made.pictures.targets == [0] * 5 + [1] * 5
    assert made.recipe.num_classes == 2
    assert len(contest_of(NETWORKS, PUBLISHED, SHIPPED, str(tmp_path), images=99).pictures) == 18


# ---------------------------------------------------------------------------------------------------- contests


def bits(resolution: Resolution) -> str:
    return json.dumps(resolution.as_json())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Resolution, Path]:
    run = tmp_path_factory.mktemp("whole")
    return resolve(contest(), run), run


def test_a_contest_ranks_by_what_was_measured(whole: tuple[Resolution, Path]) -> None:
    found, run = whole
    assert found.finished
    assert [row.rank for row in found.rows] == [1, 2, 3, 4]
    assert {row.name for row in found.rows} == {"published", *(who.name for who in NETWORKS)}
    last = found.rows[:3]
    assert {row.rung for row in last} == {2}
    assert "published" in {row.name for row in last}
    assert [row.top1_percent for row in last] == sorted((row.top1_percent for row in last), reverse=True)
    assert {(row.epochs, row.images) for row in last} == {(2, 48)}
    assert (found.rows[3].rung, found.rows[3].images) == (1, 24)
    dropped = found.rows[3].top1_by_rung[0]
    assert all(dropped <= row.top1_by_rung[0] for row in last if row.place is not None)
    assert found.winner is not None
    assert found.winner == next(row for row in found.rows if row.place is not None)
    assert NETWORKS[found.winner.place or 0].name == found.winner.name
    assert found.versus_second is not None
    for row in found.rows:
        low, high = row.interval_percent
        assert low <= row.top1_percent <= high
        assert (row.versus_published is None) == (row.name == "published")
    written = json.loads((run / "resolution.json").read_text())
    assert written == json.loads(bits(found))
    assert {row["top1_kind"] for row in written["rows"]} == {"measured"}
    assert not list(run.rglob(STATE_FILE))
    assert len(list(run.rglob("checkpoint.safetensors"))) == 5
    assert found.versus_itself is not None
    assert "from two seeds" in found.budget
    notes = " ".join(found.notes())
    assert f"published against itself from another seed: {found.versus_itself.points:+.1f} points" in notes
    assert "in place of the predicted" in notes
    assert "One cosine over 2 epochs" in notes
    assert "against published" in notes


def test_an_interrupted_contest_ends_the_same(whole: tuple[Resolution, Path], tmp_path: Path) -> None:
    """Stopped at every fifth question; nothing that was finished is trained again."""
    trained: list[str] = []
    for attempt in itertools.count():
        asked = iter(range(10**9))
        part = resolve(
            contest(), tmp_path, should_stop=lambda asked=asked: next(asked) >= 5,
            on_progress=lambda what, done, total, note: trained.append(note),
        )  # fmt: skip
        torch.manual_seed(attempt)
        if part.finished:
            break
        assert "stopped" in part.notes()[0]
        assert not part.rows or part.rows[0].rank == 1
        assert attempt < 40
    assert attempt > 3
    assert len([note for note in trained if "loss" in note]) == 3 * (5 + 4)  # steps: each once
    assert bits(part) == bits(whole[0])
    resolve(contest(), tmp_path, on_progress=lambda *_: pytest.fail("trained again"))


def test_progress_counts_pictures(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    resolve(contest(epochs=1), tmp_path, on_progress=lambda what, done, total, note: seen.append((done, total, note)))
    assert [step[:2] for step in seen if "loss" in step[2]] == [(8 * (i + 1), 24 * 5) for i in range(15)]
    assert len([step for step in seen if "top-1" in step[2]]) == 5


def test_what_was_killed_before_it_was_noted_is_evaluated_only(
    whole: tuple[Resolution, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def killed(*args: Any, **options: Any) -> Any:
        result = train(*args, **options)
        calls.append(result)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(resolve_module, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        resolve(contest(), tmp_path)
    assert bits(resolve(contest(), tmp_path)) == bits(whole[0])
    assert calls[2].evaluation is None


def test_other_recipes_and_damage_are_refused(tmp_path: Path) -> None:
    resolve(contest(epochs=1), tmp_path)
    with pytest.raises(ConfigError, match="other pictures"):
        resolve(contest(epochs=1, seed=1), tmp_path)
    file = next(tmp_path.rglob("after_1_epochs.json"))
    file.write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        resolve(contest(epochs=1), tmp_path)


def test_a_difference_is_told_where_it_is_more_than_luck(whole: tuple[Resolution, Path]) -> None:
    found, _ = whole
    assert found.winner is not None

    def told(gap: Difference, luck: Difference) -> bool:
        return replace(found, winner=replace(found.winner, versus_published=gap), versus_itself=luck).is_told

    clear, unclear = Difference(3.0, 1.0, 5.0), Difference(3.0, -1.0, 7.0)
    assert told(clear, Difference(-2.0, -4.0, 0.0))
    assert not told(clear, Difference(-4.0, -6.0, -2.0))
    assert not told(unclear, Difference(0.0, -1.0, 1.0))


def diverging(names: set[str]) -> Callable[..., Any]:
    widths = {who.config.model_dump()["head_width"] for who in NETWORKS if who.name in names}

    def trained(recipe: Recipe, *args: Any, **options: Any) -> Any:
        if recipe.arch_config().model_dump()["head_width"] in widths:
            raise DivergedError("Training diverged.")
        return train(recipe, *args, **options)

    return trained


def test_a_network_that_diverges_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve_module, "train", diverging({"found 8", "found 24"}))
    found = resolve(contest(), tmp_path / "two")
    assert [row.name for row in found.rows if row.diverged] == ["found 8", "found 24"]
    assert found.winner is not None
    assert found.winner.name == "found 32"
    assert "diverged: found 8, found 24" in found.notes()[-1]
    monkeypatch.setattr(resolve_module, "train", diverging({who.name for who in NETWORKS}))
    with pytest.raises(VigError, match="every network diverged"):
        resolve(contest(), tmp_path / "all")


@pytest.mark.slow
def test_short_training_tells_a_network_that_learns_from_one_that_cannot(tmp_path: Path) -> None:
    """On the embedded pictures: one whose stem has two channels loses against the smallest published MobileViT."""
    base = VARIANTS["mobilevit_xxs"]
    poor = base.changed({"stem_width": 2} | {f"stages[{i}].width": 2 for i in range(3)} | {"head_width": 2})
    networks = [Contestant("poor", poor), Contestant("found", base.changed({"head_width": 256}))]
    recipe = load_recipe(find_file("recipe", RECIPE))
    published = Contestant("mobilevit_xxs", base)
    found = resolve(contest_of(networks, published, recipe, "emoji10", resolution=64, images=800), tmp_path)
    assert found.winner is not None
    assert found.winner.name == "found"
    assert found.winner.interval_percent[0] > 10  # above chance
    assert found.rows[-1].name == "poor"
    assert found.rows[-1].versus_published is not None
    assert found.rows[-1].versus_published.is_told

"""The engines by name: all keep the budget, repeat with their seed, and say what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import part_of

from vigcli.errors import UnavailableError, UsageError
from vigcli.search.encoding import Encoding, Population
from vigcli.search.engines import DEFAULT_CANDIDATES, ENGINES, engine
from vigcli.search.exact import exact_best


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_keeps_the_budget_and_repeats(wide: Encoding, published: Population, name: str) -> None:
    calls: list[tuple[int, int]] = []
    runs = [
        engine(name)(
            wide, 1.0, published, np.random.default_rng(seed), num_candidates=1000,
            on_progress=lambda done, total: calls.append((done, total)),
        )
        for seed in (0, 0, 1)
    ]  # fmt: skip
    for found in runs:
        values = wide.evaluate(found.candidates)
        assert len(found.score)
        assert (values.violation == 0).all()
        assert (values.latency_ms <= 1.0).all()
        assert np.array_equal(values.score, found.score)
        assert (np.diff(found.latency_ms) > 0).all()
        assert (np.diff(found.score) > 0).all()
        assert 0 < found.num_feasible <= found.num_evaluated
    most = {"nsga2": 1499, "nni": 1000, "vig": 10_000}[name]  # whole generations, and only feasible ones are counted
    assert all(1000 <= found.num_evaluated <= most for found in runs)
    assert runs[0].candidates.tolist() == runs[1].candidates.tolist()
    assert runs[0].candidates.tolist() != runs[2].candidates.tolist()
    assert {total for _, total in calls} == {1000}
    assert all(0 < done <= 1000 for done, _ in calls)
    assert ENGINES.keys() == DEFAULT_CANDIDATES.keys()


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_finds_the_best_of_a_small_space(wide: Encoding, published: Population, name: str) -> None:
    encoding = part_of(wide, np.random.default_rng(3), 400)
    nothing = published[:0]
    best = exact_best(encoding, 1.05, nothing, np.random.default_rng(0))
    found = engine(name)(encoding, 1.05, nothing, np.random.default_rng(0), num_candidates=1500)
    assert found.score.max(initial=-np.inf) == pytest.approx(best.score)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UsageError, match="no such engine") as refused:
        engine("nsga3")
    assert refused.value.hint == "Did you mean 'nsga2'?"


@pytest.mark.parametrize(("name", "package", "extra"), [("nsga2", "pymoo", "search"), ("nni", "nni", "nni")])
def test_a_missing_package_is_told(
    wide: Encoding, published: Population, name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnavailableError, match="is not installed") as refused:
        engine(name)(wide, 1.0, published, np.random.default_rng(0), num_candidates=10)
    assert refused.value.hint == f"pip install 'vig[{extra}]'"
    assert refused.value.exit_code == 6


def test_nni_writes_nothing_into_the_home_directory(tmp_path: Path) -> None:
    code = """
import numpy as np
from vigcli.config.archs import arch_config
from vigcli.config.space import SearchSpace
from vigcli.latency.table import load_table
from vigcli.search.encoder import encode_space
from vigcli.search.engines import engine
space = SearchSpace.parse({"base": "mobilevigv2_s", "genes": {"stages[3].width": [192, 256], "head_width": [384, 512]}})
encoding = encode_space(space, arch_config(space.base), {}, [load_table("iphone13-mini")])
nothing = np.zeros((0, 2), np.intp)
print(engine("nni")(encoding, 9.0, nothing, np.random.default_rng(0), num_candidates=20).num_feasible)
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {
        "HOME": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["4"]), done.stderr
    assert done.stderr == ""
    assert list(home.rglob("*")) == []
    assert list(tmp_path.iterdir()) == [home]

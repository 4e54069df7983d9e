"""What `vig profile` prints: the published figures and what explains them, to the letter; the overview, by its shape.

After a deliberate change, `VIG_WRITE_PAPER=1 pytest tests/cli/test_profile.py` writes `paper.txt` anew; read its diff.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vigcli.cli.main import main
from vigcli.config.archs import VARIANTS

Vig = Callable[..., str]
PAPER = Path(__file__).parent / "paper.txt"


@pytest.mark.slow
def test_the_counts_beside_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["profile", "--paper"])
    captured = capsys.readouterr()
    if "VIG_WRITE_PAPER" in os.environ:
        PAPER.write_text(captured.out + captured.err, encoding="utf-8")
    assert captured.out + captured.err == PAPER.read_text(encoding="utf-8")


def test_one_network_beside_its_paper(vig: Vig) -> None:
    said = json.loads(vig("profile", "--paper", "mobilevigv2_b", "--json"))
    (record,) = said["variants"]
    assert [row["params"]["published_m"] for row in said["ablations"]] == [27.6, 27.7, 28.6, 27.7]
    assert record["params"]["counted"] == record["counters"]["params"]["sld"] == 27_724_190
    assert record["macs"]["published_g"] == 3.6
    assert record["counters"]["macs"]["thop"] == 3_629_707_776
    vig("profile", "--paper", "timm:fastvit_t8", code=2)
    vig("profile", "--paper", "mobilevigv2_b", "--resolution", "192", code=2)


def test_the_overview_fits_and_its_json_has_every_count(vig: Vig) -> None:
    lines = vig("profile").splitlines()
    assert len(lines) == 2 + len(VARIANTS)
    assert max(map(len, lines)) <= 120
    record = json.loads(vig("profile", "mobilevigv2_ti", "--json"))
    assert record["params_total"] == record["params_trainable"] == 5_695_824
    assert record["peak_activation_bytes"] == 2 * 56 * 56 * (32 + 128 + 128)  # a skip, a hidden layer and its GELU
    assert record["moved_bytes"] > record["peak_activation_bytes"]


def test_devices_are_compared_and_must_all_meet_a_budget(vig: Vig, tmp_path: Path) -> None:
    pair = ("profile", "mobilevigv2_s", "--table", "iphone14", "--table", "iphone13-mini")
    found = json.loads(vig(*pair, "--json"))
    fast, slow = found["latencies"]
    assert (fast["latency_device"], slow["latency_device"]) == ("iPhone 14", "iPhone 13 mini")
    assert fast["latency_ms"] == found["latency_ms"] < 1.0 < slow["latency_ms"]
    text = vig(*pair)
    assert text.count("\nlatency ") == 2
    stem = next(line for line in text.splitlines() if line.startswith("stem ")).split()
    prices = [ms for ms, error in itertools.pairwise(stem) if error.startswith("±")]
    assert [float(ms) for ms in prices] == pytest.approx(found["blocks"][0]["latencies_ms"], abs=1e-4)
    assert prices[0] != prices[1]
    assert "iPhone 14 ms" in text.splitlines()[1]
    vig(*pair[:4], "--budget", "1.0ms")
    vig(*pair, "--budget", "1.0ms", code=4)
    vig(*pair, "--picture", "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    vig("profile", "--picture", "bars.png", code=2)

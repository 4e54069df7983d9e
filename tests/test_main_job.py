"""The main job end to end through the command line: build, search, train, quantize, export, verify, profile."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from vigcli.paths import embedded
from vigcli.runs.provenance import sha256

RECIPE = """
arch:
  family: mobilevigv2
  resolution: 96
  num_classes: 4
  head_width: 16
  stages:
  - {local_depth: 1, width: 8}
  - {local_depth: 1, graph_depth: 1, width: 16, reach: 4}
  - {local_depth: 1, graph_depth: 1, width: 16, reach: 2}
  - {local_depth: 1, graph_depth: 1, width: 24, reach: 1}
resolution: 96
num_classes: 4
data: {source: folder, workers: 0}
epochs: 2
batch_size: 32
optimizer: {lr: 5e-3}
schedule: {warmup_epochs: 0.5}
"""
CLASSES = ("face", "flag", "place", "symbol")

Vig = Callable[..., str]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """180 embedded pictures of four classes as an image folder, 36 of them for validation."""
    counts: dict[tuple[str, str], int] = {}
    with zipfile.ZipFile(embedded("emoji10.zip")) as file:
        for name in sorted(file.namelist()):
            split, _, rest = name.partition("/")
            key = split, rest.partition("/")[0]
            if key[1] in CLASSES and counts.get(key, 0) < (36 if split == "train" else 9):
                counts[key] = counts.get(key, 0) + 1
                file.extract(name, tmp_path / "pictures")
    return tmp_path / "pictures"


def test_from_a_recipe_to_verified_packages(vig: Vig, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    vig("check", "tiny.yaml")
    trained = json.loads(vig("train", "tiny.yaml", "--data", str(pictures), "--json"))
    assert [r["epoch"] for r in trained["history"]] == [0, 1]
    assert (tmp_path / trained["run"] / "curves.png").stat().st_size > 1000

    plan = json.loads(vig("quantize", "--int8", "--qat", "--data", str(pictures), "--dry-run", "--json", "-o", "due"))
    assert plan["package"] == str(Path("due") / "int8-qat.mlpackage")
    assert plan["training"]["total_steps"] == plan["training"]["epochs"] * plan["training"]["steps_per_epoch"]
    assert not (tmp_path / "due").exists()

    quantized = json.loads(vig("quantize", "--int8", "--data", str(pictures), "--images", "128", "--json"))
    assert quantized["checkpoint"] == trained["checkpoint"]
    assert quantized["num_images"] == 36
    assert quantized["num_calibration_images"] == 128
    assert quantized["minimum_ios"] == 17
    assert quantized["latency_ms"] is None
    assert quantized["agreement_percent"] >= 75
    assert quantized["compression"]["calibration"] == "percentile"
    assert quantized["simulated_db"] > 35
    assert abs(quantized["top1_percent_fp16"] - quantized["top1_percent_fp32"]) < 6
    layers = json.loads((tmp_path / quantized["package"]).with_name("quantize.json").read_text())["layers"]
    assert {layer["block"] for layer in layers} >= {"stem", "stages[3].blocks[0]", "head"}
    assert min(layer["snr_db"] for layer in layers) < quantized["simulated_db"]
    assert quantized["simulated_db"] <= min(layer["simulated_db"] for layer in layers)
    made_before = str(Path(quantized["package"]).parent)
    vig("quantize", "--int8", "--data", str(pictures), "--dry-run", "-o", made_before, code=2)  # holds files

    sparse = ("quantize", "--weights-only", "--sparsity", "0.5", "--data", str(pictures), "--images", "128")
    planned = json.loads(vig(*sparse, "--dry-run", "--json"))
    assert planned["minimum_ios"] == 18
    made = json.loads(vig(*sparse, "--json"))
    assert {key: made[key] for key in ("minimum_ios", "num_images")} == {"minimum_ios": 18, "num_images": 36}
    assert made["package"].endswith("sparse50-w8.mlpackage")
    assert made["size_bytes"] < quantized["size_bytes"]
    (block,) = json.loads(vig("report", "compress", "--json"))
    assert [row["package"] for row in block["rows"]][-2:] == ["int8", "sparse50-w8"]
    assert block["checkpoint_sha256"] == sha256(tmp_path / trained["checkpoint"])
    assert {key: block[key] for key in ("data", "latency_table", "latency_device")} == {
        "data": str(pictures.resolve()), "latency_table": "iphone13-mini", "latency_device": "iPhone 13 mini",
    }  # fmt: skip

    exported = json.loads(vig("export", "--json"))
    assert exported["minimum_ios"] == 16
    assert "gather" not in exported["op_counts"]
    assert "centre crop 96 x 96" in exported["preprocessing"]

    for package in (exported["package"], quantized["package"], made["package"]):
        report = json.loads(vig("verify", package, "--json"))
        assert report["passed"]
        assert report["num_inputs"] == 16
        assert report["twin_relative_error"] < 1e-5
    assert json.loads(vig("verify", exported["package"], "--json"))["snr_db"] > 35

    for subject in (exported["package"], trained["checkpoint"], trained["run"]):
        counted = json.loads(vig("profile", subject, "--json"))
        assert counted["arch"]["resolution"] == 96
        assert counted["latency_outside_fit"], "a network this small lies outside the fitted range"
    runs = [path.name for path in sorted((tmp_path / "runs").iterdir())]
    jobs = ["train", "quantize", "quantize", "export", *["verify"] * 4]
    assert runs == [f"{i:04d}-{job}" for i, job in enumerate(jobs, 1)]
    for run in runs:
        assert "argv" in (tmp_path / "runs" / run / "run.yaml").read_text()


def test_a_package_of_another_checkpoint_is_refused(vig: Vig, tmp_path: Path) -> None:
    tiny = ("--resolution", "96", "--num-classes", "10", "--set", "head_width=16")
    vig("build", "mobilevigv2_ti", *tiny, "-o", "one.safetensors")
    vig("build", "mobilevigv2_ti", *tiny, "--seed", "1", "-o", "two.safetensors")
    package = json.loads(vig("export", "one.safetensors", "--json"))["package"]
    vig("verify", package, "--against", "two.safetensors", code=3)
    assert json.loads(vig("verify", package, "--json"))["checkpoint"] == "one.safetensors", "found by its hash"
    (tmp_path / "one.safetensors").unlink()
    vig("verify", package, code=3)


def test_search_writes_a_recipe_that_trains(vig: Vig, tmp_path: Path) -> None:
    answer = json.loads(vig("search", "--budget", "0.8ms", "--resolution", "160", "--num-classes", "10", "--json"))
    best = answer["best"]
    assert best["latency_ms"] <= 0.8
    assert best["latency_kind"] == "calibrated"
    assert best["top1_kind"] == "predicted"
    assert best["arch"]["resolution"] == 160
    run = tmp_path / answer["run"]
    assert {"recipe.yaml", "front.json", "front.png", "front.svg", "report.html", "run.yaml"} <= {
        path.name for path in run.iterdir()
    }
    plan = json.loads(vig("train", str(run / "recipe.yaml"), "--dry-run", "--json"))
    assert plan["recipe"]["arch"] == best["arch"]
    assert plan["plan"]["images"] == 1278
    vig("train", str(run / "recipe.yaml"), "--set", "resolution=192", code=3)
    front = json.loads((run / "front.json").read_text())["front"]
    assert [f["latency_ms"] for f in front] == sorted(f["latency_ms"] for f in front)


def test_the_lines_of_the_readme(vig: Vig) -> None:
    vig("train", "recipes/v2_s.yaml", code=6)
    assert json.loads(vig("train", "recipes/v2_s.yaml", "--dry-run", "--json"))["plan"]["total_steps"] == 187_500
    vig("search", "--budget", "0.4ms", code=4)
    vig("search", "--budget", "1.0", code=2)
    vig("profile", "timm:mobilenetv2_100", "--budget", "3ms")
    vig("profile", "timm:mobilenetv2_100", "--budget", "0.5ms", code=4)
    networks = json.loads(vig("profile", "--json"))
    assert {n["name"]: n["params_total"] for n in networks}["mobilevigv2_s"] == 7_767_632

"""Verification: sound packages pass, and each planted fault is found and its operation named."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import packages
import pytest
import tiny
import torch
from compressed import INT8
from torch import Tensor

from vigcli.archs import build
from vigcli.archs.checkpoint import Checkpoint
from vigcli.compress.quantize import quantize
from vigcli.config.archs import arch_config
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.config.recipe import Preprocessing
from vigcli.coreml.convert import export
from vigcli.coreml.exact import TOLERANCE
from vigcli.coreml.graphs import Divergence, same_half
from vigcli.coreml.interpreter import Program
from vigcli.coreml.lint import lint
from vigcli.coreml.noise import LARGEST_DB
from vigcli.coreml.ops import OPS, Op
from vigcli.coreml.verify import (
    MIN_INPUTS,
    MIN_SNR_DB,
    OVERFLOW,
    VerifyReport,
    verify,
)
from vigcli.coreml.verify_report import as_json
from vigcli.errors import ConfigError
from vigcli.nn.deploy import deploy

pytest.importorskip("coremltools", exc_type=ImportError)
SHA = "ab" * 32
PIXELS = tiny.pixels(MIN_INPUTS)
PRECISIONS = ("fp32", "fp16", "int8")
ADDED = ("cast", "quantize", "dequantize", "constexpr_affine_dequantize")  # not of the network


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return tiny.checkpoint()


@pytest.fixture(scope="module")
def shipped(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {precision: tmp_path_factory.mktemp("shipped") / f"{precision}.mlpackage" for precision in PRECISIONS}
    export(checkpoint, SHA, paths["fp32"], "fp32")
    export(checkpoint, SHA, paths["fp16"], "fp16")
    quantize(checkpoint, SHA, paths["int8"], INT8, tiny.pixels(128, seed=2).to(torch.uint8))
    return paths


@pytest.fixture
def edited(shipped: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda precision: Path(shutil.copytree(shipped[precision], tmp_path / f"{precision}.mlpackage"))


def verified(package: Path, *rest: Any) -> VerifyReport:
    return verify(Program.load(package), *rest)


def divergence(report: VerifyReport) -> Divergence:
    assert not report.passed
    assert report.divergence is not None
    assert report.twin_error <= TOLERANCE
    return report.divergence


def outputs(path: Path, op_type: str) -> list[str]:
    return [info.name for info in Program.load(path).operations if info.op_type == op_type]


def conv_of(path: Path, weight: Tensor) -> str:
    """The convolution of a package that holds a weight of the deployed network, rounded as it may be."""
    away = {
        step.outputs[0].name: float((step.constants["weight"] - weight).abs().max() / weight.abs().max())
        for step in Program.load(path).steps
        if step.op.name == "conv" and step.constants["weight"].shape == weight.shape
    }
    (name,) = [name for name, share in away.items() if share < 0.01]
    return name


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_sound_package_passes(precision: str, shipped: dict[str, Path], checkpoint: Checkpoint) -> None:
    before = {key: value.clone() for key, value in checkpoint.model.state_dict().items()}
    steps: list[tuple[str, int, int]] = []
    report = verified(shipped[precision], checkpoint, PIXELS, lambda *step: steps.append(step))
    assert report.passed
    assert report.twin_error <= TOLERANCE
    assert set(report.stages.values()) == {None}
    assert (len(report.inputs), report.min_db) == (MIN_INPUTS, MIN_SNR_DB[precision])
    assert report.meta.precision == precision
    assert report.snr_db == min(one.db for one in report.inputs)
    assert report.snr_db > {"fp32": 120, "fp16": 37, "int8": 60}[precision]
    assert report.fp32_snr_db is not None
    assert (report.fp32_snr_db < 30) == (precision == "int8"), "int8 is held to its simulation, not to fp32"
    assert (report.rounding is not None) == (precision == "int8")
    results = [
        info.name for info in Program.load(shipped[precision]).operations if info.op_type not in (*ADDED, "classify")
    ]
    assert [op.info.name for op in report.ops] == results
    assert report.worst is not None
    assert report.worst.held.db == min(op.held.db for op in report.ops)
    printed = {kind: count for kind, count in report.op_counts.items() if not kind.startswith("constexpr_")}
    assert report.num_ops == sum(printed.values()), "as `vig export` counts"
    assert report.num_ops == sum(lint(Program.load(shipped[precision])).num_ops.values()), "as `vig profile` counts"
    assert steps[-1] == ("running", MIN_INPUTS - 1, MIN_INPUTS)
    after = checkpoint.model.state_dict()
    assert all(after[key].dtype == before[key].dtype and torch.equal(after[key], before[key]) for key in before)


BGR = Preprocessing(channels="BGR")


@pytest.mark.parametrize(
    ("preprocessing", "precision", "minimum_ios", "input", "output", "batch"),
    [
        (BGR, "fp32", 16, "image", "probabilities", 1),
        (BGR, "fp16", 18, "tensor", "logits", 3),
        (Preprocessing(), "fp16", 17, "tensor", "features", 4),
        (Preprocessing(), "fp32", 18, "image", "features", 1),
        (Preprocessing(), "fp16", 17, "image", "logits", 1),
    ],
)
def test_every_kind_of_package(
    preprocessing: Preprocessing, precision: Any, minimum_ios: Any, input: Any, output: Any, batch: int,
    checkpoint: Checkpoint, tmp_path: Path,
) -> None:  # fmt: skip
    made = checkpoint._replace(meta=checkpoint.meta.model_copy(update={"preprocessing": preprocessing}))
    path = tmp_path / "net.mlpackage"
    export(made, SHA, path, precision, minimum_ios, input=input, output=output, batch=batch)
    report = verified(path, made, PIXELS)
    assert report.passed, report.divergence
    assert len(report.inputs) == MIN_INPUTS, "not those that fill the last batch"
    assert all((one.same_class is None) == (output == "features") for one in report.inputs)
    other = Preprocessing() if preprocessing.channels == "BGR" else BGR
    turned = checkpoint._replace(meta=checkpoint.meta.model_copy(update={"preprocessing": other}))
    assert verified(path, turned, PIXELS).stages["description"] is not None


# ---------------------------------------------------------------------------------------------------- the checkpoint


@pytest.mark.parametrize(
    ("layer", "precision"), [("stages.1.2.0.branch.2.proj.conv", "fp16"), ("stages.0.0.branch.2.conv", "int8")]
)
def test_a_checkpoint_changed_after_export(
    layer: str, precision: str, shipped: dict[str, Path], checkpoint: Checkpoint
) -> None:
    """One weight of one convolution, among others of its shape."""
    model = copy.deepcopy(checkpoint.model)
    weight = model.get_parameter(f"{layer}.weight").detach()
    weight.view(-1)[weight.abs().argmax()] *= 1.2
    found = divergence(verified(shipped[precision], checkpoint._replace(model=model), PIXELS))
    assert found.op_type == "conv"
    folded = dict(deploy(checkpoint.model).named_parameters())
    own = folded.get(f"{layer.removesuffix('.conv')}.weight")
    assert own is not None
    assert found.name == conv_of(shipped[precision], own.detach())
    assert found.why.startswith("its weight differs")


def test_another_preprocessing(shipped: dict[str, Path], checkpoint: Checkpoint) -> None:
    meta = checkpoint.meta.model_copy(update={"preprocessing": Preprocessing(mean=(0.5, 0.5, 0.5))})
    report = verified(shipped["fp16"], checkpoint._replace(meta=meta), PIXELS)
    assert divergence(report) == report.stages["description"]
    assert divergence(report).name == "preprocessing"
    graph = report.stages["graph"]
    assert graph is not None
    assert graph.op_type in ("sub", "mul")


def test_a_deeper_checkpoint(shipped: dict[str, Path], checkpoint: Checkpoint) -> None:
    config = tiny.CONFIG.changed({"stages[3].graph_depth": 2})
    other = Checkpoint(build(config).eval(), checkpoint.meta.model_copy(update={"arch": config}))
    report = verified(shipped["fp32"], other, PIXELS)
    assert divergence(report).name == "arch"
    assert divergence(report).why == "its stages[3].graph_depth is 1, the checkpoint's 2"
    assert report.stages["graph"] is not None
    assert 0 < len(report.ops) < report.num_ops, "compared as long as the graphs are alike"


# ---------------------------------------------------------------------------------------------------- values


def test_too_much_noise_is_found_where_it_begins(
    shipped: dict[str, Path], checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MIN_SNR_DB, "fp16", 55.0)
    report = verified(shipped["fp16"], checkpoint, PIXELS)
    found = divergence(report)
    assert "below 55 dB" in found.why
    assert report.stages["values"] == found
    assert found.name in {info.name for info in Program.load(shipped["fp16"]).operations}


def test_overflow_in_fp16_is_found_where_it_begins(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = copy.deepcopy(checkpoint.model)
    for key in ("norm.weight", "norm.bias"):
        model.get_parameter(f"stages.0.0.branch.0.{key}").detach().mul_(2e4)
    loud = checkpoint._replace(model=model)
    export(loud, SHA, tmp_path / "loud.mlpackage", "fp16")
    report = verified(tmp_path / "loud.mlpackage", loud, PIXELS)
    found = divergence(report)
    assert found.why == OVERFLOW
    assert (found.op_type, report.snr_db) == ("conv", -LARGEST_DB)
    json.dumps(as_json(report, [str(i) for i in range(MIN_INPUTS)]), allow_nan=False)
    assert found.name == outputs(tmp_path / "loud.mlpackage", "conv")[2]


def test_a_checkpoint_of_another_size_and_other_classes(shipped: dict[str, Path], checkpoint: Checkpoint) -> None:
    """Nothing can be compared number by number; that they are not the same is told all the same."""
    for changed, pixels in (({"resolution": 160}, tiny.pixels(MIN_INPUTS, size=160)), ({"num_classes": 12}, PIXELS)):
        config = tiny.CONFIG.changed(changed)
        other = Checkpoint(build(config).eval(), CheckpointMeta(arch=config))
        report = verified(shipped["fp16"], other, pixels)
        assert not report.passed
        assert report.inputs == []
        assert report.stages["graph"] is not None
        json.dumps(as_json(report, []), allow_nan=False)


def test_too_few_inputs_and_foreign_packages_are_refused(
    shipped: dict[str, Path], edited: Callable[[str], Path], checkpoint: Checkpoint
) -> None:
    with pytest.raises(ConfigError, match="15 inputs are too few"):
        verified(shipped["fp32"], checkpoint, PIXELS[: MIN_INPUTS - 1])
    with pytest.raises(ConfigError, match="the pictures are 64 px"):
        verified(shipped["fp32"], checkpoint, tiny.pixels(MIN_INPUTS, size=64))
    path = edited("fp32")
    packages.edit(path, lambda model: model.description.metadata.userDefined.pop("vig"))
    with pytest.raises(ConfigError, match="is no package of vig"):
        verified(path, checkpoint, PIXELS)


@pytest.mark.slow
def test_a_published_variant(tmp_path: Path) -> None:
    config = arch_config("mobilevigv2_ti")
    checkpoint = Checkpoint(build(config, seed=1).eval(), CheckpointMeta(arch=config))
    export(checkpoint, SHA, tmp_path / "ti.mlpackage", "fp16")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (MIN_INPUTS, 3, 224, 224), generator=generator).float()
    report = verified(tmp_path / "ti.mlpackage", checkpoint, pixels)
    assert report.passed, report.divergence
    assert report.snr_db is not None
    assert report.snr_db > 40
    assert report.op_counts["maximum"] == 4 * 6
    assert "gather" not in report.op_counts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["greedyvig_s", "vig_ti", "pvig_ti"])
def test_a_published_variant_with_a_dynamic_graph(name: str, tmp_path: Path) -> None:
    found = tiny.checkpoint(config=arch_config(name))
    export(found, SHA, tmp_path / "net.mlpackage")
    counts = Program.load(tmp_path / "net.mlpackage").op_counts
    blocks = 0 if name == "greedyvig_s" else 12
    assert (counts["topk"], counts["gather"], counts["tile"], counts["gather_along_axis"]) == (blocks, blocks, 0, 0)
    report = verified(tmp_path / "net.mlpackage", found, tiny.pixels(MIN_INPUTS, size=224))
    assert report.passed
    assert report.changed_percent is not None


# ---------------------------------------------------------------------------------------------------- choices


@pytest.fixture(scope="module")
def dynamic() -> dict[str, Checkpoint]:
    graphs = {"neighbours": tiny.DYNAMIC, "clusters": tiny.CLUSTERED}
    return {name: tiny.checkpoint(config=config) for name, config in graphs.items()}


@pytest.mark.parametrize("graph", ["neighbours", "clusters"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_choices_that_rounding_turns_are_no_noise(
    precision: str, graph: str, dynamic: dict[str, Checkpoint], tmp_path: Path
) -> None:
    export(dynamic[graph], SHA, tmp_path / "net.mlpackage", precision)  # type: ignore[arg-type]
    report = verified(tmp_path / "net.mlpackage", dynamic[graph], PIXELS)
    assert report.passed
    assert report.changed_percent is not None
    assert report.changed_percent == 0 if precision == "fp32" else 0 < report.changed_percent < 10
    assert report.snr_db is not None
    assert report.snr_db > {"fp32": 120, "fp16": 35}[precision]


WORSE: dict[str, Callable[[Op], Callable[..., Any]]] = {  # the furthest for the nearest
    "topk": lambda known: lambda x, **options: known.function(x, **{**options, "ascending": not options["ascending"]}),
    "reduce_argmin": lambda known: lambda x, **options: known.function(-x, **options),
    "less": lambda known: lambda x, y: x > y,
    "less_equal": lambda known: lambda x, y: x > y,
}


@pytest.mark.parametrize(
    ("graph", "name"),
    [
        ("neighbours", "topk"),
        ("neighbours", "less"),
        *(("clusters", name) for name in ("topk", "reduce_argmin", "less_equal")),
    ],
)
def test_a_twin_that_chooses_worse_is_found(
    graph: str, name: str, dynamic: dict[str, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In checkpoint and package alike everything else fits."""
    export(dynamic[graph], SHA, tmp_path / "net.mlpackage", "fp32")
    monkeypatch.setitem(OPS, name, dataclasses.replace(OPS[name], function=WORSE[name](OPS[name])))
    found = divergence(verified(tmp_path / "net.mlpackage", dynamic[graph], PIXELS))
    assert (found.op_type, found.name) == ("conversion", "choices")


def test_weights_below_fp16_may_be_kept_away_from_zero() -> None:
    """coremltools writes fp16's least number where rounding would give zero; an edit is still seen."""
    ours = torch.tensor([0.5, -9.08e-9, 3e-8])
    assert same_half(ours, torch.tensor([0.5, -(2.0**-24), 2.0**-24]))
    assert not same_half(ours, torch.tensor([0.5, -9.08e-9, 2.0**-22]))
    assert not same_half(ours, torch.tensor([0.505, -9.08e-9, 3e-8]))

"""What the lint says of packages of ours, and of programs made to break one rule each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packages
import pytest
import tiny
import torch

from vigcli.archs import build
from vigcli.archs.checkpoint import Checkpoint
from vigcli.config.archs import VARIANTS, AnyArch, ArchConfig
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.coreml.apple import coremltools
from vigcli.coreml.convert import METADATA_KEY, export
from vigcli.coreml.interpreter import Program
from vigcli.coreml.lint import CHOICES, KINDS, RULES, SETTINGS, Lint, lint, summary
from vigcli.coreml.ops import OPS
from vigcli.measure.profile import profile

pytest.importorskip("coremltools", exc_type=ImportError)
DYNAMIC_FAMILIES = ("vig", "pvig", "clustervig")


def found_in(config: AnyArch | ArchConfig, folder: Path, precision: Any = "fp16") -> Lint:
    made = Checkpoint(build(config).eval(), CheckpointMeta(arch=config))  # type: ignore[arg-type]
    export(made, "ab" * 32, folder / "net.mlpackage", precision)
    return lint(Program.load(folder / "net.mlpackage"))


def leaving(found: Lint) -> set[str]:
    return {finding.kind for finding in found.findings if finding.rule.leaves}


# ---------------------------------------------------------------------------------------------------- packages of ours


def test_a_static_network_has_no_finding_and_its_blocks_are_those_of_the_prices(tmp_path: Path) -> None:
    found = found_in(tiny.CONFIG, tmp_path)
    counted = profile(tiny.CONFIG)
    assert found.findings == []
    assert found.dynamic is None
    assert list(found.num_ops) == [block.name for block in counted.blocks]
    assert found.macs == {block.name: block.trace.macs for block in counted.blocks}
    assert min(found.num_ops.values()) >= 1
    assert found.num_ops["stages[1].blocks[2]"] > found.num_ops["stages[1].blocks[1]"], "a graph block after another"
    ((name, text),) = summary(found)
    assert (name, text) == (
        "Neural Engine", "no operation that is reported to leave it; `vig profile PACKAGE` has them all"
    )  # fmt: skip


def test_what_leaves_is_named_by_its_block_with_the_setting_of_its_stage(tmp_path: Path) -> None:
    found = found_in(tiny.DYNAMIC, tmp_path)
    knn = [finding for finding in found.findings if finding.rule.leaves]
    assert {finding.block for finding in knn} == {"stages[2].blocks[2]"}
    assert {finding.kind for finding in knn} == {"gather", "top-k"}
    assert {finding.op_type for finding in knn} <= {"gather", "gather_along_axis", "topk"}
    assert all("--set stages[2].mixer=mgc" in finding.setting for finding in knn)
    assert all(" -> " in finding.what and finding.rule.source for finding in found.findings)
    masked = {finding.block for finding in found.findings if finding.kind == "cast"}
    assert masked == {"stages[1].blocks[2]", "stages[3].blocks[2]"}, "the masks of dagc change type"
    assert found.dynamic is not None
    assert found.dynamic.blocks == ("stages[2].blocks[2]",)
    assert 0 < found.dynamic.macs < found.macs["stages[2].blocks[2]"]
    text = dict(summary(found))
    assert "reported to leave it: 1 top-k, 1 gather, in 1 of 12 blocks" in text["Neural Engine"]
    assert "in 1 of 12 blocks" in text["dynamic part"]


def test_the_setting_that_a_finding_names_avoids_it(tmp_path: Path) -> None:
    found = found_in(tiny.DYNAMIC, tmp_path)
    settings = {f.setting.split()[1].rstrip(":") for f in found.findings if f.setting.startswith("--set")}
    changed = tiny.DYNAMIC.changed(dict(setting.split("=") for setting in settings))
    assert found_in(changed, tmp_path).findings == []


@pytest.mark.slow
def test_separable_attention_changes_the_layout_less(tmp_path: Path) -> None:
    config = VARIANTS["mobilevit_xxs"].changed({"num_classes": 10})
    both = [found_in(c, tmp_path) for c in (config, config.changed({"attention": "separable"}))]
    counts = [sum(finding.kind == "layout" for finding in found.findings) for found in both]
    assert counts[1] < counts[0]
    assert not any(map(leaving, both))


def test_k_means_is_told_as_part_of_what_is_dynamic(tmp_path: Path) -> None:
    parts = [found_in(tiny.CLUSTERED.changed({"partition": p}), tmp_path).dynamic for p in ("kmeans", "grid")]
    assert parts[0] is not None
    assert parts[1] is not None
    assert parts[0].num_ops > parts[1].num_ops + 4 * tiny.CLUSTERED.depth
    assert parts[0].blocks == parts[1].blocks == tuple(f"stages[0].blocks[{i}]" for i in range(tiny.CLUSTERED.depth))


def test_of_an_fp32_package_every_operation_is_fp32(tmp_path: Path) -> None:
    found = found_in(tiny.CONFIG, tmp_path, "fp32")
    kinds = {finding.kind for finding in found.findings}
    assert kinds == {"fp32"}
    assert len(found.findings) >= sum(found.num_ops.values()) - 2, "all but the label and a cast"
    assert {finding.setting for finding in found.findings} == {"vig export --precision fp16"}


def test_what_is_kept_in_fp32_says_why(tmp_path: Path) -> None:
    found_in(tiny.DYNAMIC, tmp_path)
    path = tmp_path / "net.mlpackage"

    def say_mixed(model: Any) -> None:
        texts = model.description.metadata.userDefined
        texts[METADATA_KEY] = texts[METADATA_KEY].replace('"precision":"fp16"', '"precision":"mixed"')

    packages.edit(path, say_mixed)
    casts = [finding for finding in lint(Program.load(path)).findings if finding.kind == "cast"]
    assert casts
    assert all("overflow" in finding.setting for finding in casts)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, config in VARIANTS.items() if config.family not in DYNAMIC_FAMILIES])
def test_static_families_and_mobilevits_have_nothing_that_leaves(name: str, tmp_path: Path) -> None:
    found = found_in(VARIANTS[name], tmp_path)
    assert not leaving(found)
    assert sum(found.macs.values()) == profile(VARIANTS[name]).macs


# ---------------------------------------------------------------------------------------------------- others' programs


def program(tmp_path: Path, build: Callable[..., Any], *shapes: tuple[int, ...], precision: str = "fp16") -> Program:
    ct = coremltools()
    from coremltools.converters.mil.mil import Builder, types

    names = [f"x{i}" for i in range(len(shapes))]
    kind = types.fp16 if precision == "fp16" else types.fp32
    specs = [Builder.TensorSpec(shape=shape, dtype=kind) for shape in shapes]
    body = eval(f"lambda build: lambda {', '.join(names)}: build({', '.join(names)})")(lambda *x: build(Builder, *x))
    made = Builder.program(input_specs=specs, opset_version=ct.target.iOS16)(body)
    inputs = [ct.TensorType(name=name, dtype=np.float16 if precision == "fp16" else np.float32) for name in names]
    model = ct.convert(
        made, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS16, skip_model_load=True, inputs=inputs,
        compute_precision=getattr(ct.precision, "FLOAT16" if precision == "fp16" else "FLOAT32"),
        pass_pipeline=ct.PassPipeline.EMPTY,
    )  # fmt: skip
    model.save(str(tmp_path / "made.mlpackage"))
    return Program.load(tmp_path / "made.mlpackage")


INDICES = np.array([2, 0], np.int32)
BREAKS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "gather": (lambda mb, x: mb.gather(x=x, indices=INDICES, axis=1), (1, 4, 8, 8)),
    "top-k": (lambda mb, x: mb.topk(x=x, k=2, axis=-1)[0], (1, 4, 8)),
    "tile": (lambda mb, x: mb.tile(x=x, reps=[1, 2, 1]), (1, 4, 8)),
    "wide argmax": (lambda mb, x: mb.cast(x=mb.reduce_argmax(x=x, axis=-1), dtype="fp16"), (1, 4, 2049)),
    "size": (lambda mb, x: mb.relu(x=x), (1, 1, 1, 16_385)),
    "layout": (lambda mb, x: mb.transpose(x=x, perm=[0, 2, 3, 1]), (1, 65, 8, 8)),
    "cast": (lambda mb, x: mb.relu(x=mb.cast(x=mb.greater(x=mb.relu(x=x), y=np.float16(1)), dtype="fp16")), (1, 4, 8)),
    "large": (lambda mb, x: mb.relu(x=x), (1, 64, 128, 129)),
}
KEEPS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "wide argmax": (lambda mb, x: mb.cast(x=mb.reduce_argmax(x=x, axis=-1), dtype="fp16"), (1, 4, 2048)),
    "size": (lambda mb, x: mb.relu(x=x), (1, 16_385, 1, 1)),
    "layout": (lambda mb, x: mb.transpose(x=x, perm=[0, 2, 3, 1]), (1, 64, 8, 8)),
    "cast": (lambda mb, x: mb.cast(x=mb.relu(x=x), dtype="fp32"), (1, 4, 8)),
    "large": (lambda mb, x: mb.relu(x=x), (1, 60, 128, 130)),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_rule_sees_what_breaks_it(kind: str, tmp_path: Path) -> None:
    build, shape = BREAKS[kind]
    found = lint(program(tmp_path, build, shape))
    assert kind in {finding.kind for finding in found.findings}
    assert {finding.setting for finding in found.findings} == {""}, "of another's package no setting is known"


@pytest.mark.parametrize("kind", KEEPS)
def test_a_rule_passes_what_is_at_its_limit(kind: str, tmp_path: Path) -> None:
    build, shape = KEEPS[kind]
    assert kind not in {finding.kind for finding in lint(program(tmp_path, build, shape)).findings}


def test_fp32_and_shapes_that_are_not_fixed(tmp_path: Path) -> None:
    ct = coremltools()
    found = lint(program(tmp_path, lambda mb, x: mb.relu(x=x), (1, 4, 8), precision="fp32"))
    assert [finding.kind for finding in found.findings] == ["fp32"]
    traced = torch.jit.trace(torch.nn.Conv2d(3, 4, 3), torch.rand(1, 3, 16, 16))
    shape = ct.Shape((1, 3, ct.RangeDim(16, 32), ct.RangeDim(16, 32)))
    model = ct.convert(traced, inputs=[ct.TensorType(name="x", shape=shape)], skip_model_load=True)
    model.save(str(tmp_path / "any.mlpackage"))
    loaded = Program.load(tmp_path / "any.mlpackage")
    (finding,) = lint(loaded).findings
    assert (finding.kind, finding.name, finding.what) == ("dynamic shape", "x", "1x3x?x?")


def test_blocks_of_anothers_package_are_told_by_its_weights(tmp_path: Path) -> None:
    ct = coremltools()
    model = torch.nn.Module()
    model.features = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 8, 3))
    model.classifier = torch.nn.Linear(8, 10)
    model.forward = lambda x: model.classifier(model.features(x).mean((2, 3)))  # type: ignore[method-assign]
    traced = torch.jit.trace(model, torch.rand(1, 3, 16, 16))
    made = ct.convert(traced, inputs=[ct.TensorType(name="x", shape=(1, 3, 16, 16))], skip_model_load=True)
    made.save(str(tmp_path / "other.mlpackage"))
    found = lint(Program.load(tmp_path / "other.mlpackage"))
    assert list(found.num_ops) == ["features[0]", "features[2]", "classifier"]
    assert found.macs == {"features[0]": 4 * 3 * 9 * 14 * 14, "features[2]": 8 * 4 * 9 * 12 * 12, "classifier": 80}
    assert found.num_ops["features[0]"] >= 2, "the cast of the input and the ReLU besides"


# ---------------------------------------------------------------------------------------------------- tables


def test_the_tables_agree() -> None:
    assert set(KINDS) | set(CHOICES) <= set(OPS)
    assert set(KINDS.values()) <= set(RULES)
    assert set(BREAKS) | {"fp32", "dynamic shape"} == set(RULES), "every rule has a program that breaks it"
    families = {config.family for config in VARIANTS.values()}
    assert set(SETTINGS) == families
    assert {kind for settings in SETTINGS.values() for kind in settings} <= set(RULES)
    assert all(rule.reason and rule.source for rule in RULES.values())

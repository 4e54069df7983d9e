"""Every scheme as a package: smaller, of the operations that it should have, and what its checkpoint says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import packages
import pytest
import tiny
import torch
from compressed import INT8
from torch import Tensor

from vigcli.archs import build
from vigcli.archs.checkpoint import Checkpoint
from vigcli.compress.quantize import Source, check_target, compress, half_package
from vigcli.compress.schemes import ACTIVATIONS, first_layers, palette
from vigcli.config.compression import LEAST_WEIGHTS, Compression
from vigcli.coreml.graphs import Graph, compare_graphs
from vigcli.coreml.interpreter import Program
from vigcli.coreml.package import read_package
from vigcli.coreml.verify import MIN_INPUTS, hold, twin_of
from vigcli.coreml.weights import HEADER
from vigcli.errors import UsageError
from vigcli.files import bytes_on_disk

pytest.importorskip("coremltools", exc_type=ImportError)
SHA = "ab" * 32
WIDE = tiny.CONFIG.changed({f"stages[{i}].width": width for i, width in enumerate((8, 16, 32, 48))})
W8, W4 = Compression(weight_bits=8), Compression(weight_bits=4)
HALF = {"sparsity_ratio": 0.5}
SCHEMES: dict[str, tuple[Compression, set[str]]] = {
    "int8": (INT8, {"constexpr_blockwise_shift_scale"}),
    "w8": (W8, {"constexpr_blockwise_shift_scale"}),
    "w4": (W4, {"constexpr_lut_to_dense"}),
    "w6 grouped": (Compression(weight_bits=6, group_channels=16), {"constexpr_lut_to_dense"}),
    "w4a8": (
        Compression(weight_bits=4, activation_bits=8, calibration="error"), {"constexpr_lut_to_dense"}
    ),
    "sparse": (Compression(**HALF), {"constexpr_sparse_to_dense"}),
    "sparse w8": (
        Compression(weight_bits=8, **HALF),
        {"constexpr_blockwise_shift_scale", "constexpr_sparse_blockwise_shift_scale", "constexpr_sparse_to_dense"},
    ),
    "sparse w4": (
        Compression(weight_bits=4, group_channels=16, **HALF), {"constexpr_lut_to_sparse", "constexpr_sparse_to_dense"}
    ),
    "sparse int8": (
        Compression(weight_bits=8, activation_bits=8, calibration="percentile", **HALF),
        {"constexpr_blockwise_shift_scale", "constexpr_sparse_blockwise_shift_scale", "constexpr_sparse_to_dense"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """One output of a convolution is dead, as after a training that made weights zero."""
    made = tiny.checkpoint(config=WIDE)
    made.model.get_parameter("stages.3.1.branch.0.conv.weight").detach()[7] = 0
    return made


@pytest.fixture(scope="module")
def calibration() -> Tensor:
    return tiny.pixels(24, seed=3).to(torch.uint8)


@pytest.fixture(scope="module")
def source(checkpoint: Checkpoint) -> Iterator[Source]:
    with half_package(checkpoint, SHA, 18) as made:
        yield made


@pytest.fixture(scope="module")
def twin(checkpoint: Checkpoint, source: Source) -> Program:
    return twin_of(checkpoint, source.meta)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_package_of_every_scheme(
    scheme: str, checkpoint: Checkpoint, calibration: Tensor, source: Source, twin: Program, tmp_path: Path
) -> None:
    compression, kinds = SCHEMES[scheme]
    path = tmp_path / "net.mlpackage"
    meta = compress(source, path, compression, calibration)
    program = Program.load(path)
    assert {kind for kind in program.op_counts if kind.startswith("constexpr_")} == kinds
    assert ("quantize" in program.op_counts) == (compression.activation_bits == 8)
    assert meta.compression is not None
    assert meta.compression.num_images == (24 if compression.activation_bits == 8 else 0)
    precision = "int8" if "quantize" in program.op_counts else "fp16"
    assert (meta.precision, meta.priced_as) == (precision, compression.name)
    qat = compression.as_trained() if compression.is_plain_int8 else compression
    assert meta.model_copy(update={"compression": qat}).priced_as == compression.name
    assert bytes_on_disk(path) < 0.95 * bytes_on_disk(source.path)
    report = hold(program, twin, checkpoint, tiny.pixels(MIN_INPUTS)[:6])
    assert report.passed, report.divergence
    assert report.snr_db is not None
    assert report.snr_db > 37
    assert report.fp32_snr_db is not None
    assert report.fp32_snr_db < 35, "held to the simulation, not to fp32"


def stored_numbers(path: Path) -> dict[tuple[str, str], tuple[str, int, int]]:
    """By kind of compression and what of it: an operation that has it, and where its bytes begin and end."""
    files = read_package(path)
    content = (path / packages.WEIGHTS).read_bytes()
    consts = {o.outputs[0].name: o.attributes["val"] for o in files.block.operations if o.type == "const"}
    found = {}
    for operation in files.block.operations:
        if operation.type.startswith("constexpr_"):
            values = {**operation.attributes}
            for name, argument in operation.inputs.items():
                binding = argument.arguments[0]
                value = binding.value or consts.get(binding.name or "")
                if value is not None:
                    values[name] = value
            for name, value in values.items():
                if value.blob_file_value:
                    _, _, size, start, _ = HEADER.unpack_from(content, value.blob_file_value.offset)
                    found[operation.type, name] = operation.outputs[0].name, start, start + size
    return found


@pytest.mark.parametrize("scheme", ["w8", "w6 grouped", "sparse", "sparse w8", "sparse w4"])
def test_moved_numbers_of_every_kind_are_found(scheme: str, source: Source, twin: Program, tmp_path: Path) -> None:
    """Each kind of numbers that the scheme stores, moved by one place in the weight file: palettes, indices, masks,
    what is not zero, scales."""
    path = tmp_path / "net.mlpackage"
    meta = compress(source, path, SCHEMES[scheme][0])
    file = path / packages.WEIGHTS
    content = file.read_bytes()
    stored = stored_numbers(path)
    assert len(stored) >= 2
    for (kind, name), (_, start, end) in stored.items():
        numbers = content[start:end]
        file.write_bytes(content[:start] + numbers[2:] + numbers[:2] + content[end:])
        divergence = compare_graphs(Graph(twin), Graph(Program.load(path)), meta)
        assert divergence is not None, f"{name} of {kind}"
        assert divergence.op_type == "conv"
        assert divergence.why.startswith("its weight ")


@pytest.mark.parametrize("scheme", ["w8", "w4", "sparse", "int8"])
def test_what_is_kept_stays_as_it_was(
    scheme: str, calibration: Tensor, source: Source, twin: Program, tmp_path: Path
) -> None:
    """And a package that says another operation was kept is told."""
    steps = [s for s in source.program.steps if s.op.name == "conv" and s.constants["weight"].numel() > LEAST_WEIGHTS]
    named = [step.outputs[0].name for step in steps]
    kept, other = next(name for name in named if name.startswith("var_")), named[0]
    compression = SCHEMES[scheme][0].model_copy(update={"kept": (kept,)})
    meta = compress(source, tmp_path / "net.mlpackage", compression, calibration)
    program = Program.load(tmp_path / "net.mlpackage")
    found = {step.outputs[0].name: step for step in program.steps}
    before = {step.outputs[0].name: step.constants["weight"] for step in steps}
    assert torch.equal(found[kept].constants["weight"], before[kept])
    assert not torch.equal(found[other].constants["weight"], before[other])
    for source_step in (found[name] for name in found[kept].outputs[0].inputs):
        if source_step.op.name == "dequantize":  # as part of the convolution before it alone
            (quantized,) = source_step.outputs[0].inputs
            assert found[found[quantized].outputs[0].inputs[0]].op.name in ACTIVATIONS
    assert compare_graphs(Graph(twin), Graph(program), meta) is None
    lie = meta.model_copy(update={"compression": compression.model_copy(update={"kept": (other,)})})
    divergence = compare_graphs(Graph(twin), Graph(program), lie)
    assert divergence is not None
    assert divergence.name == other


@pytest.mark.parametrize("family", tiny.SMALL)
def test_the_layers_that_read_the_picture_are_known(family: str, tmp_path: Path) -> None:
    with half_package(tiny.checkpoint(config=tiny.SMALL[family]), SHA, 16) as made:
        (first,) = first_layers(made.program)
        convs = [step.outputs[0].name for step in made.program.steps if step.op.name == "conv"]
        assert first == convs[0]


@pytest.mark.parametrize("scheme", ["w8", "w4", "sparse w8"])
def test_a_bias_that_layers_share_with_the_first_stays(scheme: str, tmp_path: Path) -> None:
    """The biases of a network that learned nothing are all zero, and so one constant."""
    drawn = Checkpoint(build(WIDE, seed=0).eval(), tiny.checkpoint(config=WIDE).meta)
    with half_package(drawn, SHA, 18) as made:
        meta = compress(made, tmp_path / "net.mlpackage", SCHEMES[scheme][0])
        assert (
            compare_graphs(Graph(twin_of(drawn, meta)), Graph(Program.load(tmp_path / "net.mlpackage")), meta) is None
        )


@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("shape", ["bell", "tails", "few", "equal"])
def test_a_palette_is_the_means_of_what_is_nearest(shape: str, bits: int) -> None:
    random = np.random.default_rng(0)
    weight: Any = {
        "bell": random.normal(size=(64, 80)),
        "tails": random.standard_t(3, size=(40, 500)),
        "few": random.choice([0.25, 0.5, 1.0], size=(50, 50)),
        "equal": np.full((30, 100), 0.125),
    }[shape].astype(np.float16)
    values, indices = palette(weight, bits)
    assert values.shape == (2**bits,)
    assert (np.diff(values) >= 0).all()
    numbers = weight.reshape(-1).astype(np.float64)
    due = np.abs(numbers[:, None] - values.astype(np.float64)).min(1)
    got = np.abs(numbers - values[indices].astype(np.float64))
    assert (got <= due + 1e-3 * np.abs(numbers) + 1e-6).all()
    for i in np.unique(indices):
        assert values[i] == pytest.approx(numbers[indices == i].mean(), rel=1e-3, abs=1e-5)
    if shape in ("few", "equal"):
        assert (values[indices] == weight.reshape(-1)).all()


def test_a_palette_is_as_good_as_scikit_learn_s() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    weight = np.random.default_rng(1).standard_t(3, size=20_000).astype(np.float16)
    values, indices = palette(weight, 4)
    theirs = cluster.KMeans(16, n_init=1, random_state=0).fit(weight[:, None].astype(np.float64))
    assert ((values[indices].astype(np.float64) - weight) ** 2).sum() < 1.03 * theirs.inertia_


@pytest.mark.parametrize(
    ("compression", "least", "older", "hint"),
    [
        (INT8, 17, 16, "--weights-only"),
        (W8, 16, None, ""),
        (W4, 16, None, ""),
        (Compression(weight_bits=4, group_channels=16), 18, 17, "ios18"),
        (Compression(**HALF), 16, None, ""),
        (Compression(weight_bits=8, **HALF), 18, 16, "leave --sparsity out"),
        (INT8.model_copy(update=HALF), 18, 17, "leave --sparsity out"),
        (INT8.model_copy(update=HALF), 18, 16, "ios18."),
    ],
)
def test_the_least_ios_of_a_scheme(compression: Compression, least: int, older: int | None, hint: str) -> None:
    assert check_target(compression, None) == least
    assert check_target(compression, 18) == 18
    if older:
        with pytest.raises(UsageError, match=f"--target ios{older}: .* needs iOS {least}") as refused:
            check_target(compression, older)
        assert hint in (refused.value.hint or "")

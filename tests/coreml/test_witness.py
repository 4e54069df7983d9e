"""Both readers of packages see the same in every kind of value, and a difference is told."""

from __future__ import annotations

import copy as copying
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import packages
import pytest
import tiny
import torch
from compressed import INT8

from vigcli.compress.quantize import quantize
from vigcli.coreml.apple import coremltools
from vigcli.coreml.convert import export
from vigcli.coreml.interpreter import Program
from vigcli.coreml.messages import Model
from vigcli.coreml.ops.const import PACKED_BITS, Decoder
from vigcli.coreml.package import read_package
from vigcli.coreml.witness import compare_readings, difference, read_with_coremltools
from vigcli.errors import ConfigError

pytest.importorskip("coremltools", exc_type=ImportError)
TYPES = {"fp16": 10, "fp32": 11, "int8": 21, "int16": 22, "int32": 23, "int4": 25, "uint8": 31, "uint16": 32,
         "uint32": 33, "uint4": 35, "uint2": 36, "uint1": 37, "uint6": 38, "uint3": 39}  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("witness") / "net.mlpackage"
    export(tiny.checkpoint(), "0" * 64, path, "fp16")
    return path


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(package, tmp_path / "copy.mlpackage"))


def numbers(dtype: str) -> np.ndarray:
    """Some of every size and sign that a type can hold, as many as do not fill the last byte."""
    if dtype.startswith("fp"):
        return np.array([0, -1.5, 65504, 6e-8, np.inf, -np.inf, np.nan], dtype.replace("fp", "float"))
    bits = PACKED_BITS.get(dtype) or int(dtype.lstrip("uint"))
    low, high = (0, 2**bits - 1) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return np.array([low, high, high // 2, low // 2, 0, 1, high])


def write_blob(path: Path, dtype: str, values: np.ndarray) -> int:
    """Append to a weight file with Apple's writer; the offset of the blob."""
    from coremltools.converters.mil.mil.types import type_mapping
    from coremltools.libmilstoragepython import _BlobStorageWriter

    writer = _BlobStorageWriter(str(path))
    if dtype == "fp16":
        return int(writer.write_fp16_data(values.view(np.uint16)))
    if dtype == "fp32":
        return int(writer.write_float_data(values))
    return int(getattr(writer, f"write_{dtype}_data")(values.astype(type_mapping.string_to_nptype(dtype))))


@pytest.mark.parametrize("dtype", TYPES)
def test_numbers_of_every_type_in_a_weight_file(dtype: str, copy: Path) -> None:
    values = numbers(dtype)
    folder = copy / "Data/com.apple.CoreML/weights"
    offset = write_blob(folder / "more.bin", dtype, values)

    def change(model: Any) -> None:
        const = packages.operations(model).add(type="const")
        const.outputs.add().name = "more"
        value = const.attributes["val"]
        value.type.tensorType.dataType, value.type.tensorType.rank = TYPES[dtype], 1
        value.type.tensorType.dimensions.add().constant.size = len(values)
        value.blobFileValue.fileName, value.blobFileValue.offset = "@model_path/weights/more.bin", offset
        const.outputs[0].type.CopyFrom(value.type)

    packages.edit(copy, change)
    assert compare_readings(copy) is None
    files = read_package(copy)
    decoded = Decoder(files.weights).value(files.block.operations[-1].attributes["val"])
    expected = torch.from_numpy(values.astype(np.float32 if dtype.startswith("fp") else np.int64))
    torch.testing.assert_close(decoded.to(expected.dtype), expected, rtol=0, atol=0, equal_nan=True)
    assert Program.load(copy).op_counts


def fill_in(tensor: Any, place: str) -> None:
    """Some values in one of the lists of a message."""
    values = {
        "floats": [0.1, -2.5, float("nan"), float("inf")],
        "ints": [0, -1, 2**31 - 1, -(2**31)],
        "bools": [True, False],
        "strings": ["a", "", "ä€"],
        "longInts": [2**63 - 1, -(2**63)],
        "doubles": [0.1, float("-inf")],
    }
    if place == "bytes":
        tensor.bytes.values = bytes(range(256))
    else:
        getattr(tensor, place).values.extend(values[place])


@pytest.mark.parametrize("place", ["floats", "ints", "bools", "strings", "longInts", "doubles", "bytes"])
def test_values_of_every_kind(place: str, copy: Path) -> None:
    """In a tensor, and the tensor in a list, a tuple and a dictionary; of attributes and of arguments."""

    def change(model: Any) -> None:
        const = packages.operations(model)[0]
        tensor = const.attributes["some"]
        fill_in(tensor.immediateValue.tensor, place)
        tensor.type.tensorType.dimensions.add().unknown.variadic = True
        inside = const.attributes["list"].immediateValue.list.values.add()
        inside.CopyFrom(tensor)
        const.attributes["tuple"].immediateValue.tuple.values.add().CopyFrom(tensor)
        pair = const.attributes["dictionary"].immediateValue.dictionary.values.add()
        pair.key.CopyFrom(tensor)
        pair.value.CopyFrom(tensor)
        const.attributes["list"].type.listType.length.constant.size = 1
        const.attributes["dictionary"].type.dictionaryType.valueType.stateType.wrappedType.tupleType.types.add()
        const.inputs["x"].arguments.add().value.CopyFrom(tensor)
        const.inputs["x"].arguments.add().name = "by name"

    packages.edit(copy, change)
    assert compare_readings(copy) is None


# ------------------------------------------------------------------------------------------------ whole packages


def test_a_package_with_labels_a_picture_and_metadata(package: Path) -> None:
    assert compare_readings(package) is None
    seen = read_with_coremltools(package)
    assert seen.description is not None
    assert seen.description.metadata is not None
    assert seen.description.metadata.user_defined["preprocessing"]
    assert seen.description.input[0].type is not None
    assert seen.description.input[0].type.image_type is not None


@pytest.mark.slow
def test_an_int8_package(tmp_path: Path) -> None:
    quantize(tiny.checkpoint(), "0" * 64, tmp_path / "int8.mlpackage", INT8, tiny.pixels(128).byte())
    assert compare_readings(tmp_path / "int8.mlpackage") is None


def compressed(kind: str, model: Any) -> Any:
    optimize = coremltools().optimize.coreml

    def config(name: str, **options: Any) -> Any:
        return optimize.OptimizationConfig(global_config=getattr(optimize, name)(weight_threshold=0, **options))

    if kind == "linear":
        return optimize.linear_quantize_weights(model, config("OpLinearQuantizerConfig", mode="linear_symmetric"))
    if kind == "affine":
        return optimize.linear_quantize_weights(model, config("OpLinearQuantizerConfig", mode="linear", dtype="uint8"))
    if kind == "palette":
        return optimize.palettize_weights(model, config("OpPalettizerConfig", mode="uniform", nbits=4))
    if kind == "sparse":
        return optimize.prune_weights(model, config("OpMagnitudePrunerConfig", target_sparsity=0.5))
    if kind == "blockwise":
        options = {"mode": "linear_symmetric", "dtype": "int4", "granularity": "per_block", "block_size": 8}
        return optimize.linear_quantize_weights(model, config("OpLinearQuantizerConfig", **options))
    if kind == "groups":
        options = {"mode": "uniform", "nbits": 3, "granularity": "per_grouped_channel", "group_size": 4}
        return optimize.palettize_weights(model, config("OpPalettizerConfig", **options))
    sparse = compressed("sparse", model)
    if kind == "sparse palette":
        palette = config("OpPalettizerConfig", mode="uniform", nbits=2)
        return optimize.palettize_weights(sparse, palette, joint_compression=True)
    linear = config("OpLinearQuantizerConfig", mode="linear_symmetric")
    return optimize.linear_quantize_weights(sparse, linear, joint_compression=True)


KINDS = {
    16: ("linear", "affine", "palette", "sparse"),
    17: ("linear", "affine", "palette", "sparse"),
    18: ("linear", "affine", "palette", "sparse", "blockwise", "groups", "sparse palette", "sparse linear"),
}


@pytest.mark.parametrize(("minimum_ios", "kind"), [(ios, kind) for ios, kinds in KINDS.items() for kind in kinds])
def test_compressed_weights(minimum_ios: int, kind: str, tmp_path: Path) -> None:
    """Both readers agree, and what the interpreter makes of the weights is what coremltools expands them to."""
    ct = coremltools()
    module = torch.nn.Conv2d(8, 16, 3, bias=False).eval()
    x = torch.rand(1, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    model = ct.convert(
        torch.jit.trace(module, x),
        inputs=[ct.TensorType(name="x", shape=x.shape)],
        minimum_deployment_target=getattr(ct.target, f"iOS{minimum_ios}"),
        skip_model_load=True,
    )
    small = compressed(kind, model)
    small.save(str(tmp_path / "small.mlpackage"))
    assert compare_readings(tmp_path / "small.mlpackage") is None
    ct.optimize.coreml.decompress_weights(small).save(str(tmp_path / "large.mlpackage"))
    program, expanded = (Program.load(tmp_path / f"{name}.mlpackage") for name in ("small", "large"))
    weight, due = (next(s.constants["weight"] for s in p.steps if s.op.name == "conv") for p in (program, expanded))
    assert any(op.startswith("constexpr_") for op in program.op_counts)
    assert not any(op.startswith("constexpr_") for op in expanded.op_counts)
    assert not torch.equal(weight, module.weight)
    torch.testing.assert_close(weight, due, rtol=1e-3, atol=1e-6)  # either may round to fp16 on the way


# ------------------------------------------------------------------------------------------------ differences


def leaves(message: Any, place: str = "model") -> list[tuple[Any, str, str]]:
    """(message, field, place) of every scalar."""
    found = []
    for field in dataclasses.fields(message):
        value, where = getattr(message, field.name), f"{place}.{field.name}"
        if isinstance(value, list):
            found += [
                leaf for i, v in enumerate(value) if dataclasses.is_dataclass(v) for leaf in leaves(v, f"{where}[{i}]")
            ]
        elif isinstance(value, dict):
            found += [
                leaf for k, v in value.items() if dataclasses.is_dataclass(v) for leaf in leaves(v, f"{where}[{k}]")
            ]
        elif dataclasses.is_dataclass(value):
            found += leaves(value, where)
        elif value is not None:
            found.append((message, field.name, where))
    return found


def test_any_difference_is_found_and_placed(package: Path) -> None:
    ours = read_with_coremltools(package)
    theirs: Model = copying.deepcopy(ours)
    assert difference(ours, theirs) is None
    every = leaves(theirs)
    assert len(every) > 1000
    for message, name, place in every[:: len(every) // 100]:
        before = getattr(message, name)
        setattr(message, name, f"{before}!" if isinstance(before, str) else type(before)())
        if getattr(message, name) != before:
            assert difference(ours, theirs) == f"{place}: {before!r} or {getattr(message, name)!r}"
        setattr(message, name, before)


def test_more_or_less_of_anything_is_found(package: Path) -> None:
    ours = read_with_coremltools(package)
    theirs = copying.deepcopy(ours)
    assert theirs.description is not None
    theirs.description.input = []
    assert difference(ours, theirs) == "model.description.input: 1 or 0 elements"
    theirs = copying.deepcopy(ours)
    assert theirs.ml_program is not None
    theirs.ml_program.functions = {}
    assert difference(ours, theirs) == "model.ml_program.functions: only one has main"
    theirs.ml_program = None
    assert difference(ours, theirs) == "model.ml_program: Program or NoneType"


def test_numbers_that_are_read_otherwise_are_found(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Decoder.value

    def wrong(self: Decoder, message: Any) -> Any:
        value = right(self, message)
        return value.flip(0) if message.blob_file_value and value.numel() > 200 else value

    monkeypatch.setattr(Decoder, "value", wrong)
    assert "its numbers in the weight file" in (compare_readings(package) or "")


def test_damage_is_an_error_of_two_lines(copy: Path) -> None:
    content = (copy / packages.MODEL).read_bytes()
    (copy / packages.MODEL).write_bytes(content[:-9])
    for look in (read_with_coremltools, compare_readings):
        with pytest.raises(ConfigError, match="mlmodel is damaged"):
            look(copy)
    (copy / packages.MODEL).write_bytes(content)
    weights = (copy / packages.WEIGHTS).read_bytes()
    (copy / packages.WEIGHTS).write_bytes(weights[:-9])
    with pytest.raises(ConfigError, match="its weights are damaged"):
        compare_readings(copy)

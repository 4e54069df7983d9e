"""What is no package, a damaged one, a foreign one and a hostile one: each is a message, nothing is written or run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import packages
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vigcli.coreml.apple import coremltools
from vigcli.coreml.interpreter import Program
from vigcli.coreml.package import MAX_MODEL_BYTES
from vigcli.errors import ConfigError

pytest.importorskip("coremltools", exc_type=ImportError)
SIZE = 8
IMAGE = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """As small as a network with a weight file, a name to confuse and a result to misdeclare can be."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.stem(x)).mean((2, 3)))


def convert(path: Path, **options: Any) -> Path:
    ct = coremltools()
    options.setdefault("inputs", [ct.TensorType(name="x", shape=IMAGE.shape)])
    options = {"minimum_deployment_target": ct.target.iOS17, "compute_precision": ct.precision.FLOAT32, **options}
    ct.convert(torch.jit.trace(Net().eval(), IMAGE), skip_model_load=True, **options).save(str(path))
    return path


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("packages") / "net.mlpackage")


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "copy.mlpackage"))


def refused(path: Path, match: str = "") -> None:
    """Loading ends with two lines that name the package, and changes nothing on the disk."""
    before = contents(path)
    with pytest.raises(ConfigError, match=match) as caught:
        Program.load(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(path)) + 400
    assert caught.value.hint
    assert contents(path) == before


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()} if path.is_dir() else {}


def run(path: Path) -> Tensor:
    program = Program.load(path)
    (result,) = program.run({program.inputs[0].name: IMAGE}).values()
    return result


def test_the_package_of_these_tests_runs(package: Path) -> None:
    torch.testing.assert_close(run(package), Net().eval()(IMAGE), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------ files


def test_refuses_what_is_no_package(tmp_path: Path, package: Path) -> None:
    refused(tmp_path / "absent.mlpackage", "does not exist")
    refused(tmp_path, "is not an .mlpackage")
    (tmp_path / "net.mlmodel").write_bytes((package / packages.MODEL).read_bytes())
    refused(tmp_path / "net.mlmodel", "is a CoreML model in one file, not an .mlpackage")
    refused(package / packages.MODEL, "is a CoreML model in one file, not an .mlpackage")


@pytest.mark.parametrize(
    "manifest",
    [b"", b"{", b"[]", b"\xff\xfe", b"{}", b'{"rootModelIdentifier": []}', b"[" * 100_000, b" " * 2**21 + b"{}",
     b'{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": 3}}}',
     b'{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "\\u0000"}}}',
     b'{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "' + b"x" * 300 + b'"}}}'],
)  # fmt: skip
def test_refuses_a_damaged_manifest(manifest: bytes, copy: Path) -> None:
    (copy / "Manifest.json").write_bytes(manifest)
    refused(copy, "Manifest.json is damaged|is missing")


def point(path: Path, location: str) -> None:
    manifest = json.loads((path / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = location
    (path / "Manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("location", ["../../other.mlmodel", "com.apple.CoreML/../../../other.mlmodel", "/etc/passwd"])
def test_refuses_a_manifest_that_points_elsewhere(location: str, copy: Path) -> None:
    shutil.copy(copy / packages.MODEL, copy.parent / "other.mlmodel")
    point(copy, location)
    refused(copy, "points outside")


@pytest.mark.parametrize("location", ["absent.mlmodel", "com.apple.CoreML", "a\nb\x1b[31m"])
def test_refuses_a_manifest_that_names_no_file(location: str, copy: Path) -> None:
    point(copy, location)
    refused(copy, "is missing")


@pytest.mark.parametrize("file", [packages.MODEL, packages.WEIGHTS])
def test_refuses_links_that_lead_outside(file: str, copy: Path) -> None:
    outside = copy.parent / "outside"
    shutil.move(copy / file, outside)
    (copy / file).symlink_to(outside)
    refused(copy, "outside")


def test_refuses_missing_files(copy: Path) -> None:
    shutil.rmtree(copy / "Data/com.apple.CoreML/weights")
    refused(copy, "weights/weight.bin is missing")
    os.mkfifo(copy / "pipe")
    (copy / packages.MODEL).unlink()
    refused(copy, "model.mlmodel is missing")
    shutil.move(copy / "pipe", copy / packages.MODEL)
    refused(copy, "model.mlmodel is missing")


def test_refuses_a_program_too_long_to_be_one(copy: Path) -> None:
    with (copy / packages.MODEL).open("r+b") as file:
        file.truncate(MAX_MODEL_BYTES + 1)
    with pytest.raises(ConfigError, match="more than 64 MB"):
        Program.load(copy)


# ------------------------------------------------------------------------------------------------ damaged bytes


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("file", [packages.MODEL, packages.WEIGHTS])
def test_refuses_a_file_that_ends_early_wherever_it_ends(file: str, every: int, copy: Path) -> None:
    content = (copy / file).read_bytes()
    assert 1000 < len(content) < 10_000
    for size in range(0, len(content), every):
        (copy / file).write_bytes(content[:size])
        with pytest.raises(ConfigError):
            Program.load(copy)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=200))
def test_refuses_bytes_that_are_no_model(content: bytes, copy: Path) -> None:
    (copy / packages.MODEL).write_bytes(content)
    with pytest.raises(ConfigError):
        Program.load(copy)


@pytest.mark.parametrize("file", [packages.MODEL, packages.WEIGHTS])
def test_wrong_bytes_load_or_are_refused(file: str, copy: Path) -> None:
    """Never another exception, whatever byte is wrong."""
    content, chance = (copy / file).read_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (copy / file).write_bytes(damaged)
        with contextlib.suppress(ConfigError):
            run(copy)


# ------------------------------------------------------------------------------------------------ hostile messages


def step(model: Any, kind: str) -> Any:
    return next(o for o in packages.operations(model) if o.type == kind)


def blob(model: Any) -> Any:
    return next(o for o in packages.operations(model) if o.attributes["val"].HasField("blobFileValue")).attributes[
        "val"
    ]


def claim(model: Any, *sizes: int) -> None:
    """Make the first weight as large as that."""
    const = next(o for o in packages.operations(model) if o.attributes["val"].HasField("blobFileValue"))
    for type_ in (const.attributes["val"].type, const.outputs[0].type):
        for dimension, size in zip(type_.tensorType.dimensions, sizes, strict=False):
            dimension.constant.size = size


def rename_file(location: str) -> Callable[[Any], None]:
    return lambda model: setattr(blob(model).blobFileValue, "fileName", location)


def move_blob(offset: int) -> Callable[[Any], None]:
    return lambda model: setattr(blob(model).blobFileValue, "offset", offset)


def duplicate(model: Any) -> None:
    packages.operations(model).add().CopyFrom(step(model, "conv"))


def shadow_input(model: Any) -> None:
    step(model, "const").outputs[0].name = "x"


def cycle(model: Any) -> None:
    conv = step(model, "conv")
    conv.inputs["x"].arguments[0].name = step(model, "relu").outputs[0].name


def dangle(model: Any) -> None:
    step(model, "relu").inputs["x"].arguments[0].name = "nobody"


def redeclare(model: Any) -> None:
    step(model, "relu").outputs[0].type.tensorType.dimensions[1].constant.size = 9


def declare_huge(model: Any) -> None:
    step(model, "relu").outputs[0].type.tensorType.dimensions[1].constant.size = 2**40


def wrong_rank(model: Any) -> None:
    step(model, "relu").outputs[0].type.tensorType.rank = 7


def nest_types(model: Any) -> None:
    type_ = step(model, "relu").outputs[0].type
    for _ in range(95):
        type_ = type_.listType.type
    type_.SetInParent()


def block_inside(model: Any) -> None:
    step(model, "relu").blocks.add()


def no_result(model: Any) -> None:
    del step(model, "relu").outputs[:]


def unknown_parameter(model: Any) -> None:
    step(model, "relu").inputs["beta"].arguments.add().name = "x"


def missing_parameter(model: Any) -> None:
    del step(model, "relu").inputs["x"]


def two_arguments(model: Any) -> None:
    step(model, "relu").inputs["x"].arguments.add().name = "x"


def other_output(model: Any) -> None:
    model.description.output[0].name = "nobody"


def other_input(model: Any) -> None:
    model.description.input[0].name = "nobody"


def other_shape(model: Any) -> None:
    model.description.input[0].type.multiArrayType.shape[2] = 9


def no_function(model: Any) -> None:
    del model.mlProgram.functions["main"]


def other_opset(model: Any) -> None:
    model.mlProgram.functions["main"].opset = "CoreML99"


def keep_state(model: Any) -> None:
    model.description.state.add().name = "memory"


def control_characters(model: Any) -> None:
    operation = step(model, "relu")
    operation.type = "lstm\n\x1b[31m" + "x" * 1000


def element_type(number: int, declared: bool = True) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        const = next(o for o in packages.operations(model) if o.attributes["val"].HasField("blobFileValue"))
        const.attributes["val"].type.tensorType.dataType = number
        if declared:
            const.outputs[0].type.CopyFrom(const.attributes["val"].type)

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda model: claim(model, 2**20, 2**20), "too large"),
        (lambda model: claim(model, 2**63, 2**63, 2**63, 2**63), "too large"),
        (lambda model: claim(model, 16), "holds 864 bytes at byte 64 where 1728 are due"),
        (rename_file("@model_path/weights/../../../secret"), "not inside the package"),
        (rename_file("/etc/passwd"), "not inside the package"),
        (rename_file("@model_path//etc/passwd"), "not inside the package"),
        (rename_file("@model_path/weights/\0"), "not inside the package"),
        (rename_file("weights/weight.bin"), "not inside the package"),
        (rename_file("@model_path/weights/other.bin"), "weights/other.bin is missing"),
        (rename_file("@model_path/weights"), "weights is missing"),
        (rename_file("@model_path/model.mlmodel"), "holds no numbers at byte 64"),
        (move_blob(0), "holds no numbers at byte 0"),
        (move_blob(2**40), "before the numbers at"),
        (move_blob(2**64 - 1), "before the numbers at"),
        (element_type(10), "holds fp32 at byte 64, not fp16"),
        (element_type(2), "strings in a weight file"),
        (element_type(99), "unknown element type 99"),
        (element_type(10, declared=False), "its value is .*fp16.*, declared as .*fp32"),
        (duplicate, "is given twice"),
        (shadow_input, "'x' is given twice"),
        (cycle, "before it is used"),
        (dangle, "nothing computes 'nobody' before it is used"),
        (declare_huge, "too large"),
        (wrong_rank, "4 dimensions where 7 are due"),
        (nest_types, "nested deeper than"),
        (block_inside, "has operations inside"),
        (no_result, "has no result"),
        (unknown_parameter, "parameter 'beta' is unknown"),
        (missing_parameter, "parameter 'x' is missing"),
        (two_arguments, "takes one value, not 2"),
        (other_output, "nothing computes 'nobody'"),
        (other_input, "the inputs of its description are not those of its program"),
        (other_shape, "in the description"),
        (no_function, "no function 'main'"),
        (other_opset, "no operations for 'CoreML99'"),
        (keep_state, "keeps a state"),
        (control_characters, "does not know: lstm"),
        (lambda model: model.neuralNetwork.SetInParent(), "not an ML Program but a model of type neuralNetwork"),
        (lambda model: model.pipeline.SetInParent(), "of type pipeline"),
        (lambda model: model.ClearField("mlProgram"), "of type none"),
        (lambda model: model.ClearField("description"), "has no description"),
    ],
)
def test_refuses(change: Callable[[Any], None], match: str, copy: Path) -> None:
    packages.edit(copy, change)
    refused(copy, match)


def test_a_result_must_be_as_it_is_declared(copy: Path) -> None:
    packages.edit(copy, redeclare)
    with pytest.raises(ConfigError, match=r"relu '\w+' does not run as declared: its result is \[1, 8, 4, 4\]"):
        run(copy)


def test_results_must_be_as_many_as_are_declared(copy: Path) -> None:
    def change(model: Any) -> None:
        relu = step(model, "relu")
        relu.outputs.add().CopyFrom(relu.outputs[0])
        relu.outputs[1].name = "more"

    packages.edit(copy, change)
    with pytest.raises(ConfigError, match="it has 1 results, not 2"):
        run(copy)


def test_refuses_results_too_large_together(copy: Path) -> None:
    """Each of them could be; the first is needed to the end."""

    def change(model: Any) -> None:
        operations, relu = packages.operations(model), step(model, "relu")
        outputs = []
        for i in range(9):
            more = operations.add()
            more.CopyFrom(relu)
            more.outputs[0].name = f"more {i}"
            for dimension in more.outputs[0].type.tensorType.dimensions:
                dimension.constant.size = 2**7 if dimension.constant.size > 1 else 1
            more.outputs[0].type.tensorType.dimensions[1].constant.size = 2**13
            outputs.append(more.outputs[0])
        for output in outputs:
            described = model.description.output.add()
            described.CopyFrom(model.description.output[0])
            described.name = output.name
            described.type.multiArrayType.ClearField("shape")
            model.mlProgram.functions["main"].block_specializations["CoreML7"].outputs.append(output.name)

    packages.edit(copy, change)
    refused(copy, "too large")


def test_constants_that_share_a_blob_share_its_numbers(copy: Path) -> None:
    def change(model: Any) -> None:
        operations, weight = packages.operations(model), step(model, "const")
        again = operations.add()
        again.CopyFrom(next(o for o in operations if o.attributes["val"].HasField("blobFileValue")))
        again.outputs[0].name = "again"
        assert weight.outputs[0].name != "again"

    packages.edit(copy, change)
    torch.testing.assert_close(run(copy), Net().eval()(IMAGE), rtol=1e-5, atol=1e-6)


def test_blobs_that_overlap_are_refused(copy: Path) -> None:
    """So that a small file cannot fill the memory."""
    weights = (copy / packages.WEIGHTS).read_bytes()
    header = weights[64 : 64 + 32]
    (copy / packages.WEIGHTS).write_bytes(weights + b"".join(header + bytes(32) for _ in range(20)))

    def change(model: Any) -> None:
        operations = packages.operations(model)
        first = next(o for o in operations if o.attributes["val"].HasField("blobFileValue"))
        for i in range(20):
            more = operations.add()
            more.CopyFrom(first)
            more.outputs[0].name = f"more {i}"
            more.attributes["val"].blobFileValue.offset = len(weights) + 64 * i

    packages.edit(copy, change)
    refused(copy, "claim more than the")


# ------------------------------------------------------------------------------------------------ other models


def test_refuses_a_neural_network(tmp_path: Path) -> None:
    ct = coremltools()
    from coremltools.models.neural_network import NeuralNetworkBuilder

    kind = ct.models.datatypes.Array(3)
    builder = NeuralNetworkBuilder([("x", kind)], [("y", kind)])
    builder.add_activation("act", "RELU", "x", "y")
    model = ct.models.MLModel(builder.spec, skip_model_load=True)
    model.save(str(tmp_path / "net.mlmodel"))
    refused(tmp_path / "net.mlmodel", "is a CoreML model in one file, not an .mlpackage")
    model.save(str(tmp_path / "net.mlpackage"))
    refused(tmp_path / "net.mlpackage", "not an ML Program but a model of type neuralNetwork")


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Numbers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float() * 2


def test_two_inputs_run_by_name_but_take_no_pictures(tmp_path: Path) -> None:
    ct, both = coremltools(), (IMAGE, IMAGE)
    inputs = [ct.TensorType(name=name, shape=IMAGE.shape) for name in "xy"]
    ct.convert(torch.jit.trace(Two(), both), inputs=inputs, skip_model_load=True).save(str(tmp_path / "two.mlpackage"))
    program = Program.load(tmp_path / "two.mlpackage")
    (result,) = program.run({"x": IMAGE, "y": IMAGE}, precision="fp32").values()
    torch.testing.assert_close(result, 2 * IMAGE)
    with pytest.raises(ConfigError, match="it has 2 inputs; images go into one"):
        program.predict(IMAGE)


def test_whole_numbers_run_by_name_but_are_no_pictures(tmp_path: Path) -> None:
    ct, x = coremltools(), torch.arange(12, dtype=torch.int32).reshape(1, 3, 2, 2)
    import numpy as np

    inputs = [ct.TensorType(name="x", shape=x.shape, dtype=np.int32)]
    traced = torch.jit.trace(Numbers(), x)
    ct.convert(traced, inputs=inputs, skip_model_load=True).save(str(tmp_path / "numbers.mlpackage"))
    program = Program.load(tmp_path / "numbers.mlpackage")
    (result,) = program.run({"x": x}).values()
    torch.testing.assert_close(result, 2.0 * x)
    with pytest.raises(ConfigError, match="its input 'x' is int32 of 1 x 3 x 2 x 2, no picture"):
        program.predict(x)


def test_shapes_that_are_open(tmp_path: Path) -> None:
    """Where the description names a range, what fits it runs, and what the network cannot take is told."""
    ct = coremltools()
    shape = ct.Shape((1, 3, ct.RangeDim(4, 64, default=SIZE), SIZE))
    convert(tmp_path / "open.mlpackage", inputs=[ct.TensorType(name="x", shape=shape)])
    program = Program.load(tmp_path / "open.mlpackage")
    assert program.inputs[0].shape == (1, 3, None, SIZE)
    torch.testing.assert_close(program.predict(IMAGE), Net().eval()(IMAGE), rtol=1e-5, atol=1e-6)
    tall = torch.cat([IMAGE, IMAGE], 2)
    torch.testing.assert_close(program.predict(tall), Net().eval()(tall), rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="'x' is 1 x 3 x any x 8, not 1 x 3 x 8 x 16"):
        program.predict(torch.cat([IMAGE, IMAGE], 3))


def test_several_functions(tmp_path: Path) -> None:
    """The one that a prediction calls by default is run."""
    ct = coremltools()
    for name in ("one", "two"):
        convert(tmp_path / f"{name}.mlpackage", minimum_deployment_target=ct.target.iOS18)
    several = ct.utils.MultiFunctionDescriptor()
    several.add_function(str(tmp_path / "one.mlpackage"), src_function_name="main", target_function_name="one")
    several.add_function(str(tmp_path / "two.mlpackage"), src_function_name="main", target_function_name="two")
    several.default_function_name = "two"
    ct.utils.save_multifunction(several, str(tmp_path / "both.mlpackage"))
    torch.testing.assert_close(run(tmp_path / "both.mlpackage"), Net().eval()(IMAGE), rtol=1e-5, atol=1e-6)

"""Export: the package says what it is, normalizes exactly and holds nothing that the Neural Engine leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import packages
import pytest
import tiny
import torch

from vigcli.archs import backbone, build
from vigcli.archs.checkpoint import Checkpoint
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.config.recipe import Preprocessing
from vigcli.coreml.convert import (
    Deployable,
    Input,
    Output,
    PackageMeta,
    class_labels,
    export,
    meta_of,
    package_meta,
    preprocessing_text,
)
from vigcli.coreml.interpreter import Program
from vigcli.errors import ConfigError, UsageError
from vigcli.train.preprocess import normalize

pytest.importorskip("coremltools", exc_type=ImportError)
SHA = "ab" * 32
PREPROCESSING = Preprocessing(mean=(0.3, 0.5, 0.6), std=(0.1, 0.2, 0.4), crop_ratio=0.8)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    model, meta = tiny.checkpoint()
    provenance = {"versions": {"vig": "1.2.3"}, "seed": 4}
    return Checkpoint(model, meta.model_copy(update={"preprocessing": PREPROCESSING, "provenance": provenance}))


@pytest.fixture(scope="module")
def package(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "net.mlpackage"
    export(checkpoint, SHA, path, "fp32")
    return path


def test_the_package_is_the_network_from_the_pixels_on(package: Path, checkpoint: Checkpoint) -> None:
    """With a mean and a std of its own for every channel, which one scale of an image input could not hold."""
    program, pixels = Program.load(package), tiny.pixels(20)
    mean, std = (torch.tensor(values)[:, None, None] for values in (PREPROCESSING.mean, PREPROCESSING.std))
    with torch.no_grad():
        expected = checkpoint.model((pixels / 255 - mean) / std)
    logits: list[torch.Tensor] = []
    scores = program.predict(
        pixels, tap=lambda info, x: logits.append(x) if x.shape[-1] == 10 and x.ndim == 2 else None
    )
    assert packages.relative_error(logits[-2], expected[-len(logits[-2]) :]) < 1e-5
    torch.testing.assert_close(scores, expected.softmax(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores.sum(1), torch.ones(20))


def test_the_graph_has_slices_for_rolls_and_nothing_that_leaves_the_neural_engine(package: Path) -> None:
    counts = Program.load(package).op_counts
    for absent in ("gather", "gather_along_axis", "topk", "tile", "batch_norm", "instance_norm", "constexpr_cast"):
        assert absent not in counts
    assert counts["slice_by_index"] == counts["maximum"] == 4 * 3  # four links in each of three graph blocks
    assert counts["conv"] == 2 + 3 * 4 + 3 + 3 * 6 + 2  # stem, inverted residuals, downsampling, graph blocks, head


def test_dynamic_graphs_have_the_least_that_leaves_the_neural_engine(tmp_path: Path) -> None:
    """Masks have nothing; a graph of nearest neighbours one top-k and one gather, and nothing is tiled for it."""
    export(tiny.checkpoint(config=tiny.DYNAMIC), SHA, tmp_path / "net.mlpackage", "fp16")
    counts = Program.load(tmp_path / "net.mlpackage").op_counts
    assert (counts["topk"], counts["gather"]) == (1, 1)
    for absent in ("gather_along_axis", "tile", "scatter", "range_1d", "shape", "select"):
        assert absent not in counts
    masks = 2 * (2 + 1) + 2 * 1  # of shifts by 2, 4 and 6 of 12 tokens and their ways back, and by 1 and 2 of 3
    assert counts["less"] == masks == counts["abs"] - 2  # and a distance for each limit


def test_the_package_says_what_it_is(package: Path, checkpoint: Checkpoint) -> None:
    program = Program.load(package)
    meta = package_meta(package)
    assert meta == meta_of(program)
    assert (meta.arch, meta.labels, meta.preprocessing) == (tiny.CONFIG, tiny.LABELS, PREPROCESSING)
    assert (meta.checkpoint_sha256, meta.precision, meta.minimum_ios) == (SHA, "fp32", 16)
    assert meta.provenance == checkpoint.meta.provenance
    said = program.metadata
    assert (said["author"], said["version"]) == ("vig", "1.2.3")
    assert said["license"] == "Weights: trained on drawn; no licence is stated."
    assert said["preprocessing"] == preprocessing_text(meta)
    for part in ("120 px", "bicubic", "96 x 96", "RGB, 0 to 255"):
        assert part in said["preprocessing"]
    for part in ("mobilevigv2", "10 classes", "fp32", "iOS 16", said["preprocessing"]):
        assert part in said["description"]


def test_input_and_outputs(package: Path) -> None:
    program = Program.load(package)
    (image,) = program.inputs
    assert (image.name, image.kind, image.color, image.shape) == ("image", "image", "RGB", (1, 3, 96, 96))
    assert [output.kind for output in program.outputs] == ["label", "probabilities"]
    label, scores = program.run({"image": tiny.pixels(1)}).values()
    assert tuple(scores) == tiny.LABELS
    assert label == max(scores, key=scores.__getitem__)


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("given", ["image", "tensor"])
@pytest.mark.parametrize("output", ["logits", "features"])
def test_the_interpreter_is_handed_rgb_whatever_the_network_wants(
    checkpoint: Checkpoint, tmp_path: Path, channels: str, given: Input, output: Output
) -> None:
    """An image input has the network's order, and CoreML sees to it; a tensor is RGB, and turned round inside."""
    preprocessing = PREPROCESSING.model_copy(update={"channels": channels})
    made = Checkpoint(checkpoint.model, checkpoint.meta.model_copy(update={"preprocessing": preprocessing}))
    meta = meta_of(export(made, SHA, tmp_path / "net.mlpackage", "fp32", input=given, output=output))
    program, pixels = Program.load(tmp_path / "net.mlpackage"), tiny.pixels(1)
    (image,) = program.inputs
    assert (image.kind, image.color, image.shape) == (given, channels if given == "image" else None, (1, 3, 96, 96))
    assert f"{channels if given == 'image' else 'RGB'}, 0 to 255" in preprocessing_text(meta)
    x = normalize(pixels.byte(), preprocessing)
    with torch.no_grad():
        expected = backbone(tiny.CONFIG, checkpoint.model)(x) if output == "features" else [checkpoint.model(x)]
        torch.testing.assert_close(Deployable(checkpoint.model, preprocessing).logits(pixels), checkpoint.model(x))
    found = program.run({"image": pixels})
    names = ["stride4", "stride8", "stride16", "stride32"] if output == "features" else ["logits"]
    assert list(found) == names
    for name, value in zip(names, expected, strict=True):
        assert packages.relative_error(found[name], value) < 1e-5
    assert package_meta(tmp_path / "net.mlpackage") == meta


@pytest.mark.parametrize("output", ["logits", "features"])
def test_a_batch_is_fixed(checkpoint: Checkpoint, tmp_path: Path, output: Output) -> None:
    export(checkpoint, SHA, tmp_path / "net.mlpackage", "fp32", input="tensor", output=output, batch=3)
    program, pixels = Program.load(tmp_path / "net.mlpackage"), tiny.pixels(3)
    assert program.inputs[0].shape == (3, 3, 96, 96)
    x = normalize(pixels.byte(), PREPROCESSING)
    with torch.no_grad():
        expected = backbone(tiny.CONFIG, checkpoint.model)(x) if output == "features" else [checkpoint.model(x)]
    for found, value in zip(program.run({"image": pixels}).values(), expected, strict=True):
        assert packages.relative_error(found, value) < 1e-5


@pytest.mark.parametrize(
    ("given", "output", "option"),
    [("image", "logits", "--input tensor"), ("tensor", "probabilities", "--logits")],
)
def test_images_and_labels_are_of_one_picture(
    checkpoint: Checkpoint, tmp_path: Path, given: Input, output: Output, option: str
) -> None:
    with pytest.raises(UsageError, match="--batch 2") as refused:
        export(checkpoint, SHA, tmp_path / "net.mlpackage", input=given, output=output, batch=2)
    assert option in refused.value.hint
    assert list(tmp_path.iterdir()) == []


def test_the_deployed_module_is_in_evaluation_form(checkpoint: Checkpoint) -> None:
    module = Deployable(checkpoint.model, PREPROCESSING).eval()
    gray = 255 * torch.tensor(PREPROCESSING.mean)[:, None, None].expand(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(
            module.logits(gray), checkpoint.model(torch.zeros(1, 3, 96, 96)), rtol=1e-4, atol=1e-5
        )


def test_fp16_and_another_ios(checkpoint: Checkpoint, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in checkpoint.model.state_dict().items()}
    meta = meta_of(export(checkpoint, SHA, tmp_path / "net.mlpackage", "fp16", minimum_ios=17))
    program = Program.load(tmp_path / "net.mlpackage")
    assert meta == meta_of(program)
    assert (meta.precision, meta.minimum_ios) == ("fp16", 17)
    types = {
        info.type.dtype for info in program.operations if info.type and info.op_type in ("conv", "gelu", "maximum")
    }
    assert types == {"fp16"}
    assert all(torch.equal(value, before[key]) for key, value in checkpoint.model.state_dict().items())
    size = sum(file.stat().st_size for file in (tmp_path / "net.mlpackage").rglob("weight.bin"))
    assert size < 2.2 * sum(p.numel() for p in checkpoint.model.parameters())


def test_classes_without_names_are_numbered() -> None:
    assert class_labels(CheckpointMeta(arch=tiny.CONFIG)) == [str(i) for i in range(10)]
    assert class_labels(CheckpointMeta(arch=tiny.CONFIG, labels=tiny.LABELS)) == list(tiny.LABELS)


def test_only_images_of_three_channels_are_exported(tmp_path: Path) -> None:
    config = tiny.CONFIG.changed({"in_chans": 4})
    with pytest.raises(ConfigError, match="in_chans is 4"):
        export(Checkpoint(build(config), CheckpointMeta(arch=config)), SHA, tmp_path / "net.mlpackage")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", [None, "", "no json", "{}", json.dumps({"arch": 3})])
def test_the_package_of_another_tool_is_refused(package: Path, text: str | None) -> None:
    program = Program.load(package)
    program.metadata = {key: value for key, value in program.metadata.items() if key != "vig"}
    program.metadata |= {} if text is None else {"vig": text}
    with pytest.raises(ConfigError, match=r"net\.mlpackage"):
        meta_of(program)


def test_metadata_survives_its_text(package: Path) -> None:
    meta = package_meta(package)
    assert PackageMeta.parse(json.loads(meta.model_dump_json())) == meta

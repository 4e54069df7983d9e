"""The authors' checkpoints: read under their names they give the authors' logits; others are refused by name."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

import golden
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vigcli.archs import build
from vigcli.archs.checkpoint import load_checkpoint
from vigcli.archs.mobilevigv2 import official_names
from vigcli.archs.official import load_official
from vigcli.cli.main import main
from vigcli.config.archs import VARIANTS
from vigcli.config.recipe import PREPROCESSING
from vigcli.errors import ConfigError
from vigcli.runs.provenance import sha256
from vigcli.train.evaluate import normalized

Vig = Callable[..., str]

TIMM = {f"timm:{name}" for name in timm.list_models()}


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    return golden.weights(golden.read("mobilevigv2_ti")["keys"])


@pytest.fixture
def model() -> nn.Module:
    return build("mobilevigv2_ti").double()


@pytest.mark.parametrize("name", golden.NAMES)
def test_the_logits_are_the_authors(name: str) -> None:
    reference = golden.read(name)
    base, overrides = golden.variant(name)
    model = build(base, {"resolution": reference["resolution"], **overrides}).double().eval()
    load_official(model, golden.weights(reference["keys"]))
    with torch.no_grad():
        logits = model(golden.images(reference["resolution"]))[0]
    expected = torch.tensor(reference["logits"], dtype=torch.float64)
    assert (logits - expected).abs().max() <= 1e-6 * expected.abs().max()


def refused(model: nn.Module, weights: dict[str, Tensor], match: str, hint: str = "It fits no variant") -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=match) as caught:
        load_official(model, weights)
    assert hint in caught.value.hint
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def without(weights: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name not in names}


def test_a_missing_weight_has_the_authors_name(model: nn.Module, official: dict[str, Tensor]) -> None:
    refused(model, without(official, "dist_head.weight"), r"1 weight missing \(dist_head\.weight\)\.")
    names = [name for name in official if name.startswith("backbone.1.3.mixer.fc1")]
    first = r"backbone\.1\.3\.mixer\.fc1\.0\.weight, backbone\.1\.3\.mixer\.fc1\.0\.bias, [\w.]+, \.\.\."
    refused(model, without(official, *names), rf"mobilevigv2_ti: 6 weights missing \({first}\)\.")


def test_a_weight_too_many_is_named(model: nn.Module, official: dict[str, Tensor]) -> None:
    for name in ("backbone.9.0.conv.weight", "stem"):
        refused(model, official | {name: torch.zeros(1)}, rf"1 weight unexpected \({name}\)\.".replace(".c", r"\.c"))
    ours = next(iter(model.state_dict()))
    refused(model, official | {ours: model.state_dict()[ours]}, r"1 weight unexpected \(stem\.0\.conv\.weight\)")


def test_a_wrong_shape_is_named(model: nn.Module, official: dict[str, Tensor]) -> None:
    for shape in ((16, 3, 5, 5), (3, 16, 3, 3), (432,)):
        said = re.escape(f"(stem.stem.0.weight: {shape} in the file, (16, 3, 3, 3) in mobilevigv2_ti)")
        refused(model, official | {"stem.stem.0.weight": torch.zeros(shape)}, f"1 weight of another shape {said}")


def test_weights_that_are_no_numbers_are_named(model: nn.Module, official: dict[str, Tensor]) -> None:
    for value in (float("nan"), float("inf")):
        spoilt = official | {"head.bias": torch.full((1000,), value)}
        refused(model, spoilt, r"1 weight not finite in torch\.float64: head\.bias", "diverged")
    large = official | {"head.bias": torch.full((1000,), 1e300, dtype=torch.float64)}
    load_official(model, large)
    refused(build("mobilevigv2_ti"), large, r"not finite in torch\.float32: head\.bias", "diverged")


def test_another_variants_weights_are_called_by_their_name(official: dict[str, Tensor]) -> None:
    shapes = r"backbone\.2\.0\.conv\.0\.weight: \(128, 64, 3, 3\) in the file, \(192, 64, 3, 3\) in mobilevigv2_m; "
    refused(build("mobilevigv2_m"), official, shapes, "It fits mobilevigv2_ti.")
    narrow = build("mobilevigv2_ti", {"head_width": 384})
    refused(narrow, official, r"\(512, 256, 1, 1\) in the file, \(384, 256, 1, 1\) in the network", "mobilevigv2_ti")


def test_other_numbers_of_classes_are_hinted_at(model: nn.Module, official: dict[str, Tensor]) -> None:
    heads = {name: value[:10] for name, value in official.items() if name.startswith(("head.", "dist_head."))}
    assert len(heads) == 4
    refused(model, official | heads, r"head\.weight: \(10, 512, 1, 1\) in the file", "pass --num-classes 10.")
    refused(
        build("mobilevigv2_s"), official | heads, "348 weights missing", "It fits mobilevigv2_ti with --num-classes 10."
    )
    load_official(build("mobilevigv2_ti", {"num_classes": 10}), official | heads)


def test_counts_of_batches_may_be_missing(model: nn.Module, official: dict[str, Tensor]) -> None:
    counts = [name for name in official if name.endswith("num_batches_tracked")]
    load_official(model, official)
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    load_official(model, without(official, *counts))
    assert counts
    assert all(torch.equal(value, whole[name]) for name, value in model.state_dict().items())


def test_frozen_positions_may_be_missing_and_are_read_where_they_are() -> None:
    model = build("pvig_ti", {"num_classes": 1000})
    own = {name: value.clone() for name, value in model.state_dict().items() if name.endswith("relative_pos")}
    weights = golden.weights(golden.read("pvig_ti")["keys"])
    load_official(model, weights)
    assert len(own) == 12
    assert all(torch.equal(model.state_dict()[name], value) for name, value in own.items())
    assert not any(p.requires_grad for name, p in model.named_parameters() if name in own)
    shapes = {name: shape for name, shape in golden.read("pvig_ti")["keys"] if "relative_pos" in name}
    load_official(model, weights | {name: torch.ones(shape) for name, shape in shapes.items()})
    assert all(torch.equal(model.state_dict()[name], torch.ones_like(value)) for name, value in own.items())
    refused(model, without(weights, "pos_embed"), r"pvig_ti: 1 weight missing \(pos_embed\)\.")


def test_the_names_of_the_publisher_that_fits_are_taken(
    model: nn.Module, official: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    (authors,) = official_names(model.config)  # type: ignore[arg-type]
    other = {name.replace("backbone", "stages_of_another"): ours for name, ours in authors.items()}
    monkeypatch.setattr("vigcli.archs.mobilevigv2.official_names", lambda config: (authors, other))
    load_official(model, official)
    renamed = {name.replace("backbone", "stages_of_another"): value for name, value in official.items()}
    load_official(model, renamed)
    missing = r"1 weight missing \(stages_of_another\.0\.0\.dws\.pw1\.weight\)"
    refused(model, without(renamed, "stages_of_another.0.0.dws.pw1.weight"), missing)


# ------------------------------------------------------------------------------------------------------- vig import


@pytest.fixture
def authors_file(tmp_path: Path, official: dict[str, Tensor]) -> Path:
    """As the authors' training leaves it, the moving average twice the weights."""
    arguments = argparse.Namespace(model="mobilevigv2_ti", lr=2e-3, best=np.float64(77.7))
    content = {
        "state_dict": {f"module.{name}": value for name, value in official.items()},
        "state_dict_ema": {name: 2 * value for name, value in official.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 299,
        "args": arguments,
    }
    torch.save(content, tmp_path / "Ti_77_7.pth.tar")
    return tmp_path / "Ti_77_7.pth.tar"


def test_an_imported_checkpoint_gives_the_authors_logits(authors_file: Path, vig: Vig) -> None:
    reference = golden.read("mobilevigv2_ti")
    size = str(reference["resolution"])
    said = vig("import", authors_file.name, "--arch", "mobilevigv2_ti", "--resolution", size)
    assert "left out  state_dict_ema, optimizer, epoch, args" in said
    assert said.endswith("Next:  vig export mobilevigv2_ti.safetensors\n")
    model, meta = load_checkpoint("mobilevigv2_ti.safetensors")
    with torch.no_grad():
        logits = model.double()(golden.images(reference["resolution"]))[0]
    expected = torch.tensor(reference["logits"], dtype=torch.float64)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()  # its weights are float32
    digest = sha256(authors_file)
    assert meta.preprocessing == PREPROCESSING["mobilevigv2"]
    assert meta.parents == (digest,)
    assert meta.provenance["imported"] == {
        "file": authors_file.name,
        "sha256": digest,
        "weights": "state_dict",
    }


def test_the_average_is_taken_when_it_is_asked_for(authors_file: Path, official: dict[str, Tensor], vig: Vig) -> None:
    answer = json.loads(
        vig("import", authors_file.name, "--arch", "mobilevigv2_ti", "--ema", "-o", "x.safetensors", "--json")
    )
    assert answer["weights"] == "state_dict_ema"
    assert answer["tensors"] == len(official)
    head = load_checkpoint("x.safetensors").model.state_dict()["head.3.fc.bias"]
    torch.testing.assert_close(head, 2 * official["head.bias"].float())


def test_weights_for_bgr_stay_as_they_are_and_say_so(authors_file: Path, vig: Vig) -> None:
    for name, flags in (("rgb", ()), ("bgr", ("--bgr",))):
        vig("import", authors_file.name, "--arch", "mobilevigv2_ti", "-o", f"{name}.safetensors", *flags)
    rgb, bgr = (load_checkpoint(f"{name}.safetensors") for name in ("rgb", "bgr"))
    assert [c.meta.preprocessing.channels for c in (rgb, bgr)] == ["RGB", "BGR"]
    for key, value in rgb.model.state_dict().items():
        assert torch.equal(bgr.model.state_dict()[key], value)
    pixels = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    first, turned = (normalized(c.model, c.meta.preprocessing) for c in (rgb, bgr))
    mean = PREPROCESSING["mobilevigv2"].mean
    assert len(set(mean)) == 3  # so what is turned round is turned after normalization
    x = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(rgb.meta.preprocessing.std)[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(first(pixels), rgb.model(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(turned(pixels), rgb.model(x.flip(1)), rtol=1e-4, atol=1e-4)


def test_timms_weights_are_imported_under_their_own_names(vig: Vig, tmp_path: Path) -> None:
    model = build("timm:mobilenetv3_small_050", {"num_classes": 7})
    save_file(dict(model.state_dict()), tmp_path / "weights.safetensors")
    line = ("import", "weights.safetensors", "--arch", "timm:mobilenetv3_small_050")
    vig(*line, code=3)
    said = vig(*line, "--num-classes", "7")
    assert said.endswith("Next:  vig export mobilenetv3_small_050.safetensors\n")
    imported = load_checkpoint("mobilenetv3_small_050.safetensors")
    assert imported.meta.preprocessing.crop_ratio == 0.875
    for key, value in model.state_dict().items():
        assert torch.equal(imported.model.state_dict()[key], value)


def test_a_checkpoint_is_replaced_only_by_force(authors_file: Path, vig: Vig) -> None:
    line = ("import", authors_file.name, "--arch", "mobilevigv2_ti")
    Path("mobilevigv2_ti.safetensors").write_text("mine")
    vig(*line, code=2)
    assert Path("mobilevigv2_ti.safetensors").read_text() == "mine"
    vig(*line, "--force")
    load_checkpoint("mobilevigv2_ti.safetensors")


def test_another_variant_leaves_nothing_behind(
    authors_file: Path, vig: Vig, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["import", str(authors_file), "--arch", "mobilevigv2_m"])
    error, hint = capsys.readouterr().err.splitlines()
    assert f"{authors_file}: it does not fit mobilevigv2_m: 348 weights missing (backbone.0.2.dws.pw1.weight" in error
    assert hint == "Hint:  It fits mobilevigv2_ti."
    assert list(authors_file.parent.iterdir()) == [authors_file]


def test_networks_of_timm_are_not_imported(authors_file: Path, vig: Vig) -> None:
    vig("import", authors_file.name, "--arch", "timm:resnet18", "-o", "x.safetensors", code=3)


@pytest.mark.parametrize("name", [name for name in VARIANTS if f"timm:{name}" in TIMM])
def test_the_logits_are_those_of_timms_network(name: str) -> None:
    """The same networks published under other names: an opponent at every size, with the very same weights."""
    theirs = build(f"timm:{name}").double().eval()
    weights = golden.weights([(key, list(value.shape)) for key, value in theirs.state_dict().items()])
    theirs.load_state_dict(weights)
    model = build(name).double().eval()
    load_official(model, weights)
    x = golden.images(VARIANTS[name].resolution)
    with torch.no_grad():
        logits, expected = model(x), theirs(x)
    assert (logits - expected).abs().max() <= 1e-12 * expected.abs().max()

"""A network that rounds where its package does: everything is found, and the noise is that of the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from compressed import INT8, Made, make
from torch import Tensor, nn

from vigcli.archs import inference_form
from vigcli.archs.checkpoint import Checkpoint
from vigcli.compress.qat import form_of
from vigcli.compress.rounded import Numbering, Rounded, find_roundings, rounded_weight
from vigcli.config.archs import ArchConfig, TimmConfig, arch_config
from vigcli.coreml.compressed import fake_quantized
from vigcli.coreml.convert import meta_of
from vigcli.coreml.graphs import Graph
from vigcli.coreml.interpreter import Program
from vigcli.coreml.verify import twin_of
from vigcli.errors import ConfigError
from vigcli.nn.deploy import deploy_attached
from vigcli.train.preprocess import normalize

pytest.importorskip("coremltools", exc_type=ImportError)
SHORT = {
    "resolution": 64,
    "num_classes": 10,
    "stages[2].transformer_depth": 1,
    "stages[3].transformer_depth": 1,
    "stages[4].transformer_depth": 1,
}
OTHERS: dict[str, ArchConfig] = {  # the families that `tiny` is not of
    "greedyvig": tiny.CONFIG.changed({"stages[3].mixer": "dagc", "stages[3].reach": 1}),
    "mobilevig": arch_config("mobilevig_ti").changed({"resolution": 96, "num_classes": 10}),
    "mobilevit": arch_config("mobilevit_xxs").changed(SHORT),
    "mobilevitv2": arch_config("mobilevitv2_050").changed(SHORT),
    "mobilevitv3": arch_config("mobilevitv3_xxs").changed(SHORT),
    "timm": TimmConfig(name="mobilenetv2_050", resolution=64, num_classes=10),
    **{family: tiny.SMALL[family] for family in ("vig", "pvig", "clustervig")},
}


def logits(module: nn.Module, checkpoint: Checkpoint, pixels: Tensor) -> Tensor:
    """Without what a softmax does not see, the mean of a picture's."""
    with torch.no_grad():
        x = module.eval()(normalize(pixels.to(torch.uint8), checkpoint.meta.preprocessing))
    return x - x.mean(1, keepdim=True)


def decibels(value: Tensor, due: Tensor) -> float:
    return float(10 * torch.log10(due.square().sum() / (value - due).square().sum()))


def check_noise(given: Made) -> None:
    """The rounding network is as far from the float one as the package, and they are no further apart than that."""
    checkpoint, program = given.checkpoint, Program.load(given.package)
    pixels = tiny.pixels(32, seed=9, size=checkpoint.meta.arch.resolution)
    due = logits(checkpoint.model, checkpoint, pixels)
    assert all(rounding.ops for rounding in given.roundings.results.values())
    rounded = Rounded(checkpoint.model, given.roundings, form_of(checkpoint.meta.arch))
    ours = logits(rounded, checkpoint, pixels)
    theirs = program.predict(pixels).clamp_min(2.0**-24).log()
    theirs = theirs - theirs.mean(1, keepdim=True)
    assert decibels(ours, due) == pytest.approx(decibels(theirs, due), abs=2)
    assert decibels(ours, theirs) > decibels(theirs, due) - 2


def test_the_network_rounds_as_its_package_does(made: Made) -> None:
    check_noise(made)
    kinds = {info.name: info.op_type for info in Program.load(made.package).operations}
    counts = [kinds[op] for op in made.roundings.ops]
    assert counts.count("conv") == 36 == len(made.roundings.weights)  # the first stays in fp16
    assert counts.count("add") == 10
    assert made.roundings.ranges.keys() >= {"input_5_cast_fp16", "input_cast_fp16"}  # of an activation, of a sum


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHERS)
def test_every_family_rounds_as_its_package_does(family: str, tmp_path: Path) -> None:
    check_noise(make(OTHERS[family], tmp_path))


@pytest.mark.parametrize("family", [*tiny.SMALL, "knn and dagc"])
def test_results_have_the_same_numbers_however_many_pictures(family: str) -> None:
    config = tiny.SMALL.get(family, tiny.DYNAMIC)
    checkpoint = tiny.checkpoint(config=config)
    network, numbers = inference_form(config, checkpoint.model), list[int]()
    for count in (1, 3):
        pixels = tiny.pixels(count, size=config.resolution).to(torch.uint8)
        with torch.no_grad(), Numbering() as numbering:
            network(normalize(pixels, checkpoint.meta.preprocessing))
        numbers.append(numbering.number)
    assert numbers[0] == numbers[1] > 10


def test_every_weight_learns_through_the_roundings(made: Made) -> None:
    model = tiny.checkpoint().model
    x = normalize(tiny.pixels(4).to(torch.uint8), made.checkpoint.meta.preprocessing)
    Rounded(model, made.roundings, deploy_attached)(x).square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(bool(p.grad is not None and p.grad.isfinite().all()) for p in model.parameters())


def test_weights_are_rounded_as_in_packages() -> None:
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    step = weight.abs().flatten(1).amax(1)[:, None, None, None] / 127
    off = (rounded_weight(weight) - fake_quantized(weight, 0)).abs() / step
    assert off.max() < 1.01  # fp16 turns near ties
    assert off.mean() < 0.05


def test_what_stays_in_fp16_is_not_rounded(made: Made) -> None:
    network = inference_form(tiny.CONFIG, made.checkpoint.model)
    pixels, roundings = tiny.pixels(8), made.roundings
    due = logits(network, made.checkpoint, pixels)
    nothing = logits(Rounded(network, roundings.without(roundings.ops)), made.checkpoint, pixels)
    assert torch.equal(nothing, due)
    ratios = [
        decibels(logits(Rounded(network, roundings.without(roundings.ops[:count])), made.checkpoint, pixels), due)
        for count in (0, 20, 45)
    ]
    assert ratios == sorted(ratios)
    assert ratios[-1] > ratios[0] + 3


def test_a_network_that_is_not_the_packages_is_refused(made: Made) -> None:
    program = Program.load(made.package)
    twin = Graph(twin_of(made.checkpoint, meta_of(program)))
    pixels = tiny.pixels(1)
    x = normalize(pixels.to(torch.uint8), made.checkpoint.meta.preprocessing)
    with pytest.raises(ConfigError, match="of 67 results that the package rounds"):
        find_roundings(tiny.checkpoint(seed=1).model, x, twin, Graph(program), INT8, pixels)

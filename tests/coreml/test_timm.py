"""Networks of timm, converted and run: every operation that they need is known, and the results are torch's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from packages import decibels, relative_error
from torch import Tensor, nn

from vigcli.config.package import UniformPrecision
from vigcli.coreml.apple import coremltools
from vigcli.coreml.convert import to_program, write_program
from vigcli.coreml.interpreter import Program

pytest.importorskip("coremltools", exc_type=ImportError)

FAST = {"lcnet_050": 32, "mobilenetv4_conv_small_035": 32, "tinynet_e": 32, "test_vit": 160}
# One or two of every kind of network that phones are given, by the size of the picture.
WIDE = {
    **dict.fromkeys(
        (
            "mobilenetv1_100", "mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small",
            "mobilenetv4_hybrid_medium", "mobilenet_edgetpu_v2_xs", "mnasnet_small", "semnasnet_075", "spnasnet_100",
            "hardcorenas_a", "fbnetc_100", "rexnet_100", "mixnet_s", "ghostnet_050", "ghostnetv2_100",
            "repghostnet_050", "efficientnet_lite0", "efficientnet_b0", "tf_efficientnetv2_b0", "efficientvit_b0",
            "fastvit_t8", "repvit_m0_9", "mobileone_s0", "mobilevit_xxs", "mobilevitv2_050", "edgenext_xx_small",
            "convnext_atto", "starnet_s1", "shvit_s1", "inception_next_atto", "fasternet_t0", "hgnetv2_b0",
            "poolformer_s12", "regnetx_002", "regnety_002", "resnet18", "resnet50", "resnetv2_50", "vgg11",
            "densenet121", "res2net50_26w_4s", "ese_vovnet19b_dw", "hrnet_w18_small", "dla34", "cspresnet50",
            "nextvit_small", "caformer_s18", "davit_tiny",
        ),
        64,
    ),
    **dict.fromkeys(
        (
            "vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "levit_128s", "pit_ti_224",
            "efficientformer_l1", "efficientformerv2_s0", "efficientvit_m0", "tiny_vit_5m_224", "xcit_nano_12_p16_224",
            "coat_lite_tiny", "pvt_v2_b0", "visformer_tiny",
        ),
        224,
    ),
    "swinv2_tiny_window8_256": 256,
}  # fmt: skip


@torch.no_grad()
def lively(name: str) -> nn.Module:
    """A network none of whose parts is near to nothing, as new ones' layer scales and last norms are."""
    import timm
    from timm.utils.model import reparameterize_model

    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=10).eval()
    for parameter_name, parameter in module.named_parameters():
        if parameter.dim() <= 1 or parameter.numel() == max(parameter.shape):
            low, high = (-0.1, 0.1) if parameter_name.endswith("bias") else (0.6, 1.0)
            parameter.uniform_(low, high)
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer.out_features == 10:
            layer.weight.normal_(0, 0.1)
    return reparameterize_model(module).eval()


def convert(module: nn.Module, x: Tensor, path: Path, precision: UniformPrecision) -> Program:
    given = coremltools().TensorType(name="x", shape=x.shape)
    write_program(to_program(module, x, precision, 17, inputs=[given]), path)
    return Program.load(path)


@pytest.mark.parametrize(
    ("name", "size"), [*FAST.items(), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in WIDE.items())]
)
def test_agrees_with_torch(name: str, size: int, tmp_path: Path) -> None:
    module, x = lively(name), torch.rand(2, 3, size, size)
    with torch.no_grad():
        expected = module(x)
    assert float(expected.std(1).min()) > 0.01 * float(expected.abs().max())
    single = convert(module, x[:1], tmp_path / "fp32.mlpackage", "fp32")
    assert relative_error(single.predict(x[:1]), expected[:1]) < 1e-5
    assert relative_error(single.predict(x), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "fastvit_t8", "mobilevit_xxs"])
def test_fp16_is_noise(name: str, tmp_path: Path) -> None:
    module, x = lively(name), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = module(x)
    half = convert(module, x[:1], tmp_path / "fp16.mlpackage", "fp16")
    assert 25 < decibels(half.predict(x), expected) < 100
    assert decibels(half.predict(x, precision="fp32"), expected) > 25

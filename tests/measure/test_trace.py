"""The op trace: the published features of timm networks, and what a run must leave alone."""

import csv
import os
from collections import Counter

import pytest
import torch
from torch import nn

from vigcli.archs.external import build_timm, reparameterize
from vigcli.errors import ConfigError
from vigcli.latency.calibrated import CORE_GROUPS, IOS18_GROUP, usable
from vigcli.latency.published import load_published
from vigcli.latency.trace import block_names
from vigcli.measure.trace import trace
from vigcli.paths import builtin_folder

FOLDER = builtin_folder("table") / "published"
with open(FOLDER / "published_networks.csv", newline="", encoding="utf-8") as file:
    NETWORKS = [row for row in csv.DictReader(file) if row["builder"].startswith("timm:")]

SAMPLE = [
    "densenet121",
    "deit_tiny_patch16_224",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientnet_b0",
    "fastvit_mci0",
    "fastvit_t8",
    "levit_256",
    "mixnet_s",
    "mobilenetv1_100",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "mobileone_s0",
    "mobilevit_xs",
    "mobilevitv2_100",
    "pit_ti_224",
    "poolformer_s12",
    "repvit_m0_9",
    "resnest14d",
    "resnet18",
    "starnet_s1",
    "swiftformer_xs",
]
# The published op lists of these are incomplete (they fall short of published_networks.csv) or differ in one rule.
FUSED_UNKNOWN = ("dm_nfnet_f0", "dm_nfnet_f1", "levit_256")


ROWS, PUBLISHED_OPS = load_published(FOLDER)
FITTED = {row.network for row in usable(ROWS, (*CORE_GROUPS, IOS18_GROUP))}


def _rows():
    """The sample, and the other networks that a table is fitted to; all that are published with VIG_ALL_NETWORKS=1."""
    seen = set()
    for row in NETWORKS:
        name = row["builder"].removeprefix("timm:")
        quick = name in SAMPLE and name not in seen
        seen.add(name)
        if quick or (row["builder"], int(row["resolution"])) in FITTED or "VIG_ALL_NETWORKS" in os.environ:
            marks = () if quick else pytest.mark.slow
            yield pytest.param(row, id=f"{name}-{row['resolution']}", marks=marks)


def _timm_trace(name, resolution):
    num_classes = 512 if "_mci" in name else 1000  # image towers end in an embedding
    model = reparameterize(build_timm(name, num_classes, resolution, device="meta"))
    return trace(model, (3, resolution, resolution))


@pytest.mark.parametrize("row", _rows())
def test_published_features(row):
    name, resolution = row["builder"].removeprefix("timm:"), int(row["resolution"])
    ours = _timm_trace(name, resolution)
    assert ours.act_mb == pytest.approx(float(row["act_MB"]), rel=0.01)
    assert ours.weight_mb == pytest.approx(float(row["weight_MB"]), rel=0.01)
    assert ours.spill_mb == pytest.approx(float(row["spill_MB"]), rel=0.01, abs=1e-3)
    assert ours.macs / 1e9 == pytest.approx(float(row["gmacs"]), rel=0.01)
    if name not in FUSED_UNKNOWN:
        theirs = PUBLISHED_OPS[row["builder"], resolution].fused
        assert sum(op.act_bytes for op in ours.fused) == pytest.approx(sum(op.act_bytes for op in theirs), rel=0.01)
        assert Counter(op.kind for op in ours.fused) == Counter(op.kind for op in theirs)
    many_tokens = name.startswith(("deit", "vit_", "levit", "mobilevit_", "pit"))
    large = resolution >= 300 and name.startswith(("efficientnet", "dm_nfnet", "fastvit"))
    assert {op.mark for op in ours.ops} - {""} == ({"tokens"} if many_tokens else {"excite"} if large else set())


class _Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8))
        self.short = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.second(self.first(x)) + self.short(x)


def test_folding_and_blocks():
    model = _Residual()
    result = trace(model, (8, 10, 10), {"first": model.first, "second": model.second})
    assert [(op.kind, op.block) for op in result.ops] == [("pw", "first"), ("grp", "second"), ("pw", ""), ("elt", "")]
    assert [op.kind for op in result.fused] == ["pw", "grp", "pw"]
    assert result.ops[0] == ("pw", 2 * 2400, 2 * 128, 12800, "first", "")
    assert result.fused[2].act_bytes == 2 * (1600 + 800)  # reads its input and the other branch, writes the sum
    parts = [result.block(name) for name in block_names(result.ops)]
    assert sum(part.act_mb for part in parts) == pytest.approx(result.act_mb)
    assert sum(part.macs for part in parts) == result.macs


def test_innermost_block_wins():
    model = _Residual()
    result = trace(model, (8, 10, 10), {"all": model, "conv": model.first[0]})
    assert [op.block for op in result.ops] == ["conv", "all", "all", "all"]


def test_longest_path():
    assert trace(_Residual(), (8, 10, 10)).path_layers == 2
    assert trace(nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.Linear(4, 4)), (3, 4, 4)).path_layers == 2
    attention = trace(build_timm("deit_tiny_patch16_224", device="meta"), (3, 224, 224))
    assert attention.path_layers == 1 + 12 * 6 + 1  # patches; qkv, two matmuls, projection, two of the mlp; head


def test_fused_attention_is_counted():
    class Attention(nn.Module):
        def forward(self, x):
            q = x.flatten(2).transpose(1, 2)[:, None]
            return nn.functional.scaled_dot_product_attention(q, q, q)

    assert trace(Attention(), (32, 8, 8)).macs == 2 * 64 * 64 * 32


def test_unknown_op_is_not_free():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.cumsum(x, 1)

    (op,) = trace(Odd(), (4, 8, 8)).ops
    assert op == ("elt", 2 * 2 * 256, 0, 0, "", "")


class _Called(nn.Module):
    """A function of the image and of some fixed numbers."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("places", torch.tensor([2, 0, 1]))

    def forward(self, x):
        return self.function(x, self.places)


def _excite(x):
    return x * x.mean((2, 3), keepdim=True).sigmoid()


def _sampled(x):
    return nn.functional.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), align_corners=False)


def _attend(x, tokens):
    q = x.flatten(2)[..., :tokens].mT  # (1, N, C)
    return (q @ q.mT).softmax(-1) @ q


@pytest.mark.parametrize(
    ("function", "size", "marks"),
    [
        (lambda x, places: x[:, places], 20, {"gather"}),
        (lambda x, places: x.index_select(1, places), 20, {"gather"}),
        (lambda x, places: torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), x), 20, {"gather"}),
        (lambda x, places: places[places] + x.mean(), 20, set()),  # what is fixed is looked up before
        (lambda x, places: x.topk(2, 1).values, 20, {"topk"}),
        (lambda x, places: x.sort(1).values, 20, {"topk"}),
        (lambda x, places: _sampled(x), 20, {"grid_sample"}),
        (lambda x, places: nn.functional.interpolate(x, scale_factor=2, mode="bilinear"), 20, set()),  # was fitted
        (lambda x, places: _attend(x, 195), 20, set()),
        (lambda x, places: _attend(x, 196), 20, {"tokens"}),
        (lambda x, places: x.flatten(2).softmax(-1), 300, set()),  # separable attention: one number a token
        (lambda x, places: _excite(x), 299, set()),
        (lambda x, places: _excite(x), 300, {"excite"}),
        (lambda x, places: x * x.sigmoid() * 0.5, 300, set()),
        (lambda x, places: x * places[:, None, None], 300, set()),  # a layer scale
    ],
)
def test_what_a_price_is_wrong_about_is_marked(function, size, marks):
    found = trace(_Called(function), (3, size, size))
    for ops in (found.ops, found.fused):
        assert {op.mark for op in ops} - {""} == marks


def test_write_into_a_slice_keeps_the_path():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            out = torch.zeros_like(x)
            out[:, :4] = self.conv(x[:, :4])
            return self.conv(out[:, 4:])

    assert trace(Halves(), (8, 8, 8)).path_layers == 2


def test_model_is_left_alone():
    model = build_timm("mobilenetv2_035").train()
    before = {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    trace(model, (3, 96, 96), {"stem": model.conv_stem})
    after = model.state_dict(keep_vars=True)
    assert model.training
    assert not model.conv_stem._forward_hooks
    for name, (identity, value) in before.items():
        assert id(after[name]) == identity
        assert after[name].device.type == "cpu"
        assert torch.equal(after[name], value)


def test_reparameterized_network_computes_the_same():
    torch.manual_seed(0)
    model = build_timm("mobileone_s1", num_classes=10)
    num_branches = len(model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        merged, expected = reparameterize(model)(x), model(x)
    assert (merged - expected).norm() < 1e-4 * expected.norm()
    assert len(model.state_dict()) == num_branches  # the copy is merged, not the model


def test_unknown_network():
    with pytest.raises(ConfigError) as error:
        build_timm("fastvit_t88")
    assert "fastvit_t8" in error.value.hint

"""Normalization and resizing: through a package against torch, by their formulas and by coremltools' folding."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mil import IOS17, Case, close, folded, numbers, ours, run_cases, sized, tensor
from mil import unary as case
from torch import Tensor

from vigcli.coreml.ops import OPS

pytest.importorskip("coremltools", exc_type=ImportError)
X = tensor(1, 4, 6, 5)
BIAS = numbers(6)
B = torch.from_numpy(BIAS)
ROWS = tensor(1, 3, 8)


def unary(op: str, expected: Any, x: Tensor = X, **parameters: Any) -> Case:
    return case(op, expected, x, **parameters)


def align(flag: bool) -> dict[str, Any]:
    return {"mode": "bilinear", "align_corners": flag}


CASES = [
    unary(
        "upsample_nearest_neighbor",
        lambda x: x.repeat_interleave(2, 2).repeat_interleave(3, 3),
        scale_factor_height=2,
        scale_factor_width=3,
    ),
    unary(
        "resize_nearest_neighbor",
        lambda x: F.interpolate(x, (9, 4), mode="nearest"),
        target_size_height=9,
        target_size_width=4,
    ),
    *(
        unary(
            "upsample_bilinear",
            lambda x, flag=flag: F.interpolate(x, scale_factor=2, **align(flag)),
            scale_factor_height=2.0,
            scale_factor_width=2.0,
            align_corners=flag,
        )
        for flag in (True, False)
    ),
    *(
        unary(
            "resize_bilinear",
            lambda x, flag=flag: F.interpolate(x, (9, 4), **align(flag)),
            target_size_height=9,
            target_size_width=4,
            sampling_mode="STRICT_ALIGN_CORNERS" if flag else "UNALIGN_CORNERS",
        )
        for flag in (True, False)
    ),
    Case(
        "resize",
        lambda mb, x: mb.resize(x=x, shape=[0, 9], resized_dims=np.uint32(2), sampling_mode="UNALIGN_CORNERS"),
        lambda x: F.interpolate(x, (6, 9), **align(False)),
        (X,),
        IOS17,
    ),
    unary("crop", lambda x: x[:, :, 1:-2, 2:], crop_height=[1, 2], crop_width=[2, 0]),
    unary(
        "batch_norm",
        lambda x: F.batch_norm(x, B[:4], B[:4].abs(), B[2:], B[1:5], eps=1e-3),
        mean=BIAS[:4],
        variance=np.abs(BIAS[:4]),
        gamma=BIAS[2:],
        beta=BIAS[1:5],
        epsilon=1e-3,
    ),
    unary("instance_norm", lambda x: F.group_norm(x, 4, eps=1e-3), epsilon=1e-3),
    unary(
        "layer_norm",
        lambda x: F.layer_norm(x, (8,), torch.arange(8.0), torch.ones(8), 1e-3),
        x=ROWS,
        axes=[-1],
        gamma=np.arange(8, dtype=np.float32),
        beta=np.ones(8, np.float32),
        epsilon=1e-3,
    ),
    unary("l2_norm", lambda x: x / (x.square().sum() + 1e-2).sqrt(), epsilon=1e-2),
    unary(
        "local_response_norm",
        lambda x: F.local_response_norm(x, 3, 0.3, 0.6, 2.0),
        size=3,
        alpha=0.3,
        beta=0.6,
        k=2.0,
    ),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    return run_cases(CASES, tmp_path_factory.mktemp("resize"))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(c) for c in CASES])
def test_agrees_with_torch_through_a_package(number: int, results: list[Tensor]) -> None:
    close(results[number], CASES[number].expected(*CASES[number].inputs), atol=1e-5)


# ------------------------------------------------------------------------------------------------ normalization


@pytest.mark.parametrize("axes", [[-1], [1, 2], [1], [0, 2], [2, 0], [0, 1, 2]], ids=str)
def test_layer_norms_are_folded_alike(axes: list[int]) -> None:
    x = numbers(2, 3, 4)
    sizes = [x.shape[axis] for axis in sorted(axis % 3 for axis in axes)]
    for parameters in ({}, {"gamma": numbers(*sizes, seed=2), "beta": numbers(*sizes, seed=3)}):
        options = {"axes": axes, "epsilon": 0.01, **parameters}
        close(ours("layer_norm", x=x, **options), folded("layer_norm", x=x, **options), atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (2, 2, 3, 4, 5)], ids=str)
def test_l2_norms_are_folded_alike(shape: Any) -> None:
    x = numbers(*shape)
    close(ours("l2_norm", x=x, epsilon=0.5), folded("l2_norm", x=x, epsilon=0.5))


def test_norms_by_their_formulas() -> None:
    x, gamma, beta = tensor(2, 3, 4, 5), tensor(3, seed=1), tensor(3, seed=2)
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
    scale, shift = gamma.reshape(3, 1, 1), beta.reshape(3, 1, 1)
    result = ours("instance_norm", x=x.numpy(), gamma=gamma.numpy(), beta=beta.numpy(), epsilon=0.1)
    close(result, (x - mean) / (variance + 0.1).sqrt() * scale + shift, atol=1e-5)
    stored = {"mean": beta.numpy(), "variance": gamma.abs().numpy()}
    result = ours("batch_norm", x=x.numpy(), **stored, epsilon=0.1)
    close(result, (x - shift) / (scale.abs() + 0.1).sqrt(), atol=1e-5)


# ------------------------------------------------------------------------------------------------ resizing


def points(size_in: int, size_out: int, mode: str) -> list[float]:
    """The grids as coremltools writes them down (Xin = size_in, Xout = size_out), loops and all."""
    last, found = size_in - 1, []
    for i in range(size_out):
        if mode == "STRICT_ALIGN_CORNERS" or (mode == "ALIGN_CORNERS" and size_out > 1):
            point = i * (last / (size_out - 1)) if size_out > 1 else 0.0
        elif mode == "ALIGN_CORNERS":
            point = last / 2
        elif mode == "DEFAULT":
            point = i * ((size_in - size_in / size_out) / (size_out - 1)) if size_out > 1 else 0.0
        elif mode == "OFFSET_CORNERS":
            delta = max(1, last) / size_out
            point = 0.5 * delta + i * delta
        else:
            spacing = size_in / size_out
            point = i * spacing + 0.5 * spacing - 0.5
        found.append(min(last, max(0, point)))
    return found


MODES = ["STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS"]


@pytest.mark.parametrize("mode", MODES)
def test_grids_of_resizing(mode: str) -> None:
    """The value of x = (row, column) at a point is the point, so two ramps show the grid."""
    for (high, wide), (height, width) in itertools.product(
        [(2, 2), (5, 3), (1, 4), (7, 7)], [(5, 6), (1, 1), (3, 7), (2, 9)]
    ):
        rows = torch.arange(float(high))[:, None].expand(high, wide)
        columns = torch.arange(float(wide))[None].expand(high, wide)
        result = ours(
            "resize_bilinear",
            x=torch.stack([rows, columns])[None].numpy(),
            target_size_height=height,
            target_size_width=width,
            sampling_mode=mode,
        )
        due = torch.tensor(points(high, height, mode), dtype=torch.float32)[:, None].expand(height, width)
        close(result[0, 0], due, atol=1e-5)
        due = torch.tensor(points(wide, width, mode), dtype=torch.float32)[None].expand(height, width)
        close(result[0, 1], due, atol=1e-5)


def test_the_grids_that_coremltools_gives_as_examples() -> None:
    x = np.float32([[0, 1]] * 2)[None]
    examples = {
        "UNALIGN_CORNERS": [0.0, 0.1, 0.5, 0.9, 1.0],
        "STRICT_ALIGN_CORNERS": [0.0, 0.25, 0.5, 0.75, 1.0],
        "ALIGN_CORNERS": [0.0, 0.25, 0.5, 0.75, 1.0],
        "DEFAULT": [0.0, 0.4, 0.8, 1.0, 1.0],
        "OFFSET_CORNERS": [0.1, 0.3, 0.5, 0.7, 0.9],
    }
    for mode, due in examples.items():
        result = ours("resize_bilinear", x=x, target_size_height=2, target_size_width=5, sampling_mode=mode)
        close(result, np.float32([[due] * 2]))
    with pytest.raises(ValueError, match="unknown sampling mode 'OTHER'"):
        ours("resize_bilinear", x=x, target_size_height=2, target_size_width=5, sampling_mode="OTHER")


@pytest.mark.parametrize("size", [(12, 10), (9, 4), (6, 5), (1, 1), (3, 20)], ids=str)
def test_resizing_against_torch(size: tuple[int, int]) -> None:
    target = {"target_size_height": size[0], "target_size_width": size[1]}
    x = X.numpy()
    close(
        ours("resize_bilinear", x=x, **target, sampling_mode="UNALIGN_CORNERS"),
        F.interpolate(X, size, **align(False)),
        atol=1e-5,
    )
    close(
        ours("resize_bilinear", x=x, **target, sampling_mode="STRICT_ALIGN_CORNERS"),
        F.interpolate(X, size, **align(True)),
        atol=1e-5,
    )
    close(ours("resize_nearest_neighbor", x=x, **target), F.interpolate(X, size, mode="nearest"))
    shape = {"shape": np.int32([0, *size]), "resized_dims": 2}
    close(ours("resize", x=x, **shape, interpolation_mode="NEAREST_NEIGHBOR"), F.interpolate(X, size, mode="nearest"))


@pytest.mark.parametrize("factor", [1.5, 2.0, 0.5, 7 / 3, 16 / 7])
def test_factors_give_the_sizes_that_coremltools_infers(factor: float) -> None:
    x = tensor(1, 2, 7, 14)
    factors = {"scale_factor_height": factor, "scale_factor_width": factor}
    for op in ("upsample_bilinear", "upsample_nearest_neighbor"):
        result = ours(op, x=x.numpy(), **factors)
        assert tuple(result.shape) == sized(op, x=x, **factors)
    close(
        ours("upsample_bilinear", x=x.numpy(), **factors, align_corners=False),
        F.interpolate(x, tuple(result.shape[2:]), **align(False)),
        atol=1e-5,
    )
    default = {"align_corners": False, "half_pixel_centers": False}
    close(
        ours("upsample_bilinear", x=x.numpy(), **factors, **default),
        OPS["resize_bilinear"].function(x, *result.shape[2:], "DEFAULT"),
    )
    with pytest.raises(ValueError, match="aligned corners with half-pixel centers"):
        ours("upsample_bilinear", x=x.numpy(), **factors, half_pixel_centers=True)


# ------------------------------------------------------------------------------------------------ size

FAR = 2**20


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("upsample_bilinear", {"scale_factor_height": 1e6, "scale_factor_width": 1e6}),
        ("upsample_nearest_neighbor", {"scale_factor_height": 1e6, "scale_factor_width": 1e6}),
        ("resize_nearest_neighbor", {"target_size_height": FAR, "target_size_width": FAR}),
        ("resize_bilinear", {"target_size_height": 2**28, "target_size_width": 1}),
        ("resize", {"shape": [FAR, FAR], "resized_dims": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_results_too_large_are_refused_before_they_take_memory(op: str, inputs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="too large"):
        ours(op, x=numbers(1, 1, 9, 9), **inputs)

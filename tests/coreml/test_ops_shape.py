"""What moves numbers or makes them of a shape: through a package against torch, and against coremltools' folding."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mil import IOS16, IOS18, Case, close, folded, numbers, ours, run_cases, tensor
from mil import unary as case
from torch import Tensor

from vigcli.coreml.ops import OPS
from vigcli.coreml.package import DAMAGE

pytest.importorskip("coremltools", exc_type=ImportError)
X, Y = tensor(1, 4, 6, 5), tensor(1, 4, 6, 5, seed=1)
INDICES = torch.tensor([[2, 0], [1, 1]], dtype=torch.int32)


def unary(op: str, expected: Any, x: Tensor = X, target: str = "iOS15", **parameters: Any) -> Case:
    return case(op, expected, x, target, **parameters)


CASES = [
    unary("reshape", lambda x: x.reshape(1, 8, 15), shape=[1, 8, -1]),
    unary("reshape", lambda x: x.reshape(1, 4, 30, 1), shape=[0, 0, 30, 1]),
    unary("transpose", lambda x: x.permute(0, 2, 3, 1), perm=[0, 2, 3, 1]),
    unary("squeeze", lambda x: x[0, :, :, 0], x=tensor(1, 3, 4, 1), axes=[0, 3]),
    unary("squeeze", lambda x: x[0, :, :, 0], x=tensor(1, 3, 4, 1)),
    unary("expand_dims", lambda x: x[:, None, :, None], x=tensor(3, 4), axes=[1, -1]),
    Case("concat", lambda mb, x, y: mb.concat(values=[x, y, x], axis=1), lambda x, y: torch.cat([x, y, x], 1), (X, Y)),
    Case(
        "concat",
        lambda mb, x, y: mb.concat(values=[x, y], axis=1, interleave=True),
        lambda x, y: torch.stack([part[:, i] for i in range(x.shape[1]) for part in (x, y)], 1),
        (X, Y),
    ),
    Case("stack", lambda mb, x, y: mb.stack(values=[x, y], axis=2), lambda x, y: torch.stack([x, y], 2), (X, Y)),
    Case("split", lambda mb, x: mb.split(x=x, num_splits=2, axis=1)[1], lambda x: x[:, 2:], (X,)),
    Case("split", lambda mb, x: mb.split(x=x, split_sizes=[1, 3], axis=1)[1], lambda x: x[:, 1:], (X,)),
    unary("tile", lambda x: torch.cat([x, x], 2), reps=[1, 1, 2, 1]),
    unary(
        "slice_by_index",
        lambda x: x[:, 1:3, ::2, -2:],
        begin=[0, 1, 0, -2],
        end=[1, 3, 6, 0],
        stride=[1, 1, 2, 1],
        begin_mask=[True, False, False, False],
        end_mask=[True, False, False, True],
    ),
    unary(
        "slice_by_index",
        lambda x: x[:, 2],
        begin=[0, 2, 0, 0],
        end=[1, 3, 6, 5],
        squeeze_mask=[False, True, False, False],
    ),
    unary("slice_by_size", lambda x: x[:, 1:3, 2:], begin=[0, 1, 2, 0], size=[1, 2, -1, 5]),
    Case("gather", lambda mb, x, i: mb.gather(x=x, indices=i, axis=1), lambda x, i: x[:, i.long()], (X, INDICES)),
    Case(
        "gather",
        lambda mb, x, i: mb.gather(x=x, indices=i, axis=1, batch_dims=1),
        lambda x, i: torch.stack([row[index.long()] for row, index in zip(x, i, strict=True)]),
        (tensor(2, 3, 5), INDICES),
        IOS16,
    ),
    Case(
        "gather_along_axis",
        lambda mb, x, i: mb.gather_along_axis(x=x, indices=i, axis=1),
        lambda x, i: torch.gather(x, 1, i.long()),
        (tensor(2, 3), INDICES),
    ),
    Case(
        "gather_nd",
        lambda mb, x, i: mb.gather_nd(x=x, indices=i),
        lambda x, i: x[i[:, 0].long(), i[:, 1].long()],
        (tensor(3, 3, 4), INDICES),
    ),
    Case(
        "gather_nd",
        lambda mb, x, i: mb.gather_nd(x=x, indices=i, batch_dims=1),
        lambda x, i: torch.stack([x[0, 2, 0], x[1, 1, 1]]),
        (tensor(2, 3, 4, 5), INDICES),
        IOS16,
    ),
    unary("pad", lambda x: F.pad(x, (1, 2, 0, 3), value=0.5), pad=[0, 0, 0, 0, 0, 3, 1, 2], constant_val=0.5),
    unary("pad", lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"), pad=[2, 1, 1, 2], mode="reflect"),
    unary("pad", lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate"), pad=[2, 1, 1, 2], mode="replicate"),
    unary("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), upscale_factor=2),
    unary(
        "pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), x=X[..., :4], target=IOS16, downscale_factor=np.uint32(2)
    ),
    unary("depth_to_space", lambda x: depth_to_space(x, 2), x=tensor(1, 8, 2, 3), block_size=2),
    unary("space_to_depth", lambda x: space_to_depth(x, 2), x=tensor(1, 2, 4, 6), block_size=2),
    unary("reverse", lambda x: x.flip((1, 3)), axes=[1, -1]),
    unary("flatten2d", lambda x: x.reshape(4, 30), axis=2),
    unary("band_part", lambda x: x.tril(2).triu(-1), lower=1, upper=2),
    unary("sliding_windows", lambda x: torch.stack([x[:, :, i : i + 3] for i in (0, 2)], 2), axis=2, size=3, stride=2),
    Case(
        "shape",
        lambda mb, x: mb.reshape(
            x=x, shape=mb.slice_by_index(x=mb.shape(x=x), begin=[3], end=[0], stride=[-1], end_mask=[True])
        ),
        lambda x: x.reshape(5, 6, 4, 1),
        (X,),
    ),
    Case("fill", lambda mb, x: mb.add(x=x, y=mb.fill(shape=[6, 5], value=0.5)), lambda x: x + 0.5, (X,)),
    Case(
        "fill_like",
        lambda mb, x: mb.fill_like(ref_tensor=x, value=3),
        lambda x: torch.full(x.shape, 3, dtype=torch.int32),
        (X,),
        IOS16,
    ),
    Case(
        "one_hot",
        lambda mb, i: mb.one_hot(indices=i, one_hot_vector_size=3, axis=1, on_value=2.0, off_value=-1.0),
        lambda i: torch.where(F.one_hot(i.long(), 3).movedim(-1, 1) > 0, 2.0, -1.0),
        (INDICES,),
    ),
    Case(
        "range_1d",
        lambda mb, x: mb.add(x=x, y=mb.range_1d(start=1.0, end=4.5, step=0.75)),
        lambda x: x + torch.arange(1.0, 4.5, 0.75),
        (X,),
    ),
]


def depth_to_space(x: Tensor, block: int) -> Tensor:
    """Number by number, as TensorFlow describes it."""
    batch, channels, height, width = x.shape
    depth = channels // block**2
    y = torch.zeros(batch, depth, height * block, width * block)
    for c, i, j in itertools.product(range(depth), range(height * block), range(width * block)):
        y[:, c, i, j] = x[:, (i % block * block + j % block) * depth + c, i // block, j // block]
    return y


def space_to_depth(x: Tensor, block: int) -> Tensor:
    batch, depth, height, width = x.shape
    y = torch.zeros(batch, depth * block**2, height // block, width // block)
    for c, i, j in itertools.product(range(depth), range(height), range(width)):
        y[:, (i % block * block + j % block) * depth + c, i // block, j // block] = x[:, c, i, j]
    return y


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    return run_cases(CASES, tmp_path_factory.mktemp("shape"))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(c) for c in CASES])
def test_agrees_with_torch_through_a_package(number: int, results: list[Tensor]) -> None:
    close(results[number], CASES[number].expected(*CASES[number].inputs))


# ------------------------------------------------------------------------------------------------ folding

FOLDED: list[tuple[str, dict[str, Any]]] = [
    *(("reshape", {"shape": shape}) for shape in ([24], [2, -1], [4, 3, 2], [0, 0, 4], [-1, 1], [0, -1, 2])),
    *(("transpose", {"perm": list(perm)}) for perm in itertools.permutations(range(3))),
    ("transpose", {"perm": [-1, 0, -2]}),
    *(("expand_dims", {"axes": axes}) for axes in ([0], [-1], [1, 3], [0, -1], [4, 0], [-5, 2])),
    *(("tile", {"reps": reps}) for reps in ([1, 1, 1], [2, 1, 3], [1, 4, 1])),
    *(("reverse", {"axes": axes}) for axes in ([0], [-1], [0, 2], [0, 1, 2])),
    *(("flatten2d", {"axis": axis}) for axis in (1, 2, -1)),
    *(("band_part", {"lower": a, "upper": b}) for a, b in itertools.product((-1, 0, 1, 2), repeat=2)),
    *(("pad", {"pad": pad, "mode": mode, "constant_val": 0.5})
      for pad in ([1, 0], [1, 2, 0, 1], [0, 0, 1, 2, 1, 0]) for mode in ("constant", "replicate", "reflect")),
    ("pad", {"pad": [1, 1, 2, 1, 0, 3], "mode": "constant", "constant_val": 0.5}),
    *(("slice_by_size", {"begin": begin, "size": size})
      for begin, size in (([0, 1, 2], [1, 2, 2]), ([1, 0, -2], [1, -1, 2]), ([0, 0, 0], [2, 3, 4]))),
    *(("concat", {"values": (numbers(2, 3, 4), numbers(2, 3, 4, seed=1)), "axis": axis}) for axis in (0, 1, -1)),
    *(("stack", {"values": (numbers(2, 3, 4), numbers(2, 3, 4, seed=1)), "axis": axis}) for axis in (0, 2, -1)),
    *(("split", {"num_splits": n, "axis": axis}) for n, axis in ((2, 0), (3, 1), (4, -1))),
    ("split", {"split_sizes": [1, 3], "axis": 2}),
    *(("gather", {"indices": np.int32(places), "axis": axis})
      for places, axis in (([0, 1], 0), ([[2], [0]], 1), ([3, -1], -1), (1, 0))),
    *(("gather_along_axis", {"indices": np.int32(np.arange(24).reshape(2, 3, 4) % n), "axis": axis})
      for n, axis in ((2, 0), (3, 1), (4, -1))),
]  # fmt: skip


@pytest.mark.parametrize(("op", "inputs"), FOLDED, ids=[f"{op}-{i}" for i, (op, _) in enumerate(FOLDED)])
def test_is_folded_alike(op: str, inputs: dict[str, Any]) -> None:
    given = inputs if "values" in inputs else {"x": numbers(2, 3, 4), **inputs}
    seen, due = ours(op, **given), folded(op, target=IOS16, **given)
    for one, other in zip(
        seen if isinstance(seen, tuple) else [seen], due if isinstance(due, list) else [due], strict=True
    ):
        close(one, other)


SPANS = [(0, 3, 1), (1, 9, 2), (-3, -1, 1), (-2, 9, 1), (3, 0, -1), (-1, -9, -2), (2, 1, -1)]
MASKS = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize("span", SPANS, ids=str)
@pytest.mark.parametrize("masks", MASKS, ids=str)
def test_slices_are_folded_alike(span: tuple[int, int, int], masks: tuple[bool, bool]) -> None:
    (first, last, step), (from_start, to_end) = span, masks
    x = numbers(2, 4, 5)
    inputs = {
        "begin": [0, first, 1], "end": [1, last, 4], "stride": [1, step, 1],
        "begin_mask": [False, from_start, False], "end_mask": [False, to_end, False],
    }  # fmt: skip
    due = x[0:1, slice(None if from_start else first, None if to_end else last, step), 1:4]
    close(ours("slice_by_index", x=x, **inputs), due)
    if due.size:
        close(ours("slice_by_index", x=x, **inputs), folded("slice_by_index", x=x, **inputs))
        squeezed = {**inputs, "squeeze_mask": [True, False, False]}
        close(ours("slice_by_index", x=x, **squeezed), due[0])


@pytest.mark.parametrize("axes", [[0], [0, 2], [-2], None], ids=str)
def test_squeezing(axes: list[int] | None) -> None:
    """An axis of more than one element stays: coremltools says so, but its folding, numpy's, would fail there."""
    x, given = numbers(1, 3, 1), {} if axes is None else {"axes": axes}
    close(
        ours("squeeze", x=x, **given),
        torch.from_numpy(x).squeeze() if axes is None else torch.from_numpy(x).squeeze(axes),
    )


@pytest.mark.parametrize("shape", [(2, 3, 4), (4,), (1,)], ids=str)
def test_shapes_and_fills(shape: tuple[int, ...]) -> None:
    x = numbers(*shape)
    close(ours("shape", x=x), folded("shape", x=x))
    for value in (np.float32(0.5), np.int32(3), np.bool_(True)):
        close(ours("fill", shape=np.int32(shape), value=value), folded("fill", shape=np.int32(shape), value=value))
        close(ours("fill_like", ref_tensor=x, value=value), np.full(shape, value))
    close(ours("fill", shape=np.int32(shape)), np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("start", "end", "step"), [(0, 5, 1), (1, 8, 3), (5, 0, -2), (0.0, 1.0, 0.25), (1.5, -1.0, -0.5)]
)
def test_ranges_are_folded_alike(start: float, end: float, step: float) -> None:
    kind = np.float32 if isinstance(start, float) else np.int32
    inputs = {name: kind(value) for name, value in (("start", start), ("end", end), ("step", step))}
    close(ours("range_1d", **inputs), folded("range_1d", **inputs))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot_vectors(axis: int) -> None:
    """A place outside of the vector leaves all of it off."""
    indices = np.int32([1, 0, 7, -1])
    due = np.float32([[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
    close(ours("one_hot", indices=indices, one_hot_vector_size=3, axis=axis), np.moveaxis(due, -1, axis).copy())


def test_rearrangements_number_by_number() -> None:
    x = tensor(2, 18, 2, 3)
    close(ours("depth_to_space", x=x.numpy(), block_size=3), depth_to_space(x, 3))
    back = ours("space_to_depth", x=depth_to_space(x, 3).numpy(), block_size=3)
    close(back, x)
    close(back, space_to_depth(depth_to_space(x, 3), 3))


@pytest.mark.parametrize(("size", "stride", "axis"), [(1, 1, 0), (2, 1, 1), (3, 2, -1), (4, 4, 2)])
def test_sliding_windows(size: int, stride: int, axis: int) -> None:
    x = numbers(4, 5, 7)
    starts = range(0, x.shape[axis] - size + 1, stride)
    place = axis % 3
    due = np.stack([np.take(x, range(i, i + size), place) for i in starts], place)
    close(ours("sliding_windows", x=x, axis=axis, size=size, stride=stride), due)


def test_negative_places_count_from_the_end() -> None:
    x = numbers(4, 3)
    close(ours("gather", x=x, indices=[-1, -4], axis=0), x[[3, 0]])
    close(ours("gather_along_axis", x=x, indices=[[-1, -4, 0]], axis=0), x[[3, 0, 0], [0, 1, 2]][None])
    close(ours("gather_nd", x=x, indices=[[-1, -3]]), x[[3], [0]])


# ------------------------------------------------------------------------------------------------ what is refused

FAR = 2**15


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("tile", {"x": numbers(3, 3), "reps": [FAR, FAR]}),
        ("pad", {"x": numbers(3, 3), "pad": [FAR, 0, FAR, 0]}),
        ("fill", {"shape": [FAR, FAR]}),
        ("one_hot", {"indices": np.zeros(FAR, np.int32), "one_hot_vector_size": FAR}),
        ("range_1d", {"start": np.float32(0), "end": np.float32(1e9), "step": np.float32(1)}),
        ("range_1d", {"start": np.float32(0), "end": np.float32(1), "step": np.float32(1e-9)}),
        ("gather", {"x": numbers(1, FAR), "indices": np.zeros(FAR, np.int32)}),
        ("gather_nd", {"x": numbers(1, FAR), "indices": np.zeros((FAR, 1), np.int32)}),
        ("sliding_windows", {"x": numbers(2 * FAR), "axis": 0, "size": FAR}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_results_too_large_are_refused_before_they_take_memory(op: str, inputs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="too large"):
        ours(op, **inputs)


@pytest.mark.parametrize("op", ["concat", "stack"])
def test_joining_one_tensor_all_too_often_is_refused(op: str) -> None:
    with pytest.raises(ValueError, match="too large"):
        OPS[op].function([torch.zeros(2**20)] * 2**9, axis=0)


@pytest.mark.parametrize(
    ("op", "inputs", "match"),
    [
        ("split", {"x": numbers(3), "num_splits": 2}, "3 channels do not split into 2"),
        ("tile", {"x": numbers(3), "reps": [1, 2]}, "repetitions of 1 dimensions"),
        ("tile", {"x": numbers(3), "reps": [0]}, "repetitions of 1 dimensions"),
        ("pad", {"x": numbers(3), "pad": [1, 1], "mode": "wrap"}, "unknown padding mode 'wrap'"),
        ("fill", {"shape": [-1, 3]}, "a negative size"),
        ("range_1d", {"start": np.float32(0), "end": np.float32(1), "step": np.float32(0)}, "division by zero"),
        ("gather", {"x": numbers(3), "indices": [5]}, "index out of range"),
        ("reshape", {"x": numbers(3), "shape": [2, 2]}, "is invalid for input"),
    ],
)
def test_what_cannot_be_is_refused(op: str, inputs: dict[str, Any], match: str) -> None:
    with pytest.raises(DAMAGE, match=match):
        ours(op, **inputs)


def test_a_target_that_later_packages_have(tmp_path: Any) -> None:
    """The same operations in the set of iOS 18."""
    cases = [
        unary(
            "slice_by_index", lambda x: x[:, ::2], target=IOS18, begin=[0] * 4, end=[1, 4, 6, 5], stride=[1, 2, 1, 1]
        ),
        Case(
            "gather",
            lambda mb, x, i: mb.gather(x=x, indices=i, axis=1, validate_indices=False),
            lambda x, i: x[:, i.long()],
            (X, INDICES),
            IOS18,
        ),
        Case("topk", lambda mb, x: mb.topk(x=x, k=2, axis=1)[0], lambda x: x.topk(2, 1).values, (X,), IOS18),
    ]
    for result, one in zip(run_cases(cases, tmp_path), cases, strict=True):
        close(result, one.expected(*one.inputs))

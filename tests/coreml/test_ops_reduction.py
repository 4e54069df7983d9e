"""From many numbers to few: through a package against torch, and against coremltools' folding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mil import IOS16, Case, close, folded, numbers, ours, run_cases, tensor
from mil import unary as case
from torch import Tensor

from vigcli.coreml.ops.reduction import REDUCTIONS, REDUCTIONS_EXACT

pytest.importorskip("coremltools", exc_type=ImportError)
X = tensor(1, 4, 6, 5)
POSITIVE = X.abs() + 0.1


def unary(op: str, expected: Any, x: Tensor = X, **parameters: Any) -> Case:
    return case(op, expected, x, **parameters)


CASES = [
    unary("reduce_mean", lambda x: x.mean((2, 3), keepdim=True), axes=[2, 3], keep_dims=True),
    unary("reduce_sum", lambda x: x.sum((1, 3)), axes=[1, -1], keep_dims=False),
    unary("reduce_max", lambda x: x.amax(1), axes=[1], keep_dims=False),
    unary("reduce_min", lambda x: x.amin(1), axes=[1], keep_dims=False),
    unary("reduce_prod", lambda x: x.prod(3).prod(1), axes=[1, 3], keep_dims=False),
    unary("reduce_sum_square", lambda x: (x * x).sum(1), axes=[1], keep_dims=False),
    unary("reduce_l1_norm", lambda x: x.abs().sum(1), axes=[1], keep_dims=False),
    unary("reduce_l2_norm", lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True), axes=[1], keep_dims=True),
    unary("reduce_log_sum", lambda x: x.sum(2).log(), x=POSITIVE, axes=[2], keep_dims=False),
    unary("reduce_log_sum_exp", lambda x: x.exp().sum(2).log(), axes=[2], keep_dims=False),
    unary("reduce_argmax", lambda x: x.argmax(1).int(), axis=1, keep_dims=False),
    unary("reduce_argmin", lambda x: x.argmin(3, True).int(), axis=3, keep_dims=True),
    unary("cumsum", lambda x: x.flip(2).cumsum(2).flip(2) - x, axis=2, exclusive=True, reverse=True),
    unary("argsort", lambda x: x.argsort(2).int(), axis=2, ascending=True),
    Case("topk", lambda mb, x: mb.topk(x=x, k=3, axis=-1)[0], lambda x: x.topk(3).values, (X,)),
    Case("topk", lambda mb, x: mb.topk(x=x, k=2, axis=1)[1], lambda x: x.topk(2, 1).indices.int(), (X,)),
    Case(
        "topk",
        lambda mb, x: mb.topk(x=x, k=2, axis=1, ascending=True)[0],
        lambda x: x.topk(2, 1, largest=False).values,
        (X,),
    ),
    Case("topk", lambda mb, x: mb.topk(x=x, k=2, return_indices=False), lambda x: x.topk(2).values, (X,), IOS16),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    return run_cases(CASES, tmp_path_factory.mktemp("reduction"))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(c) for c in CASES])
def test_agrees_with_torch_through_a_package(number: int, results: list[Tensor]) -> None:
    close(results[number], CASES[number].expected(*CASES[number].inputs))


AXES = [None, [0], [1], [-1], [0, 2], [2, 0], [-1, 1], [0, 1, 2]]


@pytest.mark.parametrize("keep_dims", [False, True])
@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("op", sorted({*REDUCTIONS, *REDUCTIONS_EXACT}))
def test_reductions_are_folded_alike(op: str, axes: list[int] | None, keep_dims: bool) -> None:
    x = np.abs(numbers(2, 3, 4)) + 0.1
    given: dict[str, Any] = {"keep_dims": keep_dims} | ({} if axes is None else {"axes": axes})
    if op == "reduce_log_sum_exp" and not keep_dims and (axes is None or len(axes) > 1):
        given["keep_dims"] = True  # its folding fails there: numpy squeezes lists of axes no more
    due = (
        folded(op, x=x, **given)
        if axes is not None or op != "reduce_log_sum_exp"
        else np.log(np.exp(x).sum(keepdims=True))
    )
    close(ours(op, x=x, **given), np.asarray(due))


@pytest.mark.parametrize(
    "op", ["reduce_max", "reduce_min", "reduce_sum", "reduce_prod", "reduce_sum_square", "reduce_l1_norm"]
)
def test_whole_numbers_stay_whole(op: str) -> None:
    x = np.arange(1, 13, dtype=np.int32).reshape(3, 4) - 6
    close(ours(op, x=x, axes=[1]), folded(op, x=x, axes=[1]))


def test_the_logarithm_of_a_sum_does_not_overflow() -> None:
    x = np.float32([[1000, 1000], [-1000, -1000]])
    close(ours("reduce_log_sum_exp", x=x, axes=[1]), np.float32([1000, -1000]) + np.log(np.float32(2)))


@pytest.mark.parametrize("keep_dims", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("op", ["reduce_argmax", "reduce_argmin"])
def test_places_are_folded_alike(op: str, axis: int, keep_dims: bool) -> None:
    for x in (numbers(3, 4, 5), np.float32(np.round(numbers(3, 4, 5)))):  # with equals, of which the first counts
        close(ours(op, x=x, axis=axis, keep_dims=keep_dims), folded(op, x=x, axis=axis, keep_dims=keep_dims))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_running_sums(axis: int, exclusive: bool, reverse: bool) -> None:
    for x in (numbers(3, 4, 2), np.arange(24, dtype=np.int32).reshape(3, 4, 2)):
        forwards = np.flip(x, axis) if reverse else x
        due = np.cumsum(forwards, axis, dtype=x.dtype) - (forwards if exclusive else 0)
        close(
            ours("cumsum", x=x, axis=axis, exclusive=exclusive, reverse=reverse),
            (np.flip(due, axis) if reverse else due).copy(),
        )


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_orders_are_folded_alike(axis: int, ascending: bool) -> None:
    x = numbers(3, 4, 5)
    close(ours("argsort", x=x, axis=axis, ascending=ascending), folded("argsort", x=x, axis=axis, ascending=ascending))
    for k in (1, 2, 3):
        seen = ours("topk", x=x, k=k, axis=axis, ascending=ascending)
        due = folded("topk", target=IOS16, x=x, k=k, axis=axis, ascending=ascending)
        for one, other in zip(seen, due, strict=True):
            close(one, other)


def test_of_equals_the_first_comes_first() -> None:
    x = np.float32([1, 3, 3, 2, 3])
    assert ours("topk", x=x, k=4)[1].tolist() == [1, 2, 4, 3]
    assert ours("topk", x=x, k=4, ascending=True)[1].tolist() == [0, 3, 1, 2]
    assert ours("argsort", x=x).tolist() == [1, 2, 4, 3, 0]
    assert ours("topk", x=x, k=-1)[0].tolist() == [3, 3, 3, 2, 1]


def test_a_class_is_the_first_of_the_most_probable() -> None:
    from vigcli.coreml.ops import OPS

    classify = OPS["classify"].function
    probabilities = torch.tensor([[0.2, 0.4, 0.4]])
    label, scores = classify(probabilities, ["a", "b", "c"])
    assert (label, list(scores)) == ("b", ["a", "b", "c"])
    label, scores = classify(probabilities, [torch.tensor(10), torch.tensor(20), torch.tensor(30)])
    assert (label, list(scores)) == (20, [10, 20, 30])
    with pytest.raises(ValueError, match="argument"):
        classify(probabilities, ["a", "b"])

"""How far the results of a program reach on real pictures, and which of them leave the range of fp16.

Every result of every operation is seen. What a kernel adds up inside one operation is not: whether Apple's do that in
fp16 is not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vigcli.coreml.interpreter import OpInfo, Precision, Program
from vigcli.coreml.op_blocks import ELSEWHERE, op_blocks
from vigcli.errors import VigError

FP16_MAX = 65504.0
MARGIN = 2.0  # other pictures may reach further than those that were run
FEW, FAR = 4, 16  # pictures after which no more are run where nothing reaches the 16th part of fp16's range
_AROUND = ("cast", "classify")  # operations that compute nothing


class Reach(NamedTuple):
    """The least and the greatest value of one result over all pictures."""

    info: OpInfo
    low: float
    high: float

    @property
    def largest(self) -> float:
        """The largest absolute value."""
        return max(-self.low, self.high)

    @property
    def overflows(self) -> bool:
        """Whether it is kept in fp16 and may leave its range."""
        type_ = self.info.type
        return type_ is not None and type_.dtype == "fp16" and not self.largest <= FP16_MAX / MARGIN


def reaches(
    program: Program,
    images: Tensor,
    precision: Precision = "fp32",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Reach]:
    """Of every floating-point result, in the order in which they are computed; of NaN bounds are NaN.

    Ends after `FEW` pictures where all results are so `FAR` from the end of fp16: no other picture reaches so much
    further.

    Args:
        images: (N, 3, R, R) RGB in 0 ... 255; a last batch that is not full is filled up with the first.
        precision: `fp32` says what the network does, `stored` what the program makes of it.
    """
    feature = program.inputs[0]
    batch = (feature.shape or (1,))[0] or 1
    infos: dict[str, OpInfo] = {}
    bounds: dict[str, Tensor] = {}  # -least, greatest

    def widen(info: OpInfo, value: Tensor) -> None:
        if value.is_floating_point():
            low, high = torch.aminmax(value)
            here = torch.stack([-low, high])
            infos[info.name] = info
            bounds[info.name] = torch.maximum(bounds.get(info.name, here), here)  # of NaN it makes NaN

    for start in range(0, len(images), batch):
        if start >= FEW and bool(torch.stack([*bounds.values()]).max() <= FP16_MAX / FAR):
            break
        on_progress(start, len(images))
        part = images[torch.arange(start, start + batch) % len(images)]
        program.run({feature.name: part.float()}, precision=precision, tap=widen)
    return [Reach(info, *(bounds[name] * torch.tensor([-1, 1])).tolist()) for name, info in infos.items()]


def check_finite(program: Program, found: Iterable[Reach], blocks: Sequence[str]) -> None:
    """Raise VigError for the first result that is no finite number in fp32."""
    for reach in found:
        if not math.isfinite(reach.largest):
            where = described(program, reach.info, blocks)
            raise VigError(f"{where} is not finite in fp32.", "The weights are damaged, or their training diverged.")


def check_half(
    program: Program, found: Sequence[Reach], num_images: int, blocks: Sequence[str], precision: str
) -> None:
    """Raise VigError where results may leave the range of fp16, naming the first."""
    over = [reach for reach in found if reach.overflows]
    if not over:
        return
    kept = len(kept_apart(program, {reach.info.name for reach in over}))
    first = over[0]
    share = "beyond fp16, which ends at 65504" if first.largest > FP16_MAX else "over half of fp16's range (65504)"
    what = f"{described(program, first.info, blocks)} reaches {first.largest:.3g} on {num_images} pictures, {share}"
    mixed = f"vig export --precision mixed keeps {kept} of {len(_computed(program))} results in fp32."
    raise VigError(f"{what}.", mixed if precision == "fp16" else "vig export --precision fp32 holds them all.")


def kept_apart(program: Program, over: set[str]) -> set[str]:
    """The results that have to be computed in fp32: those that leave fp16's range, and what is computed from them."""
    return {info.name for info in _computed(program) if info.name in over or over & set(info.inputs)}


def kept_in_fp32(program: Program, precision: str) -> tuple[str, ...]:
    """Of a mixed program the results that it computes in fp32; the casts around them left out."""
    if precision != "mixed":
        return ()
    return tuple(info.name for info in _computed(program) if info.type is not None and info.type.dtype == "fp32")


def _computed(program: Program) -> list[OpInfo]:
    """The results that have a floating-point precision, casts between them left out."""
    return [
        info
        for info in program.operations
        if info.op_type not in _AROUND and info.type is not None and info.type.dtype.startswith("fp")
    ]


def described(program: Program, info: OpInfo, blocks: Sequence[str]) -> str:
    """`conv 'input_33' of stages[1].blocks[2]`."""
    block = op_blocks(program, blocks).get(info.name)
    return f"{info.op_type} '{info.name}'" + (f" of {block}" if block and block != ELSEWHERE else "")

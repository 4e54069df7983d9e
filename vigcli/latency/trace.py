"""What one forward pass moves and computes, as plain data: ops, their bytes and their MACs. No torch here.

`vigcli.measure.trace` makes these from a network; `vigcli.latency.calibrated` and the tables price them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

SPILL_BYTES = 2_000_000  # activations of one op beyond this leave the on-chip memory, in the four-coefficient model
# DeiT and ViT (197 tokens) come out 37 to 80 % too fast; MobileViT (256) 70 % by one lab, 7 % too slow by another.
# FastViT at 384 px (144 tokens) is as far off as at 256 px (64).
MANY_TOKENS = 196
MANY_PIXELS = 300  # EfficientNet-B3 (300 px) and EfficientNetV2-S (384 px) come out 29 to 46 % too fast

# What an op can be that moves bytes like any other, and that a price fitted to bytes is wrong about.
MARKS = {
    "topk": "top-k, which leaves the Neural Engine",
    "gather": "a gather, which leaves the Neural Engine",
    "grid_sample": "grid_sample, which leaves the Neural Engine",
    "tokens": f"attention over {MANY_TOKENS} tokens and more",
    "excite": f"squeeze-excite at {MANY_PIXELS} px and more",
}


class Op(NamedTuple):
    """One operation that runs, after folding what the device folds. Bytes are fp16 (2 an element), at batch 1."""

    kind: str  # dense, pw, dw, grp, lin, mm, elt, act, cat, mov, perm, pool, red, norm, sm, topk, up
    act_bytes: int  # activations read and written
    weight_bytes: int  # weights read, biases left out
    macs: int
    block: str = ""  # the block of the network that it belongs to
    mark: str = ""  # of `MARKS`; published lists of ops have none


@dataclass(frozen=True)
class OpTrace:
    """The ops of a network or block in the two fusions that the price needs.

    Attributes:
        ops: every op by the capture rule (fusion F0): batch norm, ReLU and layer scale folded, views free.
        fused: fusion F2: activations and scalar ops folded as well, a residual add costs its second operand.
        path_layers: convolution, linear and matmul layers on the longest path from input to output.
    """

    ops: tuple[Op, ...]
    fused: tuple[Op, ...]
    path_layers: int

    @property
    def num_ops(self) -> int:
        return len(self.ops)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolution, linear and matmul."""
        return sum(op.macs for op in self.ops)

    @property
    def depthwise_macs(self) -> int:
        return sum(op.macs for op in self.ops if op.kind == "dw")

    @property
    def act_mb(self) -> float:
        """Megabytes (1e6) of activations in and out over all ops, fp16."""
        return sum(op.act_bytes for op in self.ops) / 1e6

    @property
    def weight_mb(self) -> float:
        """Megabytes (1e6) of weights, fp16."""
        return sum(op.weight_bytes for op in self.ops) / 1e6

    @property
    def moved_bytes(self) -> int:
        """Bytes of fp16 that a forward pass moves: activations in and out and weights over all `ops`, no fusion F2."""
        return sum(op.act_bytes + op.weight_bytes for op in self.ops)

    @property
    def spill_mb(self) -> float:
        """Megabytes (1e6) of each op's activations beyond 2 MB."""
        return sum(max(0, op.act_bytes - SPILL_BYTES) for op in self.ops) / 1e6

    def block(self, name: str) -> OpTrace:
        """The part of the trace that belongs to one block; its path length is not known and stands as 0."""
        return OpTrace(
            tuple(op for op in self.ops if op.block == name), tuple(op for op in self.fused if op.block == name), 0
        )


def block_names(ops: Iterable[Op]) -> list[str]:
    """The blocks of the ops in the order in which they first run."""
    return list(dict.fromkeys(op.block for op in ops))

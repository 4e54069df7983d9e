"""How much of a forward pass is in memory at once; which calls it makes is `vigcli.measure.trace`'s matter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from vigcli.measure.trace import SLICES, Node, folded_calls


def peak_bytes(nodes: Sequence[Node]) -> int:
    """The most bytes of activations alive at once, in fp16, when recorded calls run one by one in their order.

    A value is alive from the call that makes it until the last that reads it, the input from the start; what nothing
    reads is the output and stays. No call writes over its input. Views (slices and permutations are views in torch)
    and what a layer absorbs share the memory of their source; weights are not counted. A compiler that fuses
    activations needs less, one that copies slices more.
    """
    folded = folded_calls(nodes)
    dies = _last_reads(nodes, folded)
    freed: Counter[int] = Counter()
    for value, last in dies.items():
        freed[last] += value.out_bytes
    alive = sum(value.out_bytes for value in dies if value.kind == "input")
    peak = alive
    for i, node in enumerate(nodes):
        alive += 0 if node.constant or _home(node, folded) is not node else node.out_bytes
        peak = max(peak, alive)
        alive -= freed[i]
    return peak


def _last_reads(nodes: Sequence[Node], folded: set[Node]) -> dict[Node, int]:
    """For every value that has memory of its own, the index of the last call that needs it."""
    read = {source for node in nodes for x in node.inputs for source in (x, *(x.inputs if x.kind == "pick" else ()))}
    last: dict[Node, int] = {}
    for i, node in enumerate(nodes):
        for value in _homes((*node.inputs, node), folded):
            last[value] = max(i, last.get(value, i))
        if node not in read:
            last.update(dict.fromkeys(_homes((node,), folded), len(nodes)))
    return last


def _homes(values: Iterable[Node], folded: set[Node]) -> list[Node]:
    return [_home(value, folded) for value in values if not value.constant]


def _home(value: Node, folded: set[Node]) -> Node:
    """The value whose memory this one is in."""
    while value.kind in ("view", "pick", "perm") or value.name in SLICES or value in folded:
        value = next(x for x in value.inputs if not x.constant)
    return value

"""What the blocks of a network run at other widths, told without building it: allocation asks that thousands of times.

An operation moves and computes what is a polynomial of the second degree in the few widths that it sees: a weight has
two, a concatenation of two maps before it makes them three. So some networks of random widths, counted as any other,
tell all others. Prices are `allocate`'s matter.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigcli.compress.groups import Group, Pruner
from vigcli.latency.trace import OpTrace
from vigcli.measure.profile import BlockProfile, Profile, profile

NUM_SAMPLES = 18  # a polynomial in three widths has ten unknowns; the others show whether it is one
MAX_WIDTHS = 3  # that one operation depends on
EXACT = 1e-6  # of the greatest value: by so much a polynomial may be off
_NUMBERS = ("act_bytes", "weight_bytes", "macs")

Array = NDArray[np.float64]
Kept = dict[str, int]
"""By group: how many of its units stay."""


def full(groups: Iterable[Group]) -> Kept:
    """All units of all groups."""
    return {group.name: group.num_units for group in groups}


class Block(NamedTuple):
    """A block at some widths, in its deployed form."""

    signature: str
    trace: OpTrace
    params: int


class Widths:
    """The blocks of a pruner's network by the units kept of its groups.

    Attributes:
        profile: of the network as it is.
        touched: by group, the places of the blocks that change with it.
    """

    def __init__(self, pruner: Pruner, on_progress: Callable[[str, int, int], None] = lambda what, done, total: None):
        self.full = full(pruner.groups)
        samples = [self.full, *_random(pruner.groups)]
        counted: list[Profile] = []
        for kept in samples:
            on_progress("counting networks", len(counted), len(samples))
            counted.append(profile(pruner.config(kept)))
        self.profile = counted[0]
        shares = np.array([[kept[name] / self.full[name] for name in self.full] for kept in samples])
        self._blocks = [
            _Fitted(blocks, shares, list(self.full), _inside(blocks[0].name, pruner.groups))
            for blocks in zip(*(one.blocks for one in counted), strict=True)
        ]
        self.touched = {name: [i for i, block in enumerate(self._blocks) if name in block.groups] for name in self.full}

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    def key(self, place: int, kept: Mapping[str, int]) -> tuple[int, ...]:
        """All that a block depends on."""
        return tuple(kept[name] for name in self._blocks[place].groups)

    def at(self, place: int, kept: Mapping[str, int]) -> Block:
        """A block of the network with so many units of each group; that of the whole network as it was counted."""
        block, key = self._blocks[place], self.key(place, kept)
        shares = np.array(key) / np.array([self.full[name] for name in block.groups])
        return block.whole if np.all(shares == 1) else block.at(shares)


def _random(groups: Sequence[Group]) -> list[Kept]:
    """Networks whose groups are cut at random, some of them less than others; steps that they are rounded to would
    leave narrow ones too few widths to tell a polynomial by."""
    generator = np.random.default_rng(0)
    return [
        {x.name: x.sections * int(generator.integers(_parts(x, least), x.num_units // x.sections + 1)) for x in groups}
        for least in np.linspace(0.1, 0.7, NUM_SAMPLES - 1)
    ]


def _parts(group: Group, share: float) -> int:
    """The fewest units of each section that are at least such a share."""
    return math.ceil(share * group.num_units / group.sections)


def _inside(block: str, groups: Iterable[Group]) -> set[str]:
    """The groups with a layer in a block: torch calls `stages[1].blocks[0]` `stages.1.0`, timm `stages.1.blocks.0`."""
    starts = (_path(block) + ".", _path(block.replace(".blocks[", "[")) + ".")
    return {group.name for group in groups if any(f"{_path(layer)}.".startswith(starts) for layer in group.layers)}


def _path(text: str) -> str:
    return re.sub(r"\[(\d+)\]", r".\1", text)


# ---------------------------------------------------------------------------------------------------- polynomials


class _Polynomial(NamedTuple):
    """Some numbers of a block by the shares of the groups at `places`: (columns,) = basis(shares) @ factors."""

    places: list[int]
    basis: Callable[[Array], Array]
    columns: list[int]
    factors: Array


class _Fitted:
    """One block: its numbers as polynomials in the shares that are kept of its groups.

    Attributes:
        groups: those that it depends on.
        whole: the block as it is.
    """

    def __init__(self, samples: Sequence[BlockProfile], shares: Array, names: Sequence[str], near: set[str]):
        self.whole = Block(samples[0].signature, samples[0].trace, samples[0].params)
        # What is small enough to be free stands in no list of operations: the samples that have most lists are taken.
        kinds = [_kinds(sample.trace) for sample in samples]
        usual = Counter(kinds).most_common(1)[0][0]
        taken = [i for i, found in enumerate(kinds) if found == usual]
        self._like = samples[taken[-1]]
        values = np.array([_numbers(samples[i]) for i in taken], float)
        fitted = _polynomials(values, shares[taken], [i for i, name in enumerate(names) if name in near])
        used = sorted({place for polynomial in fitted for place in polynomial.places})
        self.groups = tuple(names[place] for place in used)
        self._polynomials = [x._replace(places=[used.index(place) for place in x.places]) for x in fitted]

    def at(self, shares: Array) -> Block:
        """The block with these shares of its groups (groups,)."""
        numbers = np.zeros(sum(len(polynomial.columns) for polynomial in self._polynomials))
        for places, basis, columns, factors in self._polynomials:
            numbers[columns] = basis(shares[None, places])[0] @ factors
        others, *rest = numbers.round().clip(0).astype(int).tolist()
        like = self._like.trace
        told = [
            op._replace(**dict(zip(_NUMBERS, three, strict=True)))
            for op, three in zip((*like.ops, *like.fused), zip(*[iter(rest)] * len(_NUMBERS), strict=True), strict=True)
        ]
        count = len(like.ops)
        trace = OpTrace(tuple(told[:count]), tuple(told[count:]), like.path_layers)
        return Block(self._like.signature, trace, others + _num_weights(trace))


def _kinds(trace: OpTrace) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(op.kind for op in ops) for ops in (trace.ops, trace.fused))


def _num_weights(trace: OpTrace) -> int:
    return sum(op.weight_bytes for op in trace.ops) // 2


def _numbers(block: BlockProfile) -> list[int]:
    """Parameters that are no weight of an operation (biases, scales), then what each operation moves and computes."""
    ops = (*block.trace.ops, *block.trace.fused)
    return [block.params - _num_weights(block.trace), *(getattr(op, name) for op in ops for name in _NUMBERS)]


def _polynomials(values: Array, shares: Array, near: list[int]) -> list[_Polynomial]:
    """(samples, numbers) as polynomials in as few of the shares (samples, groups) as explain them.

    The groups `near` are tried first; what nothing explains is told as nearly as a sum over these can.
    """
    everything = list(range(shares.shape[1]))
    tries = [(list(places), _products) for n in range(MAX_WIDTHS + 1) for places in itertools.combinations(near, n)]
    tries.append((near, _sum))
    tries += [(list(places), _products) for n in (1, 2) for places in itertools.combinations(everything, n)]
    found: list[_Polynomial] = []
    left = np.arange(values.shape[1])
    for places, basis in tries:
        if len(left):
            factors, off = _solved(basis(shares[:, places]), values[:, left])
            exact = off <= EXACT * np.maximum(1.0, np.abs(values[:, left]).max(0))
            found.append(_Polynomial(places, basis, left[exact].tolist(), factors[:, exact]))
            left = left[~exact]
    factors, _ = _solved(_sum(shares[:, near]), values[:, left])
    found.append(_Polynomial(near, _sum, left.tolist(), factors))
    return [polynomial for polynomial in found if polynomial.columns]


def _solved(basis: Array, values: Array) -> tuple[Array, Array]:
    """Factors by least squares, and how far the farthest sample of each column is off."""
    factors: Array = np.linalg.lstsq(basis, values, rcond=None)[0].astype(np.float64)
    off: Array = np.abs(basis @ factors - values).max(0)
    return factors, off


def _sum(shares: Array) -> Array:
    """(samples, n) -> (samples, 1 + n): one and the shares."""
    return np.concatenate([np.ones((len(shares), 1)), shares], axis=1)


def _products(shares: Array) -> Array:
    """(samples, n) -> (samples, 1 + n + n (n + 1) / 2): one, the shares and their products of two."""
    pairs = itertools.combinations_with_replacement(range(shares.shape[1]), 2)
    return np.concatenate([_sum(shares), *(shares[:, [i]] * shares[:, [j]] for i, j in pairs)], axis=1)

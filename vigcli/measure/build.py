"""A latency table that is measured: every block timed alone, joined so that blocks add up to whole networks.

Timing itself is `vigcli.measure.bench`'s matter; any other that times a chain of blocks can take its place.

A block alone costs other than in a network: its input comes in the plain layout and has to be rearranged, where in a
network the block before hands it on as it is, and its weights stay in the caches, which in a network others have used
since. Over whole networks three numbers make up for it: `factor` on the block's milliseconds, `ms_per_mb` for each MB
(1e6 bytes, fp32) that enters it, and a share of its first milliseconds, more or less by its kind. They are fitted on
networks drawn for that alone (the anchors) and folded into the rows, so that rows simply add up. How wrong their sums
are is told by other networks (the tests), which neither a row nor the fit has seen whole.
"""

from __future__ import annotations

import datetime
import gc
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from vigcli import __version__
from vigcli.archs import build_block
from vigcli.config.archs import VARIANTS, BlockSpec, arch_config
from vigcli.config.space import SearchSpace, sample
from vigcli.config.space_blocks import space_specs
from vigcli.errors import ConfigError
from vigcli.latency.interpolate import BlockPrice, Features, Interpolation, block_kind, features_of, left_out
from vigcli.latency.table import Accuracy, Interval, LatencyTable, Row
from vigcli.latency.trace import OpTrace
from vigcli.measure.bench import (
    MIN_CALLS,
    PROTOCOL,
    Call,
    Machine,
    Session,
    Timing,
    empty_session,
    rounds,
    steadied,
    timing,
)
from vigcli.measure.count import count_block
from vigcli.measure.join import FIRST_MS, BlockAlone, Chain, accuracy, fit_join, interval
from vigcli.nn.deploy import deploy

MAX_NETWORK_GMACS = 5.0  # of a network that is timed whole: a bigger one says no more, and takes longer
NETWORKS_FROM_EACH = 2  # anchors from each space and family, and as many tests; with `quick` one
GRID = 3.0  # blocks of a kind that are measured, by the root of how many there are
KEPT_WHOLE = ("stem", "isotropic_stem", "head")
MAX_DRAWS = 200  # from a space or family

Progress = Callable[[str, int, int], None]


class Piece(NamedTuple):
    """A block that can be built by itself."""

    family: str
    spec: BlockSpec

    @property
    def trace(self) -> OpTrace:
        return count_block(self.family, self.spec).deployed

    @property
    def kind(self) -> str:
        """Between whose rows the block is interpolated."""
        return block_kind(self.spec.signature)

    @property
    def entering_mb(self) -> float:
        """Megabytes (1e6) of fp32 that enter the block."""
        return 4 * math.prod(self.spec.in_shape) / 1e6


Pieces = tuple[Piece, ...]
Timer = Callable[[Pieces], Call]
"""Makes ready to time a chain of blocks, each of which takes what the one before gives; of none: an empty call."""


class Plan(NamedTuple):
    """What a table is made of.

    Attributes:
        blocks: signature -> the block; each becomes a row.
        networks: name -> the blocks, each of which has a row or is interpolated: `anchor ...` for the join,
            `test ...` for the accuracy.
    """

    blocks: dict[str, Piece]
    networks: dict[str, Pieces]

    @property
    def digest(self) -> str:
        """Tells one plan from another."""
        chains = {name: [piece.spec.signature for piece in pieces] for name, pieces in self.networks.items()}
        return hashlib.sha256(json.dumps([sorted(self.blocks), chains]).encode()).hexdigest()[:16]


def plan(spaces: Iterable[SearchSpace], quick: bool = False, seed: int = 0) -> Plan:
    """Every block of the named networks, and of the spaces a grid inside whose kinds all others are; with `quick` a
    coarser one of both.

    Anchors and tests are the same number, drawn by `seed`; with `quick` half as many.
    """
    spaces = list(spaces)
    named = {spec.signature: Piece(c.family, spec.counted()) for c in VARIANTS.values() for spec in c.blocks()}
    blocks = dict(named)
    for space in spaces:
        family = arch_config(space.base).family
        blocks |= {signature: Piece(family, spec) for signature, spec in space_specs(space).items()}
    kept = _thinned(blocks, () if quick else named, GRID / 2 if quick else GRID)
    networks = random_networks(spaces, 2 if quick else 2 * NETWORKS_FROM_EACH, np.random.default_rng(seed))
    # Each source gives its networks one after another: every other one is a test, so that both have all families.
    chains = {f"{('anchor', 'test')[i % 2]} {i // 2}": pieces for i, pieces in enumerate(networks)}
    return Plan(dict(sorted(kept.items())), chains)


def _thinned(blocks: Mapping[str, Piece], wanted: Iterable[str], grid: float) -> dict[str, Piece]:
    """Of each kind the wanted blocks, those with the least and the most of each feature, so that no block is beyond
    them, and then the one that is farthest from all before it, until they are `grid` times the root of their number.

    Stems and heads are all kept: they are few and quick, and what is between them is known worst.
    """
    kinds: dict[str, list[str]] = {}
    for signature in sorted(blocks):
        kinds.setdefault(block_kind(signature), []).append(signature)
    kept: list[str] = []
    for kind, signatures in kinds.items():
        if kind in KEPT_WHOLE:
            kept += signatures
            continue
        features = np.array([features_of(blocks[signature].trace) for signature in signatures])
        chosen = {signatures.index(signature) for signature in wanted if block_kind(signature) == kind}
        chosen |= {*features.argmin(0).tolist(), *features.argmax(0).tolist()}
        place = np.log(features + 1e-3 * features.max(0) + 1e-12)
        distance = np.abs(place[:, None] - place[None, sorted(chosen)]).sum(-1).min(1)
        while len(chosen) < min(grid * len(signatures) ** 0.5, len(signatures)):
            farthest = int(distance.argmax())
            chosen.add(farthest)
            distance = np.minimum(distance, np.abs(place - place[farthest]).sum(-1))
            distance[sorted(chosen)] = -1
        kept += [signatures[i] for i in chosen]
    return {signature: blocks[signature] for signature in kept}


def random_networks(spaces: Iterable[SearchSpace], from_each: int, generator: np.random.Generator) -> list[Pieces]:
    """Different networks, `from_each` of every space and every family: drawn from the space, or a named network whose
    blocks that keep the shape are left out, kept or doubled by chance.

    A space gives fewer where it has no more that differ and are no bigger than `MAX_NETWORK_GMACS`.
    """
    found: dict[Pieces, None] = {}

    def draw(one: Callable[[], Pieces]) -> None:
        wanted = len(found) + from_each
        for _ in range(MAX_DRAWS):
            if len(found) == wanted:
                break
            pieces = one()
            if sum(piece.trace.macs for piece in pieces) <= MAX_NETWORK_GMACS * 1e9:
                found.setdefault(pieces)

    for space in spaces:
        base = arch_config(space.base)
        draw(lambda: _pieces(base.family, sample(space, base, lambda n: int(generator.integers(n))).blocks()))  # noqa: B023
    families: dict[str, list[Pieces]] = {}
    for config in VARIANTS.values():
        pieces = _pieces(config.family, config.blocks())
        if sum(piece.trace.macs for piece in pieces) <= MAX_NETWORK_GMACS * 1e9:
            families.setdefault(config.family, []).append(pieces)
    for named in families.values():
        draw(lambda: _other_depths(named[generator.integers(len(named))], generator))  # noqa: B023
    return list(found)


def _pieces(family: str, specs: Iterable[BlockSpec]) -> Pieces:
    return tuple(Piece(family, spec.counted()) for spec in specs)


def _other_depths(pieces: Pieces, generator: np.random.Generator) -> Pieces:
    chosen: list[Piece] = []
    for piece, following in zip(pieces, (*pieces[1:], None), strict=True):
        same_shape = following is not None and piece.spec.in_shape == following.spec.in_shape
        chosen += [piece] * (int(generator.choice((0, 1, 1, 2))) if same_shape else 1)
    return tuple(chosen)


def session_of(pieces: Pieces) -> Session:
    """A chain of blocks as it is deployed, with weights drawn anew, ready to be timed.

    Raises NotMeasurableError for one that cannot be exported.
    """
    if not pieces:
        return empty_session()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        chain = deploy(nn.Sequential(*(build_block(family, spec) for family, spec in pieces)))
    signature = pieces[0].spec.signature
    name = signature if len(pieces) == 1 else f"a {pieces[0].family} of {len(pieces)} blocks"
    return Session(chain, pieces[0].spec.in_shape, name)


# ---------------------------------------------------------------------------------------------------- rounds on disk


class RoundsFile:
    """Rounds as lines of JSON, appended one by one: a stop loses the round that runs, and no more.

    The first line says of which plan and machine they are. In a `with` the file is there to be appended to; without a
    round in it, it is removed at the end.

    Raises ConfigError for a file of another plan or machine, or that is no file of rounds.
    """

    def __init__(self, path: Path, planned: Plan, machine: Machine):
        self.path = path
        self._header = {"plan": planned.digest, "machine": str(machine), "tools": machine.tools}
        self.rounds: list[dict[str, float]] = []
        if path.exists():
            self._read()

    def __enter__(self) -> RoundsFile:
        if not self.rounds:  # before hours of work: where it cannot be written, this raises
            self.path.write_text(json.dumps(self._header) + "\n", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if not self.rounds:
            self.path.unlink()

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # a stop may have cut off the last
        try:
            found = [json.loads(line) for line in whole] or [self._header]
        except ValueError:
            found = [None]
        if found[0] != self._header:
            raise ConfigError(
                f"{self.path}: does not hold rounds of this plan on this machine.",
                "Delete it to begin anew, or choose another place with -o.",
            )
        self.rounds = found[1:]
        os.truncate(self.path, sum(len(line.encode()) for line in whole))

    def append(self, of_round: dict[str, float]) -> None:
        """Keep a round, on disk when this returns."""
        of_round = {name: round(ms, 6) for name, ms in of_round.items()}  # a nanosecond
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(of_round) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rounds.append(of_round)


EMPTY = "(empty)"
EXPORT_MS, VISIT_MS, MS_PER_GMAC = 150.0, 8.0, 11.0  # CPU time for a block, a visit and a call, on a server of 2025
BYTES_PER_WEIGHT_BYTE = 1.6  # of memory: weights as given and as rearranged
FREE_EVERY = 20  # exports, after which what they left behind in cycles is given back


def predicted_bytes(planned: Plan) -> float:
    """About how much memory the plan takes: all is ready at once, so that rounds can visit all."""
    pieces = [*planned.blocks.values(), *(piece for chain in planned.networks.values() for piece in chain)]
    return BYTES_PER_WEIGHT_BYTE * sum(2e6 * piece.trace.weight_mb for piece in pieces)  # the trace's are fp16


def predicted_seconds(planned: Plan, num_rounds: int) -> float:
    """About how much CPU time so many rounds take, the export with them."""
    chains = [*((piece,) for piece in planned.blocks.values()), *planned.networks.values()]
    gmacs = sum(piece.trace.macs for pieces in chains for piece in pieces) / 1e9
    visits_ms = VISIT_MS * len(chains) + (MIN_CALLS + 1) * MS_PER_GMAC * gmacs
    return (EXPORT_MS * sum(map(len, chains)) + num_rounds * visits_ms) / 1e3 if num_rounds > 0 else 0.0


def measure(
    planned: Plan,
    file: RoundsFile,
    num_rounds: int,
    seed: int = 0,
    timer: Timer = session_of,
    on_progress: Progress = lambda what, done, total: None,
) -> dict[str, Timing]:
    """Time everything that is planned until the file holds `num_rounds`; signature or name of a network -> timing.

    Raises NotMeasurableError for a block that cannot be exported, UnavailableError without what times.
    """
    if len(file.rounds) < num_rounds:
        with file:
            _add_rounds(planned, file, num_rounds, seed, timer, on_progress)
    steady = steadied(file.rounds)
    return {name: timing([of_round[name] for of_round in steady]) for name in steady[0]}


def _add_rounds(
    planned: Plan, file: RoundsFile, num_rounds: int, seed: int, timer: Timer, on_progress: Progress
) -> None:
    jobs: dict[str, Pieces] = {EMPTY: (), **{s: (piece,) for s, piece in planned.blocks.items()}, **planned.networks}
    calls: dict[str, Call] = {}
    for name, pieces in jobs.items():
        calls[name] = timer(pieces)
        if len(calls) % FREE_EVERY == 0:
            gc.collect()
        on_progress("exported", len(calls), len(jobs))
    endless = rounds(calls, seed + len(file.rounds))
    while len(file.rounds) < num_rounds:
        file.append(next(endless))
        on_progress("rounds", len(file.rounds), num_rounds)


# ---------------------------------------------------------------------------------------------------- the table


def table_of(planned: Plan, timings: Mapping[str, Timing], machine: Machine, aliases: tuple[str, ...]) -> LatencyTable:
    """The table that the timings of a plan give."""
    empty_ms = timings[EMPTY].ms
    alone = {s: max(timings[s].ms - empty_ms, 1e-4) for s in planned.blocks}
    features = {s: _rounded(features_of(piece.trace)) for s, piece in planned.blocks.items()}
    found = Interpolation({s: (alone[s], features[s]) for s in alone})

    def alone_ms(piece: Piece) -> float:
        signature = piece.spec.signature
        price = BlockPrice(alone[signature], 0, "exact", "measured") if signature in alone else None
        price = price or found.price(signature, piece.trace)
        assert price is not None, f"{signature} has no kin in the plan"
        return price.ms

    anchors = [(timings[name].ms, chain) for name, chain in planned.networks.items() if name.startswith("anchor")]
    join = fit_join([
        Chain(ms - empty_ms, tuple(BlockAlone(piece.kind, alone_ms(piece), piece.entering_mb) for piece in pieces))
        for ms, pieces in anchors
    ])  # fmt: skip
    rows = {
        signature: Row(
            ms=round(join.row_ms(piece.kind, alone[signature], piece.entering_mb), 6),
            plus_minus_ms=round(join.factor * timings[signature].plus_minus_ms, 6),
            kind="measured",
            num_runs=timings[signature].num_rounds,
            where=machine.cpu,
            features=features[signature],
        )
        for signature, piece in planned.blocks.items()
    }
    table = LatencyTable(
        format=2,
        unit="ms",
        device=f"{machine.cpu.partition(' (')[0]} (CPU, one thread)",
        aliases=aliases,
        soc=machine.cpu,
        os=machine.os,
        runtime="ONNX Runtime",
        compute_unit="CPU, one thread",
        precision="fp32",
        protocol=f"{PROTOCOL}; {timings[EMPTY].num_rounds} rounds; joined by x {join.factor:.4f} "
        f"- {join.ms_per_mb:.4f} ms per MB of fp32 that enters a block + {join.share:.2f} of its first {FIRST_MS:g} ms"
        ", more or less by its kind; the error is of networks timed in the same rounds: a busier machine takes longer",
        source=f"`vig table build` on {machine}",
        date=datetime.date.today().isoformat(),
        tools={"vig": __version__, **machine.tools},
        kind="measured",
        fixed_ms=round(empty_ms, 6),
        interval=Interval(factor=2.0, coverage_percent=100),  # until the tests have spoken
        accuracy={},
        calibration=None,
        num_rows=len(rows),
        rows=rows,
    )
    tests = {name: pieces for name, pieces in planned.networks.items() if name.startswith("test")}
    predicted = [predicted_ms(table, pieces) for pieces in tests.values()]
    measured = [timings[name].ms for name in tests]
    judged = {"networks": accuracy(predicted, measured), "interpolated": interpolation_accuracy(table)}
    return table.model_copy(update={"interval": interval(predicted, measured), "accuracy": judged})


def _rounded(features: Features) -> Features:
    gmacs, depthwise, act_mb, weight_mb, num_ops = (float(f"{value:.6g}") for value in features)
    return gmacs, depthwise, act_mb, weight_mb, num_ops


def predicted_ms(table: LatencyTable, pieces: Pieces) -> float:
    """What the table says of a chain of blocks."""
    blocks = [(piece.spec.signature, piece.trace) for piece in pieces]
    return table.estimate(pieces[0].family, blocks, table.precision).ms


def interpolation_accuracy(table: LatencyTable) -> Accuracy:
    """How well each row is told by the others of its kind."""
    rows = {s: (row.ms, row.features) for s, row in table.rows.items() if row.features}
    found = left_out(rows)
    return accuracy(list(found.values()), [rows[signature][0] for signature in found])

"""A network block by block: parameters, MACs and milliseconds, counted without allocating a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vigcli.archs import build, inference_form
from vigcli.config.archs import ArchConfig, BlockSpec, TimmConfig
from vigcli.latency.table import LatencyEstimate, LatencyTable
from vigcli.latency.trace import OpTrace
from vigcli.measure.count import ParamCounts, count_block, count_params, num_params
from vigcli.measure.memory import peak_bytes
from vigcli.measure.trace import op_trace, record


@dataclass(frozen=True)
class BlockProfile:
    """One block of the deployed network.

    Attributes:
        what: the signature without the options that all blocks of its kind in this network share; of a pruned block
            that of the whole one, and that it was.
        params: deployed parameters.
    """

    name: str
    signature: str
    what: str
    params: int
    trace: OpTrace


@dataclass(frozen=True)
class Profile:
    """A network in numbers: the blocks add up to it.

    Attributes:
        name: by which a latency table tells the family.
        peak_bytes: the most bytes of fp16 activations alive at once in the deployed form, batch 1.
    """

    name: str
    params: ParamCounts
    blocks: tuple[BlockProfile, ...]
    peak_bytes: int

    @property
    def macs(self) -> int:
        """MACs of convolution, linear and matmul in the deployed form, batch 1."""
        return sum(block.trace.macs for block in self.blocks)

    @property
    def moved_bytes(self) -> int:
        """Bytes of fp16 activations and weights that a forward pass of the deployed form moves, by fusion F0."""
        return sum(block.trace.moved_bytes for block in self.blocks)

    def latency(self, table: LatencyTable, precision: str | None = None) -> LatencyEstimate:
        """The price of the network, at the table's precision unless another is asked for.

        Raises NotMeasurableError for a precision or a block that the table does not know.
        """
        return table.estimate(self.name, [(block.signature, block.trace) for block in self.blocks], precision)


def profile(config: ArchConfig) -> Profile:
    """Count every block of a network. Raises ConfigError for a network that cannot be built."""
    return _timm(config) if isinstance(config, TimmConfig) else _ours(config)


def _ours(config: ArchConfig) -> Profile:
    named = config.named_blocks()
    counts = [count_block(config.family, spec) for spec in named.values()]
    shorts = _short_signatures([count.spec for count in counts])
    blocks = (
        BlockProfile(name, count.spec.signature, short, count.params.deployed, count.deployed)
        for name, count, short in zip(named, counts, shorts, strict=True)
    )
    # Blocks run one after another and hand one value on, so none sees more of the network than its own input.
    peak = max(count.peak_bytes for count in counts)
    return Profile(config.family, count_params(config), tuple(blocks), peak)


def _short_signatures(specs: Sequence[BlockSpec]) -> list[str]:
    options: dict[str, list[set[tuple[str, Any]]]] = {}
    for spec in specs:
        options.setdefault(spec.kind, []).append(set(spec.options))
    shared = {kind: set.intersection(*found) if len(found) > 1 else set() for kind, found in options.items()}

    def short(spec: BlockSpec) -> str:
        options = tuple(pair for pair in spec.options if pair not in shared[spec.kind])
        return ("pruned from " if spec.pruned else "") + spec._replace(options=options, pruned=()).signature

    return list(map(short, specs))


def _timm(config: TimmConfig) -> Profile:
    """By the parts that a timm network names at its top, one level deeper where they are lists of stages."""
    model = inference_form(config, build(config, device="meta"))
    parts = {}
    for name, child in model.named_children():
        children = dict(child.named_children()) if name in ("stages", "blocks", "layers") else {}
        parts.update({f"{name}[{key}]": part for key, part in children.items()} or {name: child})
    calls = record(model, (config.in_chans, config.resolution, config.resolution), parts)
    traced = op_trace(calls)
    blocks = (
        BlockProfile(
            name or "(between)",
            f"timm:{config.name} {name} {config.resolution}",
            f"{type(parts[name]).__name__}" if name in parts else "",
            num_params(parts[name]) if name in parts else 0,
            traced.block(name),
        )
        for name in dict.fromkeys(op.block for op in (*traced.ops, *traced.fused))
    )
    return Profile(config.name, count_params(config), tuple(blocks), peak_bytes(calls))

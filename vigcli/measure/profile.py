"""A network block by block: parameters, MACs and milliseconds, counted without allocating a weight."""

from __future__ import annotations

from dataclasses import dataclass

from vigcli.archs import build, inference_form
from vigcli.config.archs import ArchConfig, TimmConfig
from vigcli.latency.table import LatencyEstimate, LatencyTable
from vigcli.latency.trace import OpTrace
from vigcli.measure.count import ParamCounts, count_block, count_params, num_params
from vigcli.measure.trace import trace


@dataclass(frozen=True)
class BlockProfile:
    """One block of the deployed network; `params` are its deployed parameters."""

    name: str
    signature: str
    params: int
    trace: OpTrace


@dataclass(frozen=True)
class Profile:
    """A network in numbers: the blocks add up to it."""

    name: str  # by which a latency table tells the family
    params: ParamCounts
    blocks: tuple[BlockProfile, ...]

    @property
    def macs(self) -> int:
        """MACs of convolution, linear and matmul in the deployed form, batch 1."""
        return sum(block.trace.macs for block in self.blocks)

    def latency(self, table: LatencyTable, precision: str = "fp16") -> LatencyEstimate:
        """The price of the network. Raises NotMeasurableError for a precision that the table does not know."""
        return table.estimate(self.name, [(block.signature, block.trace) for block in self.blocks], precision)


def profile(config: ArchConfig) -> Profile:
    """Count every block of a network. Raises ConfigError for a network that cannot be built."""
    if isinstance(config, TimmConfig):
        return Profile(config.name, count_params(config), _timm_blocks(config))
    return Profile(config.family, count_params(config), _blocks(config))


def _blocks(config: ArchConfig) -> tuple[BlockProfile, ...]:
    stem, *stages, head = config.segments()
    named = [("stem", stem[0])]
    named += [(f"stages[{i}].blocks[{j}]", spec) for i, stage in enumerate(stages) for j, spec in enumerate(stage)]
    named += [("head", head[0])]
    blocks = []
    for name, spec in named:
        count = count_block(config.family, spec)
        blocks.append(BlockProfile(name, spec.signature, count.params.deployed, count.deployed))
    return tuple(blocks)


def _timm_blocks(config: TimmConfig) -> tuple[BlockProfile, ...]:
    """The parts that a timm network names at its top, one level deeper where they are lists of stages."""
    model = inference_form(config, build(config, device="meta"))
    parts = {}
    for name, child in model.named_children():
        children = dict(child.named_children()) if name in ("stages", "blocks", "layers") else {}
        parts.update({f"{name}[{key}]": part for key, part in children.items()} or {name: child})
    traced = trace(model, (config.in_chans, config.resolution, config.resolution), parts)
    names = list(dict.fromkeys(op.block for op in (*traced.ops, *traced.fused)))
    return tuple(
        BlockProfile(
            name or "(between)",
            f"timm:{config.name} {name} {config.resolution}",
            num_params(parts[name]) if name in parts else 0,
            traced.block(name),
        )
        for name in names
    )

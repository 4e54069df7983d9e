"""What is to be measured of a search space: for each block two packages that differ by copies of it, written anywhere.

How their timings become milliseconds is told in `vigcli.latency.protocol`; taking them is left to
`vigcli.coreml.device`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vigcli.archs import build_block
from vigcli.config.archs import ArchConfig, BlockSpec, arch_config
from vigcli.config.load import parse_as
from vigcli.config.package import UniformPrecision
from vigcli.config.space import SearchSpace
from vigcli.config.space_blocks import space_specs
from vigcli.coreml.apple import coremltools
from vigcli.coreml.convert import to_program, write_program
from vigcli.errors import ConfigError
from vigcli.files import write_text
from vigcli.latency.interpolate import features_of
from vigcli.latency.plan import Block, Package, Plan
from vigcli.latency.protocol import Protocol
from vigcli.measure.count import count_block
from vigcli.nn.blocks import LayerScale
from vigcli.nn.deploy import deploy
from vigcli.runs.provenance import sha256

PLAN_FILE = "plan.json"
COPIES = 4  # of the shorter chain; the longer has twice as many
INPUT_NAME, OUTPUT_NAME = "x", "y"

Progress = Callable[[str, int, int], None]


def plan_of(
    space: SearchSpace, protocol: Protocol, every: int = 1, precision: UniformPrecision = "fp16", copies: int = COPIES
) -> Plan:
    """The plan of a space, or of every so many-th of its blocks in the order of their signatures: that keeps the
    shares of their kinds."""
    base: ArchConfig = arch_config(space.base)
    specs = list(space_specs(space).values())
    packages: dict[str, Package] = {}
    blocks = {}
    for i in range(0, len(specs), every):
        spec = specs[i]
        if output_shape(base.family, spec) == spec.in_shape:
            chains = [_package(spec, number) for number in (copies, 2 * copies)]
        else:
            alone = Package(kind="", in_shape=spec.in_shape, options=(), copies=0, partner=True)
            chains = [alone, _package(spec, 1, partner=True)]
        names = [_file_name(i, package) for package in chains]
        packages |= dict(zip(names, chains, strict=True))
        features = features_of(count_block(base.family, spec).deployed)
        blocks[spec.signature] = Block(few=names[0], many=names[1], features=features)
    return Plan(
        base=space.base, family=base.family, every=every, precision=precision, protocol=protocol, tools=_tools(),
        packages=packages, blocks=blocks,
    )  # fmt: skip


def _package(spec: BlockSpec, copies: int, partner: bool = False) -> Package:
    return Package(kind=spec.kind, in_shape=spec.in_shape, options=spec.options, copies=copies, partner=partner)


def _file_name(number: int, package: Package) -> str:
    shape = "x".join(map(str, package.in_shape))
    if not package.copies:
        return f"partner-{shape}.mlpackage"
    return f"{number:04d}-{package.kind}-{shape}-{package.copies}.mlpackage"


def _tools() -> dict[str, str]:
    from vigcli import __version__

    return {"vig": __version__, "coremltools": coremltools().__version__, "torch": torch.__version__}


# ---------------------------------------------------------------------------------------------------- modules


def output_shape(family: str, spec: BlockSpec) -> tuple[int, ...]:
    """The shape that a block's deployed form gives, without its batch: (C, H, W) of a map, (classes,) of a head."""
    block = deploy(nn.Sequential(build_block(family, spec, "meta")))
    with torch.no_grad():
        return tuple(block(torch.empty(1, *spec.in_shape, device="meta")).shape[1:])


class Partner(nn.Sequential):
    """A pointwise convolution and a ReLU: (B, C, H, W) -> the same. The ReLU keeps a compiler from multiplying it into
    a convolution that follows."""

    def __init__(self, width: int):
        super().__init__(nn.Conv2d(width, width, 1), nn.ReLU())


@torch.no_grad()
def module_of(family: str, package: Package) -> nn.Module:
    """The deployed module of a package, with weights drawn from a seed that is its own.

    Every copy has other weights: equal ones would be stored and fetched once, which a network's are not. Layer scales
    are drawn near 0.3, because those of a new network (1e-5) make weights that fp16 has no normal numbers for.
    """
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{package.spec.signature} {package.copies}".encode()))
        if package.partner:
            layers.append(Partner(package.in_shape[0]))
        layers += [build_block(family, package.spec) for _ in range(package.copies)]
        for layer in layers:
            for module in layer.modules():
                if isinstance(module, LayerScale):
                    module.gamma.uniform_(0.2, 0.4)
    return deploy(nn.Sequential(*layers))


# ---------------------------------------------------------------------------------------------------- files


def write_packages(plan: Plan, folder: Path | str, on_progress: Progress = lambda what, done, total: None) -> Plan:
    """Write every package of a plan and then `plan.json`, and give the plan with their hashes.

    Raises UnavailableError without coremltools, VigError where the folder cannot be written.
    """
    folder, written = Path(folder), {}
    for i, (name, package) in enumerate(plan.packages.items()):
        on_progress("converting", i, len(plan.packages))
        write_package(plan, package, folder / name)
        written[name] = package.model_copy(update={"sha256": sha256(folder / name)})
    plan = plan.model_copy(update={"packages": written})
    write_text(folder / PLAN_FILE, plan.model_dump_json(indent=2) + "\n")
    return plan


def write_package(plan: Plan, package: Package, path: Path) -> None:
    """Convert one package and write it; its input and output are fp16 where it computes in fp16."""
    ct = coremltools()
    dtype = np.float16 if plan.precision == "fp16" else np.float32  # else a cast would stand at either end
    shape = (1, *package.in_shape)
    example = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    program = to_program(
        module_of(plan.family, package),
        example,
        plan.precision,
        plan.minimum_ios,
        inputs=[ct.TensorType(name=INPUT_NAME, shape=shape, dtype=dtype)],
        outputs=[ct.TensorType(name=OUTPUT_NAME, dtype=dtype)],
    )
    program.author = "vig"
    what = package.spec.signature if package.copies else f"partner of {'x'.join(map(str, package.in_shape))}"
    program.short_description = f"For timing: {package.copies} copies of {what}, weights drawn."
    write_program(program, path)


def load_plan(folder: Path | str) -> Plan:
    """The plan of a folder, once every package of it is there and as it was written. Raises ConfigError."""
    path = Path(folder) / PLAN_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such plan.", "`vig table build --device mac --dry-run -o DIR` writes one."
        ) from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: is no JSON.", "Write the packages again.") from None
    plan = parse_as(Plan, data, str(path))
    for signature, block in plan.blocks.items():
        for name in {block.few, block.many} - plan.packages.keys():
            raise ConfigError(f"{path}: blocks: {signature}: no package {name}.", "Write the packages again.")
    for name, package in plan.packages.items():
        if not (Path(folder) / name).is_dir() or sha256(Path(folder) / name) != package.sha256:
            raise ConfigError(f"{Path(folder) / name}: is missing or was changed since.", "Write the packages again.")
    return plan

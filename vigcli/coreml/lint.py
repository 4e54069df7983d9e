"""What in a package may keep it off the Neural Engine or slow it there, block by block, with reason and way out.

Of Apple's rules few are published: each rule here says who reported it. Nothing was measured for this table; where a
Mac is, `vig profile PACKAGE --device mac` asks CoreML itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from vigcli.config.archs import ArchConfig
from vigcli.coreml.convert import meta_of
from vigcli.coreml.interpreter import OpInfo, Program, Step
from vigcli.coreml.op_blocks import op_blocks
from vigcli.errors import ConfigError

_PLAN = "compute plan of an M3 Pro in github.com/roboflow/rf-detr/pull/1495"
_GUIDE = "ane-guide.readthedocs.io, chapter 17 (an M1, taken apart)"


class Rule(NamedTuple):
    """A kind of finding.

    Attributes:
        leaves: whether such an operation is reported not to run on the Neural Engine.
    """

    leaves: bool
    reason: str
    source: str


RULES = {
    "gather": Rule(
        True, "reading by index is reported to run on the CPU", f"github.com/apple/coremltools/issues/1103; {_PLAN}"
    ),
    "top-k": Rule(
        True,
        "picking the greatest is reported to run on the CPU, with what reads by its answer",
        f"{_PLAN}; 1.75 ms of an iPhone 17 Pro, through Core AI, in github.com/apple/coreai-torch/issues/66",
    ),
    "tile": Rule(True, "reported to run on the CPU beside a top-k", _PLAN),
    "wide argmax": Rule(True, "along more than 2,048 elements it is reported to be refused", _GUIDE),
    "size": Rule(
        True, "a dimension above 16,384 (of channels: 65,536) is reported to be refused", f"{_GUIDE}; of 16,384 others"
    ),
    "dynamic shape": Rule(
        True,
        "of a range of shapes the default alone runs on the Neural Engine",
        "an engineer of Apple's in developer.apple.com/forums/thread/724930",
    ),
    "fp32": Rule(
        True,
        "the Neural Engine computes in fp16; fp32 runs on the GPU and the CPU",
        "Apple: coremltools guide, Typed Execution Workflow",
    ),
    "layout": Rule(
        False,
        "a change of the (batch, channels, height, width) layout may copy the tensor",
        "Apple: machinelearning.apple.com/research/neural-engine-transformers",
    ),
    "cast": Rule(
        False,
        "a change of type between two operations is a pass over the tensor; some were reported on the CPU",
        "github.com/pytorch/executorch/pull/19252",
    ),
    "large": Rule(
        False, "a result of more than 2 MB may not stay on the chip", f"{_GUIDE}; the latency table fits the same step"
    ),
}
KINDS = {"gather": "gather", "gather_along_axis": "gather", "topk": "top-k", "tile": "tile"}  # whatever their shapes
CHOICES = ("topk", "reduce_argmin", "reduce_argmax")  # whose answers are places, not values
LAYOUT = ("transpose", "reshape", "expand_dims", "squeeze")
LAYOUT_ELEMENTS = 4096  # up to which latency tables do not count a permutation either
MOST_ELEMENTS, MOST_CHANNELS, MOST_ARGMAX, LARGE_BYTES = 16_384, 65_536, 2048, 2_000_000
BYTES = {"fp32": 4, "int32": 4, "fp16": 2, "int16": 2, "uint16": 2}  # of other types 1


def _choosing(text: str) -> dict[str, str]:
    return dict.fromkeys(("gather", "top-k", "tile"), text)


_STAGE = "--set {stage}.mixer=mgc: links that do not depend on the picture"
_STATIC = "another graph alone: mobilevig, mobilevigv2 (fixed links), greedyvig (masked ones)"
_SMALLER = "--resolution, smaller"
_MOBILE = {**_choosing(_STAGE), "cast": _STAGE, "layout": _STAGE, "large": _SMALLER}
_PATCHES = {"layout": "--set attention=separable: fewer, if it is multi_head", "large": _SMALLER}
SETTINGS: dict[str, dict[str, str]] = {  # family -> kind of finding -> the setting that avoids it
    "mobilevig": _MOBILE,
    "mobilevigv2": _MOBILE,
    "greedyvig": _MOBILE,
    "vig": {**_choosing(_STATIC), "large": _SMALLER},
    "pvig": {**_choosing(_STATIC), "large": _SMALLER},
    "clustervig": {
        **_choosing(f"{_STATIC}; --set partition=grid leaves out k-means alone"), "large": _SMALLER,
    },
    "mobilevit": _PATCHES,
    "mobilevitv2": {"large": _SMALLER},
    "mobilevitv3": _PATCHES,
}  # fmt: skip
PRECISION = {
    "fp32": "vig export --precision fp16",
    "mixed": "kept in fp32 because it may overflow in fp16",
}


class Finding(NamedTuple):
    """An operation, or an input, to which a rule applies."""

    kind: str
    block: str
    op_type: str
    name: str
    what: str
    setting: str

    @property
    def rule(self) -> Rule:
        return RULES[self.kind]


class Dynamic(NamedTuple):
    """The operations that there are only because links depend on the picture, and the MACs in them."""

    num_ops: int
    blocks: tuple[str, ...]
    macs: int


class Lint(NamedTuple):
    """What was found in a package, in the order in which it runs.

    Attributes:
        num_ops: operations by block, constants left out.
        macs: of convolution, linear and matmul by block, of one run of the package.
        op_blocks: the block of every result.
    """

    num_ops: dict[str, int]
    macs: dict[str, int]
    findings: list[Finding]
    dynamic: Dynamic | None
    op_blocks: dict[str, str]

    def counts(self, block: str) -> Counter[str]:
        """Findings of a block by their kind."""
        return Counter(finding.kind for finding in self.findings if finding.block == block)


def lint(program: Program, blocks: Sequence[str] = ()) -> Lint:
    """Look for what is known of every operation of a program, anybody's.

    Args:
        blocks: the names of its blocks, where the caller knows better than the package's own description.
    """
    arch, precision = _known_of(program)
    blocks = blocks or (list(arch.named_blocks()) if arch and arch.family in SETTINGS else ())
    places = op_blocks(program, blocks)
    network = _Network(program)
    num_ops: Counter[str] = Counter(dict.fromkeys(blocks, 0))
    macs: Counter[str] = Counter(num_ops)
    findings = [
        Finding("dynamic shape", next(iter(places.values()), ""), "input", feature.name, _shape(feature.shape),
                "convert it with one fixed shape")
        for feature in program.inputs if feature.shape and None in feature.shape
    ]  # fmt: skip
    for step in program.steps:
        info = step.outputs[0]
        block = places[info.name]
        num_ops[block] += 1
        macs[block] += network.macs(step)
        for kind, what in _kinds(step, network):
            setting = _setting(kind, block, arch, precision)
            findings.append(Finding(kind, block, step.op.name, info.name, what, setting))
    return Lint(dict(num_ops), dict(macs), findings, _dynamic(network, places), places)


def summary(found: Lint) -> list[tuple[str, str]]:
    """A package's findings in two or three lines, each a name and its text."""
    kinds = Counter(finding.kind for finding in found.findings)
    leaving = {kind: number for kind, number in kinds.items() if RULES[kind].leaves}
    where = {finding.block for finding in found.findings if finding.rule.leaves}
    named = ", ".join(f"{number} {kind}" for kind, number in leaving.items())
    text = f"reported to leave it: {named}, in {len(where)} of {len(found.num_ops)} blocks" if leaving else (
        "no operation that is reported to leave it"
    )  # fmt: skip
    others = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if not RULES[kind].leaves)
    lines = [("Neural Engine", f"{text}{f'; besides {others}' if others else ''}; `vig profile PACKAGE` has them all")]
    if found.dynamic:
        lines.append(("dynamic part", dynamic_text(found)))
    return lines


def dynamic_text(found: Lint) -> str:
    """How much of a package is there only to choose links by the picture."""
    assert found.dynamic is not None
    num_ops, blocks, macs = found.dynamic
    share = macs / max(sum(found.macs.values()), 1)
    return (
        f"{num_ops} of {sum(found.num_ops.values())} operations, in {len(blocks)} of {len(found.num_ops)} blocks, "
        f"{100 * share:.1f} % of the MACs"
    )


def _known_of(program: Program) -> tuple[ArchConfig | None, str]:
    """The architecture and the precision that a package of ours has; of another's nothing is known."""
    try:
        meta = meta_of(program)
    except ConfigError:
        return None, ""
    return meta.arch, meta.precision


def _setting(kind: str, block: str, arch: ArchConfig | None, precision: str) -> str:
    if kind == "fp32" or (kind == "cast" and precision == "mixed"):
        return PRECISION.get(precision, "")
    text = SETTINGS.get(arch.family, {}).get(kind, "") if arch else ""
    stage = block.partition(".blocks[")[0]
    return text.format(stage=stage) if stage.startswith("stages") or "{stage}" not in text else ""


# ---------------------------------------------------------------------------------------------------- one operation


class _Network:
    """A program as a graph: the type of every result, and who uses it."""

    def __init__(self, program: Program):
        self.steps = program.steps
        self.shapes: dict[str, tuple[int | None, ...]] = {
            name: tuple(value.shape) if isinstance(value, Tensor) else () for name, value in program.constants.items()
        }  # those that stand among variables, as in a concat
        self.shapes |= {feature.name: feature.shape or () for feature in program.inputs}
        self.types: dict[str, str] = {f.name: f.type.dtype if f.type else "" for f in program.inputs}
        for info in (info for step in self.steps for info in step.outputs):
            self.shapes[info.name] = info.type.shape if info.type else ()
            self.types[info.name] = info.type.dtype if info.type else ""
        self.inputs = {feature.name for feature in program.inputs}
        self.outputs = {feature.name for feature in program.outputs}
        self.users: dict[str, list[Step]] = {}
        for step in self.steps:
            for name in step.outputs[0].inputs:
                self.users.setdefault(name, []).append(step)

    def elements(self, name: str) -> int:
        return math.prod(size or 1 for size in self.shapes[name])

    def uses(self, step: Step) -> list[Step]:
        """The steps that take a result of this one."""
        return [user for info in step.outputs for user in self.users.get(info.name, [])]

    def hands_out(self, step: Step) -> bool:
        """Whether a result leaves the program, as itself or through a change of its type or its label."""
        users = self.uses(step)
        return any(info.name in self.outputs for info in step.outputs) or (
            bool(users) and all(user.op.name in ("cast", "classify") and self.hands_out(user) for user in users)
        )

    def macs(self, step: Step) -> int:
        """Multiplications with an addition, of convolution, linear, matmul and attention."""
        number = self.elements(step.outputs[0].name)
        weight = step.constants.get("weight")
        if step.op.name in ("conv", "linear") and isinstance(weight, Tensor):
            return number * weight[0].numel()
        if step.op.name == "conv_transpose" and isinstance(weight, Tensor):
            return self.elements(step.outputs[0].inputs[0]) * weight[0].numel()
        if step.op.name == "matmul":
            return number * (self._side(step, "x", -1, -2) or self._side(step, "y", -2, -1) or 0)
        if step.op.name == "scaled_dot_product_attention":
            tokens = self.shapes[step.variables["key"][0]][-2] or 0
            return (self.elements(step.variables["query"][0]) + number) * tokens
        return 0

    def _side(self, step: Step, side: str, axis: int, transposed: int) -> int | None:
        """How many products matmul adds up, by one of its factors."""
        names = step.variables.get(side)
        constant = step.constants.get(side)
        shape = self.shapes[names[0]] if names else tuple(constant.shape) if isinstance(constant, Tensor) else (1,)
        return shape[transposed if step.constants.get(f"transpose_{side}") else axis]


def _kinds(step: Step, network: _Network) -> Iterator[tuple[str, str]]:
    """(kind, what it is about) for each rule that applies to an operation."""
    info = step.outputs[0]
    shape = network.shapes[info.name]
    given = next((network.shapes[name] for name in info.inputs), ())
    change = f"{_shape(given)} -> {_shape(shape)}"
    if step.op.name in KINDS:
        yield KINDS[step.op.name], change
    for kind, applies in _CHECKS.items():
        if applies(step, info, network):
            yield kind, change


def _is_wide_argmax(step: Step, info: OpInfo, network: _Network) -> bool:
    if step.op.name not in ("reduce_argmax", "reduce_argmin") or not info.inputs:
        return False
    size, axis = network.shapes[info.inputs[0]], step.constants.get("axis")
    return isinstance(axis, int) and (size[axis] or 0) > MOST_ARGMAX


def _is_over_size(step: Step, info: OpInfo, network: _Network) -> bool:
    shape = network.shapes[info.name]
    limits = [MOST_CHANNELS if len(shape) == 4 and i == 1 else MOST_ELEMENTS for i in range(len(shape))]
    return any((size or 0) > limit for size, limit in zip(shape, limits, strict=True))


def _is_first_of_dynamic_shape(step: Step, info: OpInfo, network: _Network) -> bool:
    return None in network.shapes[info.name] and not any(None in network.shapes[name] for name in info.inputs)


def _is_fp32(step: Step, info: OpInfo, network: _Network) -> bool:
    return network.types[info.name] == "fp32" and step.op.name not in ("cast", "classify", "dequantize")


def _is_layout_change(step: Step, info: OpInfo, network: _Network) -> bool:
    return step.op.name in LAYOUT and network.elements(info.name) > LAYOUT_ELEMENTS


def _is_inner_cast(step: Step, info: OpInfo, network: _Network) -> bool:
    return step.op.name == "cast" and not network.inputs & {*info.inputs} and not network.hands_out(step)


def _is_large(step: Step, info: OpInfo, network: _Network) -> bool:
    return network.elements(info.name) * BYTES.get(network.types[info.name], 1) > LARGE_BYTES


_CHECKS: dict[str, Callable[[Step, OpInfo, _Network], Any]] = {
    "wide argmax": _is_wide_argmax,
    "size": _is_over_size,
    "dynamic shape": _is_first_of_dynamic_shape,
    "fp32": _is_fp32,
    "layout": _is_layout_change,
    "cast": _is_inner_cast,
    "large": _is_large,
}


def _shape(shape: Sequence[int | None] | None) -> str:
    return "x".join("?" if size is None else str(size) for size in shape or ()) or "a number"


# ---------------------------------------------------------------------------------------------------- dynamic part


def _dynamic(network: _Network, places: dict[str, str]) -> Dynamic | None:
    """The choices, what is used by choices alone, and what reads by their answers; None where nothing is chosen.

    Of what a gather reads only a change of layout counts, for the values go on into the result.
    """
    chosen = _depend_on_a_choice(network)
    inside: set[int] = set()
    for step in reversed(network.steps):
        users = network.uses(step)
        reads = KINDS.get(step.op.name) == "gather" and any(n in chosen for n in step.variables.get("indices", []))
        serves = bool(users) and all(id(user) in inside for user in users)
        if serves and any(KINDS.get(user.op.name) == "gather" for user in users):
            serves = step.op.name in LAYOUT
        if step.op.name in CHOICES or reads or serves:
            inside.add(id(step))
    steps = [step for step in network.steps if id(step) in inside]
    if not steps:
        return None
    blocks = dict.fromkeys(places[step.outputs[0].name] for step in steps)
    return Dynamic(len(steps), tuple(blocks), sum(map(network.macs, steps)))


def _depend_on_a_choice(network: _Network) -> set[str]:
    """Results that are places which a choice gave, as they are or in another layout or type."""
    names: set[str] = set()
    for step in network.steps:
        passes_on = step.op.name in (*LAYOUT, "cast", "add", "mul", "slice_by_index", "concat", "tile")
        if step.op.name in CHOICES or (passes_on and names & {*step.outputs[0].inputs}):
            names.update(info.name for info in step.outputs)
    return names

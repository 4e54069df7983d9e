"""To which block of the network each operation of a package belongs, told by the names of its weights.

coremltools numbers its results (`input_57_cast_fp16`) and names a weight by the module that has it
(`network_stages_1_2_mixer_0_weight_to_fp16`). An operation without a weight goes by what it is computed from: to the
last of the blocks behind its inputs, because blocks run one after another. A weight that coremltools made itself, as of
a batch norm that it folded, has lost its name: between two operations of one block it is of that block too, else it is
not known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from vigcli.coreml.interpreter import Program, Step

ELSEWHERE = "elsewhere"  # the block of an operation of which it is not known
WEIGHTED = ("conv", "conv_transpose", "linear")
NETWORK = "network_"  # what `vigcli.coreml.convert` calls the network inside the module that it converts
_WEIGHT = re.compile(
    r"(?P<module>.+?)_(?P<parameter>weight|bias|gamma|beta)(?:_\d+)?(?:_to_fp16|_quantized|_palettized|_sparsified)*"
)
_FIRST_INDEX = re.compile(r"(?P<list>.+?)_(?P<index>\d+)(?:_|$)")


def op_blocks(program: Program, blocks: Sequence[str] = ()) -> dict[str, str]:
    """The block of every result of a program; where no weight is before it, the first block; where it is not known,
    `ELSEWHERE`.

    Args:
        blocks: names such as `stages[0].blocks[1]`, in the order in which they run. Without them, as of a package
            that is another's, a block is told by the first number in a weight's name: `features[3]`, else `classifier`.
    """
    own, order = _own_blocks(program, blocks)
    low = _earliest(program, own)
    high = _latest(program, own, len(order) - 1)
    names: dict[str, str] = {}
    for step, block in zip(program.steps, own, strict=True):
        first = step.outputs[0]
        guessed = _has_lost_its_name(step, block) or ELSEWHERE in map(names.get, first.inputs)
        here = low[first.name]
        is_known = not guessed or block == here or here == high[first.name]
        name = (order[here] if is_known else ELSEWHERE) if order else ""
        names.update(dict.fromkeys((info.name for info in step.outputs), name))
    return names


def _own_blocks(program: Program, blocks: Sequence[str]) -> tuple[list[int | None], list[str]]:
    """Of every step the number of the block that its weights name, and the blocks by number."""
    prefixes = {weights_begin(block): block for block in blocks}
    order = list(blocks)
    own: list[int | None] = []
    for step in program.steps:
        found = [block for name in _telling(step) if (block := _block_of_weight(name, prefixes))]
        order += dict.fromkeys(block for block in found if block not in order)
        own.append(max(map(order.index, found), default=None))
    return own, order


def _telling(step: Step) -> list[str]:
    """The constants whose names tell where a step is; of what has a weight, not its bias: coremltools keeps one of
    those that are equal, as of all that are zero."""
    names = list(step.constant_names)
    if step.op.name not in WEIGHTED:
        return names
    return [name for name in names if not ((found := _WEIGHT.fullmatch(name)) and found["parameter"] == "bias")]


def _has_lost_its_name(step: Step, block: int | None) -> bool:
    return block is None and step.op.name in WEIGHTED and isinstance(step.constants.get("weight"), Tensor)


def _earliest(program: Program, own: Sequence[int | None]) -> dict[str, int]:
    """Of every result the last block that is behind it."""
    low: dict[str, int] = {}
    for step, block in zip(program.steps, own, strict=True):
        here = max([block or 0, *(low[name] for name in step.outputs[0].inputs if name in low)])
        low.update(dict.fromkeys((info.name for info in step.outputs), here))
    return low


def _latest(program: Program, own: Sequence[int | None], last: int) -> dict[str, int]:
    """Of every result the first block that is before it, itself included."""
    high: dict[str, int] = {}
    for step, block in zip(reversed(program.steps), reversed(own), strict=True):
        users = [high.get(info.name, last) for info in step.outputs]
        here = min([*users, *([] if block is None else [block])])
        high.update(dict.fromkeys((info.name for info in step.outputs), here))
        for name in step.outputs[0].inputs:
            high[name] = min(here, high.get(name, last))
    return high


def weights_begin(block: str) -> str:
    """How the weights of a block begin: `stages[0].blocks[1]` -> `network_stages_0_1_`."""
    return NETWORK + block.replace(".blocks[", "_").replace("[", "_").replace("]", "").replace(".", "_") + "_"


def _block_of_weight(name: str, prefixes: dict[str, str]) -> str:
    """The block that a constant's name tells; empty for one that is no weight."""
    if prefixes:
        return prefixes.get(max((p for p in prefixes if name.startswith(p)), key=len, default=""), "")
    weight = _WEIGHT.fullmatch(name)
    if weight is None:
        return ""
    module = weight["module"].removeprefix(NETWORK)
    part = _FIRST_INDEX.match(module)
    return f"{part['list']}[{part['index']}]" if part else module


def module_of(step: Step) -> str:
    """The module whose weight a step has, in the spelling of weights: `network_stages_1_2_mixer_0`; empty without.

    Biases do not tell: coremltools keeps one of those that are equal, as of all that are zero.
    """
    weights = (_WEIGHT.fullmatch(name) for name in step.constant_names)
    return next((weight["module"] for weight in weights if weight and weight["parameter"] == "weight"), "")

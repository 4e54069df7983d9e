"""To which block of the network each operation of a package belongs, told by the names of its weights.

coremltools numbers its results (`input_57_cast_fp16`) and names a weight by the module that has it
(`network_stages_1_2_mixer_0_weight_to_fp16`). What an operation has no weight of its own goes by what it is computed
from: to the last of the blocks behind its inputs, because blocks run one after another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vigcli.coreml.interpreter import Program, Step

NETWORK = "network_"  # what `vigcli.coreml.convert` calls the network inside the module that it converts
_WEIGHT = re.compile(
    r"(?P<module>.+?)_(?P<parameter>weight|bias|gamma|beta)(?:_\d+)?(?:_to_fp16|_quantized|_palettized|_sparsified)*"
)
_FIRST_INDEX = re.compile(r"(?P<list>.+?)_(?P<index>\d+)(?:_|$)")


def op_blocks(program: Program, blocks: Sequence[str] = ()) -> dict[str, str]:
    """The block of every result of a program; where no weight is before it, the first block.

    Args:
        blocks: names such as `stages[0].blocks[1]`, in the order in which they run. Without them, as of a package
            that is another's, a block is told by the first number in a weight's name: `features[3]`, else `classifier`.
    """
    prefixes = {weights_begin(block): block for block in blocks}
    order = list(blocks)
    place: dict[str, int] = {}
    for step in program.steps:
        own = [block for name in step.constant_names if (block := _block_of_weight(name, prefixes))]
        order += dict.fromkeys(block for block in own if block not in order)
        before = [place[name] for name in step.outputs[0].inputs if name in place]
        here = max([*before, *map(order.index, own)], default=0)
        place.update(dict.fromkeys((info.name for info in step.outputs), here))
    return {name: order[i] if order else "" for name, i in place.items()}


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

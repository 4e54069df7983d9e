"""What a conversion by coremltools may leave undone: passes, checks and garbage collection without effect.

Left out are the passes that find nothing to do in networks of our blocks, the guard against indices below 0, which
neighbours never have, the checks of the whole program after every single pass, and Python's garbage collection; a test
holds programs to those of all other passes and all checks, operation for operation.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch import nn

from vigcli.coreml.apple import coremltools
from vigcli.coreml.garbage import uncollected

PASSES = (
    "update_output_dtypes",
    "cast_optimization",
    "noop_elimination",
    "const_elimination",
    "sanitize_input_output_names",
    "divide_to_multiply",
    "const_deduplication",
    "fuse_squeeze_expand_dims",
    "replace_stack_reshape",
    "reduce_transposes",
    "fuse_transpose_matmul",
    "reduce_transposes",
    "remove_redundant_ops",
    "dedup_op_and_var_names",
    "add_fp16_cast",
    "add_int16_cast",
    "update_output_dtypes",
    "const_elimination",
    "dead_code_elimination",
    "cast_optimization",
    "dead_code_elimination",
    "add_int16_cast",
    "noop_elimination",
    "reduce_transposes",
    "topological_reorder",
    "dead_code_elimination",
)
OURS = ("vigcli", "torch")  # packages of modules that `PASSES` are enough for
ASK_TYPES = ("type_list", "type_dict", "type_state", "type_tensor", "type_mapping")  # modules for a type's description
INEXACT = "common::fuse_elementwise_to_batchnorm"  # makes a batch norm of a product and a sum, with 1e-5 for epsilon


def pipeline(module: nn.Module) -> Any:
    """The passes for a module: all of coremltools' that are exact where anything in it is neither ours nor torch's."""
    chosen = coremltools().PassPipeline.DEFAULT
    chosen.remove_passes({INEXACT})
    if all(type(part).__module__.partition(".")[0] in OURS for part in module.modules()):
        chosen.passes = [f"common::{name}" for name in PASSES]
    return chosen


@contextlib.contextmanager
def brisk() -> Iterator[None]:
    """Conversions in the block leave out what has no effect on them, which is over half of their time:

    checks of the program after each pass (those before each series of passes stay), Python's garbage collection (nearly
    all that they make is kept to their end), programs printed for a log that nobody reads, the search for values that
    must not be replaced (compressed weights, which no trace has), and a type's description made anew at every question.

    coremltools has no options for these, so its private functions are replaced.
    """
    mil = "coremltools.converters.mil.mil"
    coremltools()
    program, block = (importlib.import_module(f"{mil}.{name}") for name in ("program", "block"))
    check = program.Program.validate
    described = functools.cache(importlib.import_module(f"{mil}.types.get_type_info").get_type_info)

    def validate(self: Any, check_essential_scope: bool | None = None) -> None:
        if check_essential_scope is None:  # what is called after a pass says whether to
            check(self)

    with contextlib.ExitStack() as stack:
        stack.enter_context(uncollected())
        for place, name, instead in (
            (program.Program, "validate", validate),
            (program.Program, "__str__", object.__repr__),
            (block.Block, "__str__", object.__repr__),
            (block.Block, "_propagate_nonreplaceable_vars", lambda self: None),
            *((importlib.import_module(f"{mil}.types.{asks}"), "get_type_info", described) for asks in ASK_TYPES),
        ):
            stack.enter_context(mock.patch.object(place, name, instead))
        yield

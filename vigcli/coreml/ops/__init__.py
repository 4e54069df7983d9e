"""The operations of CoreML's ML Programs in torch, one file per kind; running them is the interpreter's job.

A function has the name and the parameters of its operation in the specification (MIL); `registry` reads annotations.
Every floating-point tensor is float32 here: the interpreter rounds a result that the program declares as fp16.
"""

from vigcli.coreml.ops import activation, conv, elementwise, normalization, quantization, reduction, resize, shape
from vigcli.coreml.ops.registry import OPS, Op, op

KINDS = (activation, conv, elementwise, normalization, quantization, reduction, resize, shape)

__all__ = ["KINDS", "OPS", "Op", "op"]

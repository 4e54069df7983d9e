"""A part of a network that a program has many times: converted once, and copied to every place.

That part is k-means, which a ClusterViG has in every block, and which is two thirds of its operations. In a trace it is
one operation, which coremltools' passes take for what it is; at their end it is replaced by what coremltools makes of
the same function alone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from vigcli.coreml.apple import coremltools
from vigcli.coreml.pipeline import pipeline
from vigcli.nn import kmeans
from vigcli.nn.decisions import Decision
from vigcli.nn.kmeans import Gram, final_distances

PASS = "vig::copy_repeated"
_OP = "vig_kmeans"


class KMeans(nn.Module):
    """The part as a network of its own: (B, N, N), (B, N, 1) and (B, 1, N) -> (B, clusters, N)."""

    def __init__(self, clusters: int, iterations: int) -> None:
        super().__init__()
        self.clusters, self.iterations, self.decision = clusters, iterations, Decision()

    def forward(self, products: Tensor, column: Tensor, row: Tensor) -> Tensor:
        return final_distances(Gram(products, column, row), self.clusters, self.iterations, self.decision)


@torch.library.custom_op("vig::kmeans", mutates_args=())
def _kmeans(products: Tensor, column: Tensor, row: Tensor, clusters: int, iterations: int) -> Tensor:
    return KMeans(clusters, iterations)(products, column, row)


@contextlib.contextmanager
def as_one_operation(passes: Any) -> Iterator[None]:
    """Traces in the block have the part as one operation, which these passes replace at their end."""
    _register()
    passes.append_pass(PASS)

    def asked(inner: Gram, clusters: int, iterations: int, decision: Decision) -> Tensor:
        result: Tensor = torch.ops.vig.kmeans(*inner, clusters, iterations)
        return result

    with mock.patch.object(kmeans, "final_distances", asked):
        yield


class Part(NamedTuple):
    """What tells one form of the part from another."""

    batch: int
    tokens: int
    clusters: int
    iterations: int
    is_half: bool
    opset: Any

    @classmethod
    def of(cls, op: Any, opset: Any) -> Part:
        batch, tokens, _ = op.products.shape
        types = importlib.import_module("coremltools.converters.mil.mil").types
        return cls(batch, tokens, op.clusters.val, op.iterations.val, op.products.dtype == types.fp16, opset)


@functools.cache
def _register() -> None:
    """Make the operation, and the pass that replaces it, known to coremltools."""
    mil = importlib.import_module("coremltools.converters.mil.mil")
    inputs = importlib.import_module("coremltools.converters.mil.mil.input_type")
    operation = importlib.import_module("coremltools.converters.mil.mil.operation")
    registry = importlib.import_module("coremltools.converters.mil.mil.ops.registry").SSAOpRegistry
    frontend = importlib.import_module("coremltools.converters.mil.frontend.torch")
    passes = importlib.import_module("coremltools.converters.mil.mil.passes.pass_registry")
    graph = importlib.import_module("coremltools.converters.mil.mil.passes.graph_pass")
    of_torch = importlib.import_module("coremltools.converters.mil.frontend.torch.ops")
    number = inputs.TensorInputType(const=True, type_domain=mil.types.int32)
    numbers = inputs.TensorInputType(type_domain="T")

    def type_inference(self: Any) -> Any:
        batch, tokens, _ = self.products.shape
        return mil.types.tensor(self.products.dtype, (batch, self.clusters.val, tokens))

    body = {
        "input_spec": inputs.InputSpec(
            products=numbers, column=numbers, row=numbers, clusters=number, iterations=number
        ),
        "type_domains": {"T": (mil.types.fp16, mil.types.fp32)},
        "type_inference": type_inference,
    }
    registry.register_op(namespace="vig")(type(_OP, (operation.Operation,), body))

    def converted(context: Any, node: Any) -> None:
        products, column, row, clusters, iterations = of_torch._get_inputs(context, node, expected=5)
        result = getattr(mil.Builder, _OP)(
            products=products, column=column, row=row, clusters=clusters, iterations=iterations, name=node.name
        )
        context.add(result)

    frontend.register_torch_op(converted, torch_alias=["vig::kmeans"])

    def apply(self: Any, program: Any) -> None:
        for function in program.functions.values():
            with function:
                _replace(function)

    kind = type("copy_repeated", (graph.AbstractGraphPass,), {"apply": apply})
    passes.register_pass(namespace="vig")(kind)


def _replace(function: Any) -> None:
    """Put what the part is made of in its place, everywhere; constants are shared."""
    shared: dict[Any, Any] = {}
    for op in list(function.find_ops(op_type=_OP)):
        template = _converted(Part.of(op, function.opset_version))
        values = dict(zip(template.inputs.values(), (op.products, op.column, op.row), strict=True))
        (last,) = template.outputs
        first, prefix = function.operations[0], op.name.removesuffix("_cast_fp16")
        for inner in template.operations:
            is_constant = inner.op_type == "const"
            if inner.outputs[0] in shared:
                continue
            given = {name: _mapped(value, values, shared) for name, value in inner.inputs.items() if value is not None}
            name = op.name if inner.outputs[0] is last else f"{prefix}_{inner.name}"
            made = _made(inner, given, name, first if is_constant else op)
            for before, after in zip(inner.outputs, made, strict=True):
                (shared if is_constant else values)[before] = after
        function.replace_uses_of_var_after_op(anchor_op=op, old_var=op.outputs[0], new_var=values[last])
        function.remove_ops([op])


def _mapped(value: Any, *found: dict[Any, Any]) -> Any:
    if isinstance(value, list | tuple):
        return [_mapped(one, *found) for one in value]
    return next(place[value] for place in found if value in place)


def _made(inner: Any, given: dict[str, Any], name: str, place: Any) -> tuple[Any, ...]:
    """A copy of an operation before another."""
    builder = importlib.import_module("coremltools.converters.mil.mil").Builder
    if inner.op_type == "const":
        given = {"val": inner.outputs[0].val}
    result = getattr(builder, inner.op_type)(**given, name=name, before_op=place)
    return tuple(result) if isinstance(result, list | tuple) else (result,)


@functools.cache
def _converted(part: Part) -> Any:
    """The part alone, as coremltools makes it: inputs and output of the type that the program computes in."""
    ct = coremltools()
    batch, tokens = part.batch, part.tokens
    example = tuple(torch.zeros(batch, *shape) for shape in ((tokens, tokens), (tokens, 1), (1, tokens)))
    dtype = np.float16 if part.is_half else np.float32
    module = KMeans(part.clusters, part.iterations)
    program = ct.convert(
        torch.jit.trace(module, example, check_trace=False),
        convert_to="milinternal",
        compute_precision=ct.precision.FLOAT16 if part.is_half else ct.precision.FLOAT32,
        minimum_deployment_target=part.opset,
        inputs=[ct.TensorType(name=f"in{i}", shape=tuple(x.shape), dtype=dtype) for i, x in enumerate(example)],
        outputs=[ct.TensorType(dtype=dtype)],
        pass_pipeline=pipeline(module),
    )
    return program.functions["main"]

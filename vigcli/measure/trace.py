"""The op trace of a network: one run without weights, then the capture rule of the published features.

The rule (one op per ATen call, what is folded, what is free) is the one that the latency coefficients were fitted
to: another rule gives other megabytes, and silently wrong milliseconds. Prices are `vigcli.latency`'s matter, and how
much of it is in memory at once `vigcli.measure.memory`'s.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vigcli.latency.trace import MANY_PIXELS, MANY_TOKENS, Op, OpTrace

BYTES = 2  # of an fp16 element
MIN_PERM = 4096  # elements up to which a permutation was not counted
MIN_SLICE = 1024  # elements up to which a slice was not counted

# What an ATen call is, in-place forms included. A call that makes a tensor and is not named here is "elt": it reads
# its inputs and writes its output.
_NAMES = {
    "view": "view _unsafe_view reshape _reshape_alias expand t unsqueeze squeeze alias detach lift_fresh as_strided",
    "make": "empty empty_like zeros ones zeros_like ones_like full arange new_empty new_zeros scalar_tensor linspace",
    "pick": "unbind select",
    "mov": "split split_with_sizes slice constant_pad_nd roll index index_select embedding gather flip repeat",
    "topk": "topk sort argsort",
    "perm": "permute transpose",
    "copy": "clone copy contiguous _to_copy",
    "cat": "cat stack",
    "bn": "native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm",
    "norm": "native_layer_norm native_group_norm linalg_vector_norm _fused_rms_norm",
    "relu": "relu hardtanh clamp clamp_min",
    "act": "gelu silu sigmoid tanh hardswish hardsigmoid elu mish leaky_relu _prelu_kernel softplus",
    "affine": "add sub mul div addcmul",
    "sm": "_softmax _log_softmax",
    "red": "mean sum amax amin max min var var_mean argmax",
    "pool": "avg_pool2d max_pool2d_with_indices _adaptive_avg_pool2d",
    "up": "upsample_bilinear2d upsample_nearest2d upsample_bicubic2d pixel_shuffle",
    "conv": "convolution",
    "product": "addmm mm bmm baddbmm addmv mv",
}
_KIND_OF = {name: kind for kind, names in _NAMES.items() for name in names.split()}
_KIND_OF_OP = {"bn": "elt", "relu": "elt", "act": "elt", "affine": "elt", "copy": "perm"}  # the others keep theirs
_DECISIONS = ("eq", "ne", "le", "lt", "ge", "gt", "argmin", "argmax")
_PICKS = ("index", "index_select", "embedding", "gather")
_GATHERS = (*_PICKS, "index_put", "index_add", "scatter", "scatter_add", "scatter_reduce", "masked_scatter")
SLICES = ("split", "split_with_sizes", "slice")
_WEIGHTED = ("dense", "pw", "dw", "grp", "lin")
_LAYERS = (*_WEIGHTED, "mm")


@dataclass(eq=False)
class Node:
    """One call of the run (or one of its inputs), with what the rules ask about it."""

    kind: str
    name: str
    inputs: tuple[Node, ...]
    shape: tuple[int, ...]
    block: str = ""
    constant: bool = False  # computed from parameters and buffers alone
    depth: int = 0  # layers on the longest path that ends here
    weight_bytes: int = 0
    macs: int = 0
    mark: str = ""

    @property
    def num(self) -> int:
        return math.prod(self.shape)

    @property
    def out_bytes(self) -> int:
        return BYTES * self.num

    @property
    def in_bytes(self) -> int:
        return sum(node.out_bytes for node in self.inputs)


def trace(model: nn.Module, input_shape: Sequence[int], blocks: Mapping[str, nn.Module] | None = None) -> OpTrace:
    """The ops that `model` runs on one image, without allocating or changing its weights.

    Args:
        input_shape: (C, H, W), or (1, C, H, W).
        blocks: modules of `model` by name; an op belongs to the innermost of them that is running, else to "".
    """
    return op_trace(record(model, input_shape, blocks))


def record(
    model: nn.Module, input_shape: Sequence[int], blocks: Mapping[str, nn.Module] | None = None
) -> tuple[Node, ...]:
    """The calls that `model` makes on one image, in the order in which they run; arguments as of `trace`."""
    shape = (1, *input_shape[-3:])
    memo = _meta_tensors(model)
    twin = copy.deepcopy(model, memo).eval()
    recorder = _Recorder({name: memo[id(module)] for name, module in (blocks or {}).items()})
    dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), torch.float32)
    image = torch.empty(shape, dtype=dtype, device="meta")
    recorder.start(image)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), recorder:  # attention op by op, its matmuls counted
        twin(image)
    return tuple(recorder.nodes)


def op_trace(nodes: Sequence[Node]) -> OpTrace:
    """The ops that recorded calls are, by the capture rule."""
    return OpTrace(tuple(_capture(nodes)), tuple(_fuse(nodes)), max((node.depth for node in nodes), default=0))


def _meta_tensors(model: nn.Module) -> dict[int, Any]:
    """A deepcopy memo that stands a meta tensor in for every tensor that a module of `model` holds."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for held in tree_leaves([module._parameters, module._buffers, vars(module)]):
            if isinstance(held, Tensor) and id(held) not in memo:
                twin = torch.empty_like(held, device="meta")
                memo[id(held)] = nn.Parameter(twin, held.requires_grad) if isinstance(held, nn.Parameter) else twin
    return memo


class _Recorder(TorchDispatchMode):
    """Records the calls of a run as nodes in the order in which they run."""

    def __init__(self, blocks: Mapping[str, nn.Module]):
        super().__init__()
        self.nodes: list[Node] = []
        self._made: dict[int, Node] = {}  # id of a tensor -> what made it
        self._kept: list[Tensor] = []  # an id is only a name while its tensor lives
        self._views: dict[int, Tensor] = {}  # id of a view -> what it is a view of
        self._running: list[str] = [""]
        self._image: tuple[int, ...] = ()
        for name, module in blocks.items():
            module.register_forward_pre_hook(partial(self._enter, name))
            module.register_forward_hook(self._leave)

    def _enter(self, name: str, *_: Any) -> None:
        self._running.append(name)

    def _leave(self, *_: Any) -> None:
        self._running.pop()

    def start(self, image: Tensor) -> None:
        self._image = tuple(image.shape)
        self._remember(image, Node("input", "", (), self._image))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        nodes = tuple(self._node_of(x) for x in inputs)
        result = func(*args, **(kwargs or {}))
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if outputs:
            node = _describe(name.removesuffix("_"), args, nodes, tuple(outputs[0].shape), self._running[-1])
            node.mark = _mark(node, self._image)
            self.nodes.append(node)
            self._remember(outputs[0], node)
            for other in outputs[1:]:
                self._remember(other, _part_of(node, other))
            if node.kind in ("view", "pick", "perm", "mov"):
                self._views |= {id(output): inputs[0] for output in outputs}
            elif name.endswith("_"):
                self._write_through(outputs[0], node)
        return result

    def _write_through(self, written: Tensor, node: Node) -> None:
        """After an in-place call on a view, what it is a view of comes from that call too."""
        while id(written) in self._views:
            written = self._views[id(written)]
            self._remember(written, _part_of(node, written))

    def _node_of(self, tensor: Tensor) -> Node:
        if id(tensor) not in self._made:
            kind = "param" if isinstance(tensor, nn.Parameter) else "make"
            self._remember(tensor, Node(kind, "", (), tuple(tensor.shape), constant=True))
        return self._made[id(tensor)]

    def _remember(self, tensor: Tensor, node: Node) -> None:
        self._made[id(tensor)] = node
        self._kept.append(tensor)


def _part_of(node: Node, tensor: Tensor) -> Node:
    return Node("pick", node.name, (node,), tuple(tensor.shape), node.block, node.constant, node.depth)


def _describe(name: str, args: Sequence[Any], inputs: tuple[Node, ...], shape: tuple[int, ...], block: str) -> Node:
    kind = _KIND_OF.get(name, "elt")
    node = Node(kind, name, inputs, shape, block, kind == "make" or all(x.constant for x in inputs))
    if kind == "conv":
        _describe_convolution(node, groups=args[8], transposed=args[6])
    elif kind == "product":
        _describe_product(node)
    elif kind in ("bn", "norm"):  # the rest are parameters
        node.inputs = inputs[:1]
    elif name == "copy":  # over the first, which it does not read
        node.inputs = inputs[1:]
    elif name in _PICKS:  # places that depend on the image are read, fixed ones known
        node.inputs = tuple(x for x in inputs if x is inputs[0] or not x.constant)
    if name not in _DECISIONS:  # which tokens are near is no layer of what is computed from them
        node.depth = max((x.depth for x in inputs), default=0) + (node.kind in _LAYERS)
    return node


def _describe_convolution(node: Node, groups: int, transposed: bool) -> None:
    image, weight = node.inputs[:2]
    kernel = weight.shape[2:]
    if groups > 1:
        node.kind = "dw" if groups == image.shape[1] else "grp"
    else:
        node.kind = "pw" if math.prod(kernel) == 1 else "dense"
    node.inputs = (image,)
    node.weight_bytes = weight.out_bytes
    node.macs = (image.num if transposed else node.num) * weight.num // weight.shape[0]


def _describe_product(node: Node) -> None:
    """A product with constants is a linear layer, of two activations a matmul; an added bias is left out."""
    left, right = node.inputs[-2:]
    if node.constant:
        node.kind = "elt"
        return
    node.macs = left.num * (right.shape[-1] if len(right.shape) > 1 else 1)
    node.kind = "lin" if left.constant or right.constant else "mm"
    node.inputs = tuple(x for x in (left, right) if not x.constant)
    node.weight_bytes = sum(x.out_bytes for x in (left, right) if x.constant)


def _mark(node: Node, image: tuple[int, ...]) -> str:
    """Why the price of the node is doubtful; `image` is what the run was given, a network's image or a block's map."""
    if node.constant:
        return ""
    if node.kind == "topk":
        return "topk"
    if node.name in _GATHERS:
        return "gather"
    if node.name.startswith("grid_sampler"):
        return "grid_sample"
    if node.kind == "sm" and math.prod(node.shape[-2:]) >= MANY_TOKENS**2 and _is_of_pairs(node):
        return "tokens"
    return "excite" if min(image[-2:]) >= MANY_PIXELS and _is_excite(node) else ""


def _is_of_pairs(node: Node) -> bool:
    """Whether a softmax is over products of queries and keys, scaled, biased or mixed between heads: (..., q, k)."""
    source = node.inputs[0]
    while source.kind in ("view", "affine", "pw", "perm", "copy"):
        source = next(x for x in source.inputs if not x.constant)
    return source.kind == "mm"


def _is_excite(node: Node) -> bool:
    """Whether channels are scaled by factors that were computed from the image."""
    factors = [x for x in node.inputs if x.shape[-2:] == (1, 1) and not x.constant]
    return node.name == "mul" and len(node.shape) == 4 and math.prod(node.shape[-2:]) > 1 and bool(factors)


def _op(node: Node, act_bytes: int | None = None) -> Op:
    moved = node.in_bytes + node.out_bytes if act_bytes is None else act_bytes
    return Op(_KIND_OF_OP.get(node.kind, node.kind), moved, node.weight_bytes, node.macs, node.block, node.mark)


def _is_free(node: Node) -> bool:
    """Views, and the permutations and slices that are too small to have been counted."""
    if node.kind == "perm":
        return len(node.shape) < 3 or node.num <= MIN_PERM
    if node.name in SLICES:
        return node.num <= MIN_SLICE or node.shape == node.inputs[0].shape
    return node.kind in ("view", "pick", "make")


def _capture(nodes: Sequence[Node]) -> list[Op]:
    """Fusion F0: every call that is not folded, not free and no copy of what was permuted."""
    ops: list[Op] = []
    folded = folded_calls(nodes)
    permuted: set[Node] = set()
    for node in nodes:
        source = node.inputs[0] if node.inputs else None
        if node in folded:
            continue
        if node.kind == "perm" or (node.kind == "view" and source in permuted):
            permuted.add(node)
        is_copy_of_permuted = node.kind == "copy" and (source in permuted or (ops and ops[-1].kind == "perm"))
        if not (_is_free(node) or is_copy_of_permuted):
            ops.append(_op(node))
    return ops


def folded_calls(nodes: Iterable[Node]) -> set[Node]:
    """Batch norm, ReLU and layer scale that the layer before them absorbs, and the ReLU of a batch norm alone."""
    absorbs: set[Node] = set()
    folded: set[Node] = set()
    for node in nodes:
        if _is_folded(node, absorbs):
            folded.add(node)
        if node in folded or node.kind in (*_WEIGHTED, "bn") or (node.kind == "view" and node.inputs[0] in absorbs):
            absorbs.add(node)
    return folded


def _is_folded(node: Node, absorbs: set[Node]) -> bool:
    if node.kind in ("bn", "relu"):
        return node.inputs[0] in absorbs
    if node.kind == "affine":
        return any(x in absorbs for x in node.inputs) and any(x.kind == "param" for x in node.inputs)
    return False


def _fuse(nodes: Iterable[Node]) -> list[Op]:
    """Fusion F2: activations and scalar ops belong to the op before; a residual sum costs its other operand alone."""
    ops: list[Op] = []
    maker: dict[Node, int] = {}  # the op that a value comes from
    for node in nodes:
        varying = [x for x in node.inputs if not x.constant]
        if node.constant or not varying:
            continue
        latest = max(varying, key=lambda x: maker.get(x, -1))
        index = maker.get(latest, -1)
        extra = _extra_bytes(node, latest, varying, ops[index].kind) if index >= 0 else None
        if extra is not None:
            ops[index] = ops[index]._replace(act_bytes=ops[index].act_bytes + extra)
            maker[node] = index
        elif not (_is_free(node) or (node.kind == "copy" and _origin(varying[0]).kind == "perm")):
            maker[node] = len(ops)
            ops.append(_op(node, 2 * node.out_bytes if node.name in SLICES else None))
    return ops


def _origin(node: Node) -> Node:
    """What the value is a view or a part of."""
    while node.kind in ("view", "pick"):
        node = node.inputs[0]
    return node


def _extra_bytes(node: Node, latest: Node, varying: Sequence[Node], maker_kind: str) -> int | None:
    """What the op that made `latest` moves more if `node` is folded into it, None if it is not."""
    if node.kind in ("view", "bn", "relu", "act") or (node.kind in ("perm", "copy") and maker_kind == "perm"):
        return 0
    if node.kind != "affine":
        return None
    extra = node.in_bytes - latest.out_bytes
    if len(varying) == 1 and extra < node.out_bytes:  # a scalar or one value a channel
        return extra
    return extra if maker_kind in (*_LAYERS, "pool") and latest.shape == node.shape else None

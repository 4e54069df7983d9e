"""What a tracer of channels sees of modules that mix tokens: the same channels, by operations that it knows.

Torch-Pruning reads off autograd's graph which channels belong together, and takes a concatenation of shifted maps, an
interleaving, a split or a k-means for something else. While it traces, such modules run as their form here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigcli.nn.attention import SeparableAttention
from vigcli.nn.cluster import Degc, GlobalEdgeConv, GlobalGin, GlobalGraphSage, GlobalMrgcn
from vigcli.nn.dynamic import KnnGraph, MaskedMaxRelative
from vigcli.nn.graph import MaxRelative


def _tokens(module: nn.Module, x: Tensor) -> Tensor:
    """What neighbours say has the channels of the tokens."""
    return -x


def _knn(module: KnnGraph, x: Tensor) -> Tensor:
    return module.act(module.proj(torch.cat([x, -x], 1)))


def _degc(module: Degc, x: Tensor, labels: Tensor | None = None) -> Tensor:
    """What clusters say has the channels of the tokens, so that one width tells the parts of the update."""
    tokens = x.flatten(2).transpose(1, 2)  # (B, N, C)
    z = module.attention(tokens, torch.zeros_like(tokens[..., :1])).transpose(1, 2).reshape(x.shape)
    return module.update(x + z, z, None)


def _update(module: GlobalMrgcn | GlobalEdgeConv, x: Tensor, z: Tensor, graph: Any) -> Tensor:
    return F.gelu(module.mlp(torch.cat([x, -x, z], 1)))


def _graph_sage(module: GlobalGraphSage, x: Tensor, z: Tensor, graph: Any) -> Tensor:
    said = module.mlp_phi(x)
    return F.gelu(module.mlp(torch.cat([x + said, said, z], 1)))


def _gin(module: GlobalGin, x: Tensor, z: Tensor, graph: Any) -> Tensor:
    return F.gelu(module.mlp(x + z))


def _separable(module: SeparableAttention, x: Tensor) -> Tensor:
    width = module.qkv.out_channels // 2
    qkv = module.qkv(x)
    return module.proj(qkv[:, 1 : 1 + width] * qkv[:, 1 + width :])


_FORMS: dict[type[nn.Module], Callable[..., Tensor]] = {
    MaxRelative: _tokens,
    MaskedMaxRelative: _tokens,
    KnnGraph: _knn,
    Degc: _degc,
    GlobalMrgcn: _update,
    GlobalEdgeConv: _update,
    GlobalGraphSage: _graph_sage,
    GlobalGin: _gin,
    SeparableAttention: _separable,
}


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """In the block the modules of a network run as their forms."""
    changed = [module for module in model.modules() if type(module) in _FORMS]
    try:
        for module in changed:
            module.forward = partial(_FORMS[type(module)], module)
        yield
    finally:
        for module in changed:
            del module.forward


def interleaved(model: nn.Module) -> dict[nn.Module, Tensor]:
    """Layers whose first channels come in another order than the forms say: x0, m0, x1, m1, ... and not x, then m.

    With the place, by the layer's own count, of every channel that enters the form.
    """
    orders = {}
    for module in model.modules():
        if isinstance(module, KnnGraph):
            conv: Any = module.proj.conv
            orders[conv] = _places(conv.in_channels, conv.in_channels)
        elif isinstance(module, GlobalMrgcn):
            linear: Any = module.mlp.linear
            total = sum(head.in_features for head in linear.heads)
            orders[linear] = _places(total, total * 2 // 3)
    return orders


def _places(total: int, joined: int) -> Tensor:
    places = torch.arange(total, device="cpu")
    places[:joined] = places[:joined].view(-1, 2).T.flatten()
    return places

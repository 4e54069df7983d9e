"""A static graph has no more operations than the conversion of the network as its paper writes it: rolls, unfolds."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from vigcli.archs import build, inference_form
from vigcli.config.archs import ArchConfig, arch_config
from vigcli.coreml.convert import to_program

ct = pytest.importorskip("coremltools", exc_type=ImportError)
SHORT: dict[str, Any] = {f"stages[{i}].local_depth": 1 for i in range(4)}
STATIC: dict[str, ArchConfig] = {
    "mobilevigv2": arch_config("mobilevigv2_ti"),
    "mobilevig": arch_config("mobilevig_ti").changed({"resolution": 96} | SHORT),
    "svga and fc": tiny.CONFIG.changed({"stages[1].mixer": "svga", "stages[1].reach": 2, "stages[3].mixer": "fc"}),
    "mobilevit": arch_config("mobilevit_xxs"),
    "mobilevitv2": arch_config("mobilevitv2_050"),
    "mobilevitv3": arch_config("mobilevitv3_xxs"),
}


def operations(module: nn.Module, size: int) -> Counter[str]:
    """The operations of an fp16 package by kind."""
    given = ct.ImageType(name="image", shape=(1, 3, size, size))
    program = to_program(module, torch.rand(1, 3, size, size), "fp16", 16, inputs=[given])
    (block,) = program.get_spec().mlProgram.functions["main"].block_specializations.values()
    return Counter(operation.type for operation in block.operations if operation.type != "const")


@pytest.mark.parametrize("name", STATIC)
def test_no_more_than_the_paper_s_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    plain = importlib.import_module("plain").plain
    config = STATIC[name]
    network = build(config).eval()
    ours = operations(inference_form(config, network), config.resolution)
    theirs = operations(plain(network).eval(), config.resolution)
    assert ours.total() <= theirs.total()
    assert not {"gather", "gather_along_axis", "topk", "tile"} & ours.keys()
    if name == "mobilevigv2":
        assert (theirs["gather"], theirs["sub"]) == (24, 30)
        assert ours["sub"] == 6  # one for each graph block

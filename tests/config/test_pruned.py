"""What pruning leaves in a configuration: a field that is there where something was pruned, and blocks of their own."""

from __future__ import annotations

import re

import pytest

from vigcli.config.archs import VARIANTS, arch_config, variant_name
from vigcli.config.fields import describe
from vigcli.config.load import dump, parse_yaml
from vigcli.errors import ConfigError

WHOLE = VARIANTS["mobilevigv2_ti"]
PRUNED = WHOLE.changed(
    {"pruned": {"stages.1.2.branch.0.norm.weight": [64], "stages.1.2.branch.0.conv.weight": [64, 0, 0, 0]}}
)


def test_it_is_written_where_something_is_pruned() -> None:
    assert "pruned" not in dump(WHOLE)
    data, _ = parse_yaml(dump(PRUNED), "x")
    assert list(data)[-1] == "pruned"
    assert type(WHOLE).parse(data) == PRUNED
    assert not any(field.path.startswith("pruned") for field in describe(PRUNED))


def test_a_pruned_network_is_another() -> None:
    assert PRUNED != WHOLE
    assert hash(PRUNED) != hash(WHOLE) == hash(arch_config("mobilevigv2_ti"))
    assert not PRUNED.is_network(WHOLE)
    assert variant_name(PRUNED) is None


def test_a_pruned_block_has_no_row_of_a_table() -> None:
    before, after = (config.named_blocks() for config in (WHOLE, PRUNED))
    assert {name for name in before if before[name] != after[name]} == {"stages[1].blocks[2]"}
    whole, pruned = (blocks["stages[1].blocks[2]"].signature for blocks in (before, after))
    assert whole == "inverted_residual[expansion=4] 64x28x28"
    assert re.fullmatch(r"inverted_residual\[expansion=4 pruned=[0-9a-f]{12}\] 64x28x28", pruned)
    narrower = PRUNED.changed({"pruned": {"stages.1.2.branch.0.norm.weight": [56]}})
    assert narrower.named_blocks()["stages[1].blocks[2]"].signature not in (whole, pruned)


def test_a_block_of_two_digits_is_not_that_of_one() -> None:
    config = VARIANTS["mobilevigv2_b"].changed({"pruned": {"stages.2.1.layer_scale.gamma": [8]}})
    assert [name for name, spec in config.named_blocks().items() if spec.pruned] == ["stages[2].blocks[1]"]


@pytest.mark.parametrize(
    "pruned", [{"stem.0.conv.weight": [-1]}, {"a b": [8]}, {"../x": [8]}, {"x": 8}, [], {"x": [0.5]}]
)
def test_nonsense_is_refused(pruned: object) -> None:
    with pytest.raises(ConfigError, match="pruned"):
        WHOLE.changed({"pruned": pruned})

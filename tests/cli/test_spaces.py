"""What the commands say of search spaces and of tables that are held to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from vigcli.cli import check, ls, table
from vigcli.config.load import dump
from vigcli.config.space import load_space
from vigcli.errors import ConfigError
from vigcli.latency.table import load_table
from vigcli.paths import find_file


def test_a_space_is_told_by_size_base_and_published_networks(tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text("spaces: [mobilevig, clustervig]\n")
    result = CliRunner().invoke(check.command, [str(tmp_path / "mix.yaml"), "--json"])
    first, second = json.loads(result.stdout)["spaces"]
    assert (first["space"], first["base"]) == ("mobilevig", "mobilevig_s")
    assert first["size"] == load_space(find_file("space", "mobilevig")).size
    assert second["published_inside"] == ["clustervig_ti", "clustervig_s", "clustervig_b"]
    shown = CliRunner().invoke(check.command, [str(tmp_path / "mix.yaml")])
    assert "3.1e+07  mobilevig_s" in shown.stdout
    assert shown.stderr.endswith("mix.yaml: a valid space.\n")


def test_the_list_of_spaces_says_how_many_networks_they_hold() -> None:
    found = json.loads(CliRunner().invoke(ls.command, ["spaces", "--json"]).stdout)["spaces"]
    assert found["mobilevig"].endswith("3.1e+07 networks, 4 of them published.")
    assert found["mixed"].endswith("networks, 25 of them published.")


def test_a_table_that_lacks_a_block_of_a_space_is_refused(tmp_path: Path) -> None:
    whole = load_table("iphone13-mini")
    head = next(signature for signature in whole.rows if signature.startswith("head[width=384") and "464x" in signature)
    rows = {signature: row for signature, row in whole.rows.items() if signature != head}
    (tmp_path / "t.yaml").write_text(dump(whole.model_copy(update={"rows": rows, "num_rows": len(rows)})))
    command = ["check", str(tmp_path / "t.yaml"), "--space", "mobilevig", "--json"]
    result = CliRunner().invoke(table.command, command)
    assert isinstance(result.exception, ConfigError)
    assert f"does not know 1 of 123 blocks of mobilevig, such as {head}." in str(result.exception)
    (record,) = json.loads(result.stdout)
    assert (record["missing"], record["num_rows"], record["num_between"]) == ([head], 122, 0)


@pytest.mark.parametrize("name", ["iphone13-mini", "cpu-x86"])
def test_a_shipped_table_passes_the_check(name: str) -> None:
    result = CliRunner().invoke(table.command, ["check", name, "--space", "mobilevig"])
    assert result.exit_code == 0, result.exception
    assert "between rows" in result.stdout

"""How a latency table knows the blocks of a search space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vigcli.config.archs import BlockSpec
from vigcli.errors import NotMeasurableError
from vigcli.latency.table import LatencyTable
from vigcli.measure.count import count_block


class Coverage(NamedTuple):
    """How a table knows the blocks of a space.

    Attributes:
        num_measured: of the rows.
        num_between: blocks without a row, inside the measured rows of their kind.
        missing: signatures of all others.
    """

    num_blocks: int
    num_rows: int
    num_measured: int
    num_between: int
    missing: tuple[str, ...]


def coverage_of(table: LatencyTable, family: str, specs: Mapping[str, BlockSpec]) -> Coverage:
    """A calibrated table is to have a row for every block; a measured one may interpolate inside what it measured.

    Args:
        specs: the blocks, as `space_specs` gives them.
    """
    rows = [table.rows[signature] for signature in specs if signature in table.rows]
    rest = [signature for signature in specs if signature not in table.rows]
    missing = []
    for signature in rest:
        if table.calibration is not None or not _is_between(table, signature, family, specs[signature]):
            missing.append(signature)
    num_measured = sum(row.kind == "measured" for row in rows)
    return Coverage(len(specs), len(rows), num_measured, len(rest) - len(missing), tuple(missing))


def _is_between(table: LatencyTable, signature: str, family: str, spec: BlockSpec) -> bool:
    try:
        return table.block_ms(signature, count_block(family, spec).deployed).how == "interpolated"
    except NotMeasurableError:
        return False

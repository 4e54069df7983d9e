"""How well blocks that are timed alone add up to whole networks, and how well what lies between them is known.

Networks are drawn anew: of the search space, and of every family with depths of their own. Every other one fits the
join, the rest are predicted by a table of blocks that are timed in the same rounds, as `vig table build` makes it. A
table that was made on another day is held to the same networks: CPU time grows when others use the machine (a quarter
under twice as many busy processes as cores), so its errors are given as they are, and with one factor of today, the
median of measured by predicted over these very networks, divided out. Each row is also told by the other rows of its
kind.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from vigcli.config.space import named_spaces
from vigcli.latency.interpolate import block_kind, left_out
from vigcli.latency.table import Accuracy, load_table
from vigcli.measure.bench import this_machine
from vigcli.measure.build import Plan, RoundsFile, measure, plan, predicted_ms, random_networks, table_of
from vigcli.measure.join import accuracy


def line(what: str, found: Accuracy) -> str:
    return (
        f"{what:<48}{found.num_rows:>7}{found.mape_percent:>9.2f}{found.within_10_percent:>13.0f}"
        f"{found.kendall_tau:>8.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", default="cpu-x86")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument(
        "--from-each", type=int, default=4, help="networks of each space and family, every other for the join"
    )
    parser.add_argument("--seed", type=int, default=1, help="0 drew those that the table was made with")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    table = load_table(options.table)
    spaces = named_spaces()
    seen, generator = set(plan(spaces).networks.values()), np.random.default_rng(options.seed)
    drawn = random_networks(spaces, options.from_each, generator)
    networks = {f"{('anchor', 'test')[i % 2]} {i}": pieces for i, pieces in enumerate(drawn) if pieces not in seen}
    blocks = {piece.spec.signature: piece for pieces in networks.values() for piece in pieces}
    planned, machine = Plan(blocks, networks), this_machine()
    with tempfile.TemporaryDirectory() as folder:
        file = RoundsFile(Path(folder) / "rounds", planned, machine)
        timings = measure(planned, file, options.rounds, options.seed)
    made = table_of(planned, timings, machine, ())

    tests = {name: pieces for name, pieces in networks.items() if name.startswith("test")}
    whole = [timings[name].ms for name in tests]
    sums = [predicted_ms(table, pieces) for pieces in tests.values()]
    ours = [predicted_ms(made, pieces) for pieces in tests.values()]
    speed = float(np.median(np.array(whole) / np.array(sums)))
    rows = {s: (row.ms, row.features) for s, row in table.rows.items() if row.features}
    others = left_out(rows)
    figures = {
        "networks by blocks timed with them": accuracy(ours, whole),
        f"networks by {options.table}": accuracy(sums, whole),
        f"networks by {options.table}, today divided out": accuracy(list(speed * np.array(sums)), whole),
    }
    kinds = {kind: [s for s in others if block_kind(s) == kind] for kind in sorted(set(map(block_kind, others)))}
    for what, signatures in {f"blocks of {options.table} by others of their kind": list(others), **kinds}.items():
        figures[what] = accuracy([others[s] for s in signatures], [rows[s][0] for s in signatures])
    print(f"{table.device}, made on {table.soc}; this is {machine}, load {os.getloadavg()[0]:.1f}")
    print(f"{options.rounds} rounds; networks take {speed:.3f} of their sums in {options.table}")
    print(f"{'':<48}{'number':>7}{'error %':>9}{'within 10 %':>13}{'tau':>8}")
    for what, found in figures.items():
        print(line(what, found))
    for pieces, predicted, measured in zip(tests.values(), ours, whole, strict=True):
        error = f"{100 * (predicted / measured - 1):+.1f} %"
        print(f"  {pieces[0].family:<12}{len(pieces):>3} blocks{measured:>9.2f} ms{error:>9}")
    if options.json:
        record = {what: found.model_dump() for what, found in figures.items()}
        options.json.write_text(json.dumps({"today": speed, **record}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How well a CPU table's rows add up to whole networks that it has not seen, on the machine that it was measured on.

Networks are drawn anew: of the search space, and of every family with depths of their own, and timed in rounds. A
machine is not as fast every day: the errors are given as they are, and with one factor of today, the median of measured
by predicted over these very networks, divided out. What lies between rows is judged apart: each row by the other rows
of its kind.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from pathlib import Path

import numpy as np

from vigcli.config.space import load_space
from vigcli.latency.interpolate import block_kind, left_out
from vigcli.latency.table import Accuracy, load_table
from vigcli.measure.bench import rounds, steadied, this_machine, timing
from vigcli.measure.build import EMPTY, accuracy, plan, predicted_ms, random_networks, session_of
from vigcli.paths import builtin_names, find_file


def line(what: str, found: Accuracy) -> str:
    return (
        f"{what:<44}{found.num_rows:>7}{found.mape_percent:>9.2f}{found.within_10_percent:>13.0f}"
        f"{found.kendall_tau:>8.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", default="cpu-x86")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--from-each", type=int, default=3, help="networks of each space and family")
    parser.add_argument("--seed", type=int, default=1, help="0 drew those that the table was made with")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    table = load_table(options.table)
    spaces = [load_space(find_file("space", name)) for name in builtin_names("space")]
    seen, generator = set(plan(spaces).networks.values()), np.random.default_rng(options.seed)
    networks = [n for n in random_networks(spaces, options.from_each, generator) if n not in seen]
    calls = {EMPTY: session_of(()), **{f"network {i}": session_of(pieces) for i, pieces in enumerate(networks)}}
    timed = steadied(list(itertools.islice(rounds(calls, options.seed), options.rounds)))
    ms = {name: timing([of_round[name] for of_round in timed]).ms for name in calls}

    whole = [ms[f"network {i}"] for i in range(len(networks))]
    sums = [predicted_ms(table, pieces) for pieces in networks]
    speed = float(np.median(np.array(whole) / np.array(sums)))
    rows = {s: (row.ms, row.plus_minus_ms, row.features) for s, row in table.rows.items() if row.features}
    others = left_out(rows)
    figures = {
        "whole networks": accuracy(sums, whole),
        "whole networks, today's speed divided out": accuracy(list(speed * np.array(sums)), whole),
    }
    kinds = {kind: [s for s in others if block_kind(s) == kind] for kind in sorted(set(map(block_kind, others)))}
    for what, signatures in {"blocks by others of their kind": list(others), **kinds}.items():
        figures[what] = accuracy([others[s] for s in signatures], [rows[s][0] for s in signatures])
    print(f"{table.device}, made on {table.soc}; this is {this_machine()}, load {os.getloadavg()[0]:.1f}")
    print(f"{options.rounds} rounds; networks take {speed:.3f} of their sums")
    print(f"{'':<44}{'number':>7}{'error %':>9}{'within 10 %':>13}{'tau':>8}")
    for what, found in figures.items():
        print(line(what, found))
    for pieces, predicted, measured in zip(networks, sums, whole, strict=True):
        error = f"{100 * (predicted / measured - 1):+.1f} %"
        print(f"  {pieces[0].family:<12}{len(pieces):>3} blocks{measured:>9.2f} ms{error:>9}")
    if options.json:
        record = {what: found.model_dump() for what, found in figures.items()}
        options.json.write_text(json.dumps({"today": speed, **record}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How fast encoded networks are priced: a million of a space by array, against the sum over each network's blocks.

python benchmarks/pricing.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from vigcli.config.archs import VARIANTS, arch_config
from vigcli.config.space import load_space
from vigcli.latency.table import load_table
from vigcli.measure.profile import profile
from vigcli.paths import find_file
from vigcli.search.encoder import encode_space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="mobilevigv2")
    parser.add_argument("--table", default="iphone13-mini")
    parser.add_argument("--networks", type=int, default=1_000_000)
    parser.add_argument("--traced", type=int, default=20, help="networks priced one by one")
    options = parser.parse_args()
    space, table = load_space(find_file("space", options.space)), load_table(options.table)
    base = arch_config(space.base)
    start = time.process_time()
    trained = {name: VARIANTS[name] for name in space.trained_shapes.variants} if space.trained_shapes else {}
    encoding = encode_space(space, base, trained, [table])
    encoded = time.process_time() - start
    population = np.random.default_rng(0).integers(
        0, encoding.num_choices, (options.networks, len(encoding.num_choices))
    )
    seconds = []
    for _ in range(3):
        start = time.process_time()
        ms = encoding.price(population)
        seconds.append(time.process_time() - start)
    start = time.process_time()
    evaluated = encoding.evaluate(population)
    judged = time.process_time() - start
    fair = np.flatnonzero(evaluated.violation == 0)[: options.traced]  # what a rule forbids is not priced
    start = time.process_time()
    traced = [profile(encoding.config(row)).latency(table).ms for row in population[fair]]
    one_by_one = (time.process_time() - start) / len(fair) * options.networks
    assert np.allclose(ms, evaluated.latency_ms, rtol=1e-12)
    assert np.allclose(ms[fair], traced, rtol=1e-9), "the arrays price unlike the traced networks"
    print(f"{options.networks:,} networks of {options.space}, CPU seconds, one thread")
    print(f"{'encoding the space, once':<40}{encoded:>10.2f}")
    print(f"{'pricing, first':<40}{seconds[0]:>10.2f}")
    print(f"{'pricing, again':<40}{min(seconds[1:]):>10.2f}")
    print(f"{'pricing, scoring and every rule':<40}{judged:>10.2f}")
    print(f"{'traced one by one':<40}{one_by_one:>10,.0f}  {one_by_one / min(seconds[1:]):,.0f} times pricing")


if __name__ == "__main__":
    main()

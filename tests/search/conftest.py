"""Encoded spaces that the tests of the engines share: one made once, and random parts of it to go through whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vigcli.config.archs import VARIANTS, arch_config
from vigcli.config.space import SearchSpace, encode
from vigcli.latency.table import load_table
from vigcli.search.encoder import encode_space
from vigcli.search.encoding import Encoding, Population

GENES = {
    "stages[0].local_depth": [1, 2, 3],
    "stages[0].width": [24, 32, 40, 48],
    "stages[1].local_depth": [1, 2, 3],
    "stages[1].graph_depth": [0, 1, 2],
    "stages[1].width": [48, 64, 80, 96],
    "stages[2].local_depth": [3, 5, 6, 7, 9],
    "stages[2].graph_depth": [1, 2, 3],
    "stages[2].width": [112, 128, 144, 160, 192],
    "stages[3].local_depth": [1, 2, 3],
    "stages[3].graph_depth": [1, 2, 3],
    "stages[3].width": [192, 224, 256, 320],
    "head_width": [384, 512, 768],
}


def everything(encoding: Encoding) -> Population:
    return np.array(list(itertools.product(*(range(int(n)) for n in encoding.num_choices))))


def part_of(encoding: Encoding, generator: np.random.Generator, most: int = 6000) -> Encoding:
    """The encoding with a random few of the choices of each gene: `most` candidates at most."""
    kept = {}
    for gene in generator.permutation(len(encoding.num_choices)).tolist():
        number = int(generator.integers(1, min(3, encoding.num_choices[gene], max(most, 1)) + 1))
        most //= number
        kept[gene] = sorted(generator.choice(encoding.num_choices[gene], number, replace=False).tolist())
    return encoding._restricted(kept)


@pytest.fixture(scope="session", params=["rules", "free"])
def wide(request: pytest.FixtureRequest) -> Encoding:
    """MobileViGv2 around S: 120,000 networks by the rules of trained shapes, 3.5 million without."""
    trained = ("mobilevigv2_ti", "mobilevigv2_s")
    rules = {"trained_shapes": {"variants": trained, "widen": 0.3}} if request.param == "rules" else {}
    space = SearchSpace.parse({"base": "mobilevigv2_s", "genes": GENES, **rules})
    base = arch_config(space.base)
    variants = {name: VARIANTS[name] for name in trained} if rules else {}
    return encode_space(space, base, variants, [load_table("iphone13-mini")]).without_idle_choices()


@pytest.fixture(scope="session")
def published(wide: Encoding) -> Population:
    """The published networks that are in the space."""
    known = (encode(wide.space, wide.base, config) for config in VARIANTS.values())
    return np.array([candidate for candidate in known if candidate], np.intp)

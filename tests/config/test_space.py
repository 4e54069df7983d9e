"""Search spaces: what is shipped, what is refused, and which blocks their networks can have."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from vigcli.archs import build
from vigcli.config.archs import ABLATIONS, VARIANTS, ArchConfig, arch_config
from vigcli.config.load import get_path
from vigcli.config.space import (
    SearchSpace,
    encode,
    load_space,
    load_spaces,
    named_spaces,
    sample,
    space_for,
    variants_inside,
)
from vigcli.config.space_blocks import dependencies, space_specs
from vigcli.errors import ConfigError
from vigcli.paths import builtin_names, find_file

SHIPPED = {space.name: space for space in named_spaces()}
spaces = pytest.mark.parametrize("name", SHIPPED)
OUTSIDE = {  # published variants that a family's space leaves out; its file says why
    "clustervig_b_hr", "mobilevitv2_175", "mobilevitv2_200", "mobilevitv3_050", "mobilevitv3_075", "mobilevitv3_100",
}  # fmt: skip


def base_of(space: SearchSpace) -> ArchConfig:
    return arch_config(space.base)


def samples(space: SearchSpace, count: int, seed: int = 0) -> list[ArchConfig]:
    draw = random.Random(seed).randrange
    return [sample(space, base_of(space), draw) for _ in range(count)]


# ---------------------------------------------------------------------------------------------------- what is shipped


def test_every_family_of_the_papers_to_compare_has_a_space() -> None:
    assert set(SHIPPED) == {"mobilevigv2", "mobilevig", "clustervig", "mobilevit", "mobilevitv2", "mobilevitv3"}
    assert {space.name for space in load_spaces(find_file("space", "mixed"))} == set(SHIPPED)
    assert all(name == base_of(space).family for name, space in SHIPPED.items())


@spaces
def test_the_base_is_inside_and_no_choice_is_idle(name: str) -> None:
    space = SHIPPED[name]
    base = base_of(space)
    assert encode(space, base, base) is not None
    assert space.sound_at(base) == space
    assert space.size > 1000


@spaces
def test_a_random_network_of_a_space_is_built(name: str) -> None:
    space = SHIPPED[name]
    (config,) = samples(space, 1)
    assert sum(p.numel() for p in build(config, device="meta").parameters()) > 1e5
    candidate = encode(space, base_of(space), config)
    assert candidate is not None
    assert space.config(base_of(space), candidate) == config


@spaces
def test_published_variants_are_inside_but_for_those_that_the_file_names(name: str) -> None:
    space = SHIPPED[name]
    family = {variant for variant, config in VARIANTS.items() if type(config) is type(base_of(space))}
    assert set(variants_inside(space)) == family - OUTSIDE
    assert space.trained_shapes is not None
    assert set(space.trained_shapes.variants) == set(variants_inside(space))


def test_published_ablations_of_mixers_and_positional_encoding_are_inside() -> None:
    space = SHIPPED["mobilevigv2"]
    for ablation in ABLATIONS:
        if ablation.base == "mobilevigv2_b" and "fully connected" not in ablation.row:
            assert encode(space, base_of(space), arch_config(ablation.base).changed(ablation.changes)) is not None


# ---------------------------------------------------------------------------------------------------- blocks


@spaces
def test_the_listed_blocks_are_those_that_networks_have(name: str) -> None:
    space = SHIPPED[name]
    listed = space_specs(space)
    for config in samples(space, 200, seed=1):
        assert all(listed[spec.signature] == spec.counted() for spec in config.blocks())


def test_no_block_is_listed_that_no_network_has() -> None:
    space = SHIPPED["mobilevig"]
    small = space.model_copy(update={"genes": {path: choices[:2] for path, choices in list(space.genes.items())[:7]}})
    base = base_of(small)
    found: set[str] = set()
    sizes = [len(choices) for choices in small.genes.values()]
    for number in range(small.size):
        candidate = []
        for size in sizes:
            number, index = divmod(number, size)
            candidate.append(index)
        found |= {spec.signature for spec in small.config(base, candidate).blocks()}
    assert space_specs(small).keys() == found


def test_blocks_depend_on_the_genes_that_change_them() -> None:
    space = SHIPPED["mobilevigv2"]

    def last_stage(config: ArchConfig) -> dict[str, frozenset[str]]:
        found: dict[str, set[str]] = {}
        for spec in config.segments()[4]:
            found.setdefault(spec.kind, set()).add(spec.signature)
        return {kind: frozenset(signatures) for kind, signatures in found.items()}

    paths, stage = list(space.genes), "stages[3]"
    moved = dependencies(space, base_of(space), last_stage)
    found = {kind: {paths[gene] for gene in genes} for kind, (genes, _) in moved.items()}
    assert found == {
        "downsample": {"stages[2].width", f"{stage}.width"},
        "inverted_residual": {f"{stage}.width", "expansion"},
        "graph": {f"{stage}.width", f"{stage}.mixer", f"{stage}.reach", "expansion", "cpe_kernel"},
    }


# ---------------------------------------------------------------------------------------------------- mixed spaces


def test_members_of_a_mixed_space_are_built_in_or_beside_it(tmp_path: Path) -> None:
    own = find_file("space", "mobilevig").read_text().replace("base:", "name: small\nbase:")
    (tmp_path / "own.yaml").write_text(own)
    (tmp_path / "mix.yaml").write_text("spaces: [mobilevigv2, own.yaml]\n")
    found = load_spaces(tmp_path / "mix.yaml")
    assert [space.name for space in found] == ["mobilevigv2", "small"]
    assert found[1].genes == SHIPPED["mobilevig"].genes
    assert load_spaces(tmp_path / "own.yaml") == (found[1],)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("spaces:\n- mobilevig\n- nope\n", r"m\.yaml:3: spaces\[1\]: .*nope: no such space file"),
        ("spaces:\n- mixed\n", r"m\.yaml:2: spaces\[0\]: mixed is mixed itself"),
        ("spaces: [mobilevig, mobilevig]\n", r"m\.yaml:1: spaces\[1\]: a space 'mobilevig' stands twice"),
        ("# none\nspaces: []\n", r"m\.yaml:2: spaces: must have at least 1 items"),
        ("spaces: [mobilevig]\nbase: mobilevig_s\n", r"m\.yaml:2: base: unknown key"),
        ("spaces: [broken.yaml]\n", r"broken\.yaml:4: genes: stages\[3\]\.raech: no such key"),
    ],
)
def test_a_mixed_space_is_checked_when_it_is_loaded(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "broken.yaml").write_text("# broken\nbase: mobilevig_s\ngenes:\n  stages[3].raech: [1, 2]\n")
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ConfigError, match=what) as refused:
        load_spaces(tmp_path / "m.yaml")
    assert refused.value.hint


def test_where_one_space_is_wanted_a_mixed_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mixed\.yaml:4: mixes spaces, and one is wanted"):
        load_space(find_file("space", "mixed"))


# ---------------------------------------------------------------------------------------------------- refused, re-based


def test_a_space_whose_networks_all_lack_soundness_is_refused(tmp_path: Path) -> None:
    """Each choice is sound beside the base's others, and no two of them are."""
    (tmp_path / "s.yaml").write_text(
        "base: mobilevigv2_s\ngenes:\n  stages[3].mixer: [svga]\n  stages[3].reach: [8, 9]\n"
    )
    with pytest.raises(ConfigError, match=r"s\.yaml:2: genes: no network of the space can be built: .*K = ") as refused:
        load_space(tmp_path / "s.yaml")
    assert refused.value.hint


def test_a_gene_may_be_a_place_of_a_list() -> None:
    space = SHIPPED["clustervig"]
    found = {get_path(config.model_dump(mode="json"), "neighbours[1]") for config in samples(space, 30)}
    assert found == set(space.genes["neighbours[1]"])


def test_a_space_around_a_configuration_has_its_values() -> None:
    config = arch_config("mobilevigv2_s").changed({"stages[2].width": 136, "stages[1].mixer": "fc", "resolution": 192})
    space = space_for(config)
    assert encode(space, config, config) is not None
    assert space.genes["stages[2].width"] == (64, 96, 112, 128, 136, 160, 192, 224, 256)
    assert space.genes["stages[1].mixer"] == ("mgc", "svga", "none", "fc")
    assert space_for(arch_config("mobilevigv2_m")) == SHIPPED["mobilevigv2"]
    with pytest.raises(ConfigError, match="no built-in space is of the family greedyvig"):
        space_for(arch_config("greedyvig_s"))


def test_names_of_spaces_give_each_once() -> None:
    assert named_spaces(["mobilevig", "mixed"])[0].name == "mobilevig"
    assert len(named_spaces(["mobilevig", "mixed"])) == len(SHIPPED)
    assert "mixed" in builtin_names("space")

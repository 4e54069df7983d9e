"""The report of a search as a page: the answer first, then what it rests on, what it leaves open, where it comes from.

The page is self-contained (`vigcli.runs.html`); what a result does not have is left out.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vigcli.config.archs import PUBLISHED, VARIANTS, ArchConfig, BlockSpec, Published
from vigcli.latency.table import LatencyEstimate, distinguishable
from vigcli.measure.profile import Profile, profile
from vigcli.runs.html import Html, breakable, element, figure, joined, linked, listing, page, section, table
from vigcli.runs.provenance import sha256
from vigcli.search.job import SearchResult
from vigcli.search.networks import Network
from vigcli.search.pictures import draw_blocks, draw_history, interval_of
from vigcli.search.score import TIE_POINTS
from vigcli.units import format_bytes, format_count, format_duration


def report_page(
    result: SearchResult, front_svg: str, record: Mapping[str, Any], files: Mapping[str, Path | str]
) -> Html:
    """The whole document.

    Args:
        front_svg: the picture of the front.
        record: provenance, as `run.yaml` has it.
        files: what the search read, by what it is (`space`, `table`, `recipe`); they are named with their hashes.
    """
    shown = _shown(result)
    counted = {label: profile(network.config) for label, network in shown.items()}
    return page(
        f"Search: {result.budget_ms:g} ms on {' and '.join(latency.device for latency in result.best.latencies)}",
        element("p", answer(result), class_="lead"),
        element("p", f"Limits besides: {_pairs(result.limits)}.") if result.limits else None,
        section("Compared", _compared(result, shown, counted), element("p", _KINDS, class_="quiet")),
        section("Front", figure(front_svg, "Every candidate of the front is the best known at its latency.", "front")),
        section("Stages", _stages(shown), _blocks_picture(result, shown, counted)),
        section("Built and counted", _built(result)),
        section("How the search went", element("p", _went(result)), _history(result)),
        section("Not decided, and why", listing(_open_questions(result))),
        section("Where it comes from", _origin(result, record, files)),
    )


_KINDS = (
    "published: printed in a paper. measured: timed. calibrated: priced by a model fitted to published measurements of "
    "whole networks, itself not measured. predicted: by a regression, without training. counted: from the network."
)


def _shown(result: SearchResult) -> dict[str, Network]:
    """The networks that are compared, by what they are."""
    networks = {"best": result.best}
    if result.second is not None:
        networks["second"] = result.second
    return {**networks, "nearest published": result.nearest}


# ------------------------------------------------------------------------------------------------ the answer


def answer(result: SearchResult) -> str:
    """What was found, in a sentence, and beside what; then what cannot be told."""
    best, nearest = result.best, result.nearest
    found = f"Within {result.budget_ms:g} ms the best network is {title(best)}: {_prices(best)}, and {_top1(best)} %"
    found += f" ImageNet-1k top-1, predicted (the nearest published network, {nearest.name}: {_prices(nearest)}, "
    sentences = [f"{found}{_top1(nearest)} % predicted)."]
    if nearest.config == best.config:
        sentences = [f"{found[: found.index(' (the nearest')]}; it is a published network."]
    elif max(latency.ms for latency in nearest.latencies) > result.budget_ms:
        sentences.append("No published network of the family meets the budget.")
    else:
        sentences.append(f"Best and {nearest.name}: {told_apart(best, nearest)}.")
    if result.second is not None:
        sentences.append(f"Best and second: {told_apart(best, result.second)}.")
    outside = dict.fromkeys(why for latency in best.latencies for why in latency.outside)
    if outside:
        sentences.append(f"Its price is OUTSIDE what was fitted ({', '.join(outside)}): do not trust it.")
    return " ".join(sentences)


def told_apart(one: Network, other: Network) -> str:
    """Whether score or table can rank two networks, and by what."""
    points = abs(one.top1_percent - other.top1_percent)
    by_score = points >= TIE_POINTS
    by_table = any(distinguishable(a.ms, b.ms) for a, b in zip(one.latencies, other.latencies, strict=True))
    percent = max(100 * abs(a.ms / b.ms - 1) for a, b in zip(one.latencies, other.latencies, strict=True))
    apart = f"{points:.1f} points and {percent:.0f} % of latency apart"
    if by_score:
        return f"{apart}; the score tells them apart, for a gap of {TIE_POINTS} points or more is no tie"
    return f"{apart}; {'the table tells them apart, the score cannot' if by_table else 'they cannot be told apart'}"


def title(network: Network) -> str:
    """A published network's name, else its shape."""
    return network.name if network.name in VARIANTS else shape_text(network.config)


def shape_text(config: ArchConfig) -> str:
    """Depths N+M and widths of the stages in short: 2+0/4+3/12+3/4+2 x 24/48/128/224."""
    depths = "/".join(f"{s.local_depth}+{s.global_depth}" for s in config.stage_shapes())
    return f"{depths} x {'/'.join(str(s.width) for s in config.stage_shapes())}"


def _prices(network: Network) -> str:
    return ", ".join(f"{_range(latency)} on {latency.device}, {latency.kind}" for latency in network.latencies)


def _range(latency: LatencyEstimate) -> str:
    return f"{latency.ms:.2f} ms ({latency.low_ms:.2f} to {latency.high_ms:.2f})"


def _top1(network: Network) -> str:
    return f"{network.top1_percent:.1f} ±{network.error_points:.1f}"


# ------------------------------------------------------------------------------------------------ side by side


def _compared(result: SearchResult, shown: Mapping[str, Network], counted: Mapping[str, Profile]) -> Html:
    networks, profiles = list(shown.values()), list(counted.values())
    published = [_published(network) for network in networks]
    rows: list[tuple[Any, ...]] = [
        ("network", *(breakable(title(network)) for network in networks)),
        ("parameters at inference, counted", *(format_count(network.params.inference) for network in networks)),
        ("MACs, counted", *(format_count(network.macs) for network in networks)),
    ]
    for number, latency in enumerate(result.best.latencies):
        rows.append((f"latency on {latency.device}", *(_latency(result, network, number) for network in networks)))
    if any(paper and paper.latency_ms for paper in published):
        cells = (f"{p.latency_ms:g} ms on {p.device}" if p and p.latency_ms else None for p in published)
        rows.append(("latency, published", *cells))
    here = {one.config: one.here for one in result.built if one.here}
    if here:
        cells = (_timed(here[n.config]) if n.config in here else None for n in networks)
        rows.append(("measured here (CPU, one thread)", *cells))
    rows += [
        ("top-1 %, predicted (90 %)", *map(_top1, networks)),
        ("top-1 %, published", *(f"{p.top1:.1f}" if p else None for p in published)),
        ("weights in fp16, counted", *(format_bytes(2 * n.params.deployed) for n in networks)),
        ("activations in fp16 at their peak, counted", *(format_bytes(p.peak_bytes) for p in profiles)),
    ]
    sources = ", ".join(dict.fromkeys(paper.source for paper in published if paper))
    source = element("p", "Published figures: ", linked(sources), ".", class_="quiet") if sources else Html()
    return joined((table(("", *shown), rows), source))


def _published(network: Network) -> Published | None:
    """What a paper prints of a network, where it is the paper's at the paper's resolution."""
    variant = VARIANTS.get(network.name)
    return PUBLISHED.get(network.name) if variant and variant.resolution == network.config.resolution else None


def _latency(result: SearchResult, network: Network, number: int) -> Html:
    latency = network.latencies[number]
    interval = interval_of(result, network, number)
    lines = [f"{latency.ms:.2f} ms", f"{latency.low_ms:.2f} to {latency.high_ms:.2f}: {interval.coverage_percent:g} %"]
    lines.append(latency.kind)
    if latency.outside:
        lines.append(f"OUTSIDE what was fitted: {', '.join(latency.outside)}")
    return _lines(lines)


def _timed(here: Any) -> str:
    return f"{here.timing.ms:.2f} ms ±{here.timing.plus_minus_ms:.2f}"


def _lines(lines: Sequence[Any]) -> Html:
    return joined(part for i, line in enumerate(lines) for part in (element("br") if i else None, line))


# ------------------------------------------------------------------------------------------------ stages


def _stages(shown: Mapping[str, Network]) -> Html:
    """Each network's stages: shape of the feature map, blocks, and the options by which they differ."""
    stages = {label: network.config.segments()[1:-1] for label, network in shown.items()}
    every = [spec for parts in stages.values() for part in parts for spec in part]
    differing = _differing(every)

    def cell(parts: tuple[tuple[BlockSpec, ...], ...], number: int) -> Html | None:
        if number >= len(parts):
            return None
        texts = [_block_text(spec, differing) for spec in parts[number]]
        blocks = [f"{texts.count(text)} {text}" for text in dict.fromkeys(texts)]
        last = parts[number][-1].in_shape if parts[number] else ()
        return _lines([" × ".join(map(str, last)), *blocks])

    most = max(map(len, stages.values()))
    rows = [(f"stage {i + 1}", *(cell(parts, i) for parts in stages.values())) for i in range(most)]
    heads = [(network.config.segments()[-1] or (None,))[0] for network in shown.values()]
    rows.append(("head", *(_options(spec, {"width"}) if spec else None for spec in heads)))
    return table(("", *shown), rows, "Channels × height × width of the feature map, and the blocks in their order.")


def _differing(specs: Sequence[BlockSpec]) -> set[tuple[str, str]]:
    """(kind, option) that are not the same in all blocks of a kind; the mixer is always of interest."""
    values: dict[tuple[str, str], set[Any]] = {}
    for spec in specs:
        for name, value in spec.options:
            values.setdefault((spec.kind, name), set()).add(value)
    return {key for key, found in values.items() if len(found) > 1 or key[1] == "mixer"}


def _block_text(spec: BlockSpec, differing: set[tuple[str, str]]) -> str:
    options = _options(spec, {name for kind, name in differing if kind == spec.kind and kind != "downsample"})
    return f"{spec.kind.replace('_', ' ')}{f' ({options})' if options else ''}"


def _options(spec: BlockSpec, names: set[str]) -> str:
    return ", ".join(
        str(value) if name == "mixer" else f"{name.replace('_', ' ')} {str(value).lower()}"
        for name, value in spec.options
        if name in names
    )


_BLOCKS = "Milliseconds of each stage, block by block; each inference has some that belong to no block."


def _blocks_picture(result: SearchResult, shown: Mapping[str, Network], counted: Mapping[str, Profile]) -> Html | None:
    if not result.tables:
        return None
    blocks = {f"{label}: {title(network)}": counted[label].blocks for label, network in shown.items()}
    return figure(draw_blocks(blocks, result.tables[0]), _BLOCKS, "blocks")


# ------------------------------------------------------------------------------------------------ built


def _built(result: SearchResult) -> Html:
    if not result.built:
        return Html()
    timed = any(one.here for one in result.built)
    device = result.best.latencies[0].device if len(result.best.latencies) == 1 else "the slower device"
    columns = [
        "",
        "network",
        "parameters, counted",
        "MACs, counted",
        f"ms on {device}, {result.best.latencies[0].kind}",
    ]
    columns += ["ms measured here (CPU, one thread)", "ms by the CPU's table, predicted"] if timed else []
    rows = []
    for one in result.built:
        params = _lines([f"{one.counts.total:,}", f"{one.counts.deployed:,} deployed"])
        here = (one.here and _timed(one.here), one.foretold and _range(one.foretold)) if timed else ()
        shape = breakable(shape_text(one.config))
        rows.append((breakable(one.label), shape, params, f"{one.counts.macs:,}", f"{one.predicted_ms:.2f}", *here))
    notes = ["Each was built with its weights; its counts are those that the search summed up block by block."]
    machine = next((str(one.here.machine) for one in result.built if one.here), "")
    if timed:
        notes.append(f"Timed here: {machine}; ONNX Runtime, fp32, batch 1, weights that were not trained.")
        notes.append("A millisecond of this CPU never stands for one of the device: it has a table of its own.")
    both = [(one.here.timing.ms / one.foretold.ms, one.foretold) for one in result.built if one.here and one.foretold]
    if both:
        low, high = min(ratio for ratio, _ in both), max(ratio for ratio, _ in both)
        notes.append(
            f"The CPU's table is of {both[0][1].device}; measured here is {low:.2f} to {high:.2f} times what it says. "
            "What is common to all is the machine and how busy it is."
        )
    return joined((table(columns, rows), element("p", " ".join(notes), class_="quiet")))


# ------------------------------------------------------------------------------------------------ how it went


def _went(result: SearchResult) -> str:
    size = f"{result.space_size:,}" if result.space_size < 1e6 else f"{result.space_size:.1e}"
    parts = [f"{result.num_evaluated:,} evaluations in a space of {size} networks"]
    if result.num_feasible:
        parts.append(f"{result.num_feasible:,} of them within every limit and rule")
    if result.seconds:
        rate = result.num_evaluated / result.seconds
        parts.append(f"{format_duration(result.seconds)} of CPU time, {rate:,.0f} candidates/s")
    chance = max((score for _, score in result.random_front), default=None)
    versus = f"The best of as many random candidates scores {chance:.1f} % (predicted)" if chance else (
        "As many random candidates found none"
    )  # fmt: skip
    beaten = "" if result.beats_random else " The search did NOT beat random search here."
    return f"{'; '.join(parts)}. {versus}, the best of the search {result.best.top1_percent:.1f} %.{beaten}"


def _history(result: SearchResult) -> Html | None:
    if len(result.history) < 2:
        return None
    return figure(draw_history(result.history), "The search by the candidates that it evaluated.", "history")


def _open_questions(result: SearchResult) -> list[Html]:
    """What neither price nor score decided, and what the score decided by other means than size."""
    found: list[Any] = []
    if result.undecided:
        found.append(f"Undecided without data: {', '.join(result.undecided)}: kept as published.")
    if result.kept:
        found.append(f"Neither price nor score sees {', '.join(result.kept)}: kept as published.")
    if result.by_ablations:
        genes = ", ".join(result.by_ablations)
        found.append(f"Judged by published ablations, single runs of one network, besides their size: {genes}.")
    for effect in result.best.effects:
        what = f"{effect.path} = {str(effect.value).lower()}: {effect.points:+.2f} points of top-1, published, "
        found.append(joined((what, linked(effect.source), ".")))
    if result.choices:
        found.append(f"Chosen besides depths and widths: {_pairs(result.choices)}.")
    if result.apart:
        many = f"{len(result.apart):,} candidate{'s' if result.apart[1:] else ''}"
        found.append(f"Kept apart, because no network of such a shape was ever trained: {many} of the front.")
    distillation = "with" if getattr(result.best.config, "distilled", False) else "without"
    found.append(
        f"Top-1 is what the score expects of 300 epochs of ImageNet-1k {distillation} distillation, "
        "not of other data. Measure the winner on the device."
    )
    return [joined([text]) for text in found]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} = {str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items()
    )


# ------------------------------------------------------------------------------------------------ provenance


def _origin(result: SearchResult, record: Mapping[str, Any], files: Mapping[str, Path | str]) -> Html:
    rows: list[tuple[Any, Any]] = []
    if argv := record.get("argv"):
        rows.append(("command", element("code", f"vig {shlex.join(argv[1:])}")))
    for key in ("seed", "date", "platform"):
        if key in record:
            rows.append((key, str(record[key])))
    if versions := record.get("versions"):
        rows.append(("versions", ", ".join(f"{name} {number}" for name, number in versions.items())))
    rows += [(what, _lines([str(path), element("code", f"sha256 {sha256(path)}")])) for what, path in files.items()]
    for prices in result.tables:
        source = f"{prices.device}, {prices.os}, {prices.compute_unit}, {prices.precision}; {prices.source}"
        error = f"{prices.error_text}; x/÷ {prices.interval.factor:g} covers {prices.interval.coverage_percent:g} %"
        rows.append(("milliseconds", _lines([linked(source), error])))
    return table(("", ""), rows) if rows else Html()

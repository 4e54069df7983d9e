"""`vig profile PACKAGE`: its operations by block and what is known of them; with `--device`, on a Mac or an iPhone."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import click

from vigcli.cli.options import Integer, device_name_option, iterations_option, team_option, units_option
from vigcli.cli.output import emit_json, fields, progress, say, table
from vigcli.errors import ConfigError
from vigcli.units import format_count

if TYPE_CHECKING:
    from vigcli.config.package import PackageMeta

ROUNDS, ITERATIONS = 20, 50
NAMED_BLOCKS = 3  # that a line names before it says how many there are


class AppleOptions(NamedTuple):
    """What `--device` and the options beside it say."""

    device: Any
    units: str | None
    num_rounds: int | None
    iterations: int | None
    name: str | None
    team: str | None
    against: str | None
    output: str | None
    dry_run: bool


def apple_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `AppleOptions`."""
    for option in reversed((
        click.option(
            "--device", type=click.Choice(("mac", "iphone")),
            help="Run SUBJECT, a package, through CoreML on this Mac, or on the iPhone at it: docs/first_mac.md.",
        ),
        units_option,
        click.option("--rounds", "num_rounds", type=Integer(2, 1000), metavar="N",
                     help=f"Of a Mac or iPhone: how often the model is loaded and timed; default: {ROUNDS}."),
        iterations_option,
        device_name_option,
        team_option,
        click.option("--against", metavar="CHECKPOINT", type=click.Path(),
                     help="Of a Mac or iPhone: what SUBJECT was made from; default: found in runs/ by its hash."),
        click.option("-o", "--output", type=click.Path(), help="Of a Mac or iPhone; default: a new run in runs/."),
        click.option("--dry-run", is_flag=True, help="Of a Mac or iPhone: write what would be run, on any machine."),
    )):  # fmt: skip
        command = option(command)
    return command


def is_package(subject: str) -> bool:
    """Whether a subject is a package, or a run directory that holds one and no checkpoint."""
    from vigcli.cli.load import CHECKPOINT_FILE

    path = Path(subject)
    if path.suffix == ".mlpackage":
        return True
    return path.is_dir() and not (path / CHECKPOINT_FILE).exists() and any(path.glob("*.mlpackage"))


# ---------------------------------------------------------------------------------------------------- operations


class Operations:
    """The operations of a package by block, as columns beside the prices, as lines, and as JSON.

    Attributes:
        meta: what the package says of itself; None of another's.
    """

    shown: ClassVar[tuple[str, ...]] = ("gather", "top-k", "layout")  # with a column of their own
    columns: ClassVar[tuple[str, ...]] = ("ops", *shown, "other")

    def __init__(self, subject: str):
        from vigcli.cli.load import picked_package
        from vigcli.coreml.convert import METADATA_KEY, meta_of
        from vigcli.coreml.interpreter import Program
        from vigcli.coreml.lint import lint
        from vigcli.measure.profile import profile

        program = Program.load(picked_package(subject))
        self.meta: PackageMeta | None = None
        if METADATA_KEY in program.metadata:
            self.meta = meta_of(program)
        names = [block.name for block in profile(self.meta.arch).blocks] if self.meta else []
        self.subject, self.found = subject, lint(program, names)

    @property
    def why_no_price(self) -> str:
        """Why what is known of its network is not known of the package; empty where it is."""
        meta = self.meta
        if meta is None:
            return "no package of vig"
        gives = "feature maps" if meta.output == "features" else meta.output
        is_priced = meta.output != "features" and meta.batch == 1
        return "" if is_priced else f"{meta.priced_as}, {meta.arch.resolution} px, {gives}, batch {meta.batch}"

    def cells(self, block: str) -> tuple[Any, ...]:
        """A block's number of operations, and how many of each kind of finding; empty where there is none."""
        counts = self.found.counts(block)
        others = sum(number for kind, number in counts.items() if kind not in self.shown)
        return self.found.num_ops.get(block, 0), *(counts[kind] or "" for kind in self.shown), others or ""

    def block_record(self, block: str) -> dict[str, Any]:
        return {"num_ops": self.found.num_ops.get(block, 0), "findings": dict(self.found.counts(block))}

    def record(self) -> dict[str, Any]:
        """All findings, and the dynamic part."""
        from vigcli.coreml.lint import RULES

        findings = [finding._asdict() for finding in self.found.findings]
        kinds = {finding.kind for finding in self.found.findings}
        return {
            "num_ops": sum(self.found.num_ops.values()),
            "findings": findings,
            "rules": {kind: rule._asdict() for kind, rule in RULES.items() if kind in kinds},
            "dynamic": self.found.dynamic and self.found.dynamic._asdict(),
        }

    def emit(self, as_json: bool) -> None:
        """Of a package that has no price: its operations, and the MACs of one run of it."""
        blocks, macs = self.found.num_ops, self.found.macs
        if as_json:
            said = {} if self.meta is None else {
                "arch": self.meta.arch.model_dump(mode="json"), "precision": self.meta.precision,
                "output": self.meta.output, "batch": self.meta.batch, "macs": sum(macs.values()),
                "latency_ms": None, "latency_kind": "not known",
            }  # fmt: skip
            emit_json({
                "name": self.subject, **said, **self.record(),
                "blocks": [{"name": name, "macs": macs[name], **self.block_record(name)} for name in blocks],
            })  # fmt: skip
            return
        rows = [(name or "(all)", format_count(macs[name]), *self.cells(name)) for name in blocks]
        what = self.why_no_price + ("; blocks by its weights" if self.meta is None else "")
        table(("block", "MACs", *self.columns), rows, title=f"{self.subject}: {what}")
        if self.meta is not None:
            click.echo()
            fields(
                [
                    ("MACs", f"{sum(macs.values()):,}"),
                    ("latency", "not known: tables are of one picture and a head"),
                ]
            )
        self.print_findings()

    def print_findings(self) -> None:
        """What was found, by kind, with where, the way out, the reason and who reported it."""
        from vigcli.coreml.lint import RULES, dynamic_text
        from vigcli.coreml.op_blocks import ELSEWHERE

        if ELSEWHERE in self.found.num_ops:
            say(f"{ELSEWHERE}: coremltools made these weights itself and named them by no block, as of folded norms.")
        if self.found.dynamic:
            fields([("dynamic part", dynamic_text(self.found))])
        groups = Counter((finding.kind, finding.setting) for finding in self.found.findings)
        where = {
            group: list(dict.fromkeys(f.block for f in self.found.findings if (f.kind, f.setting) == group))
            for group in groups
        }
        click.echo()
        if not groups:
            click.echo("No operation that is reported to leave the Neural Engine, and no change of layout or type.")
            return
        rows = [
            (kind, number, _some(where[kind, setting]), "yes" if RULES[kind].leaves else "no", setting or "-")
            for (kind, setting), number in groups.items()
        ]
        table(("finding", "number", "in", "leaves", "avoided by"), rows)
        for kind in dict.fromkeys(kind for kind, _ in groups):
            say(f"{kind}: {RULES[kind].reason} ({RULES[kind].source}).")
        say("Reported by others, not measured here; with --device mac CoreML itself is asked.")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= NAMED_BLOCKS else f"{names[0]} to {names[-1]}: {len(names)} blocks"


# ---------------------------------------------------------------------------------------------------- Apple hardware


def profile_on_apple(subject: str | None, asked: AppleOptions, as_json: bool) -> None:
    """Run a package on a Mac or an iPhone, or write what would be run, into a run directory."""
    from vigcli.archs.checkpoint import load_checkpoint
    from vigcli.cli.load import picked_package, run_folder
    from vigcli.coreml.device import Target, check_can_measure
    from vigcli.coreml.device_profile import PAGE, prepare, profile_on_device
    from vigcli.latency.protocol import Protocol
    from vigcli.runs.provenance import provenance
    from vigcli.runs.rundir import new_run, write_run_file

    target = Target(asked.device, asked.units or "ALL", asked.name or "", asked.team or "")
    if not asked.dry_run:
        check_can_measure(target, PAGE)
    iterations = asked.iterations or ITERATIONS
    protocol = Protocol(rounds=asked.num_rounds or ROUNDS, iterations=iterations, trim=iterations // 5)
    package = picked_package(subject)
    checkpoint_path, picture = _references(package, asked.against)
    say(f"Taking {package}{f' and {checkpoint_path}' if checkpoint_path else ''}.")
    checkpoint = load_checkpoint(checkpoint_path) if checkpoint_path else None
    with new_run("profile", run_folder(asked.output)) as run, progress() as advance:
        prepared = prepare(package, run, target, protocol, picture)
        found = None if asked.dry_run else profile_on_device(prepared, run, target, protocol, checkpoint, advance)
        write_run_file(run, provenance(sys.argv, 0, protocol.model_dump_json()))
    if found is not None:
        _print_profile(found, run, as_json)
        return
    planned = {
        "run": str(run), "package": str(prepared.package), "device": target.kind,
        "compute_units": target.compute_units, "protocol": str(protocol), "num_values": len(prepared.names),
        "against": checkpoint_path and str(checkpoint_path),
    }  # fmt: skip
    if as_json:
        emit_json(planned)
        return
    fields([(name.replace("_", " "), "-" if value is None else value) for name, value in planned.items()])
    options = f"--units {target.compute_units} --rounds {protocol.rounds} --iterations {protocol.iterations}"
    click.echo(f"Next, on a Mac:  vig profile {package} --device {target.kind} {options}")


def _references(package: Path, against: str | None) -> tuple[Path | None, Any]:
    """The checkpoint that a package was made from, where it is known, and a picture of its size."""
    from vigcli.cli.load import checkpoint_of
    from vigcli.config.recipe import Data
    from vigcli.coreml.convert import package_meta
    from vigcli.train.data import load_split

    try:
        meta = package_meta(package)
    except ConfigError:
        if against is not None:
            raise
        say(f"{package}: is no package of vig: run with drawn numbers, and not held to torch.")
        return None, None
    picture = load_split(Data(source="emoji10"), "val", meta.preprocessing, meta.arch.resolution, limit=1)[0][0]
    try:
        return checkpoint_of(package, meta.checkpoint_sha256, against), picture
    except ConfigError as error:
        if against is not None:
            raise
        say(f"Not held to torch: {error} Name it with --against.")
        return None, picture


def _print_profile(found: Any, run: Path, as_json: bool) -> None:
    record = found.record()
    if as_json:
        emit_json({"run": str(run), **record})
        return
    blocks = list(dict.fromkeys(op.block for op in found.operations))
    units = sorted({op.unit for op in found.operations if op.unit})
    rows = [_block_row(block, [op for op in found.operations if op.block == block], units) for block in blocks]
    columns = ("block", "ops", *units, "cost %", "interpreter dB", "torch dB")
    table(columns, rows, title=f"{found.machine.device}, {found.machine.os}, {found.target.compute_units}")
    click.echo()
    left = [op for op in found.operations if op.unit not in ("", "ANE")]
    if left and "ANE" in units:
        rows = [
            (op.name, op.op_type, op.block, op.unit, " ".join(op.supported), _percent(op.cost), _db(op.interpreter.db),
             op.reason)
            for op in left
        ]  # fmt: skip
        table(("left the Neural Engine", "type", "block", "unit", "supported", "cost %", "dB", "reason"), rows)
        click.echo()
    steady = found.steady
    fields([
        ("load", f"{_ms(found.load_ms)}; the first time {_ms(found.first_load_ms)}"),
        ("first inference", _ms(found.first_inference_ms)),
        ("then", f"{steady.ms:.3f} ms ± {steady.plus_minus_ms:.3f}" if steady else "not known"),
        ("placed", ", ".join(f"{unit} {number}" for unit, number in record["units"].items()) or "not known"),
        ("protocol", found.protocol),
        *((f"failed: {what}", why) for what, why in found.failures.items()),
    ])  # fmt: skip
    say(
        "cost: shares of CoreML's own estimate, no milliseconds. dB: of copies that hand out inner values, which CoreML"
    )
    say("may place otherwise; the worst of a block. Every operation is in operations.csv.")
    click.echo(f"Next:  send {run} back, as docs/first_mac.md says")


def _block_row(block: str, operations: Sequence[Any], units: Sequence[str]) -> tuple[Any, ...]:
    placed = Counter(op.unit for op in operations)
    costs = [op.cost for op in operations if op.cost is not None]
    worst = (
        min((db for op in operations if (db := getattr(op, reference).db) is not None), default=None)
        for reference in ("interpreter", "torch")
    )
    counts = (placed[unit] or "" for unit in units)
    return (block or "(not ours)", len(operations), *counts, _percent(sum(costs) if costs else None), *map(_db, worst))


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"


def _db(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"


def _ms(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f} ms"

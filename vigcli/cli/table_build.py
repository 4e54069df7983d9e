"""`vig table build`: a latency table measured on this machine, or rows measured on a Mac or an iPhone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vigcli.cli.options import (
    Integer,
    device_name_option,
    dry_run_option,
    iterations_option,
    json_option,
    seed_option,
    team_option,
    units_option,
)  # fmt: skip
from vigcli.cli.output import emit_json, progress, say, table
from vigcli.cli.table_device import measure_on_apple
from vigcli.errors import ConfigError, Interrupted, UsageError
from vigcli.units import format_bytes, format_duration

if TYPE_CHECKING:
    from vigcli.latency.table import LatencyTable

ROUNDS, QUICK_ROUNDS = 20, 7


@click.command()
@click.argument("names", metavar="[SPACE]...", nargs=-1)
@click.option(
    "--device",
    type=click.Choice(("cpu", "mac", "iphone")),
    default="cpu",
    show_default=True,
    help="This machine's CPU; on a Mac CoreML there, or on the iPhone at it: docs/measure_on_a_mac.md.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help="The table (default: cpu.yaml), or the folder of packages and rows (default: device-measurement).",
)
@click.option("--quick", is_flag=True, help="Fewer rounds, and fewer blocks of a kind: more are interpolated.")
@click.option(
    "--rounds", "num_rounds", type=Integer(3, 1000), metavar="N",
    help=f"How often everything is timed; default: {ROUNDS}, with --quick {QUICK_ROUNDS}.",
)  # fmt: skip
@units_option
@click.option("--every", type=Integer(1, 100_000), metavar="N", help="Of a Mac or iPhone: every N-th block only.")
@iterations_option
@device_name_option
@team_option
@seed_option
@dry_run_option
@json_option
def build(
    names: tuple[str, ...],
    device: str,
    output: str | None,
    quick: bool,
    num_rounds: int | None,
    units: str | None,
    every: int | None,
    iterations: int | None,
    name: str | None,
    team: str | None,
    seed: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Measure the blocks of SPACEs (default: all built-in ones) and of the named networks on this machine's CPU.

    Of a space a grid is timed, and what lies between is interpolated; every block of a named network is timed.

    With --device mac or iphone: those of one SPACE through CoreML, into rows that `vig table add` takes.

    A build that was stopped goes on where it was when the same command is given again: its rounds are kept beside the
    output, in OUTPUT.rounds.jsonl, until the table is written.

    Example:  vig table build --quick -o cpu.yaml
    """
    if device != "cpu":
        if quick or len(names) > 1:
            raise UsageError(f"--device {device} takes one SPACE, and no --quick.", "--every N takes fewer blocks.")
        measure_on_apple(
            names[0] if names else "mobilevigv2", device, units or "ALL", every or 1, num_rounds or ROUNDS,
            iterations or 50, name or "", team or "", output or "device-measurement", dry_run, as_json,
        )  # fmt: skip
        return
    if units or every or iterations or name or team:
        raise UsageError(
            "--units, --every, --iterations, --name and --team are of a Mac or iPhone.", "Add --device mac."
        )
    output = output or "cpu.yaml"
    from vigcli.config.load import MAX_YAML_BYTES, dump
    from vigcli.config.space import named_spaces
    from vigcli.files import write_text
    from vigcli.measure.bench import this_machine
    from vigcli.measure.build import RoundsFile, measure, plan, predicted_bytes, predicted_seconds, table_of

    machine = this_machine()
    num_rounds = num_rounds or (QUICK_ROUNDS if quick else ROUNDS)
    spaces = named_spaces(names)
    say(f"Counting the blocks of {', '.join(space.name for space in spaces)}.")  # up to a minute or two
    planned = plan(spaces, quick, seed)
    rounds = RoundsFile(Path(f"{output}.rounds.jsonl"), planned, machine)
    seconds, size_bytes = predicted_seconds(planned, num_rounds - len(rounds.rounds)), predicted_bytes(planned)
    say(
        f"{'Would time' if dry_run else 'Timing'} {len(planned.blocks)} blocks and {len(planned.networks)} networks, "
        f"{num_rounds} rounds ({len(rounds.rounds)} done), on {machine}: about {format_duration(seconds)} of CPU "
        f"time and {format_bytes(size_bytes)} of memory."
    )
    if dry_run:
        say(f"It would write {output}.")
        if as_json:
            emit_json({
                "output": output, "num_blocks": len(planned.blocks), "num_networks": len(planned.networks),
                "num_rounds": num_rounds, "rounds_done": len(rounds.rounds), "predicted_cpu_seconds": round(seconds),
                "predicted_memory_bytes": round(size_bytes),
                "machine": machine._asdict(),
            })  # fmt: skip
        return
    start = time.monotonic()
    try:
        with progress() as advance:
            timings = measure(planned, rounds, num_rounds, seed, on_progress=advance)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped after {len(rounds.rounds)} of {num_rounds} rounds.", "The same command goes on from there."
        ) from None
    built = table_of(planned, timings, machine, (Path(output).stem,))
    text = f"# {built.device}, {built.runtime}: measured by `vig table build`\n{dump(built)}"
    if len(text.encode()) > MAX_YAML_BYTES:
        raise ConfigError(
            f"{output}: {built.num_rows} rows are more than a table file may hold.", "Name fewer spaces, or --quick."
        )
    write_text(output, text)
    rounds.path.unlink()
    _report(built, output, time.monotonic() - start, as_json)


def _report(built: LatencyTable, output: str, seconds: float, as_json: bool) -> None:
    if as_json:
        judged = built.model_dump(mode="json", include={"device", "num_rows", "interval", "accuracy"})
        emit_json({"path": output, **judged})
        return
    what = {"networks": "whole networks, not seen before", "interpolated": "blocks, by the other rows of their kind"}
    rows = [
        (what[by], a.num_rows, f"{a.mape_percent:.2f}", f"{a.within_10_percent:.0f}", f"{a.kendall_tau:.3f}")
        for by, a in built.accuracy.items()
    ]
    table(("predicted", "number", "error %", "within 10 %", "tau"), rows, title=f"{built.device}, {built.precision}")
    say(
        f"Wrote {output}: {built.num_rows} rows in {format_duration(seconds)}; x/÷ {built.interval.factor} covers "
        f"{built.interval.coverage_percent:g} % of the networks."
    )
    click.echo(f"Next:  vig profile mobilevigv2_s --table {output}")

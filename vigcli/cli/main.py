"""The `vig` command: a table of commands, each imported only when used, and the one place where errors are printed."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from vigcli import __version__
from vigcli.errors import Interrupted, UsageError, VigError, did_you_mean

COMMANDS = {  # name: the line that `vig --help` shows; the command itself is `vigcli.cli.<name>:command`
    "search": "Find the best network under a latency budget.",
    "train": "Train a network by a recipe.",
    "quantize": "Write an int8 CoreML package and measure it.",
    "export": "Write the fp16 CoreML package.",
    "verify": "Run a CoreML package op by op and hold it to its checkpoint.",
    "profile": "Count parameters and MACs, price the latency.",
    "build": "Build a network by name and write a checkpoint.",
    "table": "Look at a latency table, or fit it again to the published data.",
    "ls": "List networks, search spaces, latency tables and recipes.",
    "cp": "Copy a built-in file to start from.",
    "check": "Validate a file, or print the JSON Schema of its kind.",
    "doctor": "Say what works on this machine.",
}


class LazyGroup(click.Group):
    """A group that imports a command when it runs and still suggests the nearest for a misspelt one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        if name not in COMMANDS:
            raise UsageError(f"No such command '{name}'.", did_you_mean(name, COMMANDS))
        return import_module(f"vigcli.cli.{name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="vig")
@click.option("--debug", is_flag=True, help="Show tracebacks. May stand anywhere on the line.")
def cli(debug: bool) -> None:
    """Put a vision network inside a latency budget on an iPhone: search, train, quantize, export, verify.

    Start with:  vig search --budget 1.0ms
    """


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 ok, 1 general, 2 usage, 3 config, 4 budget, 5 table, 6 machine, 130 stopped."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job scheduler's stop is treated as Ctrl-C
    try:
        result = cli.main([a for a in arguments if a != "--debug"], prog_name="vig", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader went away: `vig profile | head`
        sys.stderr.close()
        sys.exit(0)
    except BaseException as error:
        if isinstance(error, SystemExit) or (debug and isinstance(error, Exception)):
            raise
        known = as_vig_error(error)
        _print(known)
        sys.exit(known.exit_code)
    sys.exit(result if isinstance(result, int) else 0)


def as_vig_error(error: BaseException) -> VigError:
    """Any exception as a two-line error."""
    if isinstance(error, VigError):
        return error
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        name = context.command_path if context is not None else "vig"
        message = error.format_message()
        first, _, suggestion = message.partition("\n")
        return UsageError(first, suggestion.strip() or f"`{name} --help` shows what it takes.")
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return Interrupted("stopped.", "Nothing was left half-written.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return VigError("the disk is full.", "Free space and run again; nothing was left half-written.")
    if isinstance(error, MemoryError):
        return VigError("not enough memory.", "Use a smaller batch or resolution.")
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return VigError(f"unexpected: {text}", "This is a fault of vig: run again with --debug and report what it prints.")


def _print(error: VigError) -> None:
    out: dict[str, Any] = {"err": True}
    message = " ".join(str(error).split())
    click.echo(click.style("Error: ", fg="red") + message, **out)
    if error.hint:
        click.echo(click.style("Hint:  ", fg="yellow") + " ".join(error.hint.split()), **out)

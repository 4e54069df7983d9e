"""The `vig` command: a table of commands, each imported only when used, and the one place where errors are printed."""

from __future__ import annotations

import sys

try:
    import errno
    import io
    import keyword
    import os
    import signal
    import traceback
    from collections.abc import Sequence
    from importlib import import_module
    from typing import NoReturn

    import click

    from vigcli import __version__
    from vigcli.cli.output import colour
    from vigcli.errors import Interrupted, UsageError, VigError, did_you_mean
except KeyboardInterrupt:  # before `main` could catch it; nothing has begun
    raise SystemExit(130) from None

COMMANDS = {  # name: the line that `vig --help` shows; the command itself is `vigcli.cli.<name>:command` (`import_`)
    "search": "Find the best network under a latency budget.",
    "train": "Train a network by a recipe.",
    "prune": "Remove channels until a network meets a budget.",
    "quantize": "Write a smaller CoreML package (int8, palettes, zeros) and measure it.",
    "export": "Write the fp16 CoreML package.",
    "verify": "Run a CoreML package op by op and hold it to its checkpoint.",
    "run": "Run a package on pictures: classes and probabilities.",
    "eval": "Measure top-1 and top-5 of packages, ONNX files and checkpoints.",
    "report": "Put compressed packages side by side, as a page.",
    "profile": "Count parameters and MACs, price the latency.",
    "build": "Build a network by name and write a checkpoint.",
    "import": "Write a checkpoint from the authors' weights.",
    "table": "Look at a latency table, or fit it again to the published data.",
    "score": "Predict top-1 without data, and say how wrong that is.",
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
        return import_module(f"vigcli.cli.{name}{'_' * keyword.iskeyword(name)}").command

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
    stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        sys.unraisablehook = lambda what: None  # the interrupt may come in a library's callback, which tells nobody
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):  # a job scheduler's stop is treated as Ctrl-C
        signal.signal(number, stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale may lack ±, a file's name may be no text
    try:
        _run([a for a in arguments if a != "--debug"])
        if sys.stdout is not None:  # closed: `vig ls >&-`
            sys.stdout.flush()
    except BrokenPipeError:  # the reader went away: `vig profile | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer has nowhere to go
        sys.exit(0)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(error.exit_code)
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if debug and isinstance(error, Exception):
            traceback.print_exception(error)
        if stopped:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would only break the message
        # A library may have made an error of its own of the interrupt, or vig one of what a library then said.
        known = as_vig_error(KeyboardInterrupt() if stopped and not isinstance(error, Interrupted) else error)
        _print(known)
        sys.exit(known.exit_code)
    sys.exit(0)


def _run(arguments: list[str]) -> None:
    """As click's own `main`, which would end a closed pipe with 1 and print on Ctrl-C."""
    if instruction := os.environ.get("_VIG_COMPLETE"):  # the shell asks for completions
        from click.shell_completion import shell_complete

        raise click.exceptions.Exit(shell_complete(cli, {}, "vig", "_VIG_COMPLETE", instruction))
    with cli.make_context("vig", arguments, color=colour()) as context:
        cli.invoke(context)


def as_vig_error(error: BaseException) -> VigError:
    """Any exception as a two-line error."""
    if isinstance(error, VigError):
        return error
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        name = context.command_path if context is not None else "vig"
        first, mark, suggestion = " ".join(error.format_message().split()).partition("Did you mean")
        return UsageError(first.strip(), mark + suggestion or f"`{name} --help` shows what it takes.")
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("stopped.", "Nothing was left half-written.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return VigError("the disk is full.", "Free space and run again; nothing was left half-written.")
    if isinstance(error, OSError) and error.filename is not None:
        return VigError(f"{error.filename}: {error.strerror}.", "Check the path, and who may read and write there.")
    if isinstance(error, MemoryError):
        return VigError("not enough memory.", "Use a smaller batch or resolution.")
    text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return VigError(f"unexpected: {text}", "This is a fault of vig: run again with --debug and report what it prints.")


def _print(error: VigError) -> None:
    for word, shade, text in (("Error: ", "red", str(error)), ("Hint:  ", "yellow", error.hint)):
        if text:  # what a file or a command line holds may be meant to steer a terminal
            line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
            click.echo(click.style(word, fg=shade) + line, err=True, color=colour())

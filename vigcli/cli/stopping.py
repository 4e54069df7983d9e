"""Ctrl-C during long training: ask it to save, rather than break it off."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from vigcli.cli.output import say


@contextlib.contextmanager
def stop_on_signal(patience_s: float = 0.0, quiet: bool = False) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask the loop to save and stop; a second one stops at once.

    One that follows within `patience_s` is the first once more: a launcher repeats what the terminal sent to all.
    """
    stopping, since = False, 0.0

    def ask(number: int, frame: Any) -> None:
        nonlocal stopping, since
        if stopping and time.monotonic() - since >= patience_s:
            raise KeyboardInterrupt
        if not stopping and not quiet:
            say("Stopping: saving the state after this step ...")
        stopping, since = True, since or time.monotonic()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

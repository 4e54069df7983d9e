"""Python's search for cycles of dead objects, left out where many objects are made and nearly all are kept."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from unittest import mock


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """In the block neither Python nor a call of `gc.collect` looks for garbage."""
    collected = gc.isenabled()
    gc.disable()
    try:
        with mock.patch.object(gc, "collect", return_value=0):
            yield
    finally:
        if collected:
            gc.enable()

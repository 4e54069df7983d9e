"""The errors a user can meet, each with the exit code of its kind; how they are printed is the command line's matter.

VigError             1  anything not named below
+- UsageError        2  the command line itself is wrong
+- ConfigError       3  a configuration, checkpoint or package has an invalid value
+- InfeasibleError   4  no network meets the budget
+- NotMeasurableError 5 the latency table does not know this
+- UnavailableError 6  an extra, data or a platform is missing
+- Interrupted     130  Ctrl-C or SIGTERM
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VigError(Exception):
    """A mistake that the user can mend: one sentence (what and where), and a hint (how to fix it)."""

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.hint = hint
        if hint:
            self.add_note(f"Hint:  {hint}")  # for those who call from Python and see a traceback


class UsageError(VigError):
    exit_code = 2


class ConfigError(VigError):
    exit_code = 3


class InfeasibleError(VigError):
    exit_code = 4


class NotMeasurableError(VigError):
    exit_code = 5


class UnavailableError(VigError):
    exit_code = 6


class Interrupted(VigError):
    exit_code = 130


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`Did you mean 'depth'?` for the nearest known word, else the known words, else nothing."""
    by_lower = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{by_lower[close[0]]}'?"
    return f"Known: {', '.join(by_lower.values())}." if 0 < len(by_lower) <= 30 else ""

"""Quantities as users write them and as tables print them; every number inside the program is in one base unit."""

from __future__ import annotations

import re

from vigcli.errors import UsageError

_LATENCY = re.compile(r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?)\s*(ms|us|[µμ]s|s)?", re.IGNORECASE | re.ASCII)
_TO_MS = {"ms": 1.0, "us": 1e-3, "µs": 1e-3, "μs": 1e-3, "s": 1e3}  # micro sign and Greek mu look alike


def parse_latency_ms(text: str) -> float:
    """`1.0ms`, `1000us` or `0.001s` as milliseconds.

    Raises UsageError for a bare number (milliseconds or microseconds?), a non-positive or unreadable one.
    """
    match = _LATENCY.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is not a latency.", "Write a number with a unit: 1.0ms or 1000us.")
    if match[2] is None:
        raise UsageError(f"'{text}' has no unit.", f"Write {match[1]}ms or {match[1]}us.")
    value = float(match[1]) * _TO_MS[match[2].lower()]
    if not 0 < value < 1e6:
        raise UsageError(f"'{text}' is not a latency budget.", "It must be above zero and below 1000 s.")
    return value


_COUNT = re.compile(r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?)\s*([kmg]?)", re.IGNORECASE | re.ASCII)
_BYTES = re.compile(r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?)\s*([kmg]?b)?", re.IGNORECASE | re.ASCII)
_FACTOR = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


def parse_count(text: str) -> float:
    """`7.5M`, `900k`, `1.2G` or `7500000` as a number. Raises UsageError for what is none above zero."""
    match = _COUNT.fullmatch(text.strip())
    value = float(match[1]) * _FACTOR[match[2].lower()] if match else 0.0
    if not 0 < value < 1e15:
        raise UsageError(f"'{text}' is not a count.", "Write a number above zero: 7.5M, 900k or 1.2G.")
    return value


def parse_bytes(text: str) -> float:
    """`12MB` or `800kB` as bytes, in decimal units. Raises UsageError for a bare number or what is no size."""
    match = _BYTES.fullmatch(text.strip())
    if match is not None and match[2] is None:
        raise UsageError(f"'{text}' has no unit.", f"Write {match[1]}MB or {match[1]}kB.")
    value = float(match[1]) * _FACTOR[match[2].lower()[:-1]] if match else 0.0
    if not 0 < value < 1e15:
        raise UsageError(f"'{text}' is not a size.", "Write a number above zero with its unit: 12MB or 800kB.")
    return value


def format_count(value: float) -> str:
    """A count in the papers' style: 7.77 M, 912 M, 3.56 G."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            scaled = value / factor
            return f"{scaled:.0f} {suffix}" if scaled >= 99.95 else f"{scaled:.2f} {suffix}"
    return f"{value:.0f}"


def format_many(value: int) -> str:
    """The size of a space: 2,400 or 6.1e+12."""
    return f"{value:,}" if value < 1e6 else f"{value:.1e}"


def format_bytes(size_bytes: float) -> str:
    """A file size in decimal units: 14.5 MB."""
    for factor, suffix in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {suffix}"
    return f"{size_bytes:.0f} B"


def format_duration(seconds: float) -> str:
    """Seconds as a person says them: 8 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"

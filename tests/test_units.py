"""Quantities in and out."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigcli.errors import UsageError
from vigcli.units import format_bytes, format_count, format_duration, parse_latency_ms


@given(st.floats(1e-3, 1e5), st.sampled_from([("ms", 1), ("us", 1e-3), ("µs", 1e-3), ("μs", 1e-3), ("MS", 1)]))
@settings(max_examples=50)
def test_a_latency_is_read_in_any_unit(value: float, unit: tuple[str, float]) -> None:
    assert parse_latency_ms(f" {value!r} {unit[0]} ") == pytest.approx(value * unit[1])


@pytest.mark.parametrize("text", ["1ms", "1.ms", "1.0ms", "0.001s", "1e3us", "1e+0 ms", "1E-3s", "+1ms"[1:]])
def test_one_millisecond(text: str) -> None:
    assert parse_latency_ms(text) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("1", "no unit"), ("1e999", "no unit"), ("0ms", "not a latency budget"), ("1e999ms", "not a latency budget"),
        ("1e-400ms", "not a latency budget"), ("2000s", "not a latency budget"),
        *((text, "is not a latency") for text in (
            "", "ms", "-1ms", "nanms", "nan", "infms", "inf", "１ms", "١ms", "1mſ", "0x1ms", "1_0ms", "1h", "1,5ms",
        )),
    ],
)  # fmt: skip
def test_what_is_no_latency_is_refused(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as refused:
        parse_latency_ms(text)
    assert refused.value.hint


@given(st.text(max_size=12))
@settings(max_examples=100)
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert 0 < parse_latency_ms(text) < 1e6


def test_figures_are_printed_as_papers_do() -> None:
    assert [format_count(n) for n in (7, 7_770_000, 99_960_000, 912_000_000, 3.56e9)] == [
        "7", "7.77 M", "100 M", "912 M", "3.56 G",
    ]  # fmt: skip
    assert [format_bytes(n) for n in (12, 1500, 14_500_000)] == ["12 B", "1.5 kB", "14.5 MB"]
    assert [format_duration(s) for s in (8.4, 59.6, 200, 7500)] == ["8 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]

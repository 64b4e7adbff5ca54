"""Numbers in few characters."""

import math

import pytest

from pipeline.report import words


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (999, "999"), (1000, "1k"), (12_345, "12.3k"), (999_600, "1M"), (4e6, "4M"), (2.5e9, "2.5B")],
)
def test_counts_are_short(number: float, shown: str) -> None:
    assert words.short(number) == shown


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [
        (0, 5, "0 %"),
        (1, 3, "33.3 %"),
        (5, 5, "100 %"),
        (1, 10**6, "<0.1 %"),
        (10**6 - 1, 10**6, ">99.9 %"),
        (0, 0, "–"),
    ],
)
def test_a_share_never_says_none_or_all_where_it_is_not(part: int, whole: int, shown: str) -> None:
    assert words.share(part, whole) == shown


@pytest.mark.parametrize(
    ("number", "unit", "shown"),
    [
        (0.28, "", "0.28"), (3.0, "", "3"), (0.123456, "", "0.1235"), (1234.5, "", "1,234"), (-2e6, "", "-2M"),
        (0.00012, "", "0.00012"), (64, "px", "64 px"), (1400, "bytes", "1.4 kB"), (999, "bytes", "999 bytes"),
        (999_990, "bytes", "1 MB"), (5e15, "bytes", "5,000 TB"), (math.nan, "", "NaN"),
    ],
)  # fmt: skip
def test_values_are_short_and_have_their_unit(number: float, unit: str, shown: str) -> None:
    assert words.value(number, unit) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.5, "0.5 s"), (99, "99 s"), (125, "2 min 05 s"), (7_500, "2 h 05 min"), (3_599.7, "1 h 00 min")],
)
def test_long_times_are_in_minutes_and_hours(seconds: float, shown: str) -> None:
    assert words.duration(seconds) == shown


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        ("width", "px"),
        ("pool.original_height", "px"),
        ("nbytes", "bytes"),
        ("fetch_s", "s"),
        ("wait_ms", "ms"),
        ("words", ""),
    ],
)
def test_the_unit_stands_in_the_name(column: str, unit: str) -> None:
    assert words.unit_of(column) == unit


def test_control_characters_are_shown_as_such_and_directions_are_kept() -> None:
    assert words.clean("a\x00b\x1b[31m\n\u202eתו") == "a\ufffdb\ufffd[31m\n\u202eתו"
    assert words.clean("x" * 100, 10) == "x" * 9 + "…"

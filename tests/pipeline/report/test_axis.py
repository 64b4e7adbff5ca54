"""Axes: round edges over the bulk of the values, thresholds included, at any scale."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.axis import BINS, MOST_UNIT_BINS, Axis, Spread, axis_of, round_step


def spread(low: float, high: float, whole: bool = False, quantiles: tuple[float, ...] | None = None) -> Spread:
    q = quantiles or tuple(low + share * (high - low) for share in (0.001, 0.01, 0.5, 0.99, 0.999))
    return Spread(100, 0, 0, 0, low, high, whole, q)  # type: ignore[arg-type]


finite = st.floats(min_value=-1e12, max_value=1e12, allow_subnormal=False)


@given(low=finite, width=st.floats(min_value=0, max_value=1e12), share=st.floats(min_value=0, max_value=1))
def test_every_value_of_an_even_spread_has_a_bin_and_there_are_not_too_many(
    low: float, width: float, share: float
) -> None:
    high = low + width
    axis = axis_of(spread(low, high), [low + share * width])
    assert axis is not None
    slack = 1e-6 * (axis.high - axis.low) + 1e-9 * abs(low)
    assert axis.low - slack <= low <= high <= axis.high + slack
    assert 1 < len(axis.edges) <= 2 * BINS
    assert all(a < b for a, b in pairwise(axis.edges))
    assert len(axis.ticks) <= 12


def test_few_whole_numbers_have_a_bin_each() -> None:
    axis = axis_of(spread(1, 5, whole=True), [])
    assert axis == Axis((0.5, 1.5, 2.5, 3.5, 4.5, 5.5), log=False, unit_bins=True)
    many = axis_of(spread(1, MOST_UNIT_BINS + 1, whole=True), [])
    assert many is not None
    assert not many.unit_bins


def test_the_line_of_a_threshold_parts_the_bins_of_whole_numbers() -> None:
    axis = axis_of(spread(1, 5, whole=True), [])
    assert axis is not None
    between_2_and_3 = axis.place(2.5)
    assert [axis.line(*what) for what in ((">=", 3), ("<", 3), (">", 2), ("<=", 2), (">=", 2.2))] == [
        pytest.approx(between_2_and_3)
    ] * 5
    assert axis.line("=", 3) == pytest.approx(axis.place(3))


def test_a_far_tail_is_cut_off_and_a_threshold_near_the_bulk_is_not() -> None:
    tailed = spread(0, 1e6, quantiles=(0, 1, 50, 98, 100))
    axis = axis_of(tailed, [])
    assert axis is not None
    assert axis.high <= 110
    wider = axis_of(tailed, [150])
    assert wider is not None
    assert 150 <= wider.high <= 170
    assert axis_of(tailed, [5_000]) == axis


def test_a_span_of_powers_of_ten_is_logarithmic_where_most_of_it_is_low() -> None:
    axis = axis_of(spread(10, 1e6, quantiles=(10, 20, 300, 9e5, 1e6)), [])
    assert axis is not None
    assert axis.log
    assert axis.ticks == (10, 100, 1000, 1e4, 1e5, 1e6)
    assert axis.place(math.sqrt(axis.low * axis.high)) == pytest.approx(0.5)
    assert axis.place(0) < 0
    even = axis_of(spread(10, 1e6), [])
    assert even is not None
    assert not even.log


def test_nothing_finite_has_no_axis() -> None:
    assert axis_of(Spread(5, 3, 1, 1, 0.0, 0.0, False, (0.0,) * 5), [1.0]) is None


@pytest.mark.parametrize(
    ("least", "whole", "step"),
    [(0.013, False, 0.02), (0.021, False, 0.025), (0.3, True, 1), (1.2, True, 2), (22, True, 25), (7, False, 10)],
)
def test_steps_are_round(least: float, whole: bool, step: float) -> None:
    assert round_step(least, whole) == pytest.approx(step)

"""From where to where a histogram goes, where its bins are cut, and which values stand beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

BINS = 44
"""About so many bins; round widths decide."""
MOST_UNIT_BINS = 64
"""Whole numbers get a bin each up to so many of them."""
TAIL = 0.75
"""What lies further beyond the 1st and the 99.9th per cent than this share of the span between them is cut off."""
LOG_RATIO = 100.0
"""A span of two powers of ten, most of it in the lowest fifth, is shown by its logarithm."""
TICKS = 5
ALIKE = 1e-9
"""Values that differ by less than this share of them are shown as one."""
SMALLEST = 1e-300
"""So do those that differ by less than this."""


@dataclass(frozen=True)
class Spread:
    """What is known of a number's values before they are counted bin by bin; `low` to `high` are the finite ones."""

    rows: int
    nulls: int
    nans: int
    infinite: int
    low: float
    high: float
    whole: bool
    """Whether every finite value is a whole number."""
    quantiles: tuple[float, float, float, float, float]
    """At 0.001, 0.01, 0.5, 0.99 and 0.999; of a sample where there are many rows."""

    @property
    def finite(self) -> int:
        return self.rows - self.nulls - self.nans - self.infinite


@dataclass(frozen=True)
class Axis:
    """Edges of bins, ascending: a bin holds edge <= value < next edge, the last one its end too."""

    edges: tuple[float, ...]
    log: bool
    unit_bins: bool
    """Whether each bin is one whole number, half below it and half above."""

    @property
    def low(self) -> float:
        return self.edges[0]

    @property
    def high(self) -> float:
        return self.edges[-1]

    def place(self, value: float) -> float:
        """Where a value lies, 0 at the left end to 1 at the right; beyond them for one off the axis."""
        if self.log:
            if value <= 0:
                return -1.0
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def line(self, relation: str, value: float) -> float:
        """Where the line of `x relation value` lies: between whole numbers where those have a bin each."""
        if self.unit_bins and relation in (">=", "<"):
            value = math.ceil(value) - 0.5
        elif self.unit_bins and relation in (">", "<="):
            value = math.floor(value) + 0.5
        return self.place(value)

    @cached_property
    def ticks(self) -> tuple[float, ...]:
        """Round values along the axis, at most about six."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            powers = [float(10.0**power) for power in range(first, last + 1, max(1, math.ceil((last - first) / TICKS)))]
            if len(powers) >= 3:
                return tuple(powers)
            finer = [m * 10.0**power for power in range(first - 1, last + 1) for m in (1, 2, 5)]
            return tuple(value for value in finer if self.low <= value <= self.high * (1 + 1e-9))
        step = round_step((self.high - self.low) / TICKS, whole=self.unit_bins)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return tuple(_even(number, step) for number in range(first, last + 1))


def round_step(least: float, whole: bool = False) -> float:
    """The smallest of 1, 2, 2.5, 5 × 10ⁿ that is not below `least`; `whole`: at least 1, and no 2.5."""
    if whole and least <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    choices = (1, 2, 5, 10) if whole and power < 10 else (1, 2, 2.5, 5, 10)
    return next(m * power for m in choices if m * power >= least * (1 - 1e-9))


def axis_of(spread: Spread, marks: Sequence[float]) -> Axis | None:
    """An axis over the bulk of the values and the thresholds near them; None where there is no finite value."""
    if not spread.finite:
        return None
    low, high = _bulk(spread, marks)
    if spread.whole and high - low < MOST_UNIT_BINS:
        first, last = math.floor(low), math.ceil(high)
        return Axis(tuple(value - 0.5 for value in range(first, last + 2)), log=False, unit_bins=True)
    if high - low <= max(ALIKE * max(abs(low), abs(high)), SMALLEST):
        margin = abs(low) / 2 or 0.5
        low, high = low - margin, high + margin
    q01, median, q99 = spread.quantiles[1:4]
    if low > 0 and high / low >= LOG_RATIO and median - q01 < 0.2 * (q99 - q01):
        return Axis(_log_edges(low, high), log=True, unit_bins=False)
    step = round_step((high - low) / BINS, whole=spread.whole)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if spread.whole and last * step == high:
        last += 1  # the highest whole number has a bin like the others
    return Axis(tuple(_even(number, step) for number in range(first, last + 1)), log=False, unit_bins=False)


def _bulk(spread: Spread, marks: Sequence[float]) -> tuple[float, float]:
    """The values without far tails, and the thresholds no further away than the bulk is wide."""
    q001, _, _, _, q999 = spread.quantiles
    width = q999 - q001
    low = spread.low if spread.low >= q001 - TAIL * width or not width else q001
    high = spread.high if spread.high <= q999 + TAIL * width or not width else q999
    near = [mark for mark in marks if low - (high - low) <= mark <= high + (high - low)]
    return min([low, *near]), max([high, *near])


def _log_edges(low: float, high: float) -> tuple[float, ...]:
    span = math.log10(high / low)
    step = next(s for s in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0) if s >= span / BINS)
    first, last = math.floor(math.log10(low) / step + 1e-9), math.ceil(math.log10(high) / step - 1e-9)
    return tuple(10.0 ** (number * step) for number in range(first, last + 1))


def _even(number: int, step: float) -> float:
    """A multiple of a step as a person writes it: 0.3, not 0.30000000000000004."""
    return round(number * step, 6 - math.floor(math.log10(step)))

"""Charts as inline SVG: places along the width in per cent, so that bars stretch and letters do not.

Everything that comes from elsewhere passes `Markup.format`, which escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from markupsafe import Markup

from pipeline.report import words
from pipeline.report.axis import Axis
from pipeline.report.numbers import Histogram

LINE = 15
"""Height of a line of letters, in CSS pixels."""
TICK_ROOM = 22
LEAST_HEIGHT = 0.75
"""Pixels of a bar of a single row: it is seen."""
CLOSE = 0.3
"""Labels of thresholds nearer to each other than this share of the width go on lines of their own."""
LEFT_OF = 0.62
"""From here on a label stands to the left of its line."""

SVG = Markup('<svg class="{}" role="img" aria-label="{}" height="{}">{}</svg>')
BAR = Markup('<rect class="{}" x="{:.3f}%" width="{:.3f}%" y="{:.1f}" height="{:.1f}"/>')
BIN = Markup('<g>{}<rect class="hit" x="{:.3f}%" width="{:.3f}%" y="{}" height="{}"/><title>{}</title></g>')
RULE = Markup('<line class="{}" x1="{:.3f}%" x2="{:.3f}%" y1="{:.1f}" y2="{:.1f}"/>')
LABEL = Markup('<text class="{}" x="{:.3f}%" y="{:.1f}" text-anchor="{}"{}>{}</text>')


def histogram(found: Histogram, classes: Mapping[str, str], unit: str, height: int = 120) -> Markup:
    """Stacked bars, one colour per group, with a line at each threshold. `classes`: CSS class of each group.

    The caller shows what lies off the axis; a threshold off it is named at that end.
    """
    axis = found.axis
    assert axis is not None
    marks = _mark_lines(found, axis, unit)
    top = LINE * (2 + max((line for *_, line in marks), default=-1))
    bottom = top + height
    tallest = max((sum(bins) for bins in zip(*found.counts.values(), strict=True)), default=0) or 1
    parts = [_grid(top, height)]
    for place, edges in enumerate(pairwise(axis.edges)):
        values = {group: bins[place] for group, bins in found.counts.items() if bins[place]}
        if values:
            start, end = (100 * axis.place(edge) for edge in edges)
            box = (start, end - start, top, height)
            parts.append(_bin(values, classes, box, tallest, _range(axis, place, unit)))
    parts.append(RULE.format("base", 0, 100, bottom + 0.5, bottom + 0.5))
    parts += _ticks(axis, bottom, unit)
    for where, label, line in marks:
        parts += _mark(where, label, LINE * (line + 1) - 2, bottom)
    parts.append(LABEL.format("scale", 0, top - 4, "start", "", words.short(tallest)))
    title = _described(found, unit)
    return SVG.format("chart", title, bottom + TICK_ROOM, Markup("").join(parts))


def _grid(top: float, height: float) -> Markup:
    """Lines at the height of the tallest bar and at half of it."""
    return Markup("").join(RULE.format("grid", 0, 100, y, y) for y in (top + 0.5, top + height / 2))


def _bin(
    values: Mapping[str, int],
    classes: Mapping[str, str],
    box: tuple[float, float, float, float],
    tallest: int,
    where: str,
) -> Markup:
    """One bin in a box of x and width (per cent), y and height (pixels); `tallest` rows are as high as the box."""
    x, width, top, height = box
    bars, base = [], top + height
    for group, rows in values.items():
        tall = max(height * rows / tallest, LEAST_HEIGHT)
        base -= tall
        bars.append(BAR.format(classes[group], x + 0.06 * width, 0.88 * width, base, tall))
    said = ", ".join(f"{rows:,} {group}" for group, rows in values.items())
    return BIN.format(Markup("").join(bars), x, width, top, height, f"{where}: {said}")


def _range(axis: Axis, place: int, unit: str) -> str:
    low, high = axis.edges[place : place + 2]
    if axis.unit_bins:
        return words.value(low + 0.5, unit)
    return f"{words.value(low, unit)} to {words.value(high, unit)}"


def _ticks(axis: Axis, bottom: float, unit: str) -> list[Markup]:
    parts = []
    unit_on_ticks = unit if unit in words.SCALED else ""
    for tick in axis.ticks:
        place = axis.place(tick)
        if -1e-9 <= place <= 1 + 1e-9:
            anchor = "start" if place < 0.03 else "end" if place > 0.97 else "middle"
            parts.append(RULE.format("base", 100 * place, 100 * place, bottom, bottom + 4))
            parts.append(LABEL.format("tick", 100 * place, bottom + 16, anchor, "", words.value(tick, unit_on_ticks)))
    return parts


def _mark_lines(found: Histogram, axis: Axis, unit: str) -> list[tuple[float, str, int]]:
    """(place, label, line of letters) of each threshold, those close together on different lines."""
    by_place: dict[tuple[float, str], None] = {}
    for threshold, value in found.thresholds:
        place = axis.line(threshold.relation, value)
        about = "" if threshold.value is not None else "here "
        by_place[place, f"{_sign(threshold.relation)} {about}{words.value(value, unit)}"] = None
    marks: list[tuple[float, str, int]] = []
    for place, label in sorted(by_place):
        taken = {line for other, _, line in marks if abs(min(1, max(0, place)) - min(1, max(0, other))) < CLOSE}
        marks.append((place, label, next(line for line in range(len(marks) + 1) if line not in taken)))
    return marks


def _sign(relation: str) -> str:
    return {">=": "≥", "<=": "≤", "<>": "≠"}.get(relation, relation)


def _mark(place: float, label: str, y: float, bottom: float) -> list[Markup]:
    if place < 0:
        return [LABEL.format("mark", 0, y, "start", "", f"← {label}")]
    if place > 1:
        return [LABEL.format("mark", 100, y, "end", "", f"{label} →")]
    anchor, dx = ("end", -5) if place > LEFT_OF else ("start", 5)
    return [
        RULE.format("mark", 100 * place, 100 * place, y - 10, bottom),
        LABEL.format("mark", 100 * place, y, anchor, Markup(' dx="{}"').format(dx), label),
    ]


def _described(found: Histogram, unit: str) -> str:
    """The chart in words, for those who do not see it."""
    spread, median = found.spread, found.spread.quantiles[2]
    thresholds = ", ".join(f"{_sign(t.relation)} {words.value(value, unit)}" for t, value in found.thresholds)
    said = (
        f"Histogram of {words.clean(found.title)}: {spread.finite:,} values from {words.value(spread.low, unit)} "
        f"to {words.value(spread.high, unit)}, median {words.value(median, unit)}"
    )
    return f"{said}; thresholds {thresholds}" if thresholds else said

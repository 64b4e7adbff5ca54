"""Counting numbers bin by bin, in two passes over the pairs of a pool or the rows of a table, all numbers at once.

The first pass finds where values lie, the second counts them and finds the rows nearest to each threshold. DuckDB
streams both, so that memory does not grow with the rows.
"""

# ruff: noqa: S608 - names are quoted, expressions were screened and printed from their trees
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from pipeline.judge import name, text
from pipeline.report.axis import Axis, Spread, axis_of
from pipeline.report.thresholds import Threshold

Ask = Callable[[str], pa.Table]

QUANTILES = (0.001, 0.01, 0.5, 0.99, 0.999)
SAMPLED = 200_000
"""So many rows, chosen by their uid, decide how far an axis goes; more would be held in memory."""
SPARE = 3
"""How many times as many rows are fetched for a grid as it shows: captions of one image count once."""


@dataclass(frozen=True)
class Group:
    """Rows that are counted apart, such as those that a rule dropped; `condition` in SQL over the source."""

    name: str
    condition: str


@dataclass(frozen=True)
class Number:
    """What is counted: `sql` over the rows where `where` holds, apart for each of `groups`, which cover those rows."""

    title: str
    sql: str
    where: str
    groups: tuple[Group, Group] | tuple[Group]
    """Of a rule: what passed, and what it dropped."""
    thresholds: tuple[Threshold, ...] = ()
    nearest: int = 0
    """How many rows to find on both sides of each threshold."""
    node: str = ""
    """Whose column it is."""


@dataclass(frozen=True)
class Near:
    """A row near a threshold."""

    uid: str
    caption_id: str
    value: float
    group: str


@dataclass(frozen=True)
class Sides:
    """The rows nearest to a threshold, the nearest first: below it, and above."""

    threshold: Threshold
    value: float
    below: tuple[Near, ...]
    above: tuple[Near, ...]


@dataclass(frozen=True)
class Histogram:
    """How often which values came."""

    title: str
    spread: Spread
    axis: Axis | None
    """None where there is no finite value."""
    thresholds: tuple[tuple[Threshold, float], ...]
    """Each with where it lies, also where it is computed from all rows."""
    counts: Mapping[str, tuple[int, ...]]
    """Group -> rows per bin."""
    below: int
    """Rows below the first bin."""
    above: int
    sides: tuple[Sides, ...] = ()
    node: str = ""


@dataclass(frozen=True)
class Source:
    """Rows with numbers: SQL that gives them, how many there are, and the columns that name one of them.

    `shown` says in SQL which of the rows can be shown.
    """

    rows: str
    count: int
    keys: tuple[str, ...] = ()
    shown: str = "true"

    @property
    def sampled(self) -> str:
        """Which rows are a sample of about `SAMPLED`, by their uids, which are hashes; all where they are not many."""
        if self.count <= SAMPLED or "uid" not in self.keys:
            return "true"
        return f"uid < '{65536 * SAMPLED // self.count:04x}'"


def histograms(ask: Ask, source: Source, numbers: Sequence[Number]) -> list[Histogram]:
    """One per number, in order."""
    if not numbers:
        return []
    spreads, ends = _spreads(ask, source, numbers)
    placed = [_placed(number, found) for number, found in zip(numbers, ends, strict=True)]
    axes = [axis_of(s, [v for _, v in marks]) for s, marks in zip(spreads, placed, strict=True)]
    answers = _counted(ask, source, numbers, placed, axes)
    return [_histogram(*found) for found in zip(numbers, spreads, axes, placed, answers, strict=True)]


# -- the first pass ----------------------------------------------------------------------------------------------------


def _measured(source: Source, numbers: Sequence[Number]) -> str:
    """The rows with every number as `m0`, `m1` …, null where it is not counted."""
    values = [f"CASE WHEN {n.where} THEN CAST({n.sql} AS DOUBLE) END AS m{i}" for i, n in enumerate(numbers)]
    return f"SELECT *, {', '.join(values)} FROM ({source.rows}) AS source"


def _spreads(
    ask: Ask, source: Source, numbers: Sequence[Number]
) -> tuple[list[Spread], list[dict[str, tuple[float, float]]]]:
    """How the values of every number are spread, and the least and the greatest of each group."""
    sampled = source.sampled
    exact = source.count <= SAMPLED or sampled != "true"
    quantile = "quantile_disc" if exact else "approx_quantile"
    items = []
    for i, number in enumerate(numbers):
        finite = f"isfinite(m{i})"
        items += [
            f"count(*) FILTER ({number.where}) AS rows{i}",
            f"count(m{i}) AS known{i}",
            f"count(*) FILTER (isnan(m{i})) AS nans{i}",
            f"count(*) FILTER (isinf(m{i})) AS infinite{i}",
            f"min(m{i}) FILTER ({finite}) AS low{i}",
            f"max(m{i}) FILTER ({finite}) AS high{i}",
            f"bool_and(m{i} = trunc(m{i})) FILTER ({finite}) AS whole{i}",
            f"{quantile}(m{i}, {list(QUANTILES)}) FILTER ({finite} AND {sampled}) AS quantiles{i}",
        ]
        if any(threshold.value is None for threshold in number.thresholds):
            for g, group in enumerate(number.groups):
                chosen = f"FILTER ({finite} AND {group.condition})"
                items += [f"min(m{i}) {chosen} AS low{i}_{g}", f"max(m{i}) {chosen} AS high{i}_{g}"]
    row = ask(f"SELECT {', '.join(items)} FROM ({_measured(source, numbers)}) AS measured").to_pylist()[0]
    spreads, ends = [], []
    for i, number in enumerate(numbers):
        low, high = _or_zero(row[f"low{i}"]), _or_zero(row[f"high{i}"])
        quantiles = row[f"quantiles{i}"] or [low, low, (low + high) / 2, high, high]
        rows, nulls = row[f"rows{i}"], row[f"rows{i}"] - row[f"known{i}"]
        spreads.append(
            Spread(
                rows, nulls, row[f"nans{i}"], row[f"infinite{i}"], low, high, bool(row[f"whole{i}"]), tuple(quantiles)
            )
        )
        ends.append(
            {
                group.name: (row[f"low{i}_{g}"], row[f"high{i}_{g}"])
                for g, group in enumerate(number.groups)
                if row.get(f"low{i}_{g}") is not None
            }
        )
    return spreads, ends


def _or_zero(value: float | None) -> float:
    return 0.0 if value is None else value


def _placed(number: Number, ends: Mapping[str, tuple[float, float]]) -> list[tuple[Threshold, float]]:
    """The thresholds with their values; one computed from all rows lies between what was dropped and what was not.

    It is left out where those are not parted by this number alone.
    """
    found = []
    for threshold in number.thresholds:
        if threshold.value is not None and math.isfinite(threshold.value):
            found.append((threshold, threshold.value))
        elif threshold.value is None and DROPPED in ends and PASSED in ends:
            dropped, passed = ends[DROPPED], ends[PASSED]
            if threshold.relation in (">", ">=") and dropped[1] <= passed[0]:
                found.append((threshold, passed[0]))
            elif threshold.relation in ("<", "<=") and dropped[0] >= passed[1]:
                found.append((threshold, passed[1]))
    return found


DROPPED, PASSED = "dropped here", "passed"
"""The groups of a rule's numbers."""


# -- the second pass ---------------------------------------------------------------------------------------------------


def _counted(
    ask: Ask,
    source: Source,
    numbers: Sequence[Number],
    placed: Sequence[Sequence[tuple[Threshold, float]]],
    axes: Sequence[Axis | None],
) -> list[dict[str, Any]]:
    """Per number: `bins` by group, and the rows `near` each threshold, below and above."""
    items = []
    for i, (number, axis) in enumerate(zip(numbers, axes, strict=True)):
        if axis is None:
            continue
        for g, group in enumerate(number.groups):
            # Of the negative value: DuckDB's bins hold their upper end, and these hold their lower one.
            bins = f"[{', '.join(_double(-edge) for edge in reversed(_closed(axis.edges)))}]"
            items.append(f"histogram(-m{i}, {bins}) FILTER (isfinite(m{i}) AND {group.condition}) AS bins{i}_{g}")
    sides = _narrowed(ask, source, numbers, _sides(source, numbers, placed))
    items += [f"{side.nearest} AS {alias}" for alias, side in sides.items()]
    if not items:
        return [{} for _ in numbers]
    row = ask(f"SELECT {', '.join(items)} FROM ({_measured(source, numbers)}) AS measured").to_pylist()[0]
    found: list[dict[str, Any]] = []
    for i, (number, marks) in enumerate(zip(numbers, placed, strict=True)):
        counts = {group.name: row.get(f"bins{i}_{g}") for g, group in enumerate(number.groups)}
        rows = [(row.get(f"below{i}_{t}") or [], row.get(f"above{i}_{t}") or []) for t in range(len(marks))]
        found.append({"bins": counts, "near": rows})
    return found


@dataclass(frozen=True)
class _Side:
    """The rows on one side of a threshold, in SQL."""

    chosen: str
    """Which rows."""
    distance: str
    odd: str
    """Whether a row came to the other end than its side has, by another condition of the rule: such rows come last."""
    row: str
    """A row, as it is ordered and as it is wanted."""
    most: int

    @property
    def nearest(self) -> str:
        return f"min({self.row}, {self.most}) FILTER ({self.chosen})"


def _sides(
    source: Source, numbers: Sequence[Number], placed: Sequence[Sequence[tuple[Threshold, float]]]
) -> dict[str, _Side]:
    """`below<number>_<threshold>` and `above…`, of the numbers whose nearest rows are wanted."""
    keys = ", ".join(f"{text(key)}: {name(key)}" for key in source.keys)
    found = {}
    for i, (number, marks) in enumerate(zip(numbers, placed, strict=True)):
        group = " ".join(f"WHEN {group.condition} THEN {text(group.name)}" for group in number.groups)
        for t, (threshold, value) in enumerate(marks if number.nearest and source.keys else ()):
            upper = ">" if threshold.relation in (">", "<=") else ">="
            passes = {">": "above", ">=": "above", "<": "below", "<=": "below"}.get(threshold.relation)
            for side, relation in (("below", "<=" if upper == ">" else "<"), ("above", upper)):
                chosen = f"isfinite(m{i}) AND m{i} {relation} {_double(value)} AND {source.shown}"
                distance, odd = f"abs(m{i} - {_double(value)})", "false"
                if passes is not None and len(number.groups) > 1:
                    odd = f"NOT ({number.groups[0 if passes == side else 1].condition})"
                row = f"{{'odd': {odd}, 'distance': {distance}, {keys}, 'value': m{i}, 'group': CASE {group} END}}"
                found[f"{side}{i}_{t}"] = _Side(chosen, distance, odd, row, SPARE * number.nearest)
    return found


def _narrowed(ask: Ask, source: Source, numbers: Sequence[Number], sides: Mapping[str, _Side]) -> dict[str, _Side]:
    """Each side without the rows that are further away than the last one that a sample of all would show.

    They could not be among the nearest, and ordering ten million rows takes longer than to leave them out.
    """
    if source.sampled == "true" or not sides:
        return dict(sides)
    items = ", ".join(f"{side.nearest} AS {alias}" for alias, side in sides.items())
    row = ask(f"SELECT {items} FROM ({_measured(source, numbers)}) AS measured WHERE {source.sampled}").to_pylist()[0]
    found = {}
    for alias, side in sides.items():
        last = (row[alias] or [{}])[-1]
        if len(row[alias] or ()) == side.most and not last["odd"]:
            near = f"{side.chosen} AND {side.distance} <= {_double(last['distance'])} AND NOT ({side.odd})"
            side = replace(side, chosen=near)
        found[alias] = side
    return found


def _double(value: float) -> str:
    """The very same number in SQL; a bare literal would become a decimal first."""
    return f"'{value!r}'::DOUBLE"


def _closed(edges: Sequence[float]) -> list[float]:
    """The last bin holds its end too."""
    return [*edges[:-1], math.nextafter(edges[-1], math.inf)]


def _histogram(
    number: Number,
    spread: Spread,
    axis: Axis | None,
    marks: Sequence[tuple[Threshold, float]],
    found: Mapping[str, Any],
) -> Histogram:
    if axis is None:
        return Histogram(number.title, spread, None, tuple(marks), {}, 0, 0, node=number.node)
    counts, below, above = {}, 0, 0
    for group in number.groups:
        inside, low, high = _bins(found["bins"][group.name], axis)
        counts[group.name], below, above = inside, below + low, above + high
    sides = [
        Sides(threshold, value, _first(low, number.nearest), _first(high, number.nearest))
        for (threshold, value), (low, high) in zip(marks, found["near"], strict=True)
        if number.nearest
    ]
    return Histogram(number.title, spread, axis, tuple(marks), counts, below, above, tuple(sides), number.node)


def _bins(found: Any, axis: Axis) -> tuple[tuple[int, ...], int, int]:
    """Rows per bin, below the first and above the last, from DuckDB's counts up to each negative edge."""
    pairs = dict(found.items() if isinstance(found, dict) else found or ())
    edges = [-edge for edge in reversed(_closed(axis.edges))]
    upto = [pairs.pop(edge, 0) for edge in edges]
    above, inside = upto[0], tuple(reversed(upto[1:]))
    return inside, sum(pairs.values()), above


def _first(rows: Sequence[Mapping[str, Any]], count: int) -> tuple[Near, ...]:
    """The first rows of different images."""
    images: dict[str, Near] = {}
    for row in rows:
        near = Near(row["uid"], row.get("caption_id", ""), row["value"], row["group"] or "")
        images.setdefault(near.uid, near)
    return tuple(images.values())[:count]

"""What became of the pairs of a pool: the funnel of every selection, every number they have, and rows to look at."""

# ruff: noqa: S608 - names are quoted, rules were screened and printed from their trees
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.errors import SluiceError
from pipeline.judge import name, text
from pipeline.pairs import KEY_NAMES, Pool
from pipeline.records import Generation
from pipeline.report.numbers import DROPPED, PASSED, Ask, Group, Histogram, Number, Source, histograms
from pipeline.report.thresholds import Measure, Threshold, measures
from pipeline.rows import MEMBER
from pipeline.stage import Column
from pipeline.steps import rules_of

KEPT, NOT_KEPT, ROWS = "kept", "not kept", "rows"
"""The groups of a column's numbers: by what the last selection said, or all alike where nothing was selected."""
ADDRESSES = ("offset",)
"""Columns of a pool that say where an image lies, and measure nothing."""

Key = tuple[str, str]
"""uid and caption_id of a pair."""


@dataclass(frozen=True)
class Rule:
    """One step of a funnel."""

    name: str
    sql: str
    """Empty where the node does not say it."""
    pairs_in: int
    dropped: int
    left: int
    charts: tuple[Histogram, ...]
    """Of every number that it compares, over the pairs that it saw."""
    examples: tuple[Key, ...]
    """Pairs that it dropped, at random."""
    trouble: str = ""
    """Why its numbers cannot be shown."""


@dataclass(frozen=True)
class Selection:
    """A node that says which pairs are kept."""

    node: str
    hash: str
    """The content hash of its generation."""
    pairs: int
    kept: int
    rules: tuple[Rule, ...]
    examples: tuple[Key, ...]
    """Pairs that are kept, at random."""


@dataclass(frozen=True)
class Flag:
    """A column of yes and no: rows by group and value, None for null."""

    title: str
    counts: Mapping[str, Mapping[bool | None, int]]

    def total(self, value: bool | None) -> int:
        return sum(counts[value] for counts in self.counts.values())


@dataclass(frozen=True)
class PoolReport:
    """A pool with all that was said of its pairs."""

    node: str
    selections: tuple[Selection, ...]
    columns: tuple[Histogram, ...]
    flags: tuple[Flag, ...]
    has_images: bool


def pool_report(
    ask: Ask, pool: Pool, generations: Mapping[str, Generation], segments: int, tiles: int, examples: int
) -> PoolReport:
    """Everything about one pool, in three passes over its pairs.

    `tiles`: rows to look at on each side of a threshold; `examples`: of what each rule dropped, and of what is kept.
    """
    columns = pool.columns()
    selected = [node for node in generations if {(node, "kept"), (node, "dropped_by")} <= columns.keys()]
    funnels = {node: _funnel(ask, node) for node in selected}
    rules = {node: [step[0] for step in funnels[node]] for node in selected}
    measured = {node: _measures(generations[node], columns, rules[node]) for node in selected}
    has_images = all((pool.node, column) in columns for column in MEMBER)
    numeric = [
        c for key, c in columns.items() if is_number(c.type) and not (key[0] == pool.node and key[1] in ADDRESSES)
    ]
    flags = [c for c in columns.values() if pa.types.is_boolean(c.type) and (c.node, c.name) not in _verdicts(selected)]
    read = {read for found, _ in measured.values() for of_rule in found.values() for m in of_rule for read in m.reads}
    wanted = {(node, column) for node, _, column in (written.partition(".") for written in read - set(KEY_NAMES))}
    wanted |= {(c.node, c.name) for c in (*numeric, *flags)} | _verdicts(selected)
    wanted |= {(pool.node, MEMBER[0])} if has_images else set()
    source = Source(
        _rows(pool, sorted(wanted), rules, segments),
        sum(piece.rows for piece in pool.captions.pieces),
        KEY_NAMES,
        f"{name(f'{pool.node}.{MEMBER[0]}')} IS NOT NULL" if has_images else "false",
    )
    groups = _groups(selected[-1] if selected else None)
    of_columns = [_column_number(c, columns, groups, measured) for c in numeric]
    of_rules = [
        _rule_number(node, rules[node].index(rule), measure, tiles)
        for node in selected
        for rule, found in measured[node][0].items()
        for measure in found
    ]
    counted = histograms(ask, source, [*of_columns, *of_rules])
    rest = iter(counted[len(of_columns) :])
    charts = {
        (node, rule): tuple(next(rest) for _ in found) for node in selected for rule, found in measured[node][0].items()
    }
    chosen, flagged = _examples(ask, source, rules, flags, groups, examples)
    selections = tuple(
        Selection(
            node,
            generations[node].content_hash,
            funnels[node][0][1] if funnels[node] else 0,
            funnels[node][-1][3] if funnels[node] else 0,
            tuple(
                Rule(
                    rule, rules_of(generations[node]).get(rule, ""), pairs_in, dropped, left,
                    charts.get((node, rule), ()), chosen[node, place], measured[node][1].get(rule, ""),
                )
                for place, (rule, pairs_in, dropped, left) in enumerate(funnels[node])
            ),
            chosen[node, len(rules[node])],
        )
        for node in selected
    )  # fmt: skip
    return PoolReport(pool.node, selections, _ordered(counted[: len(of_columns)], pool.node), flagged, has_images)


def _ordered(columns: Sequence[Histogram], pool: str) -> tuple[Histogram, ...]:
    """What rules compare first, what only the pool says last."""
    return tuple(sorted(columns, key=lambda column: (not column.thresholds, column.node == pool)))


def _funnel(ask: Ask, node: str) -> list[tuple[str, int, int, int]]:
    """(rule, pairs in, dropped, left), in order."""
    query = f"SELECT rule, pairs_in, dropped, pairs_left FROM drops WHERE node = {text(node)} ORDER BY position"
    return [(row["rule"], row["pairs_in"], row["dropped"], row["pairs_left"]) for row in ask(query).to_pylist()]


def _measures(
    generation: Generation, columns: Mapping[tuple[str, str], Column], known: Sequence[str]
) -> tuple[dict[str, list[Measure]], dict[str, str]]:
    """By rule: the numbers that it compares, and why there are none where it cannot be understood."""
    found: dict[str, list[Measure]] = {}
    troubles: dict[str, str] = {}
    inputs = [column for column in columns.values() if column.node in generation.inputs]
    for rule, sql in rules_of(generation).items():
        if rule in known:
            try:
                found |= measures({rule: sql}, inputs)
            except SluiceError as error:
                troubles[rule] = str(error)
    return found, troubles


def _verdicts(selected: Sequence[str]) -> set[tuple[str, str]]:
    return {(node, column) for node in selected for column in ("kept", "dropped_by")}


def is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _rows(pool: Pool, wanted: Sequence[tuple[str, str]], rules: Mapping[str, Sequence[str]], segments: int) -> str:
    """The pairs with their columns as `node.column`, and for each selection how many rules a pair passed."""
    fates = ""
    for node, names in rules.items():
        cases = "".join(f" WHEN {name(f'{node}.dropped_by')} = {text(rule)} THEN {i}" for i, rule in enumerate(names))
        fates += f", CASE WHEN {name(f'{node}.kept')} THEN {len(names)}{cases} END AS {_fate(node)}"
    shown = {(node, column): f"{node}.{column}" for node, column in wanted}
    return f"SELECT *{fates} FROM ({pool.pairs(shown, segments)}) AS pairs"


def _fate(node: str) -> str:
    return name(f"rules passed in {node}")


def _groups(selection: str | None) -> tuple[Group, Group] | tuple[Group]:
    if selection is None:
        return (Group(ROWS, "true"),)
    kept = f"{name(f'{selection}.kept')} IS TRUE"
    return Group(KEPT, kept), Group(NOT_KEPT, f"NOT ({kept})")


def _column_number(
    column: Column,
    columns: Mapping[tuple[str, str], Column],
    groups: tuple[Group, Group] | tuple[Group],
    measured: Mapping[str, tuple[Mapping[str, Sequence[Measure]], Mapping[str, str]]],
) -> Number:
    """A column of its own, with the thresholds of the rules that compare it as it is."""
    sql = name(f"{column.node}.{column.name}")
    alone = sum(other.name == column.name for other in columns.values()) == 1
    thresholds: list[Threshold] = []
    for found, _ in measured.values():
        for measure in (measure for of_rule in found.values() for measure in of_rule if measure.sql == sql):
            thresholds += [threshold for threshold in measure.thresholds if threshold.value is not None]
    title = column.name if alone else f"{column.node}.{column.name}"
    return Number(title, sql, "true", groups, tuple(dict.fromkeys(thresholds)), node=column.node)


def _rule_number(node: str, place: int, measure: Measure, tiles: int) -> Number:
    """What a rule compares, over the pairs that it saw."""
    fate = _fate(node)
    groups = (Group(PASSED, f"{fate} > {place}"), Group(DROPPED, f"{fate} = {place}"))
    return Number(measure.title, measure.sql, f"{fate} >= {place}", groups, measure.thresholds, tiles)


def _examples(
    ask: Ask,
    source: Source,
    rules: Mapping[str, Sequence[str]],
    flags: Sequence[Column],
    groups: Sequence[Group],
    most: int,
) -> tuple[dict[tuple[str, int], tuple[Key, ...]], tuple[Flag, ...]]:
    """Pairs of every fate to look at (uids are hashes: the smallest ones are a fair sample), and the flags counted."""
    items = []
    fates = [(node, place) for node, names in rules.items() for place in range(len(names) + 1)]
    for i, (node, place) in enumerate(fates):
        items.append(
            f"min({{'uid': uid, 'caption_id': caption_id}}, {2 * most}) "
            f"FILTER ({_fate(node)} = {place} AND {source.shown}) AS e{i}"
        )
    values = {True: "IS TRUE", False: "IS FALSE", None: "IS NULL"}
    for f, flag in enumerate(flags):
        for g, group in enumerate(groups):
            for v, test in enumerate(values.values()):
                column = name(f"{flag.node}.{flag.name}")
                items.append(f"count(*) FILTER ({column} {test} AND {group.condition}) AS f{f}_{g}_{v}")
    if not items:
        return {}, ()
    row = ask(f"SELECT {', '.join(items)} FROM ({source.rows}) AS source").to_pylist()[0]
    examples = {}
    for i, fate in enumerate(fates):
        images = {found["uid"]: (found["uid"], found["caption_id"]) for found in reversed(row[f"e{i}"] or [])}
        examples[fate] = tuple(sorted(images.values())[:most])
    counted = tuple(
        Flag(
            flag.name if sum(other.name == flag.name for other in flags) == 1 else f"{flag.node}.{flag.name}",
            {
                group.name: {value: row[f"f{f}_{g}_{v}"] for v, value in enumerate(values)}
                for g, group in enumerate(groups)
            },
        )
        for f, flag in enumerate(flags)
    )
    return examples, counted

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
from pipeline.report.thresholds import Measure, measures
from pipeline.rows import MEMBER
from pipeline.stage import Column
from pipeline.steps import rules_of

KEPT, NOT_KEPT, ROWS = "kept", "not kept", "rows"
"""The groups of a column's numbers: by what the last selection said, or all alike where nothing was selected."""
ADDRESSES = ("offset",)
"""Columns of a pool that say where an image lies, and measure nothing."""

Key = tuple[str, str]
"""uid and caption_id of a pair."""
Fate = tuple[str, int]
"""A selection, and how many of its rules a pair passed."""


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
    """Everything about one pool, in a few passes over its pairs.

    `tiles`: rows to look at on each side of a threshold; `examples`: of what each rule dropped, and of what is kept.
    """
    columns = pool.columns()
    selected = [node for node in generations if {(node, "kept"), (node, "dropped_by")} <= columns.keys()]
    funnels = [_funnel(ask, generations[node], columns) for node in selected]
    has_images = all((pool.pixels, column) in columns for column in MEMBER)
    verdicts = {(node, column) for node in selected for column in ("kept", "dropped_by")}
    numeric = [
        c for key, c in columns.items() if is_number(c.type) and not (key[0] == pool.pixels and key[1] in ADDRESSES)
    ]
    flags = [c for key, c in columns.items() if pa.types.is_boolean(c.type) and key not in verdicts]
    wanted = verdicts | {(c.node, c.name) for c in (*numeric, *flags)}
    wanted |= {(pool.pixels, MEMBER[0])} if has_images else set()
    wanted |= {key for funnel in funnels for key in funnel.reads}
    source = Source(
        _rows(pool, sorted(wanted), funnels, segments),
        sum(piece.rows for piece in pool.captions.pieces),
        KEY_NAMES,
        f"{name(f'{pool.pixels}.{MEMBER[0]}')} IS NOT NULL" if has_images else "false",
    )
    groups = _groups(selected[-1] if selected else None)
    of_columns = [_column_number(column, columns, groups, funnels) for column in numeric]
    of_rules = {(f.node, rule, m.title): _rule_number(f, rule, m, tiles) for f in funnels for rule, m in f.compared}
    counted = histograms(ask, source, [*of_columns, *of_rules.values()])
    charts = dict(zip(of_rules, counted[len(of_columns) :], strict=True))
    chosen = _examples(ask, source, funnels, examples)
    flagged = _counted_flags(ask, source, flags, groups)
    selections = tuple(_selection(funnel, charts, chosen) for funnel in funnels)
    return PoolReport(pool.node, selections, _ordered(counted[: len(of_columns)], pool.node), flagged, has_images)


def _ordered(columns: Sequence[Histogram], pool: str) -> tuple[Histogram, ...]:
    """What rules compare first, what only the pool says last."""
    return tuple(sorted(columns, key=lambda column: (not column.thresholds, column.node == pool)))


@dataclass(frozen=True)
class _Funnel:
    """A selection before anything is counted."""

    node: str
    hash: str
    steps: tuple[tuple[str, int, int, int], ...]
    """(rule, pairs in, dropped, left), in order."""
    sql: Mapping[str, str]
    """Of the rules that say it."""
    measured: Mapping[str, Sequence[Measure]]
    """By rule, the numbers that it compares."""
    troubles: Mapping[str, str]
    """Why there are none, of a rule that is not understood."""

    @property
    def rules(self) -> list[str]:
        return [rule for rule, *_ in self.steps]

    @property
    def compared(self) -> list[tuple[str, Measure]]:
        return [(rule, measure) for rule, found in self.measured.items() for measure in found]

    @property
    def reads(self) -> set[tuple[str, str]]:
        """The columns that the numbers read, by node and name."""
        written = {column for _, measure in self.compared for column in measure.reads} - set(KEY_NAMES)
        return {(node, column) for node, _, column in (one.partition(".") for one in written)}


def _funnel(ask: Ask, generation: Generation, columns: Mapping[tuple[str, str], Column]) -> _Funnel:
    node, sql = generation.node, rules_of(generation)
    query = f"SELECT rule, pairs_in, dropped, pairs_left FROM drops WHERE node = {text(node)} ORDER BY position"
    steps = tuple((row["rule"], row["pairs_in"], row["dropped"], row["pairs_left"]) for row in ask(query).to_pylist())
    inputs = [column for column in columns.values() if column.node in generation.inputs]
    measured: dict[str, Sequence[Measure]] = {}
    troubles: dict[str, str] = {}
    for rule in (rule for rule, *_ in steps if rule in sql):
        try:
            measured |= measures({rule: sql[rule]}, inputs)
        except SluiceError as error:
            troubles[rule] = str(error)
    return _Funnel(node, generation.content_hash, steps, sql, measured, troubles)


def _selection(
    funnel: _Funnel, charts: Mapping[tuple[str, str, str], Histogram], chosen: Mapping[Fate, tuple[Key, ...]]
) -> Selection:
    rules = []
    for place, (rule, pairs_in, dropped, left) in enumerate(funnel.steps):
        drawn = tuple(charts[funnel.node, rule, measure.title] for measure in funnel.measured.get(rule, ()))
        examples, trouble = chosen[funnel.node, place], funnel.troubles.get(rule, "")
        rules.append(Rule(rule, funnel.sql.get(rule, ""), pairs_in, dropped, left, drawn, examples, trouble))
    pairs, kept = (rules[0].pairs_in, rules[-1].left) if rules else (0, 0)
    return Selection(funnel.node, funnel.hash, pairs, kept, tuple(rules), chosen[funnel.node, len(rules)])


def is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _rows(pool: Pool, wanted: Sequence[tuple[str, str]], funnels: Sequence[_Funnel], segments: int) -> str:
    """The pairs with their columns as `node.column`, and for each selection how many rules a pair passed."""
    fates = ""
    for funnel in funnels:
        dropped_by, rules = name(f"{funnel.node}.dropped_by"), funnel.rules
        cases = "".join(f" WHEN {dropped_by} = {text(rule)} THEN {place}" for place, rule in enumerate(rules))
        kept = name(f"{funnel.node}.kept")
        fates += f", CASE WHEN {kept} THEN {len(rules)}{cases} END AS {_fate(funnel.node)}"
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
    funnels: Sequence[_Funnel],
) -> Number:
    """A column of its own, with the thresholds of the rules that compare it as it is."""
    sql = name(f"{column.node}.{column.name}")
    alone = sum(other.name == column.name for other in columns.values()) == 1
    compared = [measure for funnel in funnels for _, measure in funnel.compared if measure.sql == sql]
    thresholds = [threshold for measure in compared for threshold in measure.thresholds if threshold.value is not None]
    title = column.name if alone else f"{column.node}.{column.name}"
    return Number(title, sql, "true", groups, tuple(dict.fromkeys(thresholds)), node=column.node)


def _rule_number(funnel: _Funnel, rule: str, measure: Measure, tiles: int) -> Number:
    """What a rule compares, over the pairs that it saw."""
    fate, place = _fate(funnel.node), funnel.rules.index(rule)
    groups = (Group(PASSED, f"{fate} > {place}"), Group(DROPPED, f"{fate} = {place}"))
    return Number(measure.title, measure.sql, f"{fate} >= {place}", groups, measure.thresholds, tiles)


def _examples(ask: Ask, source: Source, funnels: Sequence[_Funnel], most: int) -> dict[Fate, tuple[Key, ...]]:
    """Pairs of every fate to look at: uids are hashes, so that the smallest are a fair sample."""
    fates = [(funnel.node, place) for funnel in funnels for place in range(len(funnel.steps) + 1)]
    found = _smallest(ask, source, fates, 2 * most, source.sampled)  # captions of one image count once
    rare = [fate for fate in fates if len(found[fate]) < 2 * most]
    if source.sampled != "true":
        found |= _smallest(ask, source, rare, 2 * most, "true")
    images = {fate: {uid: (uid, caption_id) for uid, caption_id in reversed(pairs)} for fate, pairs in found.items()}
    return {fate: tuple(sorted(images[fate].values())[:most]) for fate in fates}


def _smallest(ask: Ask, source: Source, fates: Sequence[Fate], most: int, where: str) -> dict[Fate, list[Key]]:
    """The pairs of each fate that have the smallest uids, in their order."""
    if not fates:
        return {}
    pair = "{'uid': uid, 'caption_id': caption_id}"
    items = [
        f"min({pair}, {most}) FILTER ({_fate(node)} = {place} AND {source.shown}) AS e{i}"
        for i, (node, place) in enumerate(fates)
    ]
    row = ask(f"SELECT {', '.join(items)} FROM ({source.rows}) AS source WHERE {where}").to_pylist()[0]
    return {fate: [(one["uid"], one["caption_id"]) for one in row[f"e{i}"] or []] for i, fate in enumerate(fates)}


def _counted_flags(ask: Ask, source: Source, flags: Sequence[Column], groups: Sequence[Group]) -> tuple[Flag, ...]:
    if not flags:
        return ()
    tests = {True: "IS TRUE", False: "IS FALSE", None: "IS NULL"}
    items = [
        f"count(*) FILTER ({name(f'{flag.node}.{flag.name}')} {test} AND {group.condition}) AS f{f}_{g}_{t}"
        for f, flag in enumerate(flags)
        for g, group in enumerate(groups)
        for t, test in enumerate(tests.values())
    ]
    row = ask(f"SELECT {', '.join(items)} FROM ({source.rows}) AS source").to_pylist()[0]
    found = []
    for f, flag in enumerate(flags):
        alone = sum(other.name == flag.name for other in flags) == 1
        counts = {group.name: {v: row[f"f{f}_{g}_{t}"] for t, v in enumerate(tests)} for g, group in enumerate(groups)}
        found.append(Flag(flag.name if alone else f"{flag.node}.{flag.name}", counts))
    return tuple(found)

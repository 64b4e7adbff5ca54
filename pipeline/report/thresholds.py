"""The numeric comparisons that rules make: what is compared, and with what.

`least(width, height) >= 200` measures `least(width, height)`, with a threshold at 200. Where the other side is computed
from all rows (`clip_score >= quantile_cont(clip_score, 0.7) OVER ()`), the threshold has no value of its own: the
verdicts show where it lay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.errors import SluiceError
from pipeline.expression import Expression, Node, parse, printed
from pipeline.judge import locked
from pipeline.rules import Scope
from pipeline.stage import Column

RELATIONS = {
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_EQUAL": "=",
    "COMPARE_NOTEQUAL": "<>",
}
TURNED = {">": "<", ">=": "<=", "<": ">", "<=": ">=", "=": "=", "<>": "<>"}
"""What a relation becomes when its sides change places."""
NOT_LOOKED_INTO = ("WINDOW", "LAMBDA", "COMPARISON", "BETWEEN")


@dataclass(frozen=True)
class Threshold:
    """`relation` and `value` of a comparison in a rule; `value` is None where it is computed from all rows."""

    rule: str
    relation: str
    value: float | None


@dataclass(frozen=True)
class Measure:
    """A number that every pair has, and what the rules compare it with."""

    title: str
    """As a person would write it: a column, or an expression over columns."""
    sql: str
    """Over the table of pairs, whose columns are named `node.column`."""
    reads: frozenset[str]
    thresholds: tuple[Threshold, ...] = ()


def measures(rules: Mapping[str, str], columns: Sequence[Column]) -> dict[str, list[Measure]]:
    """By rule, in order: the numbers that it compares, each once. `columns`: what the rules may name.

    Raises `SluiceError` for a name that is unknown or ambiguous.
    """
    scope = Scope(columns)
    found: dict[str, list[Measure]] = {}
    for rule, text in rules.items():
        by_title: dict[str, list[Threshold]] = {}
        for measured, threshold in _compared(rule, parse(text)):
            by_title.setdefault(measured, []).append(threshold)
        found[rule] = []
        for title, thresholds in by_title.items():
            sql, reads = Expression(title).bind(scope.resolve)
            found[rule].append(Measure(title, sql, reads, tuple(dict.fromkeys(thresholds))))
    numeric = _numeric({m.sql for measured in found.values() for m in measured}, scope.types)
    return {rule: [measure for measure in measured if measure.sql in numeric] for rule, measured in found.items()}


def _compared(rule: str, tree: Node) -> Iterator[tuple[str, Threshold]]:
    """What each comparison of a condition measures, as SQL, and its threshold."""
    for node in _comparisons(tree):
        if node["class"] == "BETWEEN":
            sides = [(node["input"], ">=", node["lower"]), (node["input"], "<=", node["upper"])]
        else:
            sides = [(node["left"], RELATIONS[node["type"]], node["right"])]
        for left, relation, right in sides:
            measured = _measured(_bare(printed(left)), relation, _bare(printed(right)))
            if measured is not None:
                title, relation, value = measured
                yield title, Threshold(rule, relation, value)


def _measured(left: str, relation: str, right: str) -> tuple[str, str, float | None] | None:
    """(what is measured, relation, value), the columns on the left; None where nothing numeric is compared."""
    one, other = Expression(left), Expression(right)
    if not one.names:
        left, right, one, other, relation = right, left, other, one, TURNED[relation]
    if not one.names:
        return None
    if not other.names:
        value = _value(right)
        return (left, relation, value) if one.local and value is not None else None
    if one.local and other.local:
        return _bare(printed(parse(f"({left}) - ({right})"))), relation, 0.0
    if one.local != other.local:
        return (left, relation, None) if one.local else (right, TURNED[relation], None)
    return None


def _bare(sql: str) -> str:
    """Without the parentheses around the whole."""
    inner = sql[1:-1]
    try:
        return inner if sql.startswith("(") and parse(inner) == parse(sql) else sql
    except SluiceError:  # such as a) + (b
        return sql


def _comparisons(value: Any) -> Iterator[Node]:
    """The comparisons that a condition is put together from, in order; not those inside a window or a lambda."""
    if isinstance(value, list):
        for inner in value:
            yield from _comparisons(inner)
    elif isinstance(value, dict):
        if value.get("class") == "BETWEEN" or value.get("type") in RELATIONS:
            yield value
        elif value.get("class") not in NOT_LOOKED_INTO:
            for inner in value.values():
                yield from _comparisons(inner)


def _value(sql: str) -> float | None:
    """The value of a constant expression; None for what is no number."""
    with locked() as connection:
        try:
            relation = connection.sql(f"SELECT {sql} AS value")
            values = relation.fetchall()[0] if _is_numeric(relation.types[0]) else (None,)
        except duckdb.Error:
            return None
    return float(values[0]) if values[0] is not None else None


def _numeric(expressions: set[str], types: Mapping[str, pa.DataType]) -> set[str]:
    """The expressions that give numbers."""
    empty = pa.schema(list(types.items())).empty_table()
    found = set()
    with locked() as connection:
        connection.register("pairs", empty)
        for sql in expressions:
            try:
                kind = connection.sql(f"SELECT {sql} FROM pairs").types[0]  # noqa: S608 - screened
            except duckdb.Error:  # such as the difference of two texts
                continue
            if _is_numeric(kind):
                found.add(sql)
    return found


def _is_numeric(kind: Any) -> bool:
    return str(kind).partition("(")[0] in NUMBERS


NUMBERS = {
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"),
    *("UHUGEINT", "FLOAT", "DOUBLE", "DECIMAL"),
}

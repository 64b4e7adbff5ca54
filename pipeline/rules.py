"""SQL rules in order: which pairs are kept, and which rule a dropped one failed first.

    rules = Rules([{"downloaded": "status = 'success'"}, {"large": "least(width, height) >= 200"}])
    bound = rules.check(columns)          # raises `SluiceError` for a name, a type or a function that cannot be
    dropped_by = bound.judge(table)       # null for the pairs that are kept
    rules.funnel(dropped_by)

A rule sees only the survivors of the rules before it, in windows and aggregates too; NULL fails, and NaN is NULL.
Rules come from DAG files, so they are SQL from elsewhere: one screened expression each, over registered tables, in a
locked DuckDB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import takewhile
from types import TracebackType
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.errors import SluiceError, did_you_mean
from pipeline.expression import ORDER_KEYS, Expression, Names, refuse_clocks
from pipeline.judge import KEPT, MEMORY, Rule, first_line, judge_carrying, judge_rows, judge_tables, locked
from pipeline.stage import PIXELS, Column

SUPERSEDED = "superseded"
"""What stands in `dropped_by` where no rule decided: a later part has the row."""


class Rules:
    """Named conditions in order, each parsed and screened.

    Takes a list of single-key mappings, name to SQL, or one mapping. Raises `SluiceError`.
    """

    def __init__(self, rules: Sequence[Mapping[str, str]] | Mapping[str, str]) -> None:
        self._expressions: dict[str, Expression] = {}
        for name, text in _items(rules):
            _check_name(name)
            if name in self._expressions:
                raise SluiceError(f"two rules are named {name!r}; `dropped_by` could not tell them apart")
            if not isinstance(text, str):
                raise SluiceError(f"rule {name!r} is {text!r}; write SQL text, in quotes where YAML reads it otherwise")
            with _Naming(name):
                self._expressions[name] = Expression(text)
        if not self._expressions:
            raise SluiceError("there are no rules; to keep every pair write `rules: [{all: 'true'}]`")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._expressions)

    @property
    def local(self) -> bool:
        """Whether every rule looks at one row alone."""
        return all(expression.local for expression in self._expressions.values())

    def split(self) -> tuple[Rules, Rules]:
        """The leading rules that look at one row alone, and the rest, which begins with a window; one may be empty."""
        leading, rest = copy(self), copy(self)
        leading._expressions = dict(takewhile(lambda item: item[1].local, self._expressions.items()))
        rest._expressions = {name: e for name, e in self._expressions.items() if name not in leading._expressions}
        return leading, rest

    def needs(self) -> frozenset[str]:
        """The columns as the rules write them (`width`, `pool.width`), keys left out."""
        written = {names for expression in self._expressions.values() for names in expression.names}
        return frozenset(".".join(names) for names in written if names[-1] not in ORDER_KEYS)

    def bind(self, columns: Sequence[Column]) -> Bound:
        """The rules over these columns. Raises `SluiceError` for a name that is unknown or ambiguous."""
        scope = Scope(columns)
        bound = []
        for name, expression in self._expressions.items():
            with _Naming(name):
                sql, reads = expression.bind(scope.resolve)
            bound.append(Rule(name, sql, reads, expression.local, expression.steady))
        return Bound(tuple(bound), scope.types)

    def check(self, columns: Sequence[Column]) -> Bound:
        """`bind`, and have DuckDB bind every rule to an empty table. Raises `SluiceError` unless all are BOOLEAN."""
        bound = self.bind(columns)
        with locked() as connection:
            connection.register("pairs", bound.schema().empty_table())
            for rule in bound.rules:
                with _Naming(rule.name):
                    found = str(connection.sql(f"SELECT {rule.sql} FROM pairs").types[0])  # noqa: S608 - screened
                    if found != "BOOLEAN":
                        raise SluiceError(f"is {found}, not BOOLEAN; write a condition such as width >= 200")
        return bound

    def funnel(self, dropped_by: pa.Array | pa.ChunkedArray) -> list[dict[str, Any]]:
        """Per rule, in order: `rule`, and the `rows` that it saw, that it `dropped` and that were `left`."""
        return self.funnel_of({pair["values"]: pair["counts"] for pair in dropped_by.value_counts().to_pylist()})

    def funnel_of(self, counts: Mapping[str | None, int]) -> list[dict[str, Any]]:
        """The funnel from how often each name, or null, stands in `dropped_by`."""
        left = sum(counts.get(name, 0) for name in (None, *self.names))
        steps = []
        for name in self.names:
            dropped = counts.get(name, 0)
            steps.append({"rule": name, "rows": left, "dropped": dropped, "left": left - dropped})
            left -= dropped
        return steps


@dataclass(frozen=True)
class Bound:
    """Rules bound to columns: they judge tables whose columns are named `node.column`, or `uid` and `caption_id`."""

    rules: tuple[Rule, ...]
    types: Mapping[str, pa.DataType]

    def reads(self) -> list[str]:
        """The columns that the rules read, sorted."""
        return sorted(frozenset().union(*(rule.reads for rule in self.rules)))

    def schema(self) -> pa.Schema:
        """Of the table that they judge: the keys, and what they read."""
        names = dict.fromkeys([*ORDER_KEYS, *self.reads()])
        return pa.schema([(name, self.types[name]) for name in names])

    def judge(self, table: pa.Table) -> pa.Array:
        """string (rows,): the first rule that each row fails, null where it fails none."""
        if all(rule.local for rule in self.rules):
            return self.names_of(self.judge_one_by_one(table))
        return self.names_of(next(self.judge_all([table])))

    def judge_all(self, tables: Iterable[pa.Table], memory: str = MEMORY) -> Iterator[np.ndarray]:
        """int16 (rows,) for every table, in order: the index of the first rule that a row fails, or `KEPT`.

        Windows look at all the tables' rows together. More than `memory` is spilled to disk.
        """
        return judge_tables(tables, self.schema(), self._numbered, memory)

    def judge_carrying(
        self, tables: Iterable[pa.Table], carried: pa.Schema, memory: str = MEMORY
    ) -> Iterator[pa.Table]:
        """The verdicts of `judge_all` as `code`, in any order, each beside its row's keys and `carried` columns."""
        fields = {field.name: field for field in [*self.schema(), *carried]}
        keys = [*ORDER_KEYS, *carried.names]
        return judge_carrying(tables, pa.schema(list(fields.values())), self._numbered, keys, memory)

    def judge_one_by_one(self, table: pa.Table) -> np.ndarray:
        """int16 (rows,): the verdicts where every rule looks at one row alone."""
        return judge_rows(table.select(self.schema().names), self._numbered)

    def names_of(self, codes: np.ndarray) -> pa.Array:
        """string (rows,): `dropped_by` for the verdicts of `judge_all`."""
        names = pa.array([rule.name for rule in self.rules], pa.string())
        return names.take(pa.array(codes, pa.int16(), mask=codes == KEPT))

    @property
    def _numbered(self) -> list[tuple[int, Rule]]:
        return list(enumerate(self.rules))


class Scope:
    """What names mean in a rule: a column that one node has, or `node.column`; the keys are never ambiguous.

    Where a node has a column of captions and one of images by the same name, a pair has the caption's.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self._nodes: dict[str, dict[str, Column]] = {}
        for grain in ("image", "caption"):
            for column in columns:
                if column.grain == grain and column.name not in (*ORDER_KEYS, PIXELS):
                    self._nodes.setdefault(column.node, {})[column.name] = column
        self.types: dict[str, pa.DataType] = dict.fromkeys(ORDER_KEYS, pa.string())
        """The columns that were resolved, as the table of pairs names them."""

    def resolve(self, names: Names) -> str:
        """The name in the table of pairs. Raises `SluiceError` for a name that is unknown or ambiguous."""
        if names[-1] in ORDER_KEYS and (len(names) == 1 or (len(names) == 2 and names[0] in self._nodes)):
            return names[-1]
        column = self._bare(names) if len(names) == 1 else self._of_node(names)
        name = f"{column.node}.{column.name}"
        clash = next((known for known in self.types if known.lower() == name.lower() and known != name), None)
        if clash:
            raise SluiceError(f"reads {name} beside {clash}, which DuckDB cannot tell apart; rename one of them")
        self.types[name] = column.type
        return name

    def _bare(self, names: Names) -> Column:
        (name,) = names
        found = [columns[name] for columns in self._nodes.values() if name in columns]
        if len(found) == 1:
            return found[0]
        if found:
            ways = " or ".join(f"{column.node}.{name}" for column in found)
            raise SluiceError(f"reads {name!r}, which several nodes have; write {ways}")
        refuse_clocks(names)
        known = {column for columns in self._nodes.values() for column in columns} | set(ORDER_KEYS)
        raise SluiceError(f"reads {name!r}, which no node has{did_you_mean(name, known)}")

    def _of_node(self, names: Names) -> Column:
        node, name, *fields = names
        written = ".".join(names)
        if node not in self._nodes:
            owned = any(node in columns for columns in self._nodes.values())
            advice = f"; a field is written {node}['{name}']" if owned else did_you_mean(node, self._nodes)
            raise SluiceError(f"reads {written!r}, but no node is named {node!r}{advice}")
        if name not in self._nodes[node]:
            advice = did_you_mean(name, self._nodes[node])
            raise SluiceError(f"reads {written!r}, but {node} has no column {name!r}{advice}")
        if fields:
            raise SluiceError(f"reads {written!r}; a field is written {node}.{name}['{fields[0]}']")
        return self._nodes[node][name]


class _Naming:
    """Puts the rule's name before what goes wrong inside."""

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, SluiceError):
            raise SluiceError(f"rule {self.rule!r} {error}") from None
        if isinstance(error, duckdb.Error):
            raise SluiceError(f"rule {self.rule!r}: {first_line(error)}") from None


def _items(rules: Sequence[Mapping[str, str]] | Mapping[str, str]) -> list[tuple[str, str]]:
    if isinstance(rules, Mapping):
        return list(rules.items())
    if not isinstance(rules, list | tuple) or not all(isinstance(rule, Mapping) and len(rule) == 1 for rule in rules):
        raise SluiceError(f"rules are a list of `name: condition`, such as [{{large: width >= 200}}], not {rules!r}")
    return [item for rule in rules for item in rule.items()]


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
        raise SluiceError(f"rule {name!r} has no usable name; use letters, digits and _ such as large_enough")
    if name == SUPERSEDED:
        raise SluiceError(f"no rule can be named {name!r}: it stands for rows that a later part replaced; rename it")

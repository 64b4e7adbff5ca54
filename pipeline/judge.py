"""Has DuckDB judge rows by rules that were bound to their columns: in memory, or spilling to disk.

DuckDB is locked first: it sees the tables registered with it and nothing else. A NaN in them is NULL to a rule.
"""

# ruff: noqa: S608 - a rule's SQL was screened and printed from its tree; names are quoted
from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.errors import SluiceError

MEMORY = "4GB"
"""What DuckDB holds in memory before it spills to disk."""
CODE = np.dtype("int16")
KEPT = -1
"""The verdict on a row that fails no rule; else it is the index of the first rule that it fails."""
BATCH_ROWS = 1 << 17
"""Rows that go to or from DuckDB at once: one of its row groups. In tables of 10,000 it takes four times as long."""


@dataclass(frozen=True)
class Rule:
    """A rule bound to columns."""

    name: str
    sql: str
    reads: frozenset[str]
    """The columns of the table of pairs, named `node.column`, or `uid` and `caption_id`."""
    local: bool
    """Whether it looks at one row alone."""
    steady: bool
    """Whether any number of threads give the same verdicts."""


Numbered = Sequence[tuple[int, Rule]]
"""Rules with their indices, which are the verdicts on the rows that fail them."""


def judge_rows(table: pa.Table, rules: Numbered) -> np.ndarray:
    """int16 (rows,): verdicts of rules that look at one row alone.

    Raises `SluiceError` naming the rule that cannot be computed.
    """
    if not rules:
        return np.full(table.num_rows, KEPT, CODE)
    with _shared_connection().cursor() as connection:
        connection.register("pairs", _without_nan(table))
        try:
            codes = connection.sql(f"SELECT {_code(rules)} AS code FROM pairs").to_arrow_table()
        except duckdb.Error as error:
            raise _blamed(connection, "pairs", rules, error) from None
    return np.asarray(codes.column(0)).astype(CODE, copy=False)


def judge_tables(
    tables: Iterable[pa.Table], schema: pa.Schema, rules: Numbered, memory: str = MEMORY
) -> Iterator[np.ndarray]:
    """int16 (rows,) for every table, in order: verdicts on all their rows together, which may be larger than memory.

    Every table is read once. Raises `SluiceError` naming the rule that cannot be computed.
    """
    with _workspace(rules, memory) as connection:
        lengths = _judge(connection, tables, schema, rules, ())
        reader = connection.sql("SELECT code FROM verdicts ORDER BY row").to_arrow_reader(BATCH_ROWS)
        yield from _cut((np.asarray(batch.column(0)).astype(CODE, copy=False) for batch in reader), lengths)


def judge_carrying(
    tables: Iterable[pa.Table], schema: pa.Schema, rules: Numbered, carried: Sequence[str], memory: str = MEMORY
) -> Iterator[pa.Table]:
    """The verdicts of `judge_tables` as the column `code`, in any order, beside the `carried` columns of each row.

    Every table is read once. Raises `SluiceError` naming the rule that cannot be computed.
    """
    with _workspace(rules, memory) as connection:
        _judge(connection, tables, schema, rules, carried)
        fields = ", ".join(["code", *map(name, carried)])
        for batch in connection.sql(f"SELECT {fields} FROM verdicts").to_arrow_reader(BATCH_ROWS):
            yield pa.Table.from_batches([batch])


@contextmanager
def _workspace(rules: Numbered, memory: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A locked DuckDB with a folder to spill to; what it says becomes a `SluiceError`."""
    # A sum of floats depends on which thread added what, and a pure stage must give the same bytes again.
    threads = None if all(rule.steady for _, rule in rules) else 1
    with tempfile.TemporaryDirectory(prefix="sluice-judge-") as folder, locked(memory, threads, folder) as connection:
        try:
            yield connection
        except duckdb.Error as error:
            raise SluiceError(f"rules {', '.join(rule.name for _, rule in rules)}: {first_line(error)}") from None


def _judge(
    connection: duckdb.DuckDBPyConnection,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    rules: Numbered,
    carried: Sequence[str],
) -> list[int]:
    """Fill `verdicts` (row, the carried columns, code); how many rows each table has."""
    lengths = _load(connection, tables, schema)
    fields = "".join(f", {name(column)}" for column in carried)
    connection.execute(f"CREATE TABLE verdicts AS SELECT row{fields}, 0::SMALLINT AS code FROM pairs WHERE false")
    groups = _groups(rules)
    for place, group in enumerate(groups):
        later = {column for rest in groups[place + 1 :] for _, rule in rest for column in rule.reads}
        _step(connection, group, sorted(later | set(carried)), fields)
    connection.execute(f"INSERT INTO verdicts SELECT row{fields}, {KEPT} FROM pairs")
    return lengths


def locked(memory: str = MEMORY, threads: int | None = None, folder: str = "") -> duckdb.DuckDBPyConnection:
    """DuckDB that sees only the tables registered with it, and whose settings cannot be changed any more.

    It spills to `folder`; without one it fails where `memory` is too little.
    """
    connection = duckdb.connect(":memory:")
    connection.execute(f"SET memory_limit = '{memory}'")
    connection.execute(f"SET temp_directory = {text(folder)}")
    if threads is not None:
        connection.execute(f"SET threads = {threads}")
    for setting in (
        "TimeZone = 'UTC'",  # a date in a rule must not depend on the machine
        "enable_progress_bar = false",
        "python_enable_replacements = false",
        "autoload_known_extensions = false",
        "autoinstall_known_extensions = false",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")
    return connection


def name(identifier: str) -> str:
    """An identifier as SQL writes it."""
    return '"' + identifier.replace('"', '""') + '"'


def text(value: str) -> str:
    """A string as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def first_line(error: duckdb.Error) -> str:
    """What DuckDB says, without its class of error and without the query."""
    line = str(error).partition("\n")[0]
    return line.partition(" Error: ")[2] or line


def _without_nan(table: pa.Table) -> pa.Table:
    """Null for NaN, which DuckDB sorts and compares as the greatest number of all: it would pass `clip_score > 0.3`."""
    import pyarrow.compute as pc  # 0.1 s, for which `explain` need not wait

    for place, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            values = table.column(place)
            known = pc.if_else(pc.is_nan(values), pa.scalar(None, field.type), values)
            table = table.set_column(place, field.name, known)
    return table


@lru_cache(maxsize=1)
def _shared_connection() -> duckdb.DuckDBPyConnection:
    """One for all the parts that a worker judges: opening DuckDB takes five times as long as judging 10,000 rows."""
    return locked()


def _load(connection: duckdb.DuckDBPyConnection, tables: Iterable[pa.Table], schema: pa.Schema) -> list[int]:
    """Put the tables into `pairs` with the number of every row; how many rows each of them has."""
    numbered = schema.append(pa.field("row", pa.int64()))
    connection.register("empty", numbered.empty_table())
    connection.execute("CREATE TABLE pairs AS SELECT * FROM empty")
    lengths: list[int] = []
    waiting: list[pa.Table] = []

    def insert() -> None:
        connection.register("waiting", _without_nan(pa.concat_tables(waiting)))
        connection.execute("INSERT INTO pairs SELECT * FROM waiting")
        connection.unregister("waiting")
        waiting.clear()

    start = held = 0
    for table in tables:
        rows = np.arange(start, start + table.num_rows, dtype=np.int64)
        waiting.append(table.select(schema.names).append_column("row", pa.array(rows)))
        lengths.append(table.num_rows)
        start, held = start + table.num_rows, held + table.num_rows
        if held >= BATCH_ROWS:
            insert()
            held = 0
    if waiting:
        insert()
    return lengths


def _step(connection: duckdb.DuckDBPyConnection, rules: Numbered, later: Sequence[str], carried: str) -> None:
    """Move the rows that fail from `pairs` to `verdicts`, and drop the columns that are not wanted `later`."""
    columns = "".join(f", {name(column)}" for column in later)
    try:
        connection.execute(f"CREATE TABLE judged AS SELECT row{columns}, {_code(rules)} AS code FROM pairs")
    except duckdb.Error as error:
        raise _blamed(connection, "pairs", rules, error) from None
    connection.execute("DROP TABLE pairs")
    connection.execute(f"INSERT INTO verdicts SELECT row{carried}, code FROM judged WHERE code <> {KEPT}")
    connection.execute(f"CREATE TABLE pairs AS SELECT row{columns} FROM judged WHERE code = {KEPT}")
    connection.execute("DROP TABLE judged")


def _code(rules: Numbered) -> str:
    """SQL for the index of the first of the rules that a row fails. CASE stops there: later rules never see the row."""
    cases = " ".join(f"WHEN ({rule.sql}) IS NOT TRUE THEN {code}" for code, rule in rules)
    return f"CAST(CASE {cases} ELSE {KEPT} END AS SMALLINT)"


def _blamed(connection: duckdb.DuckDBPyConnection, table: str, rules: Numbered, error: duckdb.Error) -> SluiceError:
    """Names the rule that fails by itself on the survivors of those before it."""
    before = "true"
    for _, rule in rules:
        try:
            connection.execute(f"SELECT count(CASE WHEN {before} THEN ({rule.sql}) END) FROM {table}")
        except duckdb.Error as found:
            return SluiceError(f"rule {rule.name!r}: {first_line(found)}")
        before += f" AND ({rule.sql}) IS TRUE"
    return SluiceError(f"rules {', '.join(rule.name for _, rule in rules)}: {first_line(error)}")


def _groups(rules: Numbered) -> list[list[tuple[int, Rule]]]:
    """Neighbours that look at one row alone are judged together; a window is judged alone, on its survivors."""
    groups: list[list[tuple[int, Rule]]] = []
    for code, rule in rules:
        if groups and rule.local and groups[-1][-1][1].local:
            groups[-1].append((code, rule))
        else:
            groups.append([(code, rule)])
    return groups


def _cut(arrays: Iterator[np.ndarray], lengths: Sequence[int]) -> Iterator[np.ndarray]:
    """The same values in pieces of the given lengths."""
    rest = np.zeros(0, CODE)
    for length in lengths:
        pieces, have = [rest], len(rest)
        while have < length:
            pieces.append(next(arrays))
            have += len(pieces[-1])
        whole = np.concatenate(pieces)
        yield whole[:length]
        rest = whole[length:]

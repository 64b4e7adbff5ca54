"""A run in SQL: DuckDB views straight over the Parquet files that its records name.

    catalog = Catalog("runs/demo")
    catalog.sql("SELECT status, count(*) FROM pool GROUP BY ALL")

For the owner of the store only: the SQL may read and write whatever the process may.

- `<node>`: the node's image table, else its caption table, else its first; its other tables are `<node>_captions`,
  `<node>_edges` … Rows that a later part replaced are left out.
- `samples`: every pair with every column that any table of the run has for it; `node_column` where two nodes share a
  name. `drops`: what each rule of each selection saw and dropped. `errors`: quarantined rows.
- `shards`: the output shards; `shard_samples`: what is in them. `runs`: the generations of every run.

A DAG has a schema of its own; the one of the chosen run is on the search path.
"""

# ruff: noqa: S608 - paths and names are quoted; nothing else is put into the SQL
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import duckdb
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SluiceError, did_you_mean
from pipeline.judge import BATCH_ROWS, KEPT, name, text
from pipeline.records import Generation, Record, Run, in_order
from pipeline.rules import Rules
from pipeline.store import Store
from pipeline.views import KEY_NAMES, PAIR_GRAINS, Piece, Pool, Table, live, pools, scan

ALL_NODES = ("samples", "drops", "shards", "shard_samples", "errors", "runs")
"""Views over all nodes; a node of the same name has its tables under `<node>_captions` and the like."""
NO_VIEW = {"errors", "samples"}
"""Kinds of table that are shown for all nodes together."""
ERRORS = "uid VARCHAR, row BIGINT, step VARCHAR, error VARCHAR, traceback VARCHAR, attempts INTEGER"
SEGMENTS_PER_CPU = 4
MAX_SEGMENTS = 64


class Catalog:
    """Views over a run of a store, the newest unless `run` names another. Opening it reads records, not data.

    Raises `SluiceError` where there is no such run.
    """

    def __init__(self, root: str, run: str | None = None) -> None:
        self._store = Store(root)
        self._runs = list(self._store.runs())
        if not self._runs:
            raise SluiceError(f"{root} has no run; `sluice run <dag> {root}` makes one")
        by_id = {known.id: known for known in self._runs}
        if run is not None and run not in by_id:
            raise SluiceError(f"{root} has no run {run!r}{did_you_mean(run, by_id)}")
        self.run = by_id[run] if run is not None else self._runs[0]
        self._segments = min(MAX_SEGMENTS, SEGMENTS_PER_CPU * (os.cpu_count() or 1))
        self._connection = self._connect()
        self._add_runs()
        self._schemas: dict[str, _Schema] = {}
        self._add_schema(self.run)
        self._connection.execute(f"SET search_path = {text(f'{name(self.run.dag)},main')}")

    def relation(self, query: str, params: Sequence[object] = ()) -> duckdb.DuckDBPyRelation | None:
        """The answer, not fetched yet; None for a statement that has none.

        Raises `SluiceError` with what DuckDB says.
        """
        try:
            if len(duckdb.extract_statements(query)) > 1:
                self._add_other_schemas()
            try:
                return self._connection.sql(query, params=list(params))
            except duckdb.CatalogException:
                if not self._add_other_schemas():
                    raise
                return self._connection.sql(query, params=list(params))
        except duckdb.Error as error:
            raise SluiceError(" ".join(str(error).partition("\n\n")[0].splitlines())) from None

    def sql(self, query: str, params: Sequence[object] = ()) -> pa.Table:
        """The whole answer; an empty table for a statement that has none. Raises `SluiceError`."""
        relation = self.relation(query, params)
        if relation is None:
            return pa.Table.from_arrays([], names=[])
        try:
            return relation.to_arrow_table()
        except duckdb.Error as error:
            raise SluiceError(" ".join(str(error).partition("\n\n")[0].splitlines())) from None

    def funnel(self, node: str) -> pa.Table:
        """Per rule of a selection, in order: `position`, `rule`, `pairs_in`, `dropped`, `pairs_left`."""
        selections = self._schemas[self.run.dag].selections()
        if node not in selections:
            raise SluiceError(f"{node!r} selects nothing in run {self.run.id}{did_you_mean(node, selections)}")
        query = "SELECT position, rule, pairs_in, dropped, pairs_left FROM drops WHERE node = ? ORDER BY position"
        return self.sql(query, [node])

    def what_if(self, rules: Rules, pool: str | None = None) -> list[dict[str, Any]]:
        """The funnel (`Rules.funnel`) that these rules would give, judged over all columns of a pool; nothing is kept.

        Rules may come from elsewhere: they are judged apart, in a locked DuckDB. Raises `SluiceError`.
        """
        found = {known.node: known for known in self._schemas[self.run.dag].pools}
        if not found or (pool is not None and pool not in found):
            raise SluiceError(f"run {self.run.id} has no pool{f' {pool!r}' if pool else ''}{did_you_mean(pool or '', found)}")
        chosen = found[pool] if pool is not None else next(iter(found.values()))
        bound = rules.check(list(chosen.columns().values()))
        columns = [tuple(column.split(".", 1)) for column in bound.reads() if column not in KEY_NAMES]
        shown = {(node, column): f"{node}.{column}" for node, column in columns}
        relation = self.relation(chosen.pairs(shown, self._segments))
        assert relation is not None
        batches = relation.to_arrow_reader(BATCH_ROWS)
        counts = np.zeros(len(rules.names) + 1, dtype=np.int64)
        for codes in bound.judge_all(pa.Table.from_batches([batch]) for batch in batches):
            counts += np.bincount(codes - KEPT, minlength=len(counts))
        return rules.funnel_of(dict(zip([None, *rules.names], counts.tolist(), strict=True)))

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- laying the views ----------------------------------------------------------------------------------------------

    def _connect(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(":memory:")
        connection.execute("SET autoinstall_known_extensions = false")  # a query must not wait for a download
        connection.execute("SET python_enable_replacements = false")  # nor find the variables of this program
        if not self._store.local:
            connection.register_filesystem(self._store.fs)
        return connection

    def _add_runs(self) -> None:
        self._connection.execute("CREATE TABLE runs (run VARCHAR, dag VARCHAR, node VARCHAR, generation INTEGER)")
        rows = [(run.id, run.dag, node, number) for run in self._runs for node, number in run.generations.items()]
        self._insert("main.runs", rows, "VARCHAR[], VARCHAR[], VARCHAR[], INTEGER[]")

    def _add_schema(self, run: Run) -> None:
        generations = {}
        for node, number in run.generations.items():
            generation = self._store.generation(node, number)
            if generation is None:
                raise SluiceError(f"{self._store.root}: generation {number} of {node} is gone; ask another run with --run")
            generations[node] = generation
        schema = _Schema(run.dag, generations, _tables(self._store, generations))
        self._schemas[run.dag] = schema
        self._connection.execute(f"CREATE SCHEMA {name(run.dag)}")
        for view, query in schema.views(self._segments).items():
            self._connection.execute(f"CREATE VIEW {name(run.dag)}.{name(view)} AS {query}")
        shards = f"{name(run.dag)}.shards"
        self._connection.execute(f"CREATE TABLE {shards} (node VARCHAR, path VARCHAR, samples BIGINT, bytes BIGINT)")
        self._insert(shards, _shards(self._store, generations), "VARCHAR[], VARCHAR[], BIGINT[], BIGINT[]")

    def _add_other_schemas(self) -> bool:
        """Lay the newest run of every other DAG; whether there was one."""
        missing = {run.dag: run for run in reversed(self._runs) if run.dag not in self._schemas}
        for run in missing.values():
            self._add_schema(run)
        return bool(missing)

    def _insert(self, table: str, rows: Sequence[tuple[object, ...]], types: str) -> None:
        """By columns: one statement, whatever the number of rows."""
        columns = [list(column) for column in zip(*rows, strict=True)]
        if columns:
            items = ", ".join(f"unnest(?::{kind})" for kind in types.split(", "))
            self._connection.execute(f"INSERT INTO {table} SELECT {items}", columns)


class _Schema:
    """The views of one DAG."""

    def __init__(self, dag: str, generations: Mapping[str, Generation], tables: Mapping[tuple[str, str], Table]) -> None:
        self.dag = dag
        self.generations = generations
        self.tables = tables
        self.pools: list[Pool] = pools(generations, tables)

    def selections(self) -> list[str]:
        """The nodes whose captions say what was kept, and why the others were dropped."""
        return [
            node
            for (node, kind), table in self.tables.items()
            if kind == "caption" and {"kept", "dropped_by"} <= set(table.schema.names)
        ]

    def views(self, segments: int) -> dict[str, str]:
        """Name -> query."""
        found = self._node_views()
        if self.pools:
            samples = []
            for pool in self.pools:
                samples.append(f"SELECT {text(pool.node)} AS pool, * FROM ({pool.pairs(pool.names(), segments)})")
            found["samples"] = " UNION ALL BY NAME ".join(samples)
        drops = [self._drops(node) for node in self.selections()]
        empty = "node VARCHAR, position BIGINT, rule VARCHAR, pairs_in BIGINT, dropped BIGINT, pairs_left BIGINT"
        found["drops"] = " UNION ALL ".join(drops) or _nothing(empty)
        found["errors"] = self._all_nodes("errors", "part", _part) or _nothing(f"node VARCHAR, part VARCHAR, {ERRORS}")
        nothing = _nothing("node VARCHAR, shard VARCHAR, uid VARCHAR")
        found["shard_samples"] = self._all_nodes("samples", "shard", _shard) or nothing
        return found

    def _node_views(self) -> dict[str, str]:
        found, others = {}, {}
        for node in self.generations:
            kinds = [kind for owner, kind in self.tables if owner == node and kind not in NO_VIEW]
            kinds.sort(key=lambda kind: (*PAIR_GRAINS, kind).index(kind))
            for place, kind in enumerate(kinds):
                first = place == 0 and node not in ALL_NODES
                (found if first else others)[node if first else f"{node}_{kind}s"] = live(self.tables[node, kind])
        return {**others, **found}

    def _drops(self, node: str) -> str:
        """What each rule saw: the rules in the order of the records' funnel, those without one by name."""
        funnels = [record.notes.get("funnel", []) for record in self.generations[node].records]
        rules = [step["rule"] for step in (funnels[0] if funnels else [])]
        listed = ", ".join(f"({place}, {text(rule)})" for place, rule in enumerate(rules, 1)) or "(0, NULL)"
        return f"""
            SELECT {text(node)} AS node, position, rule, total - before - dropped + dropped AS pairs_in, dropped,
                   total - before - dropped AS pairs_left
            FROM (
                SELECT *, coalesce(sum(dropped) OVER (ORDER BY position ROWS BETWEEN UNBOUNDED PRECEDING
                       AND 1 PRECEDING), 0)::BIGINT AS before
                FROM (
                    SELECT row_number() OVER (ORDER BY listed.position NULLS LAST, rule) AS position, rule,
                           coalesce(counted.pairs, 0) AS dropped, sum(counted.pairs) OVER () AS total
                    FROM (SELECT dropped_by AS rule, count(*) AS pairs FROM ({live(self.tables[node, "caption"])})
                          GROUP BY ALL) AS counted
                    FULL JOIN (VALUES {listed}) AS listed(position, rule) USING (rule)
                )
            )
        """

    def _all_nodes(self, kind: str, column: str, value: Any) -> str:
        return ""


def _nothing(columns: str) -> str:
    fields = ", ".join(f"NULL::{field.split(' ')[1]} AS {name(field.split(' ')[0])}" for field in columns.split(", "))
    return f"SELECT {fields} WHERE false"

"""A run in SQL: DuckDB views straight over the Parquet files that its records name.

    catalog = Catalog("runs/demo")
    catalog.sql("SELECT status, count(*) FROM pool GROUP BY ALL")

For the owner of the store only: the SQL may read and write whatever the process may.

- `<node>`: the node's image table, else its caption table, else its first; its other tables are `<node>_captions`,
  `<node>_edges` … Rows that a later part replaced are left out.
- `samples`: every pair with every column that any table of the run has for it; `node_column` where two nodes share a
  name. `drops`: what each rule of each selection saw and dropped. `errors`: quarantined rows.
- `shards`: the output shards by `path`; `shard_samples`: what is in them. `runs`: the generations of every run.

A DAG has a schema of its own; the one of the chosen run is on the search path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.errors import SluiceError, did_you_mean
from pipeline.judge import BATCH_ROWS, KEPT, name, text
from pipeline.pairs import KEY_NAMES, Pool
from pipeline.recorded import connect
from pipeline.records import Run
from pipeline.rules import Rules
from pipeline.runs import run_of
from pipeline.stage import Column
from pipeline.store import Store
from pipeline.views import Schema

SEGMENTS_PER_CPU = 4
MAX_SEGMENTS = 64


class Catalog:
    """Views over a run of a store, the newest unless `run` names another (`0003`, or just `3`). Opening it reads
    records, not data.

    Raises `SluiceError` where there is no such run.
    """

    def __init__(self, root: str, run: str | None = None) -> None:
        self._store = Store(root)
        self._runs = list(self._store.runs())
        self.run = run_of(self._store, run, self._runs)
        self._segments = min(MAX_SEGMENTS, SEGMENTS_PER_CPU * (os.cpu_count() or 1))
        self._sizes: dict[str, int] = {}
        self._connection = connect(self._store, self._sizes)
        self._add_runs()
        self._schemas: dict[str, Schema] = {}
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
            raise _refusal(error) from None

    def sql(self, query: str, params: Sequence[object] = ()) -> pa.Table:
        """The whole answer; an empty table for a statement that has none. Raises `SluiceError`."""
        relation = self.relation(query, params)
        if relation is None:
            return pa.Table.from_arrays([], names=[])
        try:
            return relation.to_arrow_table()
        except duckdb.Error as error:
            raise _refusal(error) from None

    def funnel(self, node: str) -> pa.Table:
        """Per rule of a selection, in order: `position`, `rule`, `pairs_in`, `dropped`, `pairs_left`."""
        selections = self.selections()
        if node not in selections:
            raise SluiceError(f"{node!r} selects nothing in run {self.run.id}{did_you_mean(node, selections)}")
        query = "SELECT position, rule, pairs_in, dropped, pairs_left FROM drops WHERE node = ? ORDER BY position"
        return self.sql(query, [node])

    def what_if(self, rules: Rules, pool: str | None = None) -> list[dict[str, Any]]:
        """The funnel (`Rules.funnel`) that these rules would give, judged over all columns of a pool; nothing is kept.

        Rules may come from elsewhere: they are judged apart, in a locked DuckDB. Raises `SluiceError`.
        """
        chosen = self._pool(pool)
        bound = rules.check(list(chosen.columns().values()))
        columns = [tuple(column.split(".", 1)) for column in bound.reads() if column not in KEY_NAMES]
        batches = self._pairs(chosen, {(node, column): f"{node}.{column}" for node, column in columns})
        counts = np.zeros(len(rules.names) + 1, dtype=np.int64)
        for codes in bound.judge_all(batches):
            counts += np.bincount(codes - KEPT, minlength=len(counts))
        return rules.funnel_of(dict(zip([None, *rules.names], counts.tolist(), strict=True)))

    def columns_beside(self, selection: str) -> list[Column]:
        """What is known of the pairs that a node selects from: the columns of every node that hangs on their pool."""
        return list(self._pool_of(selection).columns().values())

    def judged_pairs(self, selection: str, shown: Mapping[tuple[str, str], str]) -> Iterator[pa.Table]:
        """Every live pair that a node judged: the keys, and the columns `shown` (by node and name) under these names.

        Read as a stream, in pieces that memory holds whatever the number of pairs.
        """
        return self._pairs(self._pool_of(selection), shown)

    def selections(self) -> list[str]:
        """The nodes of the run that say which pairs are kept, and why the others were dropped."""
        return self._schemas[self.run.dag].selections()

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pool(self, pool: str | None) -> Pool:
        found = {known.node: known for known in self._schemas[self.run.dag].pools}
        if not found or (pool is not None and pool not in found):
            raise SluiceError(
                f"run {self.run.id} has no pool{f' {pool!r}' if pool else ''}{did_you_mean(pool or '', found)}"
            )
        return found[pool] if pool is not None else next(iter(found.values()))

    def _pool_of(self, selection: str) -> Pool:
        """The pool whose pairs a node judged."""
        for pool in self._schemas[self.run.dag].pools:
            if any(table.node == selection and table.kind == "caption" for table in (pool.captions, *pool.others)):
                return pool
        raise SluiceError(f"run {self.run.id} has no pool whose pairs {selection!r} judges; name another --node")

    def _pairs(self, pool: Pool, shown: Mapping[tuple[str, str], str]) -> Iterator[pa.Table]:
        relation = self.relation(pool.pairs(shown, self._segments))
        assert relation is not None
        try:
            for batch in relation.to_arrow_reader(BATCH_ROWS):
                yield pa.Table.from_batches([batch])
        except duckdb.Error as error:
            raise _refusal(error) from None

    # -- laying the views ----------------------------------------------------------------------------------------------

    def _add_runs(self) -> None:
        self._connection.execute("CREATE TABLE runs (run VARCHAR, dag VARCHAR, node VARCHAR, generation INTEGER)")
        rows = [(run.id, run.dag, node, number) for run in self._runs for node, number in run.generations.items()]
        self._insert("main.runs", rows, "VARCHAR[], VARCHAR[], VARCHAR[], INTEGER[]")

    def _add_schema(self, run: Run) -> None:
        generations = {}
        for node, number in run.generations.items():
            generation = self._store.generation(node, number)
            if generation is None:
                raise SluiceError(
                    f"{self._store.root}: generation {number} of {node} is gone; ask another run with --run"
                )
            generations[node] = generation
        schema = self._schemas[run.dag] = Schema(self._store, generations)
        self._sizes.update(schema.sizes())
        self._connection.execute(f"CREATE SCHEMA {name(run.dag)}")
        for view, query in schema.views(self._segments).items():
            try:
                self._connection.execute(f"CREATE VIEW {name(run.dag)}.{name(view)} AS {query}")
            except duckdb.IOException as error:
                raise SluiceError(f"{_refusal(error)}; `sluice verify {self._store.root}` says what is lost") from None
        shards = f"{name(run.dag)}.shards"
        self._connection.execute(f"CREATE TABLE {shards} (node VARCHAR, path VARCHAR, samples BIGINT, bytes BIGINT)")
        rows = [(shard.node, shard.path, shard.samples, shard.bytes) for shard in schema.shards]
        self._insert(shards, rows, "VARCHAR[], VARCHAR[], BIGINT[], BIGINT[]")

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


def _refusal(error: duckdb.Error) -> SluiceError:
    """What DuckDB says and suggests, on one line, without the query."""
    return SluiceError(" ".join(str(error).partition("\n\n")[0].split()))

"""The views of one DAG's run, as SQL: a view per table of a node, and those over all nodes.

Opens one file of every table for its columns, whatever the number of parts. (DuckDB opens another for every segment.)
"""

# ruff: noqa: S608 - paths and names are quoted; nothing else is put into the SQL
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SluiceError
from pipeline.judge import name, text
from pipeline.pairs import PAIR_GRAINS, Piece, Pool, Table, Tables, live, pools, scan
from pipeline.recorded import address
from pipeline.records import Generation, in_order
from pipeline.store import Store

OVER_ALL_NODES = ("samples", "drops", "shards", "shard_samples", "errors", "runs")
"""A node of such a name keeps its tables under `<node>_captions` and the like."""
NOT_OF_A_NODE = ("errors", "samples")
"""Kinds of table that are shown for all nodes together."""
NO_DROPS = "node VARCHAR, position BIGINT, rule VARCHAR, pairs_in BIGINT, dropped BIGINT, pairs_left BIGINT"
NO_ERRORS = "node VARCHAR, part VARCHAR, uid VARCHAR, row BIGINT, step VARCHAR, error VARCHAR, traceback VARCHAR"


@dataclass(frozen=True)
class Shard:
    """One file of final samples."""

    node: str
    part: str
    path: str
    samples: int | None
    bytes: int


class Schema:
    """What a run left, and the views over it."""

    def __init__(self, store: Store, generations: Mapping[str, Generation]) -> None:
        self.generations = generations
        self.tables = _tables(store, generations)
        self.pools: list[Pool] = pools(generations, self.tables)
        self.shards = _shards(store, generations)

    def sizes(self) -> dict[str, int]:
        """Bytes of every Parquet file, by address."""
        return {piece.path: piece.bytes for table in self.tables.values() for piece in table.pieces}

    def selections(self) -> list[str]:
        """The nodes whose captions say what was kept, and why the others were dropped."""
        said = {"kept", "dropped_by"}
        return [n for (n, kind), table in self.tables.items() if kind == "caption" and said <= set(table.schema.names)]

    def views(self, segments: int) -> dict[str, str]:
        """Name -> query."""
        samples = [
            f"SELECT {text(pool.node)} AS pool, * FROM ({pool.pairs(pool.names(), segments)})" for pool in self.pools
        ]
        parts = {(node, piece.part): piece.part for (node, _), table in self.tables.items() for piece in table.pieces}
        shards = {(shard.node, shard.part): shard.path for shard in self.shards}
        return {
            **self._node_views(),
            "samples": " UNION ALL BY NAME ".join(samples) or _nothing("uid VARCHAR, caption_id VARCHAR"),
            "drops": " UNION ALL ".join(self._drops(node) for node in self.selections()) or _nothing(NO_DROPS),
            "errors": self._of_all_nodes("errors", "part", parts) or _nothing(f"{NO_ERRORS}, attempts INTEGER"),
            "shard_samples": self._of_all_nodes("samples", "path", shards) or _nothing("node VARCHAR, path VARCHAR"),
        }

    def _node_views(self) -> dict[str, str]:
        first, others = {}, {}
        for node in self.generations:
            kinds = sorted(kind for owner, kind in self.tables if owner == node and kind not in NOT_OF_A_NODE)
            kinds.sort(key=lambda kind: PAIR_GRAINS.index(kind) if kind in PAIR_GRAINS else len(PAIR_GRAINS))
            for place, kind in enumerate(kinds):
                view = live(self.tables[node, kind])
                if place == 0 and node not in OVER_ALL_NODES:
                    first[node] = view
                else:
                    others[f"{node}_{kind}s"] = view
        return others | first  # a node whose own name ends in _captions keeps it

    def _drops(self, node: str) -> str:
        """What each rule saw; the rules in the order of the records' funnels, those that stand in none by name."""
        funnels = [record.notes["funnel"] for record in self.generations[node].records if "funnel" in record.notes]
        rules = [step["rule"] for step in (funnels[0] if funnels else [])]
        listed = ", ".join(f"({place}, {text(rule)})" for place, rule in enumerate(rules)) or "(NULL, NULL)"
        return f"""(
            WITH counted AS (
                SELECT dropped_by AS rule, count(*) AS pairs FROM ({live(self.tables[node, "caption"])}) GROUP BY ALL
            ),
            ordered AS (
                SELECT row_number() OVER (ORDER BY place NULLS LAST, rule) AS position, rule,
                       coalesce(pairs, 0) AS dropped
                FROM (VALUES {listed}) AS listed(place, rule) FULL JOIN counted USING (rule)
                WHERE rule IS NOT NULL
            ),
            summed AS (
                SELECT *, (SELECT sum(pairs) FROM counted) - sum(dropped) OVER (ORDER BY position) AS pairs_left
                FROM ordered
            )
            SELECT {text(node)} AS node, position, rule, CAST(pairs_left + dropped AS BIGINT) AS pairs_in,
                   CAST(dropped AS BIGINT) AS dropped, CAST(pairs_left AS BIGINT) AS pairs_left
            FROM summed
        )"""

    def _of_all_nodes(self, kind: str, column: str, values: Mapping[tuple[str, str], str]) -> str:
        """One kind of table of every node that has it, with the node, and for every file the value of its part."""
        queries = []
        for (node, found), table in self.tables.items():
            if found == kind:
                pairs = [(piece.path, values.get((node, piece.part))) for piece in table.pieces]
                listed = ", ".join(f"({text(path)}, {text(value) if value else 'NULL'})" for path, value in pairs)
                queries.append(
                    f"SELECT {text(node)} AS node, known.value AS {name(column)}, file.* "
                    f"FROM {scan(table, table.pieces)} AS file "
                    f"JOIN (VALUES {listed}) AS known(path, value) ON file.filename = known.path"
                )
        return " UNION ALL BY NAME ".join(queries)


def _tables(store: Store, generations: Mapping[str, Generation]) -> Tables:
    pieces: dict[tuple[str, str], list[Piece]] = {}
    for node, generation in generations.items():
        for record in in_order(generation.records):
            for file in record.files:
                if file.path.endswith(".parquet"):
                    path = address(store, store.place(record, file))
                    piece = Piece(record.part, path, file.bytes, record.rows.get(file.kind, 0), record.supersedes)
                    pieces.setdefault((node, file.kind), []).append(piece)
    found = {}
    for (node, kind), files in pieces.items():
        firsts = {piece.part.partition("-")[0]: piece.path for piece in reversed(files)}  # of every increment
        schemas = [_schema_of(path, store) for path in firsts.values()]
        alike = all(schema.names == schemas[0].names for schema in schemas)
        schema = schemas[0] if alike else pa.unify_schemas([schema.remove_metadata() for schema in schemas])
        found[node, kind] = Table(node, kind, tuple(files), schema, () if alike else tuple(firsts.values()))
    return found


def _schema_of(path: str, store: Store) -> pa.Schema:
    try:
        with fsspec.open(path, "rb") as handle:
            return pq.read_schema(handle)
    except FileNotFoundError:
        raise SluiceError(f"{path} is gone, but a record names it; `sluice verify {store.root}`") from None


def _shards(store: Store, generations: Mapping[str, Generation]) -> list[Shard]:
    found = []
    for node, generation in generations.items():
        for record in in_order(generation.records):
            files = [file for file in record.files if file.kind == "shard"]
            samples = record.rows.get("samples") if len(files) == 1 else None
            for file in files:
                path = store.url(store.place(record, file))
                found.append(Shard(node, record.part, path, samples, file.bytes))
    return found


def _nothing(columns: str) -> str:
    """No rows, of these columns and types."""
    fields = [column.split() for column in columns.split(", ")]
    return f"SELECT {', '.join(f'NULL::{kind} AS {name(column)}' for column, kind in fields)} WHERE false"

"""What is exported: the pairs that a node kept, with any column that is known of them, in an order of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog import Catalog
from pipeline.errors import SluiceError, did_you_mean
from pipeline.judge import MEMORY, locked, name
from pipeline.records import File, Generation, Record, digest
from pipeline.runs import generations_of, in_another, run_of
from pipeline.stage import Column
from pipeline.store import Store
from pipeline.takedown.tombstones import TAKEN_DOWN
from pipeline.views import Schema

BATCH_ROWS = 1 << 16
FIRST, LAST = "uid", "caption_id"
"""The order of an export, whatever order the pairs were found in."""


class Selection:
    """A node that says which pairs are kept, or one that made shards of them; and the shards, where there are some.

    Raises `SluiceError` for a run or a node that is not there.
    """

    def __init__(self, root: str, node: str, run: str | None = None) -> None:
        self.store = Store(root)
        self.run = run_of(self.store, run)
        self.generations = generations_of(self.store, self.run)
        self._catalog = Catalog(root, self.run.id)
        selections = self._catalog.selections()
        self.shards_node: str | None = node if self._shards_of(node) else None
        chosen = _meant(node, selections, self.generations)
        if chosen is None:
            other = in_another(self.store, self.run, node, self._with_selections)
            told = other or did_you_mean(node, selections)
            raise SluiceError(f"--node {node!r} of run {self.run.id} selects nothing{told}")
        self.node = chosen
        if self.shards_node is None:
            below = [other for other, g in self.generations.items() if chosen in g.inputs and self._shards_of(other)]
            self.shards_node = below[0] if below else None
        self._columns = self._catalog.columns_beside(self.node)

    def _with_selections(self, generations: Mapping[str, Generation]) -> list[str]:
        """The nodes of another run that could be exported."""
        selections = Schema(self.store, generations).selections()
        return [node for node in generations if _meant(node, selections, generations) is not None]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._catalog.close()

    @property
    def generation(self) -> Generation:
        return self.generations[self.node]

    @property
    def hash(self) -> str:
        """32 hex digits: what was selected, and what of it was taken down since."""
        erased = [record.bytes_hash() for record in self.generation.records if TAKEN_DOWN in record.notes]
        return digest([self.generation.content_hash, erased]) if erased else self.generation.content_hash

    def funnel(self) -> pa.Table:
        """`rule`, `pairs_in`, `dropped`, `pairs_left`, in order."""
        return self._catalog.funnel(self.node)

    def _shards_of(self, node: str) -> list[tuple[Record, File]]:
        records = self.generations[node].records if node in self.generations else ()
        found = [(record, record.file("shard")) for record in records]
        return [(record, file) for record, file in found if file is not None]

    def shards(self) -> list[tuple[Record, File]]:
        """The final shards, in order; none where there are none."""
        return self._shards_of(self.shards_node) if self.shards_node else []

    # -- columns -------------------------------------------------------------------------------------------------------

    def column(self, asked: str) -> Column | None:
        """What `column` or `node.column` means: of several nodes' columns of one name, the pool's."""
        node, _, short = asked.rpartition(".")
        return next((c for c in self._columns if c.name == short and node in ("", c.node)), None)

    def in_shards(self, key: str) -> Column | None:
        """What a key in the shards' JSON was made from: the first of that name among what the shards were made from."""
        inputs = self.generations[self.shards_node].inputs if self.shards_node else {}
        node, _, short = key.rpartition(".")
        found = [c for c in self._columns if c.name == short and c.node in inputs and node in ("", c.node)]
        return min(found, key=lambda column: list(inputs).index(column.node), default=None)

    def demand(self, asked: str, remedy: str) -> Column:
        """Raises `SluiceError` where there is no such column."""
        found = self.column(asked)
        if found is None:
            known = [column.name for column in self._columns]
            raise SluiceError(f"run {self.run.id} has no column {asked!r}{did_you_mean(asked, known)}; {remedy}")
        return found

    def like(self, prefix: str, suffix: str) -> list[Column]:
        """The columns whose names begin and end so."""
        return [c for c in self._columns if c.name.startswith(prefix) and c.name.endswith(suffix)]

    # -- rows ----------------------------------------------------------------------------------------------------------

    def kept(self, columns: Mapping[str, Column], folder: str, one_per_image: bool = False) -> Kept:
        """The kept pairs with `columns` under other names, sorted by uid and caption_id.

        `one_per_image`: of an image's captions the one in the shards, else the first by `caption_id`. More than memory
        holds is spilled to `folder`.
        """
        seen: dict[str, str] = {}
        for label in columns:
            if label.lower() in seen:
                one = seen[label.lower()]
                raise SluiceError(f"--column {label}=…: SQL cannot tell it from the column {one}; give another name")
            seen[label.lower()] = label
        return Kept(self, columns, folder, one_per_image)

    def judged(self, columns: Mapping[str, Column]) -> Iterator[pa.Table]:
        """The kept pairs as they are found, with `columns` under other names."""
        status = self.column("status")
        shown = {(c.node, c.name): f"c{place}" for place, c in enumerate(columns.values())}
        shown |= {(self.node, "kept"): "kept"} | ({(status.node, "status"): "status"} if status else {})
        for table in self._catalog.judged_pairs(self.node, shown):
            chosen = table.filter(table.column("kept"))
            if status is not None and "status" in chosen.column_names:
                gone = pc.equal(chosen.column("status"), TAKEN_DOWN)
                chosen = chosen.filter(pc.invert(pc.fill_null(gone, False)))
            fields = {label: chosen.column(shown[c.node, c.name]) for label, c in columns.items()}
            yield pa.table({FIRST: chosen.column(FIRST), LAST: chosen.column(LAST), **fields})

    def sharded(self) -> Iterator[pa.Table]:
        """uid and caption_id of what is in the shards."""
        for record, _ in self.shards():
            yield self.store.read_table(record, "samples", [FIRST, LAST])


class Kept:
    """Kept pairs, sorted, in a DuckDB that spills; to be read as often as needed."""

    def __init__(self, selection: Selection, columns: Mapping[str, Column], folder: str, one_per_image: bool) -> None:
        self._spill = tempfile.TemporaryDirectory(prefix="sort-", dir=folder)
        self._connection = locked(MEMORY, None, self._spill.name)
        self.columns = list(columns)
        self._load("pairs", selection.judged(columns))
        if one_per_image:
            self._load("sharded", selection.sharded() if selection.shards_node else iter([_NO_KEYS]))
            self._source = (
                "(SELECT pairs.* FROM pairs LEFT JOIN sharded USING (uid) QUALIFY row_number() OVER (PARTITION BY uid "
                "ORDER BY coalesce(sharded.caption_id = pairs.caption_id, false) DESC, pairs.caption_id) = 1)"
            )
        else:
            self._source = "pairs"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._spill.cleanup()

    def count(self, where: str = "true") -> int:
        """Rows for which a condition holds."""
        found = self._ask(f"SELECT count(*) FROM {self._source} WHERE {where}").fetchall()  # noqa: S608 - ours
        return int(found[0][0])

    def batches(self, labels: Sequence[str], where: str = "true") -> Iterator[pa.Table]:
        """The rows in order, some columns of them."""
        fields = ", ".join(name(label) for label in labels)
        query = f"SELECT {fields} FROM {self._source} WHERE {where} ORDER BY {FIRST}, {LAST}"  # noqa: S608 - quoted
        for batch in self._ask(query).to_arrow_reader(BATCH_ROWS):
            yield pa.Table.from_batches([batch])

    def _ask(self, query: str) -> duckdb.DuckDBPyRelation:
        found = self._connection.sql(query)
        assert found is not None
        return found

    def _load(self, label: str, tables: Iterator[pa.Table]) -> None:
        first = next(tables, None)
        if first is None:
            raise SluiceError(f"there is no pair in {label}, so there is nothing to export; run the whole DAG first")
        batches = (batch for table in _chain(first, tables) for batch in table.to_batches())
        self._connection.register("arriving", pa.RecordBatchReader.from_batches(first.schema, batches))
        self._connection.execute(f"CREATE TABLE {label} AS SELECT * FROM arriving")  # noqa: S608 - ours
        self._connection.unregister("arriving")


def _meant(node: str, selections: Sequence[str], generations: Mapping[str, Generation]) -> str | None:
    """The selection that is named: the node itself, or the one that it was made from."""
    above = generations[node].inputs if node in generations else {}
    return node if node in selections else next((name for name in selections if name in above), None)


_NO_KEYS = pa.table({FIRST: pa.array([], pa.string()), LAST: pa.array([], pa.string())})


def _chain(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest

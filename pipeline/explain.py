"""A sample's whole history: from its input row, past every value and verdict, to the bytes that hold it.

    history = explain("runs/demo", "https://example.org/cat.jpg")
    history.captions[0].verdicts[0].dropped_by

Only the files of the parts that hold the sample are opened, whatever the size of the run. A shard is looked for where
a selection kept the sample: shards are shuffled, so the uid column of their indexes is read until it is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import SluiceError
from pipeline.lookup import UID, Lookup, parquet, rows_where, side_by_side
from pipeline.records import File, Generation, Record, Run
from pipeline.runs import ancestors, generations_of, run_of
from pipeline.stage import KEYS, Column
from pipeline.steps import Steps, rules_of
from pipeline.store import Store

if TYPE_CHECKING:
    import pyarrow.parquet as pq

PAIR_KINDS = ("image", "caption")
NOT_OF_A_SAMPLE = ("errors", "samples")
"""Tables with a place of their own in a history."""
VERDICT = ("kept", "dropped_by")
OLDER_RUNS = 5
"""Earlier runs that are looked through for other generations of the same nodes."""
MEMBER_OFFSET, MEMBER_SIZE = "_offset", "_nbytes"
"""How the index of a shard calls where a member begins and how long it is."""


@dataclass(frozen=True)
class Value:
    """One value, and who wrote it."""

    column: str
    value: Any
    node: str
    step: str


@dataclass(frozen=True)
class Unread:
    """A vector: its type is told, its numbers are not. One that is null is None."""

    type: str


@dataclass(frozen=True)
class Verdict:
    """What a selection said of a caption."""

    node: str
    kept: bool
    dropped_by: str | None
    rule: str | None = None
    """The SQL of the rule that dropped it."""
    looked_at: Mapping[str, Any] = field(default_factory=dict)
    """The values that this rule read, by `node.column`."""
    passed: int = 0
    """Rules before that one; all of them where it is kept."""
    rules: int = 0
    others: str | None = None
    """A query for the pairs that it was compared with, where the rule is a window over some of them."""


@dataclass(frozen=True)
class Caption:
    """One text of the sample."""

    caption_id: str
    values: tuple[Value, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Place:
    """Bytes of the sample."""

    node: str
    path: str
    member: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Replaced:
    """A row that no longer counts."""

    node: str
    part: str
    by: str
    """The part that has the row now."""
    status: str | None


@dataclass(frozen=True)
class Failure:
    """What the errors of a node say of the sample: it was refused, or quarantined."""

    node: str
    part: str
    step: str
    error: str


@dataclass(frozen=True)
class Related:
    """A row of another table that names the sample, such as an edge to a copy of it."""

    node: str
    kind: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class History:
    """Everything that a run says of one sample."""

    uid: str
    run: str
    dag: str
    parts: tuple[str, ...]
    image: tuple[Value, ...]
    captions: tuple[Caption, ...]
    places: tuple[Place, ...]
    """Where its bytes are: in the pool, then in shards."""
    related: tuple[Related, ...]
    failures: tuple[Failure, ...]
    replaced: tuple[Replaced, ...]
    older: Mapping[str, Mapping[str, int]]
    """Earlier run -> the other generation that it had of a node."""

    def value(self, column: str, node: str | None = None) -> Any:
        """The image's value of a column, of the first node that has it; None where there is none."""
        found = (v.value for v in self.image if v.column == column and node in (None, v.node))
        return next(found, None)


@dataclass(frozen=True)
class Pair:
    """One caption with its image, as the tables of a run have it."""

    values: Mapping[str, Any]
    """By `node.column`, in the order of the nodes; a caption's value shadows its image's of the same node."""
    image: Place | None
    """Its bytes in the pool."""
    tables: Mapping[str, _Read] = field(repr=False, compare=False)

    def first(self, column: str) -> Any:
        """The first value of a column of that name that is not null."""
        named = (value for name, value in self.values.items() if name.partition(".")[2] == column)
        return next((value for value in named if value is not None), None)


def explain(root: str, asked: str, run: str | None = None) -> History:
    """The history of a sample: by uid, leading digits of it, URL, the input's own id, or a member's name in a shard.

    Raises `SluiceError` where no sample is meant, or several.
    """
    return Explainer(Store(root), run).of(asked)


class Explainer:
    """Explains samples of one run of a store, the newest unless `run` names another."""

    def __init__(self, store: Store, run: str | None = None) -> None:
        self.store = store
        self.run: Run = run_of(store, run)
        self.generations = generations_of(store, self.run)
        self.lookup = Lookup(store, self.generations)
        self._steps = Steps(self.generations)
        self._above = {node: ancestors(node, self.generations) for node in self.generations}

    def of(self, asked: str) -> History:
        """Raises `SluiceError` where no sample is meant, or several."""
        uid, parts = self.lookup.resolve(asked)
        return self.history(uid, parts)

    def history(self, uid: str, parts: frozenset[str]) -> History:
        """The history of a sample whose parts are known."""
        tables = self._read(uid, parts)
        read = list(tables.values())
        captions = tuple(self._captions(tables))
        kept = {v.node for caption in captions for v in caption.verdicts if v.kept}
        places = [place for found in read for place in found.places()]
        for node, generation in self.generations.items():
            places += self._shards(node, generation, uid, kept)
        image = tuple(v for found in read for v in self._new_values(found, "image", found.image, tables))
        return History(
            uid=uid,
            run=self.run.id,
            dag=self.run.dag,
            parts=tuple(sorted(parts)),
            image=image,
            captions=captions,
            places=tuple(places),
            related=tuple(related for found in read for related in found.related()),
            failures=tuple(failure for found in read for failure in found.failures),
            replaced=tuple(replaced for found in read for replaced in found.replaced()),
            older=self._older([found.node for found in read if found.rows]),
        )

    def pair(self, uid: str, parts: frozenset[str], caption_id: str) -> Pair:
        """One pair of a sample whose parts are known."""
        tables = self._read(uid, parts)
        places = [place for found in tables.values() for place in found.places()]
        return Pair(_values_of(list(tables.values()), caption_id), next(iter(places), None), tables)

    def looked_at(self, pair: Pair, node: str, rule: str, caption_id: str) -> dict[str, Any]:
        """What a rule of a selection reads of a pair, by `node.column`; empty where it has no such rule."""
        sql = rules_of(self.generations[node]).get(rule)
        near = [pair.tables[other] for other in self.generations[node].inputs if other in pair.tables]
        return _looked_at(rule, sql, near, caption_id) if sql is not None else {}

    def _read(self, uid: str, parts: frozenset[str]) -> dict[str, _Read]:
        def read(generation: Generation) -> _Read:
            return _Read(self.store, generation, uid, parts)

        generations = list(self.generations.values())
        found = map(read, generations) if self.store.local else side_by_side(self.store, read, generations)
        return dict(zip(self.generations, found, strict=True))

    # -- values --------------------------------------------------------------------------------------------------------

    def _new_values(
        self, found: _Read, kind: str, row: Mapping[str, Any] | None, tables: Mapping[str, _Read], key: str = ""
    ) -> Iterator[Value]:
        """The values of a row that no node above it has: a pool repeats the columns of its input."""
        if row is None:
            return
        above = [tables[other] for other in self._above[found.node]]
        for column, value in row.items():
            if column in KEYS["caption"].names or column in (VERDICT if found.selects else ()):
                continue
            known = [o.image if kind == "image" else o.captions.get(key) for o in above]
            if any(other is not None and column in other and other[column] == value for other in known):
                continue
            yield Value(column, value, found.node, self._steps.of(found.node, kind, column, found.schemas[kind].names))

    def _captions(self, tables: Mapping[str, _Read]) -> Iterator[Caption]:
        ids = dict.fromkeys(key for found in tables.values() for key in found.captions)
        for key in ids:
            values: list[Value] = []
            verdicts: list[Verdict] = []
            for found in tables.values():
                row = found.captions.get(key)
                values += self._new_values(found, "caption", row, tables, key)
                if row is not None and found.selects:
                    verdicts.append(self._verdict(found, row, tables, key))
            yield Caption(key, tuple(values), tuple(verdicts))

    # -- verdicts ------------------------------------------------------------------------------------------------------

    def _verdict(self, found: _Read, row: Mapping[str, Any], tables: Mapping[str, _Read], key: str) -> Verdict:
        rules = rules_of(self.generations[found.node])
        kept, dropped_by = bool(row["kept"]), row["dropped_by"]
        if dropped_by not in rules:
            passed = len(rules) if kept else 0
            return Verdict(found.node, kept, dropped_by, passed=passed, rules=len(rules))
        sql = rules[dropped_by]
        near = [tables[other] for other in self.generations[found.node].inputs if other in tables]
        looked_at = _looked_at(dropped_by, sql, near, key)
        return Verdict(
            found.node,
            kept,
            dropped_by,
            sql,
            looked_at,
            passed=list(rules).index(dropped_by),
            rules=len(rules),
            others=_others(sql, str(row["uid"])),
        )

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def _shards(self, node: str, generation: Generation, uid: str, kept: set[str]) -> list[Place]:
        """The members in a node's shards; none where no selection that it was made from kept the sample."""
        records = [record for record in generation.records if record.file("samples") and record.file("shard")]
        selections = {name for name in self._above[node] if rules_of(self.generations[name])}
        if not records or (selections and not selections & kept):
            return []

        import duckdb  # which looks through many files five times as fast as pyarrow does

        from pipeline.recorded import address, connect

        indexes: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for record in records:
            index, shard = record.file("samples"), record.file("shard")
            assert index is not None
            assert shard is not None
            where = address(self.store, self.store.place(record, index))
            indexes[where] = self.store.url(self.store.place(record, shard))
            sizes[where] = index.bytes
        query = "SELECT * FROM read_parquet(?, filename = true, hive_partitioning = false) WHERE uid = ?"
        with connect(self.store, sizes) as connection:
            try:
                answer = connection.execute(query, [list(indexes), uid])
                names = [column[0] for column in answer.description]
                rows = [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
            except duckdb.Error as error:
                said = str(error).splitlines()[0]
                raise SluiceError(f"{said}; `sluice verify {self.store.root} --repair` mends it") from None
        return [place for row in rows for place in _members(node, indexes[row["filename"]], row)]

    def _older(self, nodes: Sequence[str]) -> dict[str, dict[str, int]]:
        """Earlier runs of the DAG that had other generations of these nodes."""
        found = {}
        earlier = (run for run in self.store.runs() if run.id < self.run.id)
        for run in islice(earlier, OLDER_RUNS):
            other = {n: run.generations[n] for n in nodes if n in run.generations}
            other = {n: number for n, number in other.items() if number != self.run.generations[n]}
            if other and run.dag == self.run.dag:
                found[run.id] = other
        return found


class _Read:
    """What one node says of a sample: its rows by kind and part."""

    def __init__(self, store: Store, generation: Generation, uid: str, parts: frozenset[str]) -> None:
        self.node = generation.node
        self.schemas: dict[str, pa.Schema] = {}
        self.rows: list[tuple[Record, str, dict[str, Any]]] = []
        self.failures: list[Failure] = []
        self._store = store
        self._records = [record for record in generation.records if record.base in parts]
        for record in self._records:
            for file in record.files:
                if file.path.endswith(".parquet") and file.kind != "samples":
                    self._read(store, record, file, uid)
        holding = {record.part for record, kind, _ in self.rows if kind in PAIR_KINDS}
        self._gone = {
            part: record.part for record in self._records if record.part in holding for part in record.supersedes
        }
        live = [(kind, row) for record, kind, row in self.rows if record.part not in self._gone]
        self.image: dict[str, Any] | None = next((row for kind, row in live if kind == "image"), None)
        self.captions = {row["caption_id"]: row for kind, row in live if kind == "caption"}
        self.selects = set(VERDICT) <= set(self.schemas.get("caption", pa.schema([])).names)

    def _read(self, store: Store, record: Record, file: File, uid: str) -> None:
        with parquet(store, record, file, whole=True) as table:
            schema = table.schema_arrow
            texts = [one.name for one in schema if pa.types.is_string(one.type) or pa.types.is_large_string(one.type)]
            keys = [name for name in texts if name == "uid" or name.startswith("uid_")]
            if not keys:
                return
            if file.kind in PAIR_KINDS:
                self.schemas.setdefault(file.kind, schema)
            wide = {one.name: Unread(str(one.type)) for one in schema if _is_vector(one.type)}
            columns = [name for name in schema.names if name not in wide]
            tables = list(_with_gaps(table, keys, uid, columns, list(wide)))
        for row, gaps in tables:
            if file.kind == "errors":
                self.failures.append(Failure(self.node, record.part, str(row.get("step")), str(row.get("error"))))
            else:
                self.rows.append((record, file.kind, {**row, **wide, **gaps}))

    def columns(self) -> list[Column]:
        return [
            Column(one.name, self.node, kind, one.type)
            for kind, schema in self.schemas.items()
            for one in schema
            if one.name not in KEYS["caption"].names
        ]

    def places(self) -> Iterator[Place]:
        """The image's bytes in the tar of a pool."""
        for record, kind, row in self.rows:
            tar = record.file("tar")
            if kind == "image" and tar is not None and row.get("offset") is not None and record.part not in self._gone:
                path = self._store.url(self._store.place(record, tar))
                yield Place(self.node, path, str(row.get("key") or row["uid"]), row["offset"], row["nbytes"])

    def related(self) -> Iterator[Related]:
        for _, kind, row in self.rows:
            if kind not in PAIR_KINDS:
                yield Related(self.node, kind, row)

    def replaced(self) -> Iterator[Replaced]:
        for record, kind, row in self.rows:
            if kind == "image" and record.part in self._gone:
                yield Replaced(self.node, record.part, self._gone[record.part], row.get("status"))


def _with_gaps(
    found: pq.ParquetFile, keys: Sequence[str], uid: str, columns: Sequence[str], wide: Sequence[str]
) -> Iterator[tuple[dict[str, Any], dict[str, None]]]:
    """The sample's rows; of its vectors only which are null."""
    for one in rows_where(found, keys, {uid}.__contains__, [*columns, *wide]):
        (row,) = _with_times_as_text(one.select(columns)).to_pylist()
        yield row, {name: None for name in wide if one.column(name).null_count}


def _with_times_as_text(rows: pa.Table) -> pa.Table:
    """As text, for as values of Python they would load pandas."""
    for place, one in enumerate(rows.schema):
        if pa.types.is_temporal(one.type):
            rows = rows.set_column(place, one.name, rows.column(place).cast(pa.string()))
    return rows


def _is_vector(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
    return bool(lists and pa.types.is_floating(kind.value_type))


def _members(node: str, path: str, row: Mapping[str, Any]) -> Iterator[Place]:
    """A row of a shard's index has, for every member, where it begins and how long it is."""
    for column, offset in row.items():
        member = column.removesuffix(MEMBER_OFFSET)
        if member != column and offset is not None:
            name = row.get(member) or f"{row.get('key') or row['uid']}.{member}"
            yield Place(node, path, str(name), offset, row[member + MEMBER_SIZE])


def _values_of(tables: Sequence[_Read], caption_id: str) -> dict[str, Any]:
    """What the tables say of a pair, by `node.column`."""
    values: dict[str, Any] = {}
    for found in tables:
        row = {**(found.image or {}), **(found.captions.get(caption_id) or {})}
        values |= {f"{found.node}.{column}": value for column, value in row.items()}
    return values


def _looked_at(rule: str, sql: str, near: Sequence[_Read], key: str) -> dict[str, Any]:
    """The values that a rule read, by `node.column`."""
    from pipeline.rules import Rules  # loads DuckDB, whose parser knows which words are columns

    values = _values_of(near, key)
    try:
        bound = Rules([{rule: sql}]).bind([column for found in near for column in found.columns()])
    except SluiceError:  # this part lacks a column that later input brought
        return {}
    return {name: values.get(name) for name in bound.reads() if name not in KEYS["caption"].names}


def _others(sql: str, uid: str) -> str | None:
    """A query for the pairs in the same partition of a window, where one column parts them. No value stands in it."""
    from pipeline.expression import parse

    partitions = _partitions(parse(sql))
    if len(partitions) != 1 or not UID.fullmatch(uid):
        return None
    column = partitions.pop()
    if not column.isidentifier():
        return None
    same = f"{column} = (SELECT {column} FROM samples WHERE uid = '{uid}' LIMIT 1)"  # noqa: S608 - hex and a name
    return f"SELECT uid, caption_id, kept, dropped_by FROM samples WHERE {same}"  # noqa: S608 - the same


def _partitions(node: Any) -> set[str]:
    """The columns by which the windows of an expression part the rows."""
    if isinstance(node, list):
        return {column for inner in node for column in _partitions(inner)}
    if not isinstance(node, dict):
        return set()
    mine = node.get("partitions") or []
    columns = {one["column_names"][-1] for one in mine if one.get("class") == "COLUMN_REF"}
    return columns | {column for inner in node.values() for column in _partitions(inner)}

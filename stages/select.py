"""Which pairs are kept: SQL rules in order over the tables of a pool.

Every pair gets a row, with the name of the first rule that it failed. No bytes are copied and no row is dropped here:
another threshold is another small table.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import field_validator

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.records import Generation, Record
from pipeline.rules import SUPERSEDED, Rules
from pipeline.stage import KEYS, PIXELS, Column, TableStage, Task, Work
from pipeline.store import Store

VERDICTS = pa.schema([*KEYS["caption"], ("kept", pa.bool_()), ("dropped_by", pa.string())])
DIGEST_BYTES = 16
GRAINS = ("image", "caption")
LOCAL, TOGETHER = "-local", "-together"
"""The records of earlier phases among the inputs of a task, where nodes have names."""


class Select(TableStage):
    """Keep the pairs that pass every rule, in order: a rule sees only the survivors of the rules before it.

    NULL fails, and a NaN is NULL.

    Rules that look at one row alone are judged part by part. From the first window on, one process judges the
    survivors of all parts, out of core. Rows that a retry replaced take no part in windows: they are `superseded`.

    The best 30 % by a score are a window, too: `cume_dist() OVER (ORDER BY clip_score DESC, uid, caption_id) <= 0.3`.
    It keeps 30 % of the survivors or one pair less, or, where fewer have a score, those; `uid, caption_id` decide
    between equals.
    """

    promise = "pure"
    revision = 2

    rules: tuple[dict[str, str], ...]
    """`name: condition` in DuckDB's SQL, over `column` or `node.column`."""

    @field_validator("rules", mode="before")
    @classmethod
    def _screened(cls, rules: Any) -> Any:
        Rules(rules)
        return tuple({name: text} for name, text in rules.items()) if isinstance(rules, Mapping) else rules

    def needs(self) -> frozenset[str]:
        return Rules(self.rules).needs()

    def check(self, inputs: Sequence[Column]) -> None:
        if not any(column.grain == "caption" for column in inputs):
            raise SluiceError("no node in `from` has captions, and pairs are what is selected; add the pool to `from`")
        Rules(self.rules).check(inputs)

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        return {"caption": VERDICTS}

    def ended(self, rows: pa.Table) -> Mapping[str, int]:
        kept = rows.column("kept").combine_chunks().true_count
        return {"kept": kept, "dropped": rows.num_rows - kept}

    def assemble(self, work: Work) -> list[Record]:
        tasks = _part_tasks(work.inputs, work.columns)
        if Rules(self.rules).local or not tasks:
            return work.map("parts", tasks, self._judge_part)
        local = work.map("local", tasks, self._judge_locally, final=False)
        rows = sum(record.rows["survivors"] for record in local)
        everything = Task("all", inputs={LOCAL: tuple(local)}, rows=rows)
        together = work.map("global", [everything], self._judge_together, final=False)
        return work.map("final", _final_tasks(tasks, local, together), self._finish)

    def _judge_part(self, task: Task, attempt: Attempt) -> None:
        """Every rule looks at one row alone."""
        pairs = Pairs(attempt.store, task.inputs, task.hints["columns"])
        bound = Rules(self.rules).bind(pairs.columns)
        self._write(attempt, pairs.keys, bound.judge(pairs.table(bound.schema().names)))

    def _judge_locally(self, task: Task, attempt: Attempt) -> None:
        """The rules before the first window; who survives, with the columns that the others read."""
        leading, rest = Rules(self.rules).split()
        pairs = Pairs(attempt.store, task.inputs, task.hints["columns"])
        bound = leading.bind(pairs.columns)
        dropped_by = bound.judge(pairs.table(bound.schema().names))
        attempt.write("local", pairs.keys.append_column("dropped_by", dropped_by))
        survivors = pairs.table(rest.bind(pairs.columns).schema().names).filter(dropped_by.is_null())
        attempt.write("survivors", survivors)

    def _judge_together(self, task: Task, attempt: Attempt) -> None:
        """The other rules, over the survivors of all parts; one block of verdicts per part, in their order."""
        _, rest = Rules(self.rules).split()
        records = task.inputs[LOCAL]
        replacing: dict[str, list[Record]] = {}
        for record in records:
            for part in record.supersedes:
                replacing.setdefault(part, []).append(record)
        live: list[np.ndarray] = []

        def survivors() -> Iterator[pa.Table]:
            for record in records:
                table = attempt.read(record, "survivors")
                live.append(~_replaced(attempt, table.column("uid"), replacing.get(record.part, ())))
                yield table.filter(pa.array(live[-1]))

        schema = attempt.read(records[0], "survivors").schema
        digests = []
        sink = attempt.create("verdicts")
        for codes, alive in zip(rest.bind(_columns_of(schema)).judge_all(survivors()), live, strict=True):
            block = np.zeros(len(alive), codes.dtype)
            block[alive] = codes
            digests.append(_digest(block.tobytes()))
            sink.write(digests[-1] + block.tobytes())
        # The content hash covers tables only, and the verdicts must be in it: the next phase is keyed by it.
        parts = pa.array([record.part for record in records], pa.string())
        attempt.write("blocks", pa.table({"part": parts, "digest": pa.array(digests, pa.binary())}))

    def _finish(self, task: Task, attempt: Attempt) -> None:
        """Lay the verdicts on the survivors beside those of the first phase."""
        _, rest = Rules(self.rules).split()
        local, *replacing = task.inputs[LOCAL]
        (together,) = task.inputs[TOGETHER]
        judged = attempt.read(local, "local")
        codes = _block(attempt.store, together, task.hints["offset"], local.rows["survivors"])
        dropped_by = judged.column("dropped_by").combine_chunks()
        names = pa.array(rest.names, pa.string()).take(pa.array(codes, mask=codes < 0))
        dropped_by = pc.replace_with_mask(dropped_by, dropped_by.is_null(), names)
        replaced = _replaced(attempt, judged.column("uid"), replacing)
        dropped_by = pc.if_else(pa.array(replaced), pa.scalar(SUPERSEDED), dropped_by)
        self._write(attempt, judged.select(KEYS["caption"].names), dropped_by)

    def _write(self, attempt: Attempt, keys: pa.Table, dropped_by: pa.Array) -> None:
        kept = dropped_by.is_null()
        columns = [*(keys.column(name) for name in keys.column_names), kept, dropped_by]
        attempt.write("caption", pa.Table.from_arrays(columns, schema=VERDICTS))
        attempt.count({"kept": kept.true_count, "dropped": len(kept) - kept.true_count})
        attempt.note(funnel=Rules(self.rules).funnel(dropped_by))


class Pairs:
    """The pairs of one part: its caption rows, each with the columns of its image.

    Tables of one pool zip by position; one of another part (a node without the retried part) is joined by key.
    A column that the part lacks is null: later input brought it.
    Raises `SluiceError` where a pair has no row in a table.
    """

    def __init__(self, store: Store, inputs: Mapping[str, Sequence[Record]], columns: Sequence[Column]) -> None:
        self._records = {node: records[0] for node, records in inputs.items()}
        self._files: dict[tuple[str, str], pq.ParquetFile] = {}
        for node, record in self._records.items():
            for grain in GRAINS:
                file = record.file(grain)
                if file is not None:
                    self._files[node, grain] = pq.ParquetFile(io.BytesIO(store.read_file(record, file)))
        known = [column for column in columns if column.grain in GRAINS and column.name != PIXELS]
        self.columns = sorted(known, key=lambda column: GRAINS.index(column.grain))
        first = next((file for (_, grain), file in self._files.items() if grain == "caption"), None)
        if first is None:
            nodes = ", ".join(self._records)
            raise SluiceError(f"none of {nodes} has captions, and pairs are what is selected; add the pool to `from`")
        self.keys: pa.Table = first.read(KEYS["caption"].names).combine_chunks()
        self._grain = {(column.node, column.name): column.grain for column in self.columns}  # a caption's shadows
        self._places: dict[tuple[str, str], np.ndarray] = {}

    def table(self, names: Sequence[str]) -> pa.Table:
        """The columns `node.column` or keys, row by row of `keys`."""
        columns = []
        for name in names:
            node, dot, column = name.partition(".")
            columns.append(self._column(node, column) if dot else self.keys.column(name))
        return pa.Table.from_arrays(columns, names=list(names))

    def _column(self, node: str, column: str) -> pa.ChunkedArray:
        grain = self._grain[node, column]
        if column not in self._files[node, grain].schema_arrow.names:
            lacking = next(c for c in self.columns if (c.node, c.name, c.grain) == (node, column, grain))
            return pa.chunked_array([pa.nulls(self.keys.num_rows, lacking.type)])
        if (node, grain) not in self._places:
            self._places[node, grain] = self._find(node, grain)
        return self._files[node, grain].read([column]).column(0).combine_chunks().take(self._places[node, grain])

    def _find(self, node: str, grain: str) -> np.ndarray:
        """int64 (pairs,): the row of every pair in a table."""
        uids = self.keys.column("uid").combine_chunks()
        if grain == "caption":
            wanted, of_pair = self.keys, np.arange(len(uids))
        else:
            first = np.ones(len(uids), dtype=bool)
            first[1:] = np.asarray(pc.not_equal(uids[1:], uids[:-1]))  # the captions of an image follow each other
            wanted, of_pair = pa.Table.from_arrays([uids.filter(pa.array(first))], names=["uid"]), np.cumsum(first) - 1
        found = self._files[node, grain].read(wanted.column_names).combine_chunks()
        if found.cast(wanted.schema).equals(wanted):
            return of_pair
        record = self._records[node]
        places = pc.index_in(_joined(wanted), value_set=_joined(found))
        if places.null_count:
            uid = wanted.column("uid").filter(places.is_null())[0]
            raise SluiceError(f"{node} part {record.part} has no row for uid {uid}; are its tables of another pool?")
        return np.asarray(places).astype(np.int64)[of_pair]


def _joined(keys: pa.Table) -> pa.Array:
    """The key columns as one string each; they are hex, so that a blank parts them."""
    columns = [keys.column(name).combine_chunks().cast(pa.string()) for name in keys.column_names]
    return pc.binary_join_element_wise(*columns, " ")


def _part_tasks(inputs: Mapping[str, Generation], columns: Sequence[Column]) -> list[Task]:
    """One task per part of the first node, with the matching records of the others.

    Raises `SluiceError` where the parts do not match.
    """
    tables = {node: g for node, g in inputs.items() if any(r.file(grain) for r in g.records for grain in GRAINS)}
    by_part = {node: {record.part: record for record in g.records} for node, g in tables.items()}
    first, *others = tables
    for other in others:
        extra = by_part[other].keys() - by_part[first].keys()
        if extra:
            raise SluiceError(f"{other} has part {min(extra)}, which {first} lacks; name {other} first in `from`")
    tasks = []
    for record in tables[first].records:
        found = {node: parts.get(record.part) or parts.get(record.base) for node, parts in by_part.items()}
        records = {node: (match,) for node, match in found.items() if match is not None}
        if len(records) < len(found):
            node = next(node for node in found if node not in records)
            raise SluiceError(f"{node} has no part {record.part}, which {first} has; run the whole DAG again")
        rows = record.rows.get("caption", 0)
        hints = {"columns": tuple(columns)}
        tasks.append(Task(record.part, inputs=records, supersedes=record.supersedes, rows=rows, hints=hints))
    return tasks


def _final_tasks(tasks: Sequence[Task], local: Sequence[Record], together: Sequence[Record]) -> Iterator[Task]:
    """A part's verdicts lie at `offset` in the file of all; the uids of later parts say which of its rows count."""
    replacing: dict[str, list[Record]] = {}
    for record in local:
        for part in record.supersedes:
            replacing.setdefault(part, []).append(record)
    offset = 0
    for task, record in zip(tasks, local, strict=True):
        mine = (record, *replacing.get(task.part, ()))
        inputs = {**task.inputs, LOCAL: mine, TOGETHER: tuple(together)}
        yield Task(task.part, inputs=inputs, supersedes=task.supersedes, rows=task.rows, hints={"offset": offset})
        offset += DIGEST_BYTES + 2 * record.rows["survivors"]


def _replaced(attempt: Attempt, uids: pa.ChunkedArray, replacing: Sequence[Record]) -> np.ndarray:
    """bool (rows,): whether the uid stands in a later part that supersedes this one."""
    if not replacing:
        return np.zeros(len(uids), dtype=bool)
    later = pa.concat_tables([attempt.read(record, "local", ["uid"]) for record in replacing]).column("uid")
    return np.asarray(pc.is_in(uids, value_set=later.combine_chunks()))


def _columns_of(survivors: pa.Schema) -> list[Column]:
    """The columns of a table whose fields are named `node.column`."""
    named = [(*field.name.partition("."), field.type) for field in survivors]
    return [Column(name, node, "caption", kind) for node, dot, name, kind in named if dot]


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=DIGEST_BYTES).digest()


def _block(store: Store, record: Record, offset: int, rows: int) -> np.ndarray:
    """int16 (rows,): the verdicts of one part, checked, without reading those of all others."""
    file = record.file("verdicts")
    assert file is not None
    place = store.place(record, file)
    data = store.get_range(place, offset, offset + DIGEST_BYTES + 2 * rows)
    if _digest(data[DIGEST_BYTES:]) != data[:DIGEST_BYTES]:
        commit = store.url(f"{record.node}/commits/{record.work_key}.json")
        raise SluiceError(f"{store.url(place)} is corrupt; delete {commit} and run again, which judges anew")
    return np.frombuffer(data, np.int16, offset=DIGEST_BYTES)

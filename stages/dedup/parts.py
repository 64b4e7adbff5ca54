"""The parts of a pool as the tasks of a phase, and the rows in them that count.

A part's number is its place in the pool's generation. Rows that a phase sends back to a part travel under it, so that
no task reads what another part needs. A pool of many parts has several of them to a task.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.records import Generation, Record
from pipeline.rows import PartRows
from pipeline.stage import PIXELS, Column, Task
from stages.dedup.uids import Halves, halves

GROUPS = 1024
"""At most so many tasks work on parts, so that no task reads from more records than this."""
REPLACING = "-"
"""Among the inputs of a task, where nodes have names: the pool's records whose uids no longer count in these parts."""
IMAGE = ("status", "sha256", "offset", "nbytes", "stored_sha256")
"""The columns of a pool that say what an image is and where its bytes are."""


@dataclass(frozen=True)
class Layout:
    """How the parts of a pool are numbered and shared out."""

    pool: str
    parts: int
    bits: int
    """A part's number takes so many."""
    fold: int
    """A task works on `2**fold` parts."""

    @property
    def group_bits(self) -> int:
        return self.bits - self.fold

    def places(self, parts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """Where rows go that belong to these parts."""
        return parts.astype(np.uint64) << np.uint64(64 - self.bits) if self.bits else np.zeros(len(parts), np.uint64)


def layout_of(inputs: Mapping[str, Generation]) -> Layout:
    """Raises `SluiceError` where no input is a pool."""
    pool = next((node for node, g in inputs.items() if any(r.file("tar") for r in g.records)), None)
    if pool is None:
        raise SluiceError(f"none of {', '.join(inputs)} is a pool; add the download node to `from`")
    parts = len(inputs[pool].records)
    bits = (parts - 1).bit_length()
    return Layout(pool, parts, bits, max(0, bits - (GROUPS - 1).bit_length()))


def tasks(inputs: Mapping[str, Generation], layout: Layout, nodes: Sequence[str], single: bool = False) -> list[Task]:
    """The pool's parts, `2**fold` or one (`single`) to a task, each with its records in every one of `nodes`.

    Raises `SluiceError` where a node lacks a part.
    """
    records = inputs[layout.pool].records
    replacing: dict[str, list[Record]] = {}
    for record in records:
        for part in record.supersedes:
            replacing.setdefault(part, []).append(record)
    size = 1 if single else 1 << layout.fold
    found = []
    for number, start in enumerate(range(0, len(records), size)):
        group = records[start : start + size]
        of_nodes = {node: tuple(_match(node, inputs[node], record) for record in group) for node in nodes}
        later = {other.part: other for record in group for other in replacing.get(record.part, ())}
        payload = {"bits": layout.bits, "number": number, "first": start}
        supersedes = group[0].supersedes if single else ()
        rows = sum(record.rows.get("image", 0) for record in group)
        found.append(
            Task(group[0].part, payload, {**of_nodes, REPLACING: tuple(later.values())}, supersedes, rows=rows)
        )
    return found


def _match(node: str, generation: Generation, part: Record) -> Record:
    found = generation.for_part(part.part)
    if found is None:
        raise SluiceError(f"{node} has no part {part.part}, which the pool has; run the whole DAG again")
    return found


@dataclass(frozen=True)
class Live:
    """The rows of one part that count and have an image."""

    number: int
    record: Record
    """Of the pool."""
    table: pa.Table
    uids: Halves


def live(task: Task, attempt: Attempt, pool: str, columns: Sequence[Column]) -> Iterator[Live]:
    """Each part of a task, with these columns as `node.column`, and the pool's own of `IMAGE` by their names."""
    nodes = dict.fromkeys([pool, *(column.node for column in columns)])
    own = [Column(name, pool, "image", kind) for name, kind in _KINDS.items()]
    for place, record in enumerate(task.inputs[pool]):
        inputs = {node: (task.inputs[node][place],) for node in nodes}
        wanted = {(column.node, column.name): column for column in (*own, *columns) if column.name != PIXELS}
        table = PartRows.load(attempt.store, inputs, list(wanted.values())).image
        counts = counting(table.column("uid"), record, task.inputs[REPLACING], attempt)
        there = pc.and_(pc.is_valid(table.column(f"{pool}.offset")), pc.is_valid(table.column(f"{pool}.sha256")))
        table = table.filter(pc.and_(there, pa.array(counts)))
        yield Live(task.payload["first"] + place, record, table, halves(table.column("uid")))


_KINDS = dict(zip(IMAGE, (pa.string(), pa.string(), pa.int64(), pa.int64(), pa.string()), strict=True))


def counting(
    uids: pa.ChunkedArray, record: Record, replacing: Sequence[Record], attempt: Attempt
) -> npt.NDArray[np.bool_]:
    """Whether each row counts: later parts have taken over the others."""
    later = [other for other in replacing if record.part in other.supersedes]
    if not later:
        return np.ones(len(uids), dtype=bool)
    gone = pa.concat_tables([attempt.read(other, "image", ["uid"]) for other in later]).column("uid")
    return ~np.asarray(pc.is_in(uids, value_set=gone.combine_chunks()))

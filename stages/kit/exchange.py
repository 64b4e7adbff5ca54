"""Rows on their way from one phase to the next: every task writes its rows cut by place, and reads one range of places.

A place is a uint64 that spreads over the whole range, such as the first half of a uid; bucket `b` of `2**bits` is the
places whose leading bits are `b`. A task cuts its rows by eight leading bits, so that a reader fetches only the slices
that it needs, each by its own byte range and its own sha256. More than 256 buckets take one more phase per eight bits
(`spread`): no task reads what another one needs, however many files and buckets there are.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pyarrow as pa

from pipeline.attempt import Attempt
from pipeline.content import content_hash
from pipeline.errors import SluiceError
from pipeline.records import Record
from pipeline.stage import OBSERVED, Task, Work

STEP = 8
"""Leading bits that one phase cuts by."""
RUN_ROWS = 1 << 19
RUN_BYTES = 256 << 20
"""What a task holds in memory before it cuts and writes it."""

CODEC = pa.Codec("zstd", compression_level=1)

PLACE = pa.field("_place", pa.uint64(), nullable=False)
SLICES = pa.schema(
    [
        ("run", pa.int32()),
        ("first", pa.uint64()),
        ("rows", pa.int64()),
        ("content", pa.string()),
        pa.field("offset", pa.int64(), metadata=OBSERVED),
        pa.field("nbytes", pa.int64(), metadata=OBSERVED),
        pa.field("unpacked", pa.int64(), metadata=OBSERVED),
        pa.field("sha256", pa.string(), metadata=OBSERVED),
    ]
)
"""One row per slice: the least place that it may hold, what its run says (a hash), and where its bytes are."""


class Scatter:
    """Writes a task's rows (tables with a `_place`) as slices, `bits` being the leading bits that all of them share."""

    def __init__(self, attempt: Attempt, bits: int = 0) -> None:
        self._attempt = attempt
        self._sink = attempt.create("rows", "rows.arrows")
        self._shift = np.uint64(64 - bits - STEP)
        self._waiting: list[pa.Table] = []
        self._waiting_rows = self._waiting_bytes = 0
        self._offset = 0
        self._runs = 0
        self._slices: list[dict[str, object]] = []

    def add(self, rows: pa.Table) -> None:
        self._waiting.append(rows)
        self._waiting_rows += rows.num_rows
        self._waiting_bytes += rows.nbytes
        if self._waiting_rows >= RUN_ROWS or self._waiting_bytes >= RUN_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._attempt.write("slices", pa.Table.from_pylist(self._slices, schema=SLICES))

    def _flush(self) -> None:
        if self._waiting_rows:
            table = pa.concat_tables(self._waiting)
            prefixes = table.column("_place").to_numpy() >> self._shift
            order = np.argsort(prefixes, kind="stable")
            prefixes = prefixes[order]
            bounds = [0, *(np.flatnonzero(np.diff(prefixes)) + 1), len(prefixes)]
            table = table.take(order).combine_chunks()
            content = content_hash(table)
            for start, end in pairwise(bounds):
                self._slice(table.slice(start, end - start), int(prefixes[start]) << int(self._shift), content)
            self._runs += 1
        self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0

    def _slice(self, rows: pa.Table, first: int, content: str) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_table(rows)
        unpacked = sink.getvalue()
        data = CODEC.compress(unpacked)  # as a whole: Arrow would compress every small buffer by itself
        self._sink.write(data)
        self._slices.append(
            {
                "run": self._runs,
                "first": first,
                "rows": rows.num_rows,
                "content": content,
                "offset": self._offset,
                "nbytes": data.size,
                "unpacked": unpacked.size,
                "sha256": sha256(data).hexdigest(),
            }
        )
        self._offset += data.size


def gather(
    attempt: Attempt, records: Sequence[Record], bits: int, bucket: int, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The slices of one bucket out of `2**bits`, in the order of the records and of their rows' arrival.

    Rows of other buckets come along where a slice is wider than a bucket. Raises `SluiceError` for a damaged slice.
    """
    low, high = bucket << (64 - bits), (bucket + 1) << (64 - bits)
    for record in records:
        index = attempt.read(record, "slices")
        firsts = index.column("first").to_numpy()
        width = 1 << (64 - STEP - record.notes.get("bits", 0))
        wanted = np.flatnonzero((firsts <= np.uint64(high - 1)) & (firsts >= np.uint64(max(0, low - width + 1))))
        chosen = index.take(wanted)
        runs = chosen.column("run").to_numpy()
        for start, end in pairwise([0, *(np.flatnonzero(np.diff(runs)) + 1), len(runs)]) if len(runs) else ():
            yield from _fetch(attempt, record, chosen.slice(start, end - start), columns)


def _fetch(attempt: Attempt, record: Record, index: pa.Table, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """Neighbouring slices of one run in one read."""
    file = record.file("rows")
    if file is None:
        raise SluiceError(f"{record.node} part {record.part} has no 'rows'; it was not written by an exchange")
    place = attempt.store.place(record, file)
    entries = index.select(["offset", "nbytes", "unpacked", "sha256"]).to_pylist()
    begin = entries[0]["offset"]
    data = memoryview(attempt.store.get_range(place, begin, entries[-1]["offset"] + entries[-1]["nbytes"]))
    for entry in entries:
        slice_ = data[entry["offset"] - begin : entry["offset"] - begin + entry["nbytes"]]
        if sha256(slice_).hexdigest() != entry["sha256"]:
            raise SluiceError(
                f"{attempt.store.url(place)} is corrupt at byte {entry['offset']}; "
                f"`sluice verify {attempt.store.root} --repair`"
            )
        table = pa.ipc.open_stream(CODEC.decompress(slice_, entry["unpacked"])).read_all()
        yield table.select(list(columns)) if columns is not None else table


def spread(task: Task, attempt: Attempt) -> None:
    """Cut the rows of one bucket by eight more leading bits. A phase's `do`; `spread_to` makes its tasks."""
    bits, bucket = task.payload["bits"], task.payload["bucket"]
    scatter = Scatter(attempt, bits)
    for table in gather(attempt, task.inputs["rows"], bits, bucket):
        scatter.add(table)
    scatter.close()
    attempt.note(bits=bits)


def spread_to(
    work: Work, phase: str, records: Sequence[Record], bits: int, last: int | None = None
) -> Callable[[int], tuple[Record, ...]]:
    """Phases until slices are as narrow as one of `2**bits` buckets; then, which records hold a bucket.

    `last`: the last bucket that has rows, where the places do not fill the range.
    """
    last = (1 << bits) - 1 if last is None else last
    groups, known = [tuple(records)], 0
    while known + STEP < bits:
        known += STEP
        tasks = [
            Task(f"{known:02d}-{bucket:05d}", {"bits": known, "bucket": bucket}, {"rows": groups[bucket >> STEP]})
            for bucket in range((last >> (bits - known)) + 1)
        ]
        groups = [(record,) for record in work.map(f"{phase}{known}", tasks, spread, final=False)]
    return lambda bucket: groups[bucket >> (bits - known)]

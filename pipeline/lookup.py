"""Which sample is meant, and which parts may hold it: without a scan wherever the parts are buckets of uids.

Ingest says in its records which bucket (`bucket` of `2**bits`, by the leading bits of the uid) a part is; every later
table has the same parts. Where nobody said so, the uid column of every part is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SluiceError
from pipeline.records import File, Generation, Record
from pipeline.runs import ancestors
from pipeline.store import SMALL, Store, patiently

Test = Callable[[str | None], bool]
"""Of one value, in Python: `pyarrow.compute` takes a tenth of a second to load, and ten thousand values a hundredth."""

Item = TypeVar("Item")
Result = TypeVar("Result")

UID = re.compile(r"[0-9a-f]{32}")
PREFIX = re.compile(r"[0-9a-f]{6,31}")
PLACE_DIGITS = 16
"""Hex digits of a uid that decide its bucket: 64 bits."""
SHOWN = 4
"""Samples that are named where several are meant."""
LOCAL_READERS, REMOTE_READERS = 4, 32
"""Threads that read files side by side: for the CPU on a local disk, for its answers on a store far away."""


def uid_of(url: str) -> str:
    """The uid of a URL as it stood in the input."""
    return blake2b(url.strip().encode(), digest_size=16).hexdigest()


@contextmanager
def parquet(store: Store, record: Record, file: File, whole: bool) -> Iterator[pq.ParquetFile]:
    """A Parquet file of a record: `whole` small ones are read at once and checked, others by ranges.

    Raises `SluiceError` where it is gone, or not what its record says.
    """
    if whole and file.bytes <= SMALL:
        yield pq.ParquetFile(pa.BufferReader(store.read_file(record, file)))
        return
    path = store.place(record, file)
    try:
        local = store.local and "://" not in path
        fs = store.fs_of(path)
        handle = pa.memory_map(store.full(path)) if local else patiently(lambda: fs.open(store.full(path), "rb"))
    except FileNotFoundError:
        raise SluiceError(
            f"{store.url(path)} is gone though a record names it; `sluice verify {store.root} --repair`"
        ) from None
    with handle, pq.ParquetFile(handle) as found:
        yield found


def rows_where(found: pq.ParquetFile, keys: Sequence[str], test: Test, columns: Sequence[str] | None) -> list[pa.Table]:
    """The rows where any key column passes the test, a table each; of the others nothing but the keys is read."""
    names = list(found.schema_arrow.names if columns is None else columns)
    tables = []
    for group in range(found.num_row_groups):
        table = found.read_row_group(group, columns=list(keys), use_threads=False)
        passed = {row for key in keys for row, value in enumerate(table.column(key).to_pylist()) if test(value)}
        if passed:
            wanted = found.read_row_group(group, columns=names, use_threads=False).select(names)
            tables += [wanted.slice(row, 1) for row in sorted(passed)]
    return tables


class Lookup:
    """Finds the parts of samples in the generations of one run. `looked_at` counts image rows."""

    def __init__(self, store: Store, generations: Mapping[str, Generation]) -> None:
        self._store = store
        images = [node for node, generation in generations.items() if any(r.file("image") for r in generation.records)]
        self.roots = [node for node in images if not ancestors(node, generations) & set(images)]
        """The nodes with which samples begin."""
        self._records = [record for node in self.roots for record in generations[node].records if record.file("image")]
        buckets: dict[str, tuple[int, int]] = {}
        for record in self._records:
            bits, bucket = record.notes.get("bits"), record.notes.get("bucket")
            if isinstance(bits, int) and isinstance(bucket, int) and 0 <= bucket < 1 << bits:
                buckets[record.base] = (bits, bucket)
        self._buckets = buckets
        self.looked_at = 0

    def resolve(self, asked: str) -> tuple[str, frozenset[str]]:
        """The uid that is meant, and the parts (without their retries) that hold it.

        `asked` is a uid, at least 6 leading digits of one, a member's name in a shard, a URL as it stood in the input,
        or the input's own id. Raises `SluiceError` for none, and for several.
        """
        self.looked_at = 0
        text = asked.strip()
        if "://" in text:
            return self._only(self._exact([uid_of(text)]), asked, "the URL must be as it stood in the input")
        stem = text.rpartition("/")[2].partition(".")[0].lower()
        if UID.fullmatch(stem):
            found = self._exact([stem])
        elif PREFIX.fullmatch(stem):
            found = self._search("uid", lambda value: value is not None and value.startswith(stem), self._within(stem))
        else:
            found = {}
        if not found:  # DataComp's own ids look like uids, too
            found = self._search("source_uid", {text}.__contains__, self._records)
        return self._only(found, asked, "give a uid, at least 6 hex digits of one, a URL, or the input's own id")

    def parts(self, uids: Sequence[str]) -> dict[str, frozenset[str]]:
        """The parts of several samples; one that is nowhere is left out."""
        return self._exact(list(uids))

    def _only(self, found: Mapping[str, frozenset[str]], asked: str, advice: str) -> tuple[str, frozenset[str]]:
        if len(found) == 1:
            return next(iter(found.items()))
        shown = asked if len(asked) <= 200 else asked[:200] + "…"
        if found:
            names = ", ".join(sorted(found)[:SHOWN]) + (", …" if len(found) > SHOWN else "")
            raise SluiceError(f"{shown!r} means {len(found):,} samples: {names}; give more of it")
        table = self.roots[0] if self.roots else "samples"
        query = f"SELECT uid, url FROM {table} WHERE url LIKE '%…%'"  # noqa: S608 - for the user to fill in
        raise SluiceError(
            f"no sample {shown!r} among the {self.looked_at:,} rows where it would be; {advice}; "
            f'`sluice sql {self._store.root} "{query}"` searches'
        )

    def _exact(self, uids: Sequence[str]) -> dict[str, frozenset[str]]:
        """Each uid with its parts: as an image, else as a row that was refused."""
        records = [record for uid in uids for record in self._within(uid)]
        records = list({(record.node, record.part): record for record in records}.values())
        found = self._search("uid", set(uids).__contains__, records)
        missing = [uid for uid in uids if uid not in found]
        if not missing:
            return found
        refused = [record for record in records if record.file("errors")]
        return found | self._search("uid", set(missing).__contains__, refused, "errors")

    def _within(self, prefix: str) -> list[Record]:
        """The records that may hold a uid that begins like this."""
        try:
            first, last = (int(prefix[:PLACE_DIGITS].ljust(PLACE_DIGITS, fill), 16) for fill in "0f")
        except ValueError:  # an id that no hash gave
            return self._records
        found = []
        for record in self._records:
            bits, bucket = self._buckets.get(record.base, (0, 0))
            shift = 4 * PLACE_DIGITS - bits
            if first >> shift <= bucket <= last >> shift:
                found.append(record)
        return found

    def _search(
        self, column: str, test: Test, records: Sequence[Record], kind: str = "image"
    ) -> dict[str, frozenset[str]]:
        """uid -> parts of the rows whose column passes the test."""
        found: dict[str, set[str]] = {}

        def one(record: Record) -> tuple[Record, list[str]]:
            file = record.file(kind)
            assert file is not None
            with parquet(self._store, record, file, whole=len(records) <= LOCAL_READERS) as table:
                if column not in table.schema_arrow.names:
                    return record, []
                wanted = rows_where(table, [column], test, ["uid"])
                return record, [uid for rows in wanted for uid in rows.column("uid").to_pylist()]

        if kind == "image":
            self.looked_at += sum(record.rows.get(kind, 0) for record in records)
        for record, uids in side_by_side(self._store, one, records):
            for uid in uids:
                found.setdefault(uid, set()).add(record.base)
        return {uid: frozenset(parts) for uid, parts in found.items()}


def side_by_side(store: Store, do: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`do` for every item, in order, a few at a time; what is not asked for any more is not done."""
    if len(items) <= 1:
        yield from map(do, items)
        return
    readers = LOCAL_READERS if store.local else REMOTE_READERS
    with ThreadPoolExecutor(max_workers=readers) as pool:
        for start in range(0, len(items), 4 * readers):
            yield from pool.map(do, items[start : start + 4 * readers])

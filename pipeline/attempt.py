"""One try at a task, in a worker: verified reads, hashed writes under names with a token of their own, one commit.

Two drivers, a zombie and a retry never share a file name; only the record in `commits/` says which of them counts.
"""

import io
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar, cast
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.content import content_hash
from pipeline.records import File, Record, digest
from pipeline.stage import Task
from pipeline.store import Store

T = TypeVar("T")


class Attempt:
    """Reads and writes for one task. Files become real only by `commit`.

    `store` gives bytes of anything else; `report` adds small facts to the record.
    """

    def __init__(self, store: Store, node: str, phase: str, task: Task, work_key: str) -> None:
        self.store = store
        self.node = node
        self.phase = phase
        self.task = task
        self.work_key = work_key
        self.stem = f"{task.part}-{uuid4().hex[:8]}"
        self._files: list[File] = []
        self._rows: dict[str, int] = {}
        self._hashes: dict[str, str] = {}
        self._statuses: Counter[str] = Counter()
        self._notes: dict[str, Any] = {}
        self._supersedes = task.supersedes
        self._open: list[Spool] = []

    def read(self, record: Record, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A table of an input record, its bytes checked against the record's sha256.

        Raises `SluiceError` naming the file and the repair where they differ, or where the record has no such table.
        """
        return self.store.read_table(record, kind, columns)

    def write(self, kind: str, table: pa.Table, suffix: str | None = None, sought: str | None = None) -> None:
        """Write a Parquet file; its covered columns enter the content hash under `kind`.

        `sought`: a column by which one row is looked for among many such files; it gets a bloom filter.
        """
        sink = io.BytesIO()
        write_parquet(table, sink, sought)
        name = f"data/{self.stem}.{suffix or kind + '.parquet'}"
        self._put(kind, name, sink.getvalue())
        self._rows[kind] = table.num_rows
        self._hashes[kind] = content_hash(table)

    def write_bytes(self, kind: str, suffix: str, data: bytes) -> None:
        """Write a small file that the content hash does not cover."""
        self._put(kind, f"data/{self.stem}.{suffix}", data)

    def create(self, kind: str, suffix: str | None = None) -> BinaryIO:
        """A new file to stream into: spooled to this machine's disk, hashed on the way, stored by `commit`."""
        return cast(BinaryIO, self._spool(kind, f"data/{self.stem}.{suffix or kind}", exclusive=False, hashed=False))

    def create_in_folder(self, name: str) -> BinaryIO:
        """The same in the attempt's own folder, under its plain name, which is its kind: for what others load whole."""
        return cast(BinaryIO, self._spool(name, f"data/{self.stem}/{name}", exclusive=False, hashed=False))

    def create_final(self, kind: str, path: str) -> BinaryIO:
        """A new file under its final name (relative to the node), for pure work: its sha256 is its content.

        Created exclusively: where the name exists already, its bytes must be the same.
        """
        return cast(BinaryIO, self._spool(kind, path, exclusive=True, hashed=True))

    def adopt(self, kind: str, path: str, size: int, sha: str) -> None:
        """Count a file that lies elsewhere, under its absolute path, without copying it."""
        self._files.append(File(kind=kind, path=path, bytes=size, sha256=sha))

    def count(self, statuses: Mapping[str, int]) -> None:
        """Add input rows by terminal status."""
        self._statuses.update(dict(statuses))

    def note(self, **facts: Any) -> None:
        """Add small JSON facts to the record."""
        self._notes.update(facts)

    def supersede(self, parts: Sequence[str]) -> None:
        """Say in which earlier parts the rows with this part's uids no longer count."""
        self._supersedes = tuple(parts)

    def rewrite(self, kind: str, change: Callable[[BinaryIO, BinaryIO], T]) -> T:
        """Replace a file that is still spooled by what `change` (old bytes, new file) writes; gives what it gives."""
        old = next(spool for spool in self._open if spool.kind == kind)
        old.close()
        new = self._spool(kind, old.path, old.exclusive, old.hashed)
        with open(old.local, "rb") as source:
            result = change(source, cast(BinaryIO, new))
        self._open.remove(old)
        old.local.unlink()
        return result

    def commit(self) -> Record:
        """Store what is still spooled, then put the record; where another attempt was first, its record stands."""
        self._store_spooled()
        record = Record(
            work_key=self.work_key,
            node=self.node,
            phase=self.phase,
            part=self.task.part,
            files=tuple(self._files),
            rows=self._rows,
            statuses=dict(self._statuses),
            inputs={node: [r.content_hash for r in records] for node, records in self.task.inputs.items()},
            supersedes=self._supersedes,
            notes=self._notes,
            content_hash=digest(self._hashes),
        )
        return self.store.commit(record)

    def stand_in(self, old: Record) -> Record:
        """Instead of `commit`: put a record that says what `old` says, with this attempt's files, rows and notes.

        Its content hash stays that of the work, of which something was erased.
        """
        self._store_spooled()
        made = {file.kind: file for file in self._files}
        changes = {
            "work_key": self.work_key,
            "files": tuple(made.get(file.kind, file) for file in old.files),
            "rows": {**old.rows, **self._rows},
            "statuses": dict(self._statuses),
            "notes": {**old.notes, **self._notes},
        }
        return self.store.commit(old.model_copy(update=changes))

    def _store_spooled(self) -> None:
        for spool in self._open:
            spool.close()
            sha = spool.sha.hexdigest()
            path = f"{self.node}/{spool.path}"
            if spool.exclusive:
                self.store.put_file_if_absent(path, spool.local, sha)
            else:
                self.store.put_file(path, spool.local, spool.size)
            self._files.append(File(kind=spool.kind, path=spool.path, bytes=spool.size, sha256=sha))
            if spool.hashed:
                self._hashes[spool.path] = sha
        self.discard()

    def restore(self, broken: Record) -> Record:
        """Instead of `commit`: put this attempt's bytes where the files of `broken` were, if they are the same.

        Where they are not (other library versions, work that is not pure) a record of its own is committed, which
        says whose place it takes.
        """
        spools = {spool.kind: spool for spool in self._open}
        for spool in self._open:
            spool.close()
        mine = {file.kind: file for file in self._files}
        sums = {kind: file.sha256 for kind, file in mine.items()} | {k: s.sha.hexdigest() for k, s in spools.items()}
        ours = [file for file in broken.files if not ("://" in file.path or file.path.startswith("/"))]
        sums = {kind: sum_ for kind, sum_ in sums.items() if kind in {file.kind for file in ours}}
        if sums != {file.kind: file.sha256 for file in ours}:
            self.work_key = digest(["repair", broken.work_key])
            self.note(repairs=broken.notes.get("repairs", broken.work_key))
            return self.commit()
        for file in ours:  # what was adopted lies elsewhere and is its owner's to mend
            target = f"{self.node}/{file.path}"
            if file.kind in spools:
                self.store.put_file(target, spools[file.kind].local, file.bytes)
            else:
                self.store.put(target, self.store.get(f"{self.node}/{mine[file.kind].path}"))
        return broken

    def discard(self) -> None:
        """Remove what was spooled to this machine's disk."""
        for spool in self._open:
            spool.close()
            spool.local.unlink(missing_ok=True)
        self._open = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def _put(self, kind: str, name: str, data: bytes) -> None:
        self.store.put(f"{self.node}/{name}", data)
        self._files.append(File(kind=kind, path=name, bytes=len(data), sha256=sha256(data).hexdigest()))

    def _spool(self, kind: str, path: str, exclusive: bool, hashed: bool) -> "Spool":
        spool = Spool(self.store.spool_folder(self.node), kind, path, exclusive, hashed)
        self._open.append(spool)
        return spool


def write_parquet(table: pa.Table, sink: BinaryIO, sought: str | None = None) -> None:
    """As every table of a part is stored. A reader that seeks a value passes over files whose filter lacks it; one in a
    thousand it opens in vain."""
    filters = {sought: {"ndv": max(1, table.num_rows), "fpp": 0.001}} if sought is not None else None
    pq.write_table(
        table, sink, compression="zstd", row_group_size=65536, store_schema=True, bloom_filter_options=filters
    )


class Spool(io.RawIOBase):
    """A file on this machine's disk that knows its sha256 and its size (bytes)."""

    def __init__(self, folder: str | None, kind: str, path: str, exclusive: bool, hashed: bool) -> None:
        handle = tempfile.NamedTemporaryFile(prefix="spool-", dir=folder, delete=False)  # noqa: SIM115 - closed by `close`
        self.kind, self.path, self.exclusive, self.hashed = kind, path, exclusive, hashed
        self.local = Path(handle.name)
        self.sha = sha256()
        self.size = 0
        self._handle = handle

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha.update(data)
        written = self._handle.write(data)
        self.size += written
        return written

    def tell(self) -> int:
        return self.size

    def close(self) -> None:
        if not self._handle.closed:
            self._handle.close()
        super().close()


Do = Callable[[Task, Attempt], None]

"""Artifacts on any fsspec store, committed exactly once (the commit protocol).

A file is written under a name that nobody else uses, closed, and only then named by a record. A record is created
with put-if-absent: `link()` on local disks, `If-None-Match: *` on S3, `ifGenerationMatch=0` on GCS. Readers follow
records; nobody lists `data/`; sha256 is checked when bytes are read. No clock is used.
"""

from __future__ import annotations

import errno
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import SluiceError
from pipeline.records import File, Generation, Record, Run, Stored

if TYPE_CHECKING:
    from pipeline.worker import Fault

T = TypeVar("T")
S = TypeVar("S", bound=Stored)

TRIES = 6
SMALL = 4 << 20
FINAL_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
MADE = "sluice.json"
"""What the first run leaves in a root."""
CLIENTS = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "urllib3"}
"""Packages whose exceptions are faults of a store or of the way to it, and no `OSError`."""
FINAL_CODES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG}


class DurableLocal(LocalFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """Local files that survive a power cut once written, with an atomic exclusive create.

    `open("xb")` would create the name before the bytes and leave a torn record behind.
    """

    protocol = "file"
    cachable = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        target = Path(self._strip_protocol(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid4().hex[:8]}")
        try:
            with open(temporary, "wb") as handle:
                handle.write(value)
                handle.flush()
                os.fsync(handle.fileno())
            self._place(temporary, target, mode)
        finally:
            temporary.unlink(missing_ok=True)

    def put_file(self, lpath: str, rpath: str, callback: Any = None, mode: str = "overwrite", **kwargs: Any) -> None:
        """Move `lpath` (spooled beside the target, see `Store.spool_folder`) to its name."""
        target = Path(self._strip_protocol(rpath))
        if mode == "overwrite" and target.exists() and not Path(lpath).exists():
            return  # an earlier try failed after the move
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(lpath, "rb+") as handle:
            os.fsync(handle.fileno())
        self._place(Path(lpath), target, mode)

    @staticmethod
    def _place(source: Path, target: Path, mode: str) -> None:
        if mode == "create":
            os.link(source, target)  # raises FileExistsError, atomically
        else:
            os.replace(source, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Store:
    """Everything under one root: `Store("runs/demo")`, `Store("s3://bucket/curation")`.

    Paths that its methods take are relative to the root, unless they are absolute or have a scheme.
    """

    def __init__(self, root: str) -> None:
        try:
            fs, path = fsspec.core.url_to_fs(root, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise SluiceError(f"{root} is no root: {error}; name a folder, s3://bucket/prefix or gs://…") from None
        self.fs = DurableLocal() if type(fs) is LocalFileSystem else fs
        self.local = isinstance(fs, LocalFileSystem)
        self.path = path.rstrip("/")
        self.root = self.path if type(fs) is LocalFileSystem else root.rstrip("/")

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.root,)

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def full(self, path: str) -> str:
        """The path as `self.fs` wants it."""
        if "://" in path:
            return str(fsspec.core.url_to_fs(path)[1])
        return path if path.startswith("/") else f"{self.path}/{path}".rstrip("/")

    def url(self, path: str) -> str:
        """The path as a user would type it, scheme included."""
        if "://" in path or path.startswith("/"):
            return path
        return f"{self.root}/{path}"

    def fs_of(self, path: str) -> Any:
        """The filesystem of a path: another one where an adopted file lies elsewhere."""
        return fsspec.core.url_to_fs(path)[0] if "://" in path or path.startswith("/") else self.fs

    def get(self, path: str) -> bytes:
        """Raises `FileNotFoundError`."""
        fs = self.fs_of(path)
        data = patiently(lambda: fs.cat_file(self.full(path)))
        return data if isinstance(data, bytes) else bytes(data)

    def get_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` (exclusive)."""
        fs = self.fs_of(path)
        return bytes(patiently(lambda: fs.cat_file(self.full(path), start=start, end=end)))

    def put(self, path: str, data: bytes) -> None:
        """Write a file under a name that only this caller uses."""
        patiently(lambda: self.fs.pipe_file(self.full(path), data))

    def put_if_absent(self, path: str, data: bytes) -> bytes:
        """Create the file unless it exists; the bytes that stand there afterwards, ours or the winner's.

        A reply that was lost and a race that was lost look the same from here: both re-read.
        """
        full = self.full(path)

        def create() -> bytes:
            ours = _created(lambda: self.fs.pipe_file(full, data, mode="create"))
            return data if ours else bytes(self.fs.cat_file(full))

        return patiently(create)

    def spool_folder(self, node: str) -> str | None:
        """Where to spool a file for `put_file`: beside its place on a local disk, so that it is moved, not copied."""
        if not self.local:
            return None
        folder = f"{self.path}/{node}/data"
        os.makedirs(folder, exist_ok=True)
        return folder

    def put_file(self, path: str, local: Path, size: int) -> None:
        """Store a spooled file, and check the size that arrived."""
        full = self.full(path)
        patiently(lambda: self.fs.put_file(str(local), full))
        self.fs.invalidate_cache(self.fs._parent(full))
        stored = patiently(lambda: self.fs.info(full))["size"]
        if stored != size:
            raise OSError(errno.EIO, f"{self.url(path)} has {stored} bytes after writing {size}; the store lost some")

    def put_file_if_absent(self, path: str, local: Path, sha: str) -> None:
        """Create the file under its final name; where it exists already, its bytes must be these.

        Raises `SluiceError` where they are not.
        """
        full = self.full(path)
        ours = patiently(lambda: _created(lambda: self.fs.put_file(str(local), full, mode="create")))
        if not ours and sha256(self.get(path)).hexdigest() != sha:
            raise SluiceError(
                f"{self.url(path)} exists with other bytes than this work gives; `sluice verify --repair` rebuilds it"
            )

    def copy(self, source: str, target: str) -> None:
        """Give a file a second name, if that is free: a link on a local disk, else the store itself copies it."""
        if not self.local:
            patiently(lambda: self.fs.cp_file(self.full(source), self.full(target)))
            self.fs.invalidate_cache(self.fs._parent(self.full(target)))
            return
        os.makedirs(os.path.dirname(self.full(target)), exist_ok=True)
        with suppress(FileExistsError):
            os.link(self.full(source), self.full(target))

    def names(self, folder: str) -> list[str]:
        """The file names in a folder, sorted; none where there is no folder. Only for planning: it may be stale."""
        full = self.full(folder)

        def listing() -> list[str]:
            self.fs.invalidate_cache(full)
            try:
                return [str(name).rstrip("/").rpartition("/")[2] for name in self.fs.ls(full, detail=False)]
            except (FileNotFoundError, NotADirectoryError):
                return []

        return sorted(name for name in patiently(listing) if not name.startswith("."))

    def exists(self, path: str) -> bool:
        fs = self.fs_of(path)
        return bool(patiently(lambda: fs.exists(self.full(path))))

    def delete(self, path: str) -> None:
        """Remove a file. One that is gone already (a reply was lost, somebody else was first) is no error."""
        with suppress(FileNotFoundError):
            patiently(lambda: self.fs.rm_file(self.full(path)))

    # -- checked reads -------------------------------------------------------------------------------------------------

    def place(self, record: Record, file: File) -> str:
        """The path of a record's file."""
        return file.path if "://" in file.path or file.path.startswith("/") else f"{record.node}/{file.path}"

    def read_file(self, record: Record, file: File) -> bytes:
        """The whole file. Raises `SluiceError` where its sha256 is not the record's."""
        path = self.place(record, file)
        try:
            data = self.get(path)
        except FileNotFoundError:
            raise SluiceError(
                f"{self.url(path)} is gone though a record names it; `sluice verify {self.root} --repair`"
            ) from None
        if sha256(data).hexdigest() != file.sha256:
            raise SluiceError(
                f"{self.url(path)} is corrupt: its sha256 is not {file.sha256[:12]}…; "
                f"`sluice verify {self.root} --repair`"
            )
        return data

    def read_table(
        self,
        record: Record,
        kind: str,
        columns: Sequence[str] | None = None,
        types: Mapping[str, pa.DataType] | None = None,
    ) -> pa.Table:
        """A table of a record, checked. A column of `types` that it lacks is null: later input brought it.

        Raises `SluiceError` where the record has none of that kind.
        """
        file = record.file(kind)
        if file is None:
            raise SluiceError(
                f"{record.node} part {record.part} has no {kind!r} table; it has {[f.kind for f in record.files]}"
            )
        data = pa.BufferReader(self.read_file(record, file))
        threads = file.bytes > SMALL  # starting threads takes longer than reading a small table
        # Not `pq.read_table`: its scanner's threads may still hold the bytes when the interpreter ends, which then
        # aborts (16 of 240 processes that read just before their end; this way 0 of 180).
        parquet = pq.ParquetFile(data)
        if columns is None:
            return parquet.read(use_threads=threads)
        lacking = set(types or ()) - set(parquet.schema_arrow.names)
        table = parquet.read(columns=[name for name in columns if name not in lacking], use_threads=threads)
        for name in sorted(lacking & set(columns)):
            table = table.append_column(name, pa.nulls(table.num_rows, (types or {})[name]))
        return table.select(list(columns))

    # -- records -------------------------------------------------------------------------------------------------------

    def check_made(self) -> None:
        """Raise `SluiceError` where no run ever began: what is asked there is asked of a wrong name."""
        if not self.exists(MADE):
            raise SluiceError(
                f"{self.root} is no root of runs; check its name, or `sluice run DAG {self.root}` makes one"
            )

    def probe(self) -> None:
        """Refuse a store whose put-if-absent does not hold: a second put must fail and leave the first bytes intact.

        Raises `SluiceError`.
        """
        path = MADE
        mine = b'{"format": 1, "written_by": "sluice"}'
        first = self.put_if_absent(path, mine)
        second = self.put_if_absent(path, mine + uuid4().hex.encode())
        if second != first or self.get(path) != first:
            raise SluiceError(
                f"{self.root} is no store for sluice: a second exclusive put replaced the first; "
                "use a local disk, S3 or GCS, or a server that honours If-None-Match"
            )
        if b'"format": 1' not in first:
            raise SluiceError(f"{self.root} was written in another format than 1: {first[:60]!r}; use another root")

    def commit(self, record: Record) -> Record:
        """Put the record; the winner's where another was first."""
        path = f"{record.node}/commits/{record.work_key}.json"
        return self._parsed(Record, path, self.put_if_absent(path, record.to_json()))

    def _parsed(self, kind: type[S], path: str, data: bytes) -> S:
        try:
            return kind.from_json(data)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise SluiceError(
                f"{self.url(path)} is corrupt ({reason}); delete it and run again: what is committed is reused"
            ) from None

    def committed(self, node: str) -> set[str]:
        """The work keys with a record, as far as a listing knows."""
        return {name.removesuffix(".json") for name in self.names(f"{node}/commits") if name.endswith(".json")}

    def record(self, node: str, work_key: str) -> Record | None:
        path = f"{node}/commits/{work_key}.json"
        try:
            return self._parsed(Record, path, self.get(path))
        except FileNotFoundError:
            return None

    def records(self, node: str, work_keys: Sequence[str]) -> list[Record | None]:
        """Many at once, in order."""
        if not work_keys:
            return []
        with ThreadPoolExecutor(max_workers=1 if self.local else 32) as pool:
            return list(pool.map(lambda key: self.record(node, key), work_keys))

    def add_failure(self, node: str, work_key: str, part: str, phase: str, fault: Fault) -> None:
        """Keep why a task could not be done, for `sluice errors`; it is forgotten once the task is committed."""
        entry = {"part": part, "phase": phase, **asdict(fault)}
        self.put(f"{node}/failures/{work_key}.json", json.dumps(entry, indent=1).encode())

    def failures(self, node: str) -> list[dict[str, str]]:
        """The tasks that failed and are not committed, with `part`, `phase`, `kind`, `step`, `error`, `traceback`."""
        committed = self.committed(node)
        names = [name for name in self.names(f"{node}/failures") if name.removesuffix(".json") not in committed]
        return [json.loads(self.get(f"{node}/failures/{name}")) for name in names]

    def nodes(self) -> list[str]:
        """The folders of nodes, by name."""
        folders = [name for name in self.names("") if name not in ("runs", "resources")]
        return [name for name in folders if self.names(f"{name}/commits") or self.names(f"{name}/failures")]

    def check_sizes(self, records: Sequence[Record]) -> None:
        """Raise `SluiceError` where a file of a record is gone or has another size than was written."""

        def check(entry: tuple[Record, File]) -> None:
            record, file = entry
            path = self.place(record, file)
            try:
                stored = patiently(lambda: self.fs_of(path).info(self.full(path)))["size"]
            except FileNotFoundError:
                stored = None
            if stored != file.bytes:
                commit = self.url(f"{record.node}/commits/{record.work_key}.json")
                found = "is gone" if stored is None else f"has {stored} bytes, not the {file.bytes} that were written"
                raise SluiceError(f"{self.url(path)} {found}; delete {commit} and run again, its part is done anew")

        with ThreadPoolExecutor(max_workers=4 if self.local else 32) as pool:
            list(pool.map(check, [(record, file) for record in records for file in record.files]))

    def generation(self, node: str, number: int) -> Generation | None:
        path = f"{node}/generations/{number:04d}.json"
        try:
            return self._parsed(Generation, path, self.get(path))
        except FileNotFoundError:
            return None

    def generation_numbers(self, node: str) -> list[int]:
        """Ascending, as far as a listing knows."""
        return [int(name.removesuffix(".json")) for name in self.names(f"{node}/generations") if name.endswith(".json")]

    def newest_number(self, node: str) -> int:
        """The number of the newest generation, 0 where there is none. A stale listing is walked on from its end."""
        number = max(self.generation_numbers(node), default=0)
        while self.exists(f"{node}/generations/{number + 1:04d}.json"):
            number += 1
        return number

    def newest(self, node: str) -> Generation | None:
        number = self.newest_number(node)
        return self.generation(node, number) if number else None

    def seal(self, generation: Generation) -> Generation:
        """Put a generation under the next free number; the same content put by another driver is adopted."""
        number = self.newest_number(generation.node)
        stands = self.generation(generation.node, number) if number else None
        while stands is None or stands.model_copy(update={"number": 0}) != generation:
            number += 1
            mine = generation.model_copy(update={"number": number})
            path = f"{generation.node}/generations/{number:04d}.json"
            stands = self._parsed(Generation, path, self.put_if_absent(path, mine.to_json()))
        return stands

    def runs(self) -> Iterator[Run]:
        """Newest first. A stale listing is walked on from its end."""
        numbers = {int(name.removesuffix(".json")) for name in self.names("runs") if name.endswith(".json")}
        newest = max(numbers, default=0)
        while self.exists(f"runs/{newest + 1:04d}.json"):
            newest += 1
            numbers.add(newest)
        for number in sorted(numbers, reverse=True):
            path = f"runs/{number:04d}.json"
            yield self._parsed(Run, path, self.get(path))

    def add_run(self, run: Run) -> Run:
        """Put a run under the next free id, unless the newest says the same."""
        newest = next(self.runs(), None)
        if newest is not None and newest.model_copy(update={"id": ""}) == run.model_copy(update={"id": ""}):
            return newest
        number = int(newest.id) if newest else 0
        while True:
            number += 1
            mine = run.model_copy(update={"id": f"{number:04d}"})
            path = f"runs/{mine.id}.json"
            stands = self._parsed(Run, path, self.put_if_absent(path, mine.to_json()))
            if stands == mine:
                return stands


def patiently(operation: Callable[[], T], tries: int = TRIES, first_wait: float = 0.1) -> T:
    """Do it again after a passing fault of the store, with jittered exponential backoff (seconds).

    What another try cannot change is raised at once: a missing or existing name, missing rights, a full disk. What
    the client libraries of stores raise beside `OSError` becomes one.
    """
    for attempt in range(1, tries + 1):
        try:
            return operation()
        except FINAL_ERRORS:
            raise
        except OSError as error:
            if error.errno in FINAL_CODES or attempt == tries:
                raise
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in CLIENTS:
                raise
            if "Credentials" in type(error).__name__:
                raise PermissionError(errno.EACCES, str(error)) from error
            if attempt == tries:
                raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
        time.sleep(first_wait * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def _created(create: Callable[[], object]) -> bool:
    """Whether an exclusive create made the file; False where its name is taken."""
    try:
        create()
    except FileExistsError:
        return False
    except OSError as error:
        # s3fs knows a refused If-None-Match by a field that AWS adds to its answer and MinIO does not.
        response = getattr(error.__cause__, "response", None) or {}
        if response.get("Error", {}).get("Code") in ("PreconditionFailed", "412"):
            return False
        raise
    return True

"""Where an export goes: a folder or a store, whose files appear whole, under names that nobody had."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from pipeline.attempt import Spool
from pipeline.errors import SluiceError
from pipeline.records import File
from pipeline.store import Store

BEGUN, DONE = "export.begun.json", "export.json"
"""What is put first: what this export is of. What is put last: the same, and all its files."""


class Target:
    """Files are spooled, hashed and then put if absent: one that lies there must have the same bytes."""

    def __init__(self, out: str) -> None:
        self.store = Store(out)
        self._files: dict[str, File] = {}
        self._identity: Mapping[str, Any] = {}
        if self.store.local:
            try:
                Path(self.store.path).mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise SluiceError(f"--out {out} is a file, or below one; name a folder of its own") from None
            except OSError as error:
                raise SluiceError(f"--out {out}: {error.strerror}; name a folder that you may write to") from None
        self._folder = tempfile.TemporaryDirectory(prefix=".export-", dir=self.store.path if self.store.local else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    @property
    def spool_folder(self) -> str:
        """Where large things may lie for a while, on this machine."""
        return self._folder.name

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Say what the export is of. Raises `SluiceError` where the folder holds something else."""
        self._identity = identity
        others = [name for name in self.store.names("") if name != BEGUN]
        if others and not self.store.exists(BEGUN):
            raise SluiceError(f"{self.store.root} is not empty ({others[0]}); give --out a folder of its own")
        mine = json.dumps(identity, indent=1).encode()
        stands = self.store.put_if_absent(BEGUN, mine)
        if stands != mine:
            raise SluiceError(
                f"{self.store.root} holds another export ({_differs(json.loads(stands), identity)}); "
                "give --out a folder of its own"
            )

    @contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:
        """A file to stream into; it appears when it is closed."""
        spool = Spool(self.spool_folder, "export", path, exclusive=True, hashed=True)
        try:
            yield cast(BinaryIO, spool)
            spool.close()
            self._put(path, spool.local, spool.size, spool.sha.hexdigest())
        finally:
            spool.close()
            spool.local.unlink(missing_ok=True)

    def write(self, path: str, data: bytes) -> None:
        """A small file."""
        with self.create(path) as sink:
            sink.write(data)

    def copy(self, path: str, store: Store, source: str, file: File) -> None:
        """A file of another store, its bytes checked against its record."""
        with self.create(path) as sink, store.fs_of(source).open(store.full(source), "rb") as handle:
            while block := handle.read(1 << 22):
                sink.write(block)
        if self._files[path].sha256 != file.sha256:
            self.store.delete(path)
            raise SluiceError(f"{store.url(source)} is corrupt; `sluice verify {store.root} --repair`, then again")

    def files(self) -> list[File]:
        """What was written so far, by path."""
        return [self._files[path] for path in sorted(self._files)]

    def finish(self) -> list[File]:
        """Put the list of all files; its presence says that the export is whole."""
        files = self.files()
        listed = [{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in files]
        self.store.put_if_absent(DONE, json.dumps({**self._identity, "files": listed}, indent=1).encode())
        return files

    def _put(self, path: str, local: Path, size: int, sha: str) -> None:
        try:
            self.store.put_file_if_absent(path, local, sha)
        except SluiceError:
            raise SluiceError(
                f"{self.store.url(path)} exists with other bytes; give --out a folder of its own"
            ) from None
        self._files[path] = File(kind="export", path=path, bytes=size, sha256=sha)


def _differs(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    name = next((name for name in other if one.get(name) != other[name]), "files")
    return f"{name} {one.get(name)!r}, not {other.get(name)!r}"

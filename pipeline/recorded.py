"""A remote store for DuckDB's eyes: what records say about a file is not asked again.

DuckDB asks a remote file system six times about a file before it reads it. Records name every file with its size, and
no file is ever overwritten, so that only the reads themselves go over the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import duckdb
from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from pipeline.store import Store, patiently

UNCHANGED = datetime(2000, 1, 1, tzinfo=UTC)


class RecordedFiles(AbstractFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """`inner`, with the sizes (bytes) of known files by their full address; other files are asked for as usual."""

    cachable = False

    def __init__(self, inner: AbstractFileSystem, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.inner = inner
        self.sizes = sizes
        self.protocol = inner.protocol

    def glob(self, path: str, **kwargs: Any) -> list[str]:
        return [path] if path in self.sizes else [str(found) for found in self.inner.glob(path, **kwargs)]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        if path in self.sizes:
            return {"name": path, "size": self.sizes[path], "type": "file"}
        return dict(self.inner.info(path, **kwargs))

    def modified(self, path: str) -> datetime:
        found: datetime = UNCHANGED if path in self.sizes else self.inner.modified(path)
        return found

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "rb" and path in self.sizes:
            return RecordedFile(self, path, size=self.sizes[path], cache_type="none")
        return self.inner.open(path, mode, **kwargs)

    def unstrip_protocol(self, name: str) -> str:
        return str(self.inner.unstrip_protocol(name))


class RecordedFile(AbstractBufferedFile):  # type: ignore[misc]
    """Reads exactly the ranges asked for; DuckDB plans them and keeps what it needs again."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        inner = self.fs.inner
        return bytes(patiently(lambda: inner.cat_file(inner._strip_protocol(self.path), start=start, end=end)))


def connect(store: Store, sizes: Mapping[str, int]) -> duckdb.DuckDBPyConnection:
    """DuckDB for SQL of one's own over the files of a store; `sizes` (bytes, by address) are not asked for again."""
    connection = duckdb.connect(":memory:")
    connection.execute("SET autoinstall_known_extensions = false")  # a query must not wait for a download
    connection.execute("SET enable_progress_bar = false")  # it would stand among the answers
    connection.execute("SET python_enable_replacements = false")  # nor find the variables of this program
    if not store.local:
        connection.register_filesystem(RecordedFiles(store.fs, sizes))
    return connection


def address(store: Store, place: str) -> str:
    """The place as DuckDB and fsspec find it: an absolute path, or a path with its scheme."""
    full = store.full(place)
    return place if "://" in place else full if store.local else str(store.fs.unstrip_protocol(full))

"""Tables of any supported format as batches of rows, streamed, and a check that the file is still what was promised.

CSV, TSV and JSON Lines give text; what is nested in JSON stays JSON. TSV has no quotes (as CC3M and IANA have it): a
quotation mark that opens a caption must not swallow the next rows.
"""

import csv
import gzip
import io
import json
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SluiceError
from pipeline.identity import fingerprint
from stages.ingest import parquet

T = TypeVar("T")

FORMATS = {".parquet": "Parquet", ".csv": "CSV", ".tsv": "TSV", ".jsonl": "JSON Lines", ".ndjson": "JSON Lines"}
BATCH_ROWS = 65_536
BATCH_CHARS = 64 << 20
"""Rows and characters after which a batch of a text format is handed on."""
WHOLE_BELOW = 64 << 20
"""Bytes up to which a Parquet file is read at once, so that its sha256 is of the bytes that were parsed."""
MAX_FIELD_CHARS = 256 << 20
"""A longer CSV field is an unclosed quotation mark."""
HEAD_LINES = 1000
"""Lines of a JSON Lines file whose keys are its columns."""
MORE = "source_more"
"""The column for keys that a JSON Lines file has only after its first `HEAD_LINES` lines: what they say, as JSON."""

CORRUPT = (pa.ArrowException, EOFError, zlib.error, gzip.BadGzipFile, csv.Error)


@dataclass(frozen=True)
class Rows:
    """A batch: the rows that could be read, their numbers in the file (from 0), and those that could not."""

    table: pa.Table
    numbers: np.ndarray
    bad: list[tuple[int, str, str]] = field(default_factory=list)
    """(number, the row's text, why)."""


def format_of(path: str) -> tuple[str, bool]:
    """The format that a file's name says, and whether it is compressed with gzip. Raises `SluiceError`."""
    name = path.lower()
    bare = name.removesuffix(".gz")
    for suffix, known in FORMATS.items():
        if bare.endswith(suffix):
            return known, bare != name
    raise SluiceError(f"{path} has no ending of a known format; expected {', '.join(FORMATS)}, each also with .gz")


def schema_of(path: str, names: Sequence[str] | None) -> pa.Schema:
    """The columns of a file, from its schema, header or first lines; `names` are those of a CSV or TSV without header.

    Raises `SluiceError` naming the file where it cannot be read.
    """
    kind, packed = format_of(path)
    with _readable(path, kind), _open(path) as raw:
        if kind == "Parquet":
            with _unpacked(raw, packed) as source:
                return parquet.plain_schema(pq.read_schema(source), path)
        with _stream(raw, packed) as stream:
            if kind == "JSON Lines":
                return pa.schema([(name, pa.string()) for name in [*_head_keys(stream), MORE]])
            with _text(stream) as text:
                return pa.schema([(name, pa.string()) for name in _header(text, kind, names, path)[0] if name])


def read(
    path: str, digest: str, names: Sequence[str] | None, lists: Sequence[str], limit: int | None
) -> Iterator[Rows]:
    """The rows of a file, at most `limit`. Columns in `lists` may hold JSON lists of texts.

    Raises `SluiceError` naming the file where it is corrupt, or where its bytes are not those of `digest`.
    """
    kind, packed = format_of(path)
    found: str | None = None
    with _readable(path, kind, digest), _open(path) as raw:
        if kind == "Parquet":
            size = raw.seek(0, io.SEEK_END)
            raw.seek(0)
            if size <= WHOLE_BELOW:
                data = raw.read()
                found = sha256(data).hexdigest()
                raw = cast(BinaryIO, io.BytesIO(data))
            with _unpacked(raw, packed) as source:
                start = 0
                for table in parquet.tables(source, path, limit, BATCH_ROWS, BATCH_CHARS):
                    yield Rows(table, np.arange(start, start + table.num_rows))
                    start += table.num_rows
        else:
            hashing = _Hashing(raw)
            with _stream(cast(BinaryIO, hashing), packed) as stream:
                if kind == "JSON Lines":
                    yield from _json(stream, _keys(path, packed), lists, limit)
                else:
                    with _text(stream) as text:
                        yield from _delimited(text, kind, names, path, limit)
            found = hashing.rest()
    # A tag of a remote store cannot be computed from bytes, and a large Parquet file is not read front to back.
    if (found if found is not None and not digest.startswith("tag:") else fingerprint(path)) != digest:
        raise SluiceError(f"{path} changed while it was read; run again when nobody writes to it")


# -- bytes -------------------------------------------------------------------------------------------------------------


@contextmanager
def _readable(path: str, kind: str, digest: str | None = None) -> Iterator[None]:
    """Errors of parsing as one line that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise SluiceError(f"{path} is gone; put it back, or take it out of `files`") from None
    except (*CORRUPT, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the store's fault, not the file's
            raise
        if digest is not None and fingerprint(path) != digest:
            raise SluiceError(f"{path} changed while it was read; run again when nobody writes to it") from None
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        raise SluiceError(
            f"{path} is no readable {kind}: {problem}; replace the file, or take it out of `files`"
        ) from None


def _open(path: str) -> BinaryIO:
    fs, inner = fsspec.core.url_to_fs(path)
    return cast(BinaryIO, fs.open(inner, "rb"))


class _Hashing(io.RawIOBase):
    """Hashes what is read through it."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._sha = sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        self._sha.update(data)
        buffer[: len(data)] = data
        return len(data)

    def rest(self) -> str:
        """The sha256 of the whole file: what was not read yet is read now."""
        while block := self._raw.read(1 << 22):
            self._sha.update(block)
        return self._sha.hexdigest()


@contextmanager
def _stream(raw: BinaryIO, packed: bool) -> Iterator[BinaryIO]:
    with io.BufferedReader(cast(io.RawIOBase, raw), 1 << 20) as buffered:
        if not packed:
            yield cast(BinaryIO, buffered)
            return
        with gzip.GzipFile(fileobj=buffered) as stream:
            yield cast(BinaryIO, stream)


@contextmanager
def _unpacked(raw: BinaryIO, packed: bool) -> Iterator[BinaryIO]:
    """Something to seek in: a compressed Parquet file is unpacked to this machine's disk."""
    if not packed:
        yield raw
        return
    with tempfile.TemporaryFile() as spool, gzip.GzipFile(fileobj=raw) as stream:
        while block := stream.read(1 << 22):
            spool.write(block)
        spool.seek(0)
        yield cast(BinaryIO, spool)


# -- CSV and TSV -------------------------------------------------------------------------------------------------------


def _text(stream: BinaryIO) -> io.TextIOWrapper:
    """Bytes that are no UTF-8 are escaped as lone surrogates."""
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _header(
    text: io.TextIOWrapper, kind: str, names: Sequence[str] | None, path: str
) -> tuple[list[str], Iterator[list[str]]]:
    """The column names ('' for one that is not carried), and the rows."""
    csv.field_size_limit(MAX_FIELD_CHARS)
    reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE) if kind == "TSV" else csv.reader(text)
    header = list(names) if names is not None else next((row for row in reader if row), [])
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        raise SluiceError(
            f"{path} has two columns {repeated[0]!r}; rename one, or name the columns of a file without header"
        )
    return [name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in header], reader


def _delimited(
    text: io.TextIOWrapper, kind: str, names: Sequence[str] | None, path: str, limit: int | None
) -> Iterator[Rows]:
    header, reader = _header(text, kind, names, path)
    lines = _some(islice((row for row in reader if row), limit), lambda row: sum(map(len, row)))
    start = 0
    for rows in lines:
        good = [place for place, row in enumerate(rows) if len(row) == len(header)]
        bad = [
            (start + place, ",".join(row)[:1000], f"has {len(row)} fields; expected {len(header)}")
            for place, row in enumerate(rows)
            if len(row) != len(header)
        ]
        values = list(zip(*(rows[place] for place in good), strict=True)) or [()] * len(header)
        columns = {name: texts(column) for name, column in zip(header, values, strict=True) if name}
        yield Rows(pa.table(columns), start + np.asarray(good, dtype=np.int64), bad)
        start += len(rows)


def _some(rows: Iterable[T], chars: Callable[[T], int]) -> Iterator[list[T]]:
    """Lists of `BATCH_ROWS` rows, fewer where they are long."""
    batch: list[T] = []
    held = 0
    for row in rows:
        batch.append(row)
        held += chars(row)
        if len(batch) >= BATCH_ROWS or held >= BATCH_CHARS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def texts(values: Sequence[str | None]) -> pa.Array:
    """string; binary where a text holds bytes that were no UTF-8 (escaped as lone surrogates)."""
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        return pa.array([None if value is None else raw_bytes(value) for value in values], pa.binary())


def raw_bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that JSON spelled out
        return text.encode("utf-8", "surrogatepass")


# -- JSON Lines --------------------------------------------------------------------------------------------------------


def _keys(path: str, packed: bool) -> list[str]:
    with _open(path) as raw, _stream(raw, packed) as stream:
        return _head_keys(stream)


def _head_keys(stream: BinaryIO) -> list[str]:
    """The keys of the first lines that can name a column, in order of appearance."""
    keys: dict[str, None] = {}
    for line in islice(_lines(stream), HEAD_LINES):
        value = _object(line)
        if isinstance(value, dict):
            keys.update(dict.fromkeys(value))
    return [key for key in keys if key and key != MORE and raw_bytes(key).decode("utf-8", "replace") == key]


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    while line := stream.readline(MAX_FIELD_CHARS):
        if len(line) == MAX_FIELD_CHARS:
            raise EOFError(f"a line of more than {MAX_FIELD_CHARS >> 20} MiB; expected one object per line")
        if line.strip():
            yield line


def _object(line: bytes) -> dict[str, Any] | str:
    """A line's object, or why there is none."""
    try:
        value = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    return value if isinstance(value, dict) else f"is {type(value).__name__} instead of an object"


def _json(stream: BinaryIO, keys: Sequence[str], lists: Sequence[str], limit: int | None) -> Iterator[Rows]:
    known = set(keys)
    start = 0
    for lines in _some(islice(_lines(stream), limit), len):
        objects = [_object(line) for line in lines]
        bad = [
            (start + place, lines[place][:1000].decode("utf-8", "replace").strip(), why)
            for place, why in enumerate(objects)
            if isinstance(why, str)
        ]
        good = [place for place, value in enumerate(objects) if isinstance(value, dict)]
        rows = [cast(dict[str, Any], objects[place]) for place in good]
        columns = {key: _json_column([row.get(key) for row in rows], key in lists) for key in keys}
        columns[MORE] = texts([_more(row, known) for row in rows])
        yield Rows(pa.table(columns), start + np.asarray(good, dtype=np.int64), bad)
        start += len(lines)


def _more(row: dict[str, Any], known: set[str]) -> str | None:
    rest = {key: value for key, value in row.items() if key not in known}
    return _json_text(rest) if rest else None


def _json_column(values: Sequence[Any], many: bool) -> pa.Array:
    if not (many and any(isinstance(value, list) for value in values)):
        return texts([_json_text(value) for value in values])
    lists = [value if isinstance(value, list) else [] if value is None else [value] for value in values]
    flat = texts([_json_text(value) for inner in lists for value in inner])
    offsets = np.concatenate(([0], np.cumsum([len(inner) for inner in lists])))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)


def _json_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)

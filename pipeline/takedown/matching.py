"""Which images a request means: by uid, by URL, by domain, by their bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import SluiceError
from pipeline.identity import expand
from pipeline.records import File, Record
from pipeline.store import Store
from pipeline.takedown.tombstones import DIGESTS, Entries, canonical_host, of_domains

READERS = 8
"""Tables that are read at once."""
URLS = ("url", "final_url")
"""Columns that say where an image came from: as listed, and after redirects."""
AROUND = r"^[A-Za-z][A-Za-z0-9+.-]*://([^/?#@]*@)?|#.*$"
DEFAULT_PORT = r"^([^/?]*):(?:80|443)([/?]|$)"
HOST_AND_REST = r"(?s)^(?P<host>[^/?]*)(?P<rest>.*)$"
FORMS = {
    "uids": (re.compile(r"[0-9a-f]{32}"), "32 hex digits"),
    "sha256s": (re.compile(r"[0-9a-f]{64}"), "64 hex digits"),
    "urls": (re.compile(r"https?://[^\s/?#]+\S*"), "'https://example.org/x.jpg'"),
    "domains": (re.compile(r"localhost|[^\s/:?#@]+\.[^\s/:?#@.]+\.?|\[?[0-9a-fA-F:.]+\]?"), "'example.org'"),
}
Progress = Callable[[str, int, int], None]
"""Phase, tables done, tables in all."""


@dataclass(frozen=True)
class Asked:
    """What a request names, as it was typed but for lower case; empty where it names none of a kind."""

    uids: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    sha256s: tuple[str, ...] = ()

    @classmethod
    def read(cls, **files: str | None) -> Asked:
        """From text files on any fsspec store, an entry a line, `#` begins a comment.

        Raises `SluiceError` naming a line that is no such entry.
        """
        return cls(**{kind: tuple(_lines(path, kind)) for kind, path in files.items() if path is not None})

    def __str__(self) -> str:
        """How many of each kind: `1 uid, 2 urls`."""
        return counted(self.counts())

    def counts(self) -> dict[str, int]:
        every = {"uids": self.uids, "urls": self.urls, "domains": self.domains, "sha256s": self.sha256s}
        return {kind: len(values) for kind, values in every.items() if values}

    def entries(self) -> Entries:
        """What of it can be told from a row that is yet to be fetched. A URL is kept as its uid, under both schemes."""
        ends = [re.sub(r"^https?", "", url, flags=re.IGNORECASE) for url in self.urls]
        spelled = [*self.urls, *(scheme + end for end in ends for scheme in ("http", "https"))]
        uids = [*self.uids, *(blake2b(url.encode(), digest_size=16).hexdigest() for url in spelled)]
        return _entries(uids, self.sha256s, frozenset(canonical_host(domain) for domain in self.domains))


def counted(counts: Mapping[str, int]) -> str:
    """Counts by kind in words: `1 uid, 2 urls`."""
    return ", ".join(f"{count:,} {kind[:-1] if count == 1 else kind}" for kind, count in counts.items())


def _lines(path: str, kind: str) -> Iterator[str]:
    form, expected = FORMS[kind]
    (found,) = expand(path, f"--{kind}")[:1]
    with fsspec.open(found, "rt", encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            text = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
            if text and kind != "urls":
                text = text.lower().removeprefix("*.")
            if text and not form.fullmatch(text):
                raise SluiceError(f"--{kind} {path}, line {number}: {text[:80]!r}; expected {expected}")
            if text:
                yield text


def _entries(uids: Iterable[str], sha256s: Iterable[str], domains: frozenset[str]) -> Entries:
    return Entries(pa.array(sorted(set(uids)), pa.string()), pa.array(sorted(set(sha256s)), pa.string()), domains)


def find(store: Store, records: Sequence[Record], asked: Asked, copies: bool, progress: Progress) -> Entries:
    """The uids of every image that is meant, and the digests of their bytes; `copies`: under whatever URL they came.

    Reads the columns that tell of every table of `records`. Raises `SluiceError` for one that cannot be read.
    """
    entries = asked.entries()
    bare = pc.unique(_bare(pa.chunked_array([pa.array(asked.urls, pa.string())])))
    tables = [(record, file) for record in records for file in record.files if file.path.endswith(".parquet")]

    def named(table: pa.Table) -> np.ndarray:
        found = entries.alike(table)
        found |= np.asarray(pc.is_in(table.column("uid"), value_set=entries.uids))
        for name in URLS:
            if name in table.column_names:
                found |= np.asarray(pc.fill_null(pc.is_in(_bare(table.column(name)), value_set=bare), False))
                if entries.domains:
                    found |= of_domains(table.column(name), entries.domains)
        return found

    uids, sha256s = _scan(store, tables, (*URLS, *DIGESTS), named, "searching", progress)
    while copies:
        entries = _entries(
            [*uids, *entries.uids.to_pylist()], [*sha256s, *entries.sha256s.to_pylist()], entries.domains
        )
        more = _scan(store, tables, DIGESTS, entries.alike, "searching copies", progress)
        if more[0] <= uids and more[1] <= sha256s:
            break
        uids, sha256s = uids | more[0], sha256s | more[1]
    known = [] if not copies else sha256s
    return _entries([*uids, *entries.uids.to_pylist()], [*known, *asked.sha256s], entries.domains)


def _bare(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """URLs without what matters to no owner: scheme, credentials, the host's case, a default port, the fragment."""
    bare = pc.replace_substring_regex(pc.replace_substring_regex(urls, AROUND, ""), DEFAULT_PORT, r"\1\2")
    parts = pc.extract_regex(bare, HOST_AND_REST)
    host, rest = pc.struct_field(parts, "host"), pc.struct_field(parts, "rest")
    return pc.binary_join_element_wise(pc.utf8_lower(host), rest, "")


def _scan(
    store: Store,
    tables: Sequence[tuple[Record, File]],
    telling: Sequence[str],
    chosen: Callable[[pa.Table], np.ndarray],
    phase: str,
    progress: Progress,
) -> tuple[set[str], set[str]]:
    """uids and digests of the chosen rows of every table that has a `telling` column."""
    uids: set[str] = set()
    sha256s: set[str] = set()

    def one(entry: tuple[Record, File]) -> tuple[list[str], list[str]]:
        table = columns_of(store, *entry, ["uid", *URLS, *DIGESTS])
        if table is None or not {*telling} & {*table.column_names}:
            return [], []
        rows = table.filter(pa.array(chosen(table)))
        digests = [value for name in DIGESTS if name in rows.column_names for value in rows.column(name).to_pylist()]
        return rows.column("uid").to_pylist(), [value for value in digests if value is not None]

    with ThreadPoolExecutor(READERS) as pool:
        for done, (found, digests) in enumerate(pool.map(one, tables), 1):
            uids.update(found)
            sha256s.update(digests)
            progress(phase, done, len(tables))
    return uids, sha256s


def locate(store: Store, records: Sequence[Record], uids: pa.Array, progress: Progress) -> dict[str, pa.Array]:
    """work key -> the uids among `uids` of which any table of the record says something."""
    found: dict[str, set[str]] = {}
    tables = [(record, file) for record in records for file in record.files if file.path.endswith(".parquet")]

    def one(entry: tuple[Record, File]) -> tuple[str, list[str]]:
        table = columns_of(store, *entry, ["uid"])
        rows = [] if table is None else table.filter(pc.is_in(table.column("uid"), value_set=uids))["uid"].to_pylist()
        return entry[0].work_key, rows

    with ThreadPoolExecutor(READERS) as pool:
        for done, (key, rows) in enumerate(pool.map(one, tables), 1):
            if rows:
                found.setdefault(key, set()).update(rows)
            progress("locating", done, len(tables))
    return {key: pa.array(sorted(rows), pa.string()) for key, rows in found.items()}


def columns_of(store: Store, record: Record, file: File, names: Sequence[str]) -> pa.Table | None:
    """Those of the columns that a table has; None where it has no `uid`, or is gone.

    Raises `SluiceError` for a table that cannot be read.
    """
    place = store.place(record, file)
    try:
        with store.fs_of(place).open(store.full(place), "rb") as handle:
            parquet = pq.ParquetFile(handle)
            present = [name for name in names if name in parquet.schema_arrow.names]
            if "uid" not in present or not pa.types.is_string(parquet.schema_arrow.field("uid").type):
                return None
            return parquet.read(columns=present)
    except FileNotFoundError:
        return None
    except (pa.ArrowInvalid, OSError) as error:
        raise SluiceError(
            f"{store.url(place)} cannot be searched ({str(error).splitlines()[0]}); "
            f"`sluice verify {store.root} --repair` first; where only an old run names it, `sluice gc --keep-runs 1`"
        ) from None


def every_record(store: Store, node: str) -> list[Record]:
    """All that a node ever committed and still has, whether or not a generation names it."""
    keys = sorted(store.committed(node))
    found = {record.work_key: record for record in store.records(node, keys) if record is not None}
    for number in store.generation_numbers(node):
        generation = store.generation(node, number)
        for record in generation.records if generation else ():
            found.setdefault(record.work_key, record)
    return [found[key] for key in sorted(found)]

"""What was asked to go, as the store keeps it, and which rows it covers.

<root>/takedowns/0001.json         a `Tombstone`: how many of what were asked, why, when
<root>/takedowns/0001-….parquet    its entries (`kind`, `value`): uids, SHA-256 digests, domains
<root>/takedowns/0001.done         every byte was erased
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from yarl import URL

from pipeline.errors import SluiceError
from pipeline.records import File, Stored
from pipeline.store import Store

FOLDER = "takedowns"
TAKEN_DOWN = "taken_down"
"""The status of a row whose image must not be here."""
DIGESTS = ("sha256", "stored_sha256")
"""The columns of a pool that say what an image's bytes are: as fetched, and as stored."""
HOST = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(?P<host>\[[^\]]*\]|[^/?#:]*)"
ENTRIES = pa.schema([("kind", pa.string()), ("value", pa.string())])


class Tombstone(Stored):
    """One takedown. Its entries say by digest what must stay away; nothing here can be turned back into content."""

    id: str
    reason: str
    when: str
    """ISO 8601, UTC. Nothing is decided by it."""
    asked: dict[str, int]
    """How many uids, urls, domains and sha256s were named."""
    images: int
    """Images of this root that were found, copies under other URLs included."""
    entries: File
    seen: File
    """A row for every place where one of them was selected, sharded or trained on; see `seen.py`."""


@dataclass(frozen=True)
class Entries:
    """What one or many takedowns cover."""

    uids: pa.Array
    sha256s: pa.Array
    domains: frozenset[str]

    def __bool__(self) -> bool:
        return bool(len(self.uids) or len(self.sha256s) or self.domains)

    def named(self, table: pa.Table) -> np.ndarray:
        """bool (rows,): whose `uid`, or whose `url`'s domain, is covered."""
        found = np.asarray(pc.is_in(table.column("uid"), value_set=self.uids))
        if self.domains and "url" in table.column_names:
            found = found | of_domains(table.column("url"), self.domains)
        return found

    def alike(self, table: pa.Table) -> np.ndarray:
        """bool (rows,): whose bytes are covered, under whatever URL."""
        found = np.zeros(table.num_rows, dtype=bool)
        for name in DIGESTS:
            if name in table.column_names:
                found |= np.asarray(pc.is_in(table.column(name), value_set=self.sha256s))
        return found

    def table(self) -> pa.Table:
        kinds = {"uid": self.uids.to_pylist(), "sha256": self.sha256s.to_pylist(), "domain": sorted(self.domains)}
        rows = [(kind, value) for kind, values in kinds.items() for value in values]
        return pa.table({"kind": [kind for kind, _ in rows], "value": [value for _, value in rows]}, schema=ENTRIES)

    @classmethod
    def of(cls, table: pa.Table) -> Entries:
        def values(kind: str) -> pa.Array:
            chosen = table.filter(pc.equal(table.column("kind"), kind)).column("value")
            return chosen.combine_chunks().unique()

        return cls(values("uid"), values("sha256"), frozenset(values("domain").to_pylist()))


def tombstones(store: Store) -> list[Tombstone]:
    """Oldest first."""
    names = [name for name in store.names(FOLDER) if name.endswith(".json")]
    return [Tombstone.from_json(store.get(f"{FOLDER}/{name}")) for name in names]


def unfinished(store: Store) -> list[Tombstone]:
    """Those whose bytes may not all be erased yet."""
    done = {name.removesuffix(".done") for name in store.names(FOLDER) if name.endswith(".done")}
    return [tombstone for tombstone in tombstones(store) if tombstone.id not in done]


def check_finished(store: Store) -> None:
    """Raise `SluiceError` while a takedown is under way, or was interrupted: a run would read what is going."""
    left = unfinished(store)
    if left:
        raise SluiceError(
            f"{store.root}: takedown {left[0].id} is under way or was interrupted; "
            f"`sluice takedown {store.root} --resume` finishes it"
        )


def entries_of(store: Store, tombstone: Tombstone) -> Entries:
    """Raises `SluiceError` where the file is damaged."""
    return Entries.of(_checked(store, tombstone.entries))


def _checked(store: Store, file: File) -> pa.Table:
    from hashlib import sha256

    data = store.get(file.path)
    if sha256(data).hexdigest() != file.sha256:
        raise SluiceError(f"{store.url(file.path)} is corrupt; ask for the same takedown again")
    return pq.read_table(io.BytesIO(data))


def seen_of(store: Store, tombstone: Tombstone) -> pa.Table:
    """The places that `seen.py` found when it was asked."""
    return _checked(store, tombstone.seen)


_known: dict[str, tuple[tuple[str, ...], Entries]] = {}
_lock = threading.Lock()


def standing(store: Store) -> Entries:
    """What all takedowns of a root cover, as a worker asks before every part; read again only when one came along."""
    names = tuple(store.names(FOLDER))  # those of entries have a token: a number may be given anew
    with _lock:
        if store.root not in _known or _known[store.root][0] != names:
            tables = [entries_of(store, tombstone).table() for tombstone in tombstones(store)]
            _known[store.root] = names, Entries.of(pa.concat_tables([ENTRIES.empty_table(), *tables]))
        return _known[store.root][1]


# -- URLs --------------------------------------------------------------------------------------------------------------


def of_domains(urls: pa.ChunkedArray, domains: frozenset[str]) -> np.ndarray:
    """bool (rows,): whether the URL's host is one of the domains, or under one."""
    hosts = pc.utf8_lower(pc.struct_field(pc.extract_regex(urls, HOST), "host"))
    known = hosts.unique().drop_null()
    under: Mapping[str, bool] = {host: _is_under(host, domains) for host in known.to_pylist()}
    covered = pa.array([host for host, is_under in under.items() if is_under], pa.string())
    return np.asarray(pc.fill_null(pc.is_in(hosts, value_set=covered), False))


def _is_under(host: str, domains: frozenset[str]) -> bool:
    name = canonical_host(host)
    while name:
        if name in domains:
            return True
        name = name.partition(".")[2]
    return False


def canonical_host(host: str) -> str:
    """Lower case, as DNS spells it (`xn--…`), without the dot at its end; as it is where it is no host."""
    try:
        found = URL.build(scheme="http", host=host.removeprefix("[").removesuffix("]")).raw_host or host
    except ValueError:
        found = host
    return found.lower().removesuffix(".")

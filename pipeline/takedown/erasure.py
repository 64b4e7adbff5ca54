"""A takedown from request to proof: found, written down, erased in new generations, what held it deleted.

In this order, so that it may be killed at any moment and the next command finishes it:

1. The tombstone is put. From here on no run begins, and no part that is fetched keeps one of these images.
2. Records that hold something of them get others in their place, which hold nothing. The newest generation of a node
   becomes a new one; older ones, which runs still name, are replaced under their numbers. Records with files from
   which nothing can be cut, such as an index, leave their generations, and the next run makes them anew.
3. Commits that no generation names any more are deleted where they held them, and then every file that nothing names.
4. `<id>.done` is put.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SluiceError
from pipeline.leases import LEASES, is_dead, this_process
from pipeline.records import File, Generation, Record, in_order
from pipeline.store import Store
from pipeline.takedown.matching import Asked, Progress, every_record, find, locate
from pipeline.takedown.records import changes, rewritten, spoilt
from pipeline.takedown.seen import seen
from pipeline.takedown.tombstones import (
    FOLDER,
    TAKEN_DOWN,
    Entries,
    Tombstone,
    entries_of,
    standing,
    tombstones,
    unfinished,
)

RESERVED = ("runs", "resources", FOLDER)
"""Folders of a root that belong to no node."""
LEASE = ".takedown"
"""How the name of a takedown's lease ends."""


@dataclass(frozen=True)
class Found:
    """What a request means in a root."""

    asked: Asked
    entries: Entries
    located: Mapping[str, pa.Array]
    """work key -> the uids of which the record says something."""
    seen: pa.Table

    @property
    def images(self) -> int:
        """Images of the root that are meant."""
        return len({uid for uids in self.located.values() for uid in uids.to_pylist()})


@dataclass(frozen=True)
class Erased:
    """What a takedown did."""

    tombstone: str
    records: int
    """Records that were written anew."""
    deleted: int
    """Files that are no more."""


def search(store: Store, asked: Asked, copies: bool, progress: Progress) -> Found:
    """Find what a request means; nothing is written. `copies`: the same bytes under other URLs are meant, too.

    Raises `SluiceError` for a table that cannot be read: nobody could say that nothing is in it.
    """
    records = [record for node in store.nodes() for record in every_record(store, node)]
    entries = find(store, records, asked, copies, progress)
    located = locate(store, records, entries.uids, progress)
    return Found(asked, entries, located, seen(store, _generations(store), located))


def is_done(store: Store, found: Found) -> bool:
    """Whether earlier takedowns cover all that a request means, and nothing of it is left."""
    before, asked = standing(store).table().to_pylist(), found.entries.table().to_pylist()
    if not asked or not {(e["kind"], e["value"]) for e in asked} <= {(e["kind"], e["value"]) for e in before}:
        return False
    for node in store.nodes():
        records = every_record(store, node)
        named = {record.work_key for generation in _generations_of(store, node) for record in generation.records}
        if named & spoilt(records, found.located) or any(changes(store, r, found.located) for r in records):
            return False
    return True


def take_down(store: Store, found: Found, reason: str, progress: Progress) -> Erased:
    """Write the tombstone, and erase. Raises `SluiceError` while a run is writing, or was interrupted."""
    check_idle(store)
    tombstone = _written(store, found, reason)
    try:
        check_idle(store)
    except SluiceError:  # a run began between the two looks; it has not seen the tombstone
        store.delete(f"{FOLDER}/{tombstone.id}.json")
        raise
    return erase(store, tombstone, progress)


def check_idle(store: Store) -> None:
    """Raise `SluiceError` while a run or another takedown is writing, or was killed. One that stopped by itself has
    left no file half written, and a killed takedown of this machine goes on."""
    leases = [name for name in store.names(LEASES) if not _is_over(store, name)]
    if leases:
        raise SluiceError(
            f"{store.root} has {len(leases)} run(s) that write or were interrupted ({leases[0]}); wait, or resume with "
            "the same `sluice run`, or give --force when none is running"
        )


def _is_over(store: Store, name: str) -> bool:
    try:
        holder = json.loads(store.get(f"{LEASES}/{name}"))
    except FileNotFoundError:
        return True
    return bool(holder.get("stopped")) or (name.endswith(LEASE) and is_dead(holder))


def finish(store: Store, progress: Progress) -> list[Erased]:
    """Erase what interrupted takedowns left. Raises `SluiceError` while a run is writing."""
    check_idle(store)
    return [erase(store, tombstone, progress) for tombstone in unfinished(store)]


def _written(store: Store, found: Found, reason: str) -> Tombstone:
    number = max((int(tombstone.id) for tombstone in tombstones(store)), default=0)
    token = uuid4().hex[:8]
    files = {
        name: _put(store, name, token, t) for name, t in (("entries", found.entries.table()), ("seen", found.seen))
    }
    while True:
        number += 1
        mine = Tombstone(
            id=f"{number:04d}",
            reason=reason,
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            asked=found.asked.counts(),
            images=found.images,
            **files,
        )
        path = f"{FOLDER}/{mine.id}.json"
        if Tombstone.from_json(store.put_if_absent(path, mine.to_json())) == mine:
            return mine


def _put(store: Store, kind: str, token: str, table: pa.Table) -> File:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue()
    path = f"{FOLDER}/{kind}-{token}.parquet"
    store.put(path, data)
    return File(kind=kind, path=path, bytes=len(data), sha256=sha256(data).hexdigest())


# -- erasing -----------------------------------------------------------------------------------------------------------


def erase(store: Store, tombstone: Tombstone, progress: Progress) -> Erased:
    """Steps 2 to 4, begun or interrupted."""
    uids = entries_of(store, tombstone).uids
    mine = f"{LEASES}/{uuid4().hex[:12]}{LEASE}"
    store.put(mine, json.dumps(this_process()).encode())
    try:
        records = {node: every_record(store, node) for node in store.nodes()}
        located = locate(store, [record for found in records.values() for record in found], uids, progress)
        holding = {node: {r.work_key for r in found} & located.keys() for node, found in records.items()}
        written = _Counter(progress, sum(map(len, holding.values())))
        for node, keys in holding.items():
            if keys:
                _replace(store, node, located, spoilt(records[node], located), written)
        _forget(store, records, located)
        deleted = sum(_sweep(store, name) for name in store.names("") if name not in RESERVED)
        for name in records:
            _forget_trainings(store, name)
        _remember(store)
        store.put_if_absent(f"{FOLDER}/{tombstone.id}.done", json.dumps({"records": written.count}).encode())
        for name in store.names(LEASES):
            if name.endswith(LEASE) and _is_over(store, name):
                store.delete(f"{LEASES}/{name}")
    finally:
        store.delete(mine)
    return Erased(tombstone.id, written.count, deleted)


def _forget_trainings(store: Store, node: str) -> None:
    """Delete the checkpoints of trainings that have not ended: they have seen the images, and their shards are others
    now, on which they could not go on."""
    folder = f"{node}/checkpoints"
    ended = store.committed(node)
    for key in {name.partition(".")[0] for name in store.names(folder)} - ended:
        with suppress(FileNotFoundError):
            store.fs.rm(store.full(f"{folder}/{key}"), recursive=True)


class _Counter:
    """Counts the records that were written anew, and says how far it is."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total = progress, total
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        self._progress("erasing", self.count, max(self._total, self.count))


def _generations(store: Store) -> list[Generation]:
    """All that the root still has, by node, oldest first."""
    return [generation for node in store.nodes() for generation in _generations_of(store, node)]


def _generations_of(store: Store, node: str) -> list[Generation]:
    found = [store.generation(node, number) for number in store.generation_numbers(node)]
    return [generation for generation in found if generation is not None]


def _replace(
    store: Store, node: str, located: Mapping[str, pa.Array], anew: Set[str], written: Callable[[], None]
) -> None:
    """Other records in the place of those that hold something: a new generation; the old ones under their numbers.

    Those to be made `anew` are left out, and then the generation has no key by which a run could reuse it.
    """
    newest = store.newest_number(node)
    for old in reversed(_generations_of(store, node)):
        left = old.model_copy(update={"records": tuple(r for r in old.records if r.work_key not in anew)})
        changed = rewritten(store, left, located, written)
        less = len(left.records) < len(old.records)
        if not changed and not less:
            continue
        records = tuple(in_order([changed.get(record.work_key, record) for record in left.records]))
        new = left.model_copy(update={"records": records, "key": TAKEN_DOWN if less else old.key})
        if old.number == newest:
            store.seal(new.model_copy(update={"number": 0}))
        store.put(f"{node}/generations/{old.number:04d}.json", new.to_json())


def _forget(store: Store, records: Mapping[str, Sequence[Record]], located: Mapping[str, pa.Array]) -> None:
    """Delete the commits that no generation names and that hold something, or were made from what held something.

    They are phases that only led to a table, and tries that were never sealed. Left there, a later run would mix what
    it finds done with what it does on fewer rows.
    """
    hashes = {record.content_hash for found in records.values() for record in found if record.work_key in located}
    left = []
    for node, found in records.items():
        named = {record.work_key for generation in _generations_of(store, node) for record in generation.records}
        left += [record for record in found if record.work_key not in named]
    below: dict[str, Record] = {}
    growing = True
    while growing:
        growing = False
        for record in left:
            made_from = {known for inputs in record.inputs.values() for known in inputs}
            if record.work_key not in located and record.work_key not in below and made_from & hashes:
                growing = True
                hashes.add(record.content_hash)
                below[record.work_key] = record
    holding = [record for record in left if record.work_key in located]
    for record in [*reversed(below.values()), *holding]:  # what tells of the others goes last
        store.delete(f"{record.node}/commits/{record.work_key}.json")


def _sweep(store: Store, node: str) -> int:
    """Delete every data file that neither a commit nor a generation names; how many."""
    files = {f"{node}/{file.path}" for record in every_record(store, node) for file in record.files}
    store.fs.invalidate_cache()
    found = [str(path)[len(store.path) + 1 :] for path in store.fs.find(store.full(f"{node}/data"))]
    garbage = [path for path in found if path not in files]
    for path in garbage:
        store.delete(path)
    return len(garbage)


def _remember(store: Store) -> None:
    """A run of the new generations, where the newest run left what they were made from."""
    run = next(store.runs(), None)
    if run is None:
        return
    numbers = {}
    for node, number in run.generations.items():
        own, newest = store.generation(node, number), store.newest(node)
        same = own is not None and newest is not None and own.records == newest.records
        numbers[node] = newest.number if same and newest is not None else number
    store.add_run(run.model_copy(update={"id": "", "generations": numbers}))

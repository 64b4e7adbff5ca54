"""A committed record again, without some images: its files are new where they held something of them."""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.attempt import Attempt
from pipeline.node import REPAIRS
from pipeline.records import File, Generation, Record, digest
from pipeline.stage import Task
from pipeline.store import Store
from pipeline.takedown import tables, tars
from pipeline.takedown.tombstones import TAKEN_DOWN, Entries, standing

SHARD, SAMPLES, SIZES = "shard", "samples", "sizes"
"""The kinds of file of which final samples consist: a tar, the table of what is in it, how many are in each tar."""
PLAIN = (".parquet", ".tar", ".json")
"""Endings of files from which an image can be cut; whatever else was made from it holds it in another form."""


def opaque(record: Record) -> bool:
    """Whether a record has a file from which nothing can be cut, such as an index of vectors."""
    return any(not file.path.endswith(PLAIN) for file in record.files)


def spoilt(records: Sequence[Record], located: Mapping[str, pa.Array]) -> set[str]:
    """The work keys of a node's records that cannot be without some images unless they are made anew.

    Their tables have the images' rows, or those of an earlier phase that they were made from.
    """
    holding = {record.work_key for record in records if record.work_key in located}
    growing = True
    while growing:
        hashes = {record.content_hash for record in records if record.work_key in holding}
        below = {r.work_key for r in records if any(hashes.intersection(known) for known in r.inputs.values())}
        growing = not below <= holding
        holding |= below
    return {record.work_key for record in records if record.work_key in holding and opaque(record)}


def rewritten(
    store: Store, generation: Generation, located: Mapping[str, pa.Array], written: Callable[[], None]
) -> dict[str, Record]:
    """work key -> the record that takes its place, for all records of a generation that hold a located image.

    `written` is called after each.

    Shards keep their names and move, all of them, to a folder of their own: a place once written never changes.
    """
    done: dict[str, Record] = {}
    for folder, records in _folders(generation).items():
        gone = sorted({uid for r in records if r.work_key in located for uid in located[r.work_key].to_pylist()})
        if gone and any(changes(store, record, located) for record in records):
            target = posixpath.join(posixpath.dirname(folder), digest([folder, gone])[:12])
            done |= _moved_shards(store, records, located, target, written)
    for record in generation.records:
        uids = located.get(record.work_key)
        if uids is not None and record.work_key not in done and changes(store, record, located):
            done[record.work_key] = _erased(store, record, uids, _replaced(generation, record, located))
            written()
    return done


def withheld(store: Store, records: Sequence[Record], known: Collection[str]) -> list[Record]:
    """Records of a node that reads input, which may still name what was taken down: without it, and no others left.

    The original commit goes first: a run that is killed in between does that part again. Those whose work keys are
    `known` were looked at before.
    """
    covered = standing(store)
    if not covered:
        return list(records)
    return [record if record.work_key in known else _withheld(store, record, covered) for record in records]


def _withheld(store: Store, record: Record, covered: Entries) -> Record:
    image = store.read_table(record, "image") if record.file("image") else pa.table({"uid": pa.array([], pa.string())})
    gone = covered.named(image) | covered.alike(image)
    uids = image.column("uid").filter(pa.array(gone)).combine_chunks()
    if not len(uids) or not changes(store, record, {record.work_key: uids}):
        return record
    made = _erased(store, record, uids, pa.array([], pa.string()))
    store.delete(f"{record.node}/commits/{record.work_key}.json")
    for file in record.files:
        if _own(file) and file not in made.files:
            store.delete(store.place(record, file))
    return made


def _replaced(generation: Generation, record: Record, located: Mapping[str, pa.Array]) -> pa.Array:
    """The images whose rows in this record later parts took the place of."""
    later = [located[other.work_key] for other in generation.superseding(record.part) if other.work_key in located]
    return pa.concat_arrays([pa.array([], pa.string()), *later])


def changes(store: Store, record: Record, located: Mapping[str, pa.Array]) -> bool:
    """Whether anything of the located images is left in a record. Their rows stay, so that uids alone do not tell."""
    uids = located.get(record.work_key)
    if uids is None:
        return False
    for file in _tables(record):
        table = store.read_table(record, file.kind)
        if "uid" in table.column_names:
            if file.kind == SAMPLES and pc.any(pc.is_in(table.column("uid"), uids)).as_py():
                return True
            if file.kind != SAMPLES and not tables.erased(table, uids, uids).equals(table):
                return True
    return False


def _tables(record: Record) -> list[File]:
    return [file for file in record.files if file.path.endswith(".parquet")]


def _own(file: File) -> bool:
    """Whether a file lies in this root; what was adopted is its owner's."""
    return not ("://" in file.path or file.path.startswith("/"))


def _attempt(store: Store, record: Record, *why: Sequence[str]) -> Attempt:
    """The same work, the same images gone: the same name, so that an interrupted takedown finds what it did."""
    key = digest([TAKEN_DOWN, record.work_key, *why])
    return Attempt(store, record.node, record.phase, Task(record.part, supersedes=record.supersedes), key)


def _erased(store: Store, record: Record, uids: pa.Array, replaced: pa.Array) -> Record:
    """Tables without what they said, and a pool's tar without the samples."""
    with _attempt(store, record, uids.to_pylist(), sorted(replaced.to_pylist())) as attempt:
        done = store.record(record.node, attempt.work_key)
        if done is not None:
            return done
        old = {file.kind: store.read_table(record, file.kind) for file in _tables(record)}
        new = {kind: tables.erased(t, uids, replaced) for kind, t in old.items() if "uid" in t.column_names}
        tar = record.file("tar")
        if tar is not None and _own(tar):
            gone = old["image"].filter(pc.is_in(old["image"].column("uid"), value_set=uids))
            offsets = {value for value in gone.column("offset").to_pylist() if value is not None}
            cuts = _cut(store, attempt, record, tar, uids.to_pylist(), offsets, None)
            new["image"] = tables.moved(new["image"], cuts)
        for kind, table in new.items():
            if table is not old[kind]:
                attempt.write(kind, table, suffix=_suffix(record, kind))
        attempt.count(_statuses(record, old, new))
        attempt.note(**_notes(record, old, new, len(uids)))
        return attempt.stand_in(record)


def _suffix(record: Record, kind: str) -> str:
    """What follows the part and the token in a file's name."""
    file = record.file(kind)
    assert file is not None
    return posixpath.basename(file.path).removeprefix(record.part).partition(".")[2]


def _cut(
    store: Store,
    attempt: Attempt,
    record: Record,
    tar: File,
    keys: Sequence[str],
    offsets: set[int],
    path: str | None,
) -> list[tuple[int, int]]:
    """Stream a tar into a new one; under `path` where its name is to be final."""
    place = store.place(record, tar)
    sink = attempt.create(tar.kind, _suffix(record, tar.kind)) if path is None else attempt.create_final(tar.kind, path)
    with store.fs_of(place).open(store.full(place), "rb") as source:
        return tars.cut(source, sink, keys, offsets, store.url(place))


def _statuses(record: Record, old: Mapping[str, pa.Table], new: Mapping[str, pa.Table]) -> dict[str, int]:
    """The counts of a record after rows came to another status."""
    counts = Counter(record.statuses)
    if "image" in new and "status" in new["image"].column_names:
        counts.subtract(old["image"].column("status").to_pylist())
        counts.update(new["image"].column("status").to_pylist())
    dropped = _dropped(old, new)
    if dropped:
        counts.subtract({"kept": dropped})
        counts.update({"dropped": dropped})
    return {status: count for status, count in counts.items() if count}


def _dropped(old: Mapping[str, pa.Table], new: Mapping[str, pa.Table]) -> int:
    """How many pairs are no longer kept."""
    if "caption" not in new or "kept" not in new["caption"].column_names:
        return 0
    kept = [np.count_nonzero(np.asarray(table["caption"].column("kept"))) for table in (old, new)]
    return int(kept[0] - kept[1])


def _standing_in(record: Record, images: int) -> dict[str, Any]:
    """The notes by which a record says whose place it takes, and how many images are gone from it by now."""
    gone = record.notes.get(TAKEN_DOWN, 0) + images
    return {REPAIRS: record.notes.get(REPAIRS, record.work_key), **({TAKEN_DOWN: gone} if gone else {})}


def _notes(record: Record, old: Mapping[str, pa.Table], new: Mapping[str, pa.Table], images: int) -> dict[str, Any]:
    notes = _standing_in(record, images)
    dropped = _dropped(old, new)
    if dropped and "funnel" in record.notes:
        steps = [step for step in record.notes["funnel"] if step["rule"] != TAKEN_DOWN]
        before = sum(step["dropped"] for step in record.notes["funnel"] if step["rule"] == TAKEN_DOWN)
        rows = steps[-1]["left"] if steps else 0
        last = {"rule": TAKEN_DOWN, "rows": rows, "dropped": before + dropped, "left": rows - before - dropped}
        notes["funnel"] = [*steps, last]
    return notes


# -- shards ------------------------------------------------------------------------------------------------------------


def _folders(generation: Generation) -> dict[str, list[Record]]:
    """The records of final shards by the folder in which they lie, their `sizes.json` among them."""
    found: dict[str, list[Record]] = {}
    for record in generation.records:
        file = record.file(SHARD) or record.file(SIZES)
        if file is not None and _own(file):
            found.setdefault(posixpath.dirname(file.path), []).append(record)
    return {folder: records for folder, records in found.items() if any(record.file(SHARD) for record in records)}


def _moved_shards(
    store: Store,
    records: Sequence[Record],
    located: Mapping[str, pa.Array],
    target: str,
    written: Callable[[], None],
) -> dict[str, Record]:
    done, sizes = {}, {}
    for record in records:
        file = record.file(SHARD)
        if file is not None:
            uids = located.get(record.work_key, pa.array([], pa.string()))
            done[record.work_key] = made = _moved_shard(store, record, file, uids, target)
            sizes[posixpath.basename(file.path)] = made.rows[SAMPLES]
            written()
    for record in records:
        if record.file(SIZES) is not None:
            done[record.work_key] = _moved_sizes(store, record, sizes, target)
    return done


def _moved_shard(store: Store, record: Record, shard: File, uids: pa.Array, target: str) -> Record:
    path = posixpath.join(target, posixpath.basename(shard.path))
    with _attempt(store, record, target) as attempt:
        done = store.record(record.node, attempt.work_key)
        if done is not None:
            return done
        samples = store.read_table(record, SAMPLES)
        left = tables.without(samples, uids)
        if left.num_rows == samples.num_rows:
            store.copy(store.place(record, shard), f"{record.node}/{path}")
            attempt.adopt(SHARD, path, shard.bytes, shard.sha256)
        else:
            cuts = _cut(store, attempt, record, shard, uids.to_pylist(), set(), path)
            attempt.write(SAMPLES, tables.moved(left, cuts), sought="uid")
        attempt.count(dict.fromkeys(record.statuses, left.num_rows))
        gone = samples.num_rows - left.num_rows
        attempt.note(samples=left.num_rows, path=path, **_standing_in(record, gone))
        return attempt.stand_in(record)


def _moved_sizes(store: Store, record: Record, sizes: Mapping[str, int], target: str) -> Record:
    with _attempt(store, record, target) as attempt:
        done = store.record(record.node, attempt.work_key)
        if done is not None:
            return done
        with attempt.create_final(SIZES, posixpath.join(target, "sizes.json")) as stream:
            stream.write(json.dumps(dict(sorted(sizes.items())), indent=1).encode())
        path = str(record.notes.get("path", ""))
        attempt.note(
            samples=sum(sizes.values()),
            path=posixpath.join(target, posixpath.basename(path)),
            **_standing_in(record, 0),
        )
        return attempt.stand_in(record)

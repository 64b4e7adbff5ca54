"""Who had the images: selections that kept them, shards that hold them, checkpoints and indexes made from those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import Generation, Record
from pipeline.store import Store
from pipeline.takedown.matching import columns_of
from pipeline.takedown.records import SAMPLES, SHARD, opaque

SEEN = pa.schema(
    [
        ("what", pa.string()),  # selection, shard, adopted, or made_from: a checkpoint, an index
        ("runs", pa.string()),  # their ids, joined by blanks
        ("node", pa.string()),
        ("generation", pa.int64()),
        ("uid", pa.string()),  # null for what was made from many
        ("shard", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),  # bytes from the begin of the shard to the image's
    ]
)


def seen(store: Store, generations: Sequence[Generation], located: Mapping[str, pa.Array]) -> pa.Table:
    """A row of `SEEN` for every place, over all generations of all nodes that the root still has."""
    runs: dict[tuple[str, int], list[str]] = {}
    for run in store.runs():
        for node, number in run.generations.items():
            runs.setdefault((node, number), []).insert(0, run.id)
    rows: list[dict[str, Any]] = []
    had: set[tuple[str, str]] = set()
    for generation in generations:
        found = [row for record in generation.records for row in _places(store, record, located)]
        ids = " ".join(runs.get((generation.node, generation.number), []))
        rows += [{"runs": ids, "node": generation.node, "generation": generation.number, **row} for row in found]
        if any(row["what"] != "adopted" for row in found) or _has_them(store, generation, located):
            had.add((generation.node, generation.content_hash))
    for generation in _made_from(generations, had, located):
        ids = " ".join(runs.get((generation.node, generation.number), []))
        rows.append({"what": "made_from", "runs": ids, "node": generation.node, "generation": generation.number})
    return pa.Table.from_pylist(rows, schema=SEEN)


def _places(store: Store, record: Record, located: Mapping[str, pa.Array]) -> Iterator[dict[str, Any]]:
    uids = located.get(record.work_key)
    if uids is None:
        return
    shard, tar = record.file(SHARD), record.file("tar")
    if shard is not None and record.file(SAMPLES) is not None:
        path = store.url(store.place(record, shard))
        for row in _rows(store, record, SAMPLES, ["uid", "image", "image_offset"], uids):
            yield {
                "what": "shard", "uid": row["uid"], "shard": path, "member": row["image"], "offset": row["image_offset"]
            }  # fmt: skip
    if tar is not None and (tar.path.startswith("/") or "://" in tar.path):
        for row in _rows(store, record, "image", ["uid", "offset"], uids):
            if row["offset"] is not None:
                yield {"what": "adopted", "uid": row["uid"], "shard": tar.path, "offset": row["offset"]}
    verdicts = _verdicts(store, record)
    if verdicts is not None:
        kept = verdicts.filter(pc.and_(pc.is_in(verdicts.column("uid"), value_set=uids), verdicts.column("kept")))
        yield from ({"what": "selection", "uid": uid} for uid in sorted(set(kept.column("uid").to_pylist())))


def _rows(store: Store, record: Record, kind: str, names: list[str], uids: pa.Array) -> list[dict[str, Any]]:
    table = store.read_table(record, kind, names)
    rows: list[dict[str, Any]] = table.filter(pc.is_in(table.column("uid"), value_set=uids)).to_pylist()
    return rows


def _verdicts(store: Store, record: Record) -> pa.Table | None:
    """uid, `kept` and `dropped_by` of a selection's pairs; None of what selects nothing."""
    file, names = record.file("caption"), ["uid", "kept", "dropped_by"]
    table = None if file is None else columns_of(store, record, file, names)
    return table if table is not None and table.column_names == names else None


def _has_them(store: Store, generation: Generation, located: Mapping[str, pa.Array]) -> bool:
    """Whether a table that decides nothing has rows of them: a pool, scores."""
    holding = [record for record in generation.records if record.work_key in located]
    return any(record.file(SHARD) is None and _verdicts(store, record) is None for record in holding)


def _made_from(
    generations: Sequence[Generation], had: set[tuple[str, str]], located: Mapping[str, pa.Array]
) -> list[Generation]:
    """The generations with files that nothing can be cut from, which say that they hold them or are below such."""
    found = [g for g in generations if any(opaque(r) and r.work_key in located for r in g.records)]
    known = had | {(generation.node, generation.content_hash) for generation in found}
    growing = True
    while growing:
        growing = False
        for generation in generations:
            key = (generation.node, generation.content_hash)
            made = any(opaque(record) for record in generation.records)
            if key not in known and made and known & set(generation.inputs.items()):
                known.add(key)
                found.append(generation)
                growing = True
    return found

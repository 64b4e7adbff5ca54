"""The nearest images in an index that a node has written."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import SluiceError, did_you_mean
from pipeline.identity import fingerprint
from pipeline.records import ABOUT, Generation, Record, Run
from pipeline.runs import in_another
from pipeline.store import Store
from stages.index.embedding_index import EmbeddingIndex
from stages.kit.neighbours import unit

PROBED = 16
"""One cell in so many is searched, and at least `LEAST_PROBES`."""
LEAST_PROBES = 32


@dataclass(frozen=True)
class Neighbour:
    """An image, and the cosine of its embedding to what was asked for."""

    uid: str
    cosine: float


def index_of(store: Store, run: Run, generations: Mapping[str, Generation], node: str | None) -> Generation:
    """The index that is meant: the one that is named, or the only one. Raises `SluiceError`."""
    found = _indexes(generations)
    if node is not None and node not in found:
        what = "is no index" if node in generations else "is no node"
        told = in_another(store, run, node, _indexes) or did_you_mean(node, found)
        raise SluiceError(f"--node: {node!r} {what} of run {run.id}{told}")
    if node is None and not found:
        add = "; add `index: {from: scores, steps: [stages.index.EmbeddingIndex]}` to the DAG and run it"
        raise SluiceError(f"run {run.id} has no index{in_another(store, run, None, _indexes) or add}")
    if node is None and len(found) > 1:
        raise SluiceError(f"run {run.id} has {len(found)} indexes ({', '.join(found)}); name one with --node")
    index = generations[node or found[0]]
    if not index.records:
        raise SluiceError(f"a takedown erased every file of {index.node}; `sluice run` with the same DAG makes it anew")
    return index


def _indexes(generations: Mapping[str, Generation]) -> list[str]:
    return sorted(name for name, one in generations.items() if _is_index(one))


def _is_index(generation: Generation) -> bool:
    """Also one whose files a takedown has erased, all of them."""
    if generation.records:
        return any(record.file("index") for record in generation.records)
    return [step["stage"] for step in generation.identity["steps"]] == [EmbeddingIndex.path()]


def embedding_of(index: Generation) -> tuple[str, str]:
    """The node and the column that were indexed."""
    node, _, column = str(index.records[0].notes[ABOUT]["embedding"]).partition(".")
    return node, column


def nearest(
    store: Store, index: Generation, query_d: npt.NDArray[np.float32], count: int, probes: int | None = None
) -> list[Neighbour]:
    """The `count` nearest, the nearest first, equally near ones by uid; one file of the index is in memory at a time.

    `probes`: how many cells of an inverted index are searched.

    Raises `SluiceError` for a damaged file, and for a query of another width.
    """
    found: list[Neighbour] = []
    for record in index.records:
        one = opened(store, record)
        if one.d != len(query_d):
            raise SluiceError(f"{index.node} has vectors of {one.d} numbers, the query has {len(query_d)}")
        if hasattr(one, "nlist"):
            one.nprobe = min(probes or max(LEAST_PROBES, one.nlist // PROBED), one.nlist)
        near, rows = one.search(unit(query_d[None]), min(count, max(1, one.ntotal)))
        hits = rows[0] >= 0
        uids = store.read_table(record, "ids", ["uid"]).column("uid").take(rows[0][hits]).to_pylist()
        found += [Neighbour(uid, float(cosine)) for uid, cosine in zip(uids, near[0][hits], strict=True)]
    return sorted(found, key=lambda one: (-one.cosine, one.uid))[:count]


def opened(store: Store, record: Record) -> Any:
    """One file of an index: mapped into memory where it lies on this machine, and read only where it is searched.

    Its sha256 is compared first; that of a large local file is remembered until the file changes.
    Raises `SluiceError` naming the file and the repair where it is damaged.
    """
    import faiss

    file = record.file("index")
    assert file is not None
    full = store.full(store.place(record, file))
    if store.local and os.path.exists(full) and fingerprint(full) == file.sha256:
        inverted = record.notes[ABOUT]["kind"] == "ivf"
        return faiss.read_index(full, faiss.IO_FLAG_MMAP if inverted else faiss.IO_FLAG_MMAP_IFC)
    return faiss.deserialize_index(np.frombuffer(store.read_file(record, file), np.uint8))


def without(found: Sequence[Neighbour], uid: str | None, count: int) -> list[Neighbour]:
    """The first `count` but for the image itself."""
    return [one for one in found if one.uid != uid][:count]

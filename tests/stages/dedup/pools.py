"""Small pools with hashes, embeddings and images, laid out in parts as a test wants them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.attempt import Attempt
from pipeline.records import Generation, digest
from pipeline.stage import OBSERVED, PIXELS, Column, Task
from pipeline.store import Store
from tests.pools import InlineWork, seal_node

WIDTH = 16
VECTOR = pa.list_(pa.float16(), WIDTH)
SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("status", pa.string()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
        pa.field("offset", pa.int64(), metadata=OBSERVED),
        pa.field("nbytes", pa.int64(), metadata=OBSERVED),
        ("stored_sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class Item:
    """An image of a pool; without `data` its download failed."""

    uid: str
    data: bytes | None
    phash: int | None = None
    vector: npt.NDArray[np.float32] | None = None


def uid_of(number: int) -> str:
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def write_pool(
    store: Store,
    parts: Mapping[str, Sequence[Item]],
    supersedes: Mapping[str, tuple[str, ...]] | None = None,
) -> list[Generation]:
    """The nodes `pool` and `scores`, of the same parts."""
    pools, scores = [], []
    for part, items in parts.items():
        task = Task(part, supersedes=(supersedes or {}).get(part, ()))
        content = digest([part, [(item.uid, str(item)) for item in items]])
        with Attempt(store, "pool", "parts", task, content) as attempt:
            rows, tar = [], attempt.create("tar")
            for item in items:
                row: dict[str, object] = {"uid": item.uid, "status": "timeout"}
                if item.data is not None:
                    sha = hashlib.sha256(item.data).hexdigest()
                    row |= {"status": "success", "sha256": sha, "stored_sha256": sha, "phash": item.phash}
                    row |= {"offset": tar.tell(), "nbytes": len(item.data)}
                    tar.write(item.data)
                rows.append(row)
            attempt.write("image", pa.Table.from_pylist(rows, schema=SCHEMA))
            pools.append(attempt.commit())
        with Attempt(store, "scores", "parts", task, content) as attempt:
            vectors = [None if item.vector is None else item.vector.astype(np.float16) for item in items]
            uids = pa.array([item.uid for item in items])
            attempt.write("image", pa.table({"uid": uids, "image_embedding": pa.array(vectors, VECTOR)}))
            scores.append(attempt.commit())
    return [seal_node(store, "pool", pools), seal_node(store, "scores", scores, ["pool"])]


class Inline(InlineWork):
    """The work of a dedup stage; the pool has pixels."""

    def __init__(self, store: Store, node: str, stage: object, inputs: Sequence[Generation]) -> None:
        super().__init__(store, node, stage, inputs)  # type: ignore[arg-type]
        self.columns = [*self.columns, Column(PIXELS, "pool", "image", pa.null())]


def spread(items: Sequence[Item], parts: int) -> dict[str, list[Item]]:
    """Items over parts by their uids, each part in order of uid."""
    found: dict[str, list[Item]] = {f"000-{number:05d}": [] for number in range(parts)}
    for item in sorted(items, key=lambda item: item.uid):
        found[f"000-{int(item.uid[:8], 16) * parts >> 32:05d}"].append(item)
    return found

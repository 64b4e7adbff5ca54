"""Small pools of captions and embeddings, laid out in parts as a test wants them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.records import Generation
from pipeline.stage import TableStage
from pipeline.store import Store
from stages.kit.vectors import vectors
from tests.pools import InlineWork, write_node


@dataclass(frozen=True)
class Row:
    """An image with its captions and its embedding."""

    uid: str
    captions: Sequence[str | None] = ("a caption",)
    vector: np.ndarray | None = field(default=None, compare=False)
    status: str = "success"


def uid_of(number: int) -> str:
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def caption_id(text: str | None) -> str:
    return hashlib.blake2b((text or "").encode(), digest_size=16).hexdigest()


def spread(rows: Sequence[Row], parts: int) -> dict[str, list[Row]]:
    """Rows over parts by their uids."""
    found: dict[str, list[Row]] = {f"000-{number:05d}": [] for number in range(parts)}
    for row in sorted(rows, key=lambda row: row.uid):
        found[f"000-{int(row.uid[:8], 16) * parts >> 32:05d}"].append(row)
    return found


def write_pool(
    store: Store, parts: Mapping[str, Sequence[Row]], supersedes: Mapping[str, tuple[str, ...]] | None = None
) -> Generation:
    tables = {}
    for part, rows in parts.items():
        pairs = [(row.uid, text) for row in rows for text in row.captions]
        ids = [caption_id(text) for _, text in pairs]
        caption = {
            "uid": [uid for uid, _ in pairs],
            "caption_id": ids,
            "caption": pa.array([t for _, t in pairs], pa.string()),
        }
        image = {"uid": [row.uid for row in rows], "status": [row.status for row in rows]}
        present = np.array([row.vector is not None for row in rows], bool)
        given = [row.vector for row in rows if row.vector is not None]
        if given:
            image["image_embedding"] = vectors(np.stack(given).astype(np.float32), present)
        tables[part] = {"image": pa.table(image), "caption": pa.table(caption)}
    return write_node(store, "pool", tables, supersedes=supersedes, tar=True)


def run(
    folder: Path,
    stage: TableStage,
    parts: Mapping[str, Sequence[Row]],
    grain: str = "caption",
    supersedes: Mapping[str, tuple[str, ...]] | None = None,
    seed: int = 0,
) -> tuple[pa.Table, InlineWork]:
    """The stage's table of all parts, checked to be aligned to the pool's, and the work that it took."""
    store = Store(str(folder))
    pool = write_pool(store, parts, supersedes)
    work = InlineWork(store, "balance", stage, [pool])
    work.seed = seed
    stage.check(work.columns)
    records = stage.assemble(work)
    tables = []
    for before, record in zip(pool.records, records, strict=True):
        table = store.read_table(record, grain)
        keys = [name for name in ("uid", "caption_id") if name in table.column_names]
        assert table.select(keys).equals(store.read_table(before, grain, keys))
        assert table.schema == stage.outputs(work.columns)[grain]
        tables.append(table)
    return pa.concat_tables(tables), work

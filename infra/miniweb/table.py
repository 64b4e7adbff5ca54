"""The table of a web and its answer key, written side by side in row groups: memory does not grow with the pages."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.miniweb.boxes import BOX, boxes_of
from infra.miniweb.plan import Page, Plan

TABLE = "urls.parquet"
KEY = "key.parquet"
SCHEMA = pa.schema([("url", pa.string()), ("alt", pa.string()), ("page_id", pa.int64()), ("seen_sha256", pa.string())])
"""What a pipeline reads: one row per page, in order, as a crawler would have found them. Few have a `seen_sha256`: what
the image's bytes were when the table was made. Where asked for, `boxes` follows."""
BOXES = pa.field("boxes", pa.list_(BOX))
GROUP = pa.struct(
    [
        ("count", pa.int32()),
        ("shape", pa.string()),
        ("colour", pa.string()),
        ("size", pa.string()),
        ("texture", pa.string()),
        ("row", pa.int32()),  # of three, from the top
        ("column", pa.int32()),  # of three, from the left
    ]
)
RELATION = pa.struct([("subject", pa.int32()), ("relation", pa.string()), ("object", pa.int32())])
KEY_SCHEMA = pa.schema(
    [
        ("page_id", pa.int64()),
        ("url", pa.string()),
        ("caption", pa.string()),  # as in the table
        ("seen_sha256", pa.string()),  # as in the table
        ("kind", pa.string()),  # `kinds.Kind`
        ("family", pa.string()),  # `kinds.Family`
        ("damaged", pa.bool_()),  # a curated set is better without the pair
        ("ends", pa.list_(pa.string())),  # statuses with which a careful download may end; none: no row in a pool
        ("source", pa.int64()),  # the page of which it is a copy or a look-alike, or whose caption it has
        ("changed", pa.string()),  # what a look-alike, or a mismatch beside its word, has otherwise than its source
        ("leaked", pa.int32()),  # the image of the evaluation set that it shows
        ("language", pa.string()),  # ISO 639-1, of a caption that describes something
        ("true_caption", pa.string()),
        ("groups", pa.list_(GROUP)),  # what the image shows, or would show, in reading order
        ("relations", pa.list_(RELATION)),  # between groups, by their places in the list
        ("pattern", pa.string()),
        ("background", pa.string()),
        ("written", pa.string()),  # over the picture
        ("width", pa.int32()),  # px, as painted: before an alteration resizes or crops
        ("height", pa.int32()),
        ("light", pa.float32()),
        ("warmth", pa.float32()),
        ("blur", pa.int32()),
        ("noise", pa.int32()),
        ("quality", pa.int32()),
    ]
)
ROWS = 5000
"""Of a row group."""
AHEAD = 8
"""Row groups that are worked out ahead of the one that is written."""


def key_row(page: Page, base: str) -> dict[str, Any]:
    """What a grader must know of a page."""
    scene = page.scene
    return {
        "page_id": page.number,
        "url": page.url(base),
        "caption": page.caption,
        "seen_sha256": page.seen_sha256,
        "kind": page.kind.value,
        "family": page.facts.family.value,
        "damaged": page.facts.damaged,
        "ends": page.facts.ends,
        "source": page.source.number if page.source else None,
        "changed": page.changed,
        "leaked": page.leaked,
        "language": page.language,
        "true_caption": page.true_caption,
        "groups": [{name: getattr(group, name) for name in GROUP_NAMES} for group in scene.groups],
        "relations": [{"subject": a, "relation": relation, "object": b} for a, relation, b in scene.relations()],
        "pattern": scene.pattern,
        "background": scene.colour,
        "written": scene.written,
        **{name: getattr(scene, name) for name in ("width", "height", "light", "warmth", "blur", "noise", "quality")},
    }


GROUP_NAMES = tuple(field.name for field in GROUP)


def rows(plan: Plan, base: str, workers: Executor | None = None, boxes: bool = False) -> Iterator[pa.Table]:
    """Key and table in one, a row group at a time, worked out by `workers` if there are any; `boxes`: with these."""
    starts = range(0, len(plan), ROWS)
    if workers is None:
        yield from (_group(plan, base, start, boxes) for start in starts)
        return
    waiting = deque[Future[pa.Table]]()
    for start in starts:
        waiting.append(workers.submit(_group, plan, base, start, boxes))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    yield from (group.result() for group in waiting)


def _group(plan: Plan, base: str, start: int, boxes: bool) -> pa.Table:
    pages = [plan[number] for number in range(start, min(start + ROWS, len(plan)))]
    key = pa.Table.from_pylist([key_row(page, base) for page in pages], schema=KEY_SCHEMA)
    return key.append_column(BOXES, pa.array(map(boxes_of, pages), BOXES.type)) if boxes else key


def urls(group: pa.Table) -> pa.Table:
    """The part of the key that is told to everyone, and the boxes, where there are any."""
    told = group.select(["url", "caption", "page_id", "seen_sha256"]).rename_columns(SCHEMA.names).cast(SCHEMA)
    return told.append_column(BOXES, group.column("boxes")) if "boxes" in group.column_names else told


def write(
    plan: Plan,
    base: str,
    table: Path | None,
    key: Path | None,
    workers: Executor | None = None,
    boxes: bool = False,
) -> None:
    """Write the table and the key, either or both; each appears under its name when it is whole."""
    with ExitStack() as files:
        told = files.enter_context(_writer(table, SCHEMA.append(BOXES) if boxes else SCHEMA)) if table else None
        kept = None if key is None else files.enter_context(_writer(key, KEY_SCHEMA))
        for group in rows(plan, base, workers, boxes):
            if told is not None:
                told.write_table(urls(group))
            if kept is not None:
                kept.write_table(group.select(KEY_SCHEMA.names))


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            yield writer
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

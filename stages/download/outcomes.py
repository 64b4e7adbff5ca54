"""What becomes of a part once it is known how each of its rows ended: a tar, statistics, a table."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.stage import PoolPart
from stages.download.archive import SampleWriter
from stages.download.statuses import IN_DECODING, SUCCESS

COPIED = ("key", "status", "error_message", "width", "height", "original_width", "original_height", "exif", "sha256")
"""The columns that img2dataset repeats in a sample's JSON; none of them depends on the clock."""


@dataclass(frozen=True)
class Outcome:
    """How one row ended: its columns by name (those missing are null), and the image when there is one."""

    columns: Mapping[str, Any]
    image: bytes = field(default=b"", repr=False)
    ending: str = ""


def write_pool(part: PoolPart, outcomes: Iterable[Outcome], schema: pa.Schema) -> pa.Table:
    """The rows of `schema`, in the order of the part; its tar and its statistics go out through `part.create`."""
    started = time.time()
    captions = _first_captions(part.caption)
    archive = SampleWriter(part.create("tar"))
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for row, outcome in zip(_dicts(part.image), outcomes, strict=True):
        values = {**dict.fromkeys(columns), **outcome.columns, "key": row["uid"]}
        if outcome.image:
            caption = captions.get(row["uid"])
            sample = {**row, "caption": caption, **{name: values[name] for name in COPIED}}
            values["offset"] = archive.write(row["uid"], outcome.image, outcome.ending, caption or "", sample)
            values["nbytes"] = len(outcome.image)
        for name, column in columns.items():
            column.append(values[name])
    archive.finish()
    part.create("stats.json").write(_stats(columns["status"], started, time.time()))
    return pa.table(columns, schema=schema)


def _first_captions(table: pa.Table) -> dict[str, str]:
    first: dict[str, str] = {}
    for uid, caption in zip(table.column("uid").to_pylist(), table.column("caption").to_pylist(), strict=True):
        if caption is not None:
            first.setdefault(uid, caption)
    return first


def _dicts(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=256):
        yield from batch.to_pylist()


def _stats(statuses: list[str], started: float, ended: float) -> bytes:
    """What img2dataset writes to `<shard>_stats.json`; failures of decoding are its `failed_to_resize`."""
    counts = Counter(statuses)
    resizing = sum(count for status, count in counts.items() if status in IN_DECODING)
    stats = {
        "count": len(statuses),
        "successes": counts[SUCCESS],
        "failed_to_download": len(statuses) - counts[SUCCESS] - resizing,
        "failed_to_resize": resizing,
        "duration": ended - started,
        "start_time": started,
        "end_time": ended,
        "status_dict": dict(sorted(counts.items())),
    }
    return json.dumps(stats, indent=4).encode()

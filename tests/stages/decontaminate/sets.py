"""Evaluation sets of rendered scenes, and pools that hold copies of them."""

import io
import random
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from infra.miniweb.copies import opened
from infra.miniweb.plan import Plan, one_change
from infra.miniweb.render import jpeg
from pipeline.records import Record
from pipeline.store import Store
from stages.decontaminate import Decontaminate
from tests.stages.dedup.pools import Inline, Item, write_pool

PLAN = Plan(20, seed=4, evaluation=12)


@cache
def scene(number: int) -> bytes:
    """The JPEG of an item."""
    return jpeg(PLAN.evaluation_scene(number))


@cache
def look_alike(number: int) -> bytes:
    """An item with one thing in it changed."""
    return jpeg(one_change(PLAN.evaluation_scene(number), random.Random(number))[0])


def cropped(data: bytes, left: float = 0.06, top: float = 0.02, right: float = 0.03, bottom: float = 0.05) -> bytes:
    image = opened(data)
    width, height = image.size
    return encoded(image.crop((round(left * width), round(top * height), width - round(right * width),
                               height - round(bottom * height))))  # fmt: skip


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def folder(path: Path, images: Mapping[str, bytes]) -> str:
    for name, data in images.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return str(path)


def run(
    root: Path, stage: Decontaminate, parts: Mapping[str, Sequence[Item]]
) -> tuple[dict[str, Any], list[Record], Inline]:
    """(uid -> its row, records, the work that it took) of a pool, its table checked to be aligned to it."""
    store = Store(str(root))
    work = Inline(store, "leaks", stage, write_pool(store, parts))
    stage.check(work.columns)
    records = stage.assemble(work)
    found = {}
    for record, items in zip(records, parts.values(), strict=True):
        table = store.read_table(record, "image")
        assert table.schema == stage.outputs(work.columns)["image"]
        assert table.column("uid").to_pylist() == [item.uid for item in items]
        found.update({row.pop("uid"): row for row in table.to_pylist()})
    return found, records, work


def parquet(path: Path, columns: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), path)

"""Shards of pairs, written as the engine writes them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.attempt import Attempt
from pipeline.records import Generation, Record, digest
from pipeline.stage import Task
from pipeline.store import Store
from stages.kit.tar import TarWriter
from tests.pools import InlineWork, seal_node

CAPTIONS = ("Two red circles to the left of a blue star on a green background.", "A dog, asleep.")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))


def picture(colour: str = "red") -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(sink, "JPEG")
    return sink.getvalue()


def uid(number: int) -> str:
    return f"{number:032x}"


def sample(number: int, *captions: str, **more: Any) -> dict[str, Any]:
    """What the JSON of a curated sample says."""
    listed = [
        {"caption_id": f"c{number}-{place}", "text": text, "source": "web"} for place, text in enumerate(captions)
    ]
    return {"uid": uid(number), "url": f"http://a.example/{number}.jpg", "captions": listed, **more}


def write_pairs(store: Store, shards: Sequence[Sequence[Mapping[str, Any]]], node: str = "shards") -> Generation:
    records: list[Record] = []
    for number, samples in enumerate(shards):
        task = Task(f"{number:08d}")
        with Attempt(store, node, "write", task, digest([node, number, list(map(dict, samples))])) as attempt:
            tar = TarWriter(attempt.create_final("shard", f"data/{attempt.work_key[:12]}/{number:08d}.tar"))
            for said in samples:
                tar.add([(f"{said['uid']}.jpg", picture()), (f"{said['uid']}.json", json.dumps(said).encode())])
            tar.finish()
            records.append(attempt.commit())
    return seal_node(store, node, records)


def made(store: Store, stage: Any, *inputs: Generation, node: str = "chats") -> Generation:
    """The node, sealed."""
    return seal_node(store, node, stage.assemble(InlineWork(store, node, stage, inputs)))


def turns(store: Store, generation: Generation) -> list[dict[str, Any]]:
    found = [record for record in generation.records if record.file("conversation")]
    return [row for record in found for row in store.read_table(record, "conversation").to_pylist()]


def tars(store: Store, generation: Generation) -> list[Path]:
    files = [(record, record.file("shard")) for record in generation.records]
    return [Path(store.path, store.place(record, file)) for record, file in files if file is not None]

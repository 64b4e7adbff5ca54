"""A takedown erases what conversations hold of an image: its bytes, its turns, its place in the index."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from models.data.shards import Samples
from pipeline.store import Store
from pipeline.takedown.records import rewritten
from stages.conversations import Conversations
from tests.stages.conversations.conftest import CAPTIONS, made, sample, uid, write_pairs


def test_image_and_turns_of_one_sample_go_and_all_else_stays(store: Store) -> None:
    generation = made(store, Conversations(), write_pairs(store, [[sample(0, CAPTIONS[0]), sample(1, CAPTIONS[1])]]))
    gone = pa.array([uid(0)])
    located = {record.work_key: gone for record in generation.records if record.phase in ("turns", "pack")}
    done = {record.phase: record for record in rewritten(store, generation, located, lambda: None).values()}

    rows = store.read_table(done["turns"], "conversation").to_pylist()
    assert all(row["question"] is row["answer"] is None for row in rows if row["uid"] == uid(0))
    assert any(row["question"] for row in rows if row["uid"] == uid(1))

    shard, sizes = done["pack"].file("shard"), done["sizes"].file("sizes")
    assert shard is not None
    assert sizes is not None
    left = Samples.open(str(Path(store.path, store.place(done["pack"], shard))))
    assert [one.key for one in left] == [uid(1)]
    assert left[0].members["jpg"]
    assert json.loads(Path(store.path, store.place(done["sizes"], sizes)).read_text()) == {"00000000.tar": 1}

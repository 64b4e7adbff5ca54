"""Shards of a few pictures, written as the engine writes them, and a recipe so small that it trains in a second."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline.attempt import Attempt
from pipeline.records import Generation, digest
from pipeline.stage import Task
from pipeline.store import Store
from stages.kit.tar import TarWriter
from tests.pools import seal_node, write_node

RECIPE = """
about: a CLIP for tests
model:
  models.towers.two_towers.TwoTowers:
    config:
      model_type: clip
      projection_dim: 16
      vision_config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
        patch_size: 8, image_size: 16}
      text_config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
        max_position_embeddings: 12}
objectives: [models.objectives.contrastive.InfoNCE]
data: {images: {side: 16}, texts: {vocabulary: 300, context: 12}}
samples: 64
batch: 8
optimizer: {learning_rate: 1e-3}
precision: float32
checkpoint_every: 16
"""
COLOURS = ("red", "green", "blue", "white")
FUNNEL = [{"rule": "large", "rows": 5, "dropped": 1, "left": 4}]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))


@pytest.fixture
def shards(store: Store) -> Generation:
    return write_shards(store, "shards", 20)


@pytest.fixture
def kept(store: Store) -> Generation:
    """A selection, for its funnel: two parts."""
    table = pa.table({"uid": ["0"], "caption_id": ["0"], "kept": [True], "dropped_by": pa.array([None], pa.string())})
    return write_node(
        store, "kept", {"000-0": {"caption": table}, "000-1": {"caption": table}}, notes={"funnel": FUNNEL}
    )


def write_shards(store: Store, node: str, samples: int) -> Generation:
    """One shard of squares and what they show."""
    task = Task("00000000")
    with Attempt(store, node, "write", task, digest([node, samples])) as attempt:
        tar = TarWriter(attempt.create_final("shard", "data/abc/00000000.tar"))
        for number in range(samples):
            colour = COLOURS[number % len(COLOURS)]
            shown = np.array(Image.new("RGB", (20, 20), colour))
            shown[: number % 20, : number % 7] = 128
            sink = io.BytesIO()
            Image.fromarray(shown).save(sink, "JPEG")
            tar.add([(f"{number:04d}.jpg", sink.getvalue()), (f"{number:04d}.txt", f"a {colour} square".encode())])
        tar.finish()
        attempt.count({"written": samples})
        record = attempt.commit()
    return seal_node(store, node, [record.model_copy(update={"rows": {"samples": samples}})])

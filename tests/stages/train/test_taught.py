"""A teacher's rows on their way: a CLIP embeds, shards store it, and MobileCLIP's recipe learns from it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from pipeline import Dag, run
from pipeline.store import Store
from tests.inline import Inline
from tests.models.towers import tiny
from tests.stages.train.test_views import LAYERS, TOWER, said_by

DAG = """
dag: taught
nodes:
  urls: {steps: [tests.stages.gallery.Links]}
  pool: {from: urls, steps: [tests.stages.gallery.Gallery]}
  kept: {from: pool, steps: [{stages.select.Select: {rules: [downloaded: status = 'success']}}]}
  teacher:
    from: pool
    steps:
      - stages.embed.ImageEmbeddings: {weights: CLIP}
      - stages.embed.TextEmbeddings: {weights: CLIP}
  taught:
    from: [pool, teacher, kept]
    steps: [{stages.shard.WebDataset: {json_columns: [url, image_embedding, text_embedding]}}]
  mobileclip:
    from: [taught, kept]
    steps: [{stages.train.Train: {recipe: mobileclip, tiny: true, samples: 16, settings: SETTINGS}}]
"""
TOWERS = f"vision_config: {{{TOWER}}}, text_config: {{{LAYERS}}}"
SETTINGS = [
    f"data.teacher.width={tiny.WIDTH}",
    f"model={{models.towers.two_towers.TwoTowers: {{config: {{{TOWERS}}}}}}}",
    "data.images.side=16",
    "data.texts={vocabulary: 300}",
    "batch=8",
    "schedule.warmup=8",
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny.save("clip", tmp_path_factory.mktemp("clip"))


def test_a_training_reads_the_teacher_that_the_shards_stored(clip: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    dag = Dag.parse(DAG.replace("CLIP", str(clip)).replace("SETTINGS", json.dumps(SETTINGS)))
    dag.check()
    result = run(dag, store.root, executor=Inline(store))
    embedded = [store.read_table(record, "image") for record in result.generations["teacher"].records]
    rows = {row["uid"]: row["image_embedding"] for row in pa.concat_tables(embedded).to_pylist()}
    samples = [said for path in tmp_path.glob("taught/data/**/*.tar") for said in documents(path)]
    assert len(samples) > 8
    for said in samples:
        assert said["url"].startswith("http://gallery/")
        assert said["image_embedding"] == pytest.approx(rows[said["uid"]], abs=1e-3)
        assert all(len(one["text_embedding"]) == tiny.WIDTH for one in said["captions"])
    (record,) = result.generations["mobileclip"].records
    _, training = said_by(store, record)
    assert training["skipped"] == {}, "every sample has the teacher's rows"
    assert training["samples"] == 16
    assert training["lineage"]["shards"]["taught"]["samples"] == len(samples)


def documents(path: Path) -> list[dict[str, Any]]:
    with tarfile.open(path) as tar:
        read = [tar.extractfile(member) for member in tar if member.name.endswith(".json")]
        return [json.load(file) for file in read if file is not None]

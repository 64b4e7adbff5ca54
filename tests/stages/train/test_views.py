"""Of one curated run every recipe takes what it reads: ViT images with their labels, BERT texts, DINO images alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoModel, AutoModelForImageClassification, BertForMaskedLM

from pipeline import Catalog, Dag, run
from pipeline.driver import Result
from pipeline.records import Record
from pipeline.stage import Batch, Device, PartStage, Promise
from pipeline.store import Store
from tests.inline import Inline

LAYERS = "hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2"
TOWER = f"{LAYERS}, patch_size: 8, image_size: 16"
NAMES = ("even", "odd")
SETTINGS = {
    "vit-b16": [
        f"model={{models.towers.vit.VisionClassifier: {{config: {{{TOWER}}}, classes: [{', '.join(NAMES)}]}}}}",
        f"data.labels={{field: parity, names: [{', '.join(NAMES)}]}}",
        "data.images.side=16",
    ],
    "bert": [
        f"model={{models.towers.bert.Bert: {{config: {{{LAYERS}}}}}}}",
        "data.texts={vocabulary: 300, context: 24}",
    ],
    "dino-vit-s16": [
        f"model={{models.towers.dino.Dino: {{config: {{{TOWER}}}, prototypes: 16, hidden: 16, bottleneck: 8}}}}",
        "objectives=[{models.objectives.dino.SelfDistillation: {prototypes: 16}}]",
        "data.images.side=16",
        "data.crops={count: 2, side: 8}",
    ],
}
LOADS: dict[str, tuple[Any, dict[str, Any]]] = {
    "vit-b16": (AutoModelForImageClassification, {}),
    "bert": (BertForMaskedLM, {}),
    "dino-vit-s16": (AutoModel, {"add_pooling_layer": False}),
}
CURATED = """
dag: views
nodes:
  urls: {steps: [tests.stages.gallery.Links]}
  pool: {from: urls, steps: [tests.stages.gallery.Gallery]}
  labels: {from: pool, steps: [tests.stages.train.test_views.Parity]}
  kept:
    from: [pool, labels]
    steps: [{stages.select.Select: {rules: [downloaded: status = 'success', labelled: parity IS NOT NULL]}}]
  shards: {from: [pool, labels, kept], steps: [{stages.shard.WebDataset: {samples_per_shard: 8}}]}
"""


def trained(store: Store, settings: Mapping[str, Sequence[str]]) -> Result:
    """The curated run, and from its shards a training of every recipe, in a node of its own."""
    document = yaml.safe_load(CURATED)
    for name, own in settings.items():
        how = {"recipe": name, "tiny": True, "samples": 24}
        how["settings"] = [*own, "batch=8", "schedule.warmup=8", "checkpoint_every=24"]
        steps = [{"stages.train.Train": how}]
        document["nodes"][node_of(name)] = {"from": ["shards", "kept"], "steps": steps}
    dag = Dag.parse(yaml.safe_dump(document))
    dag.check()
    return run(dag, store.root, executor=Inline(store))


def node_of(name: str) -> str:
    return name.partition("-")[0]


def said_by(store: Store, record: Record) -> tuple[Path, dict[str, Any]]:
    """The folder of a model, and what its training said of itself."""
    file = record.file("training.json")
    assert file is not None
    folder = Path(store.path, store.place(record, file)).parent
    return folder, json.loads((folder / "training.json").read_text())


class Parity(PartStage):
    """Add `parity` to images: a class by name, for all but every fourth."""

    promise: ClassVar[Promise] = "pure"
    grain = "image"
    reads = frozenset({"n"})
    adds = pa.schema([("parity", pa.string())])

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        def name(batch: Batch) -> pa.Table:
            numbers = batch.table["n"].to_pylist()
            return pa.table({"parity": [None if n % 4 == 3 else NAMES[n % 2] for n in numbers]}, schema=self.adds)

        return name


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Result]:
    torch.set_num_threads(1)
    store = Store(str(tmp_path_factory.mktemp("root")))
    return store, trained(store, SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_view_of_a_curated_run_is_trained_on(name: str, done: tuple[Store, Result]) -> None:
    store, result = done
    (record,) = result.generations[node_of(name)].records
    curve = store.read_table(record, "curve").to_pydict()
    assert curve["samples"][-1] == 24
    assert np.isfinite(curve["loss"]).all()
    folder, said = said_by(store, record)
    assert said["skipped"] == {}, "every sample has what the recipe reads"
    with Catalog(store.root) as catalog:
        kept = catalog.sql("SELECT count(DISTINCT uid) AS n FROM kept WHERE kept").column("n")[0].as_py()
    assert said["lineage"]["shards"]["shards"]["samples"] == kept > 8
    assert [step["rule"] for step in said["lineage"]["funnels"]["kept"]] == ["downloaded", "labelled"]
    kind, more = LOADS[name]
    model, found = kind.from_pretrained(folder, output_loading_info=True, **more)
    assert not found["missing_keys"]
    if name == "vit-b16":
        assert model.config.id2label == dict(enumerate(NAMES))


def test_a_label_that_the_recipe_does_not_name_is_left_out_and_counted(done: tuple[Store, Result]) -> None:
    store, _ = done
    other = [text.replace("[even, odd]", "[even, other]") for text in SETTINGS["vit-b16"]]
    (record,) = trained(store, {"vit-b16": other}).generations["vit"].records
    assert said_by(store, record)[1]["skipped"]["no class"] > 0

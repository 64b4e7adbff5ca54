"""Evaluation as a node: its table is what the models score, each under the name of the node that trained it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from infra.miniweb import sets
from models.evaluate import evaluate
from pipeline.errors import SluiceError
from pipeline.identity import find_resources
from pipeline.records import Generation, Record
from pipeline.store import Store
from stages.evaluate import Evaluate
from stages.train import Train
from tests.pools import InlineWork, seal_node
from tests.stages.train.test_train import folder_of, trained


@pytest.fixture
def held_out(tmp_path: Path) -> str:
    """A folder of two small sets."""
    sets.write(tmp_path / "sets", samples=4, names=("binding", "retrieval"))
    return str(tmp_path / "sets")


@pytest.fixture
def clip(store: Store, shards: Generation, recipe: str) -> Generation:
    """Two models, of two seeds."""
    return seal_node(store, "clip", trained(store, Train(recipe=recipe, seeds=2), [shards]))


def evaluated(store: Store, stage: Evaluate, *inputs: Generation) -> list[Record]:
    work = InlineWork(store, "comparison", stage, inputs)
    work.resources = find_resources([stage])
    return stage.assemble(work)


def test_a_row_for_every_number_of_every_model(store: Store, clip: Generation, held_out: str) -> None:
    records = evaluated(store, Evaluate(sets={"held_out": held_out}), clip)
    assert [record.part for record in records] == ["clip-model-0", "clip-model-1"]
    for seed, (record, model) in enumerate(zip(records, clip.records, strict=True)):
        places = {name: f"{held_out}/{name}" for name in ("binding", "retrieval")}
        known = evaluate(folder_of(store, model), places)
        rows = store.read_table(record, "metric").to_pylist()
        assert rows == [{"model": "clip", "seed": seed, **asdict(metric)} for metric in known]
        assert {row["set"] for row in rows} == {"binding", "retrieval"}
        card = record.file("README.md")
        assert card is not None
        said = store.read_file(record, card).decode()
        assert "## How well it does" in said
        assert all(f"| {one.set} | {one.task} | {one.metric} |" in said for one in known)


def test_a_set_has_the_name_that_it_is_given(store: Store, clip: Generation, held_out: str) -> None:
    stage = Evaluate(sets={"who_is_what": f"{held_out}/binding"}, tasks=("image_caption_selection",))
    for record in evaluated(store, stage, clip):
        (row,) = store.read_table(record, "metric").to_pylist()
        assert (row["set"], row["metric"], row["samples"]) == ("who_is_what", "text_acc", 4)


def test_what_is_no_model_is_named(store: Store, shards: Generation, held_out: str) -> None:
    with pytest.raises(SluiceError, match="shards holds no model"):
        evaluated(store, Evaluate(sets={"held_out": held_out}), shards)


def test_what_is_no_set_is_named(store: Store, clip: Generation, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("nothing")
    with pytest.raises(SluiceError, match="is no evaluation set and holds none"):
        evaluated(store, Evaluate(sets={"held_out": str(tmp_path / "empty")}), clip)


def test_sets_and_tasks_are_looked_at_before_anything_starts() -> None:
    with pytest.raises(SluiceError, match="sets: none is named"):
        Evaluate(sets={}).check([])
    with pytest.raises(SluiceError, match="did you mean 'linear_probe'"):
        Evaluate(sets={"a": "b"}, tasks=("linear_prob",)).check([])

"""A training as a node: what it commits, that it goes on where it was, and what makes it another training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoModel

from models.data.shards import Unreachable
from models.towers.dual_encoder import DualEncoder
from pipeline.errors import SluiceError
from pipeline.identity import find_resources
from pipeline.records import Generation, Record
from pipeline.stage import Task
from pipeline.store import Store
from stages.train import Train, gang
from tests.pools import InlineWork
from tests.stages.train.conftest import FUNNEL, write_shards


def work_of(store: Store, stage: Train, inputs: Sequence[Generation], node: str = "clip") -> InlineWork:
    work = InlineWork(store, node, stage, inputs)
    work.resources = find_resources([stage])
    return work


def trained(store: Store, stage: Train, inputs: Sequence[Generation], node: str = "clip") -> list[Record]:
    return stage.assemble(work_of(store, stage, inputs, node))


def folder_of(store: Store, record: Record) -> Path:
    file = record.file("config.json")
    assert file is not None
    return Path(store.path, store.place(record, file)).parent


def test_the_model_lies_in_a_folder_that_transformers_and_the_other_stages_load(
    store: Store, shards: Generation, recipe: str
) -> None:
    (record,) = trained(store, Train(recipe=recipe), [shards])
    folder = folder_of(store, record)
    assert type(AutoModel.from_pretrained(folder)).__name__ == "CLIPModel"
    assert DualEncoder.load(folder, "cpu", "float32").width == 16
    curve = store.read_table(record, "curve")
    assert curve.column("samples").to_pylist()[-1] == 64
    assert curve.column("loss").to_pylist()[-1] < curve.column("loss").to_pylist()[0]


def test_a_second_time_nothing_is_done(store: Store, shards: Generation, recipe: str) -> None:
    first = trained(store, Train(recipe=recipe), [shards])
    work = work_of(store, Train(recipe=recipe), [shards])
    assert Train(recipe=recipe).assemble(work) == first
    assert work.done == []


def test_killed_in_the_middle_it_ends_with_the_weights_of_one_that_was_not(
    store: Store, shards: Generation, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (calm,) = trained(store, Train(recipe=recipe), [shards], "calm")
    seen: list[int] = []

    class Killed(gang._Progress):
        def __call__(self, samples: int) -> None:
            seen.append(samples)
            if len(seen) == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(gang, "_Progress", Killed)
    with pytest.raises(KeyboardInterrupt):
        trained(store, Train(recipe=recipe), [shards])
    (resumed,) = trained(store, Train(recipe=recipe), [shards])
    assert seen[:5] == [8, 16, 24, 32, 40]
    assert 8 < seen[5] <= 40, "it began at a checkpoint"
    assert store.read_table(resumed, "files") == store.read_table(calm, "files")


def test_the_weights_decide_the_content_and_what_was_measured_does_not(
    store: Store, shards: Generation, recipe: str
) -> None:
    (one,) = trained(store, Train(recipe=recipe), [shards], "one")
    (same,) = trained(store, Train(recipe=recipe), [shards], "same")
    (other,) = trained(store, Train(recipe=recipe, samples=32), [shards], "other")
    assert one.content_hash == same.content_hash != other.content_hash
    assert {"model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"} <= set(
        store.read_table(one, "files").column("name").to_pylist()
    )


def test_the_model_knows_its_data_and_how_that_was_selected(
    store: Store, shards: Generation, kept: Generation, recipe: str
) -> None:
    (record,) = trained(store, Train(recipe=recipe), [shards, kept])
    said = json.loads((folder_of(store, record) / "training.json").read_text())["lineage"]
    assert said["shards"] == {"shards": {"selection": shards.content_hash, "samples": 20}}
    both = [{**step, "rows": 10, "dropped": 2, "left": 8} for step in FUNNEL]
    assert said["funnels"] == {"kept": both}, "the funnels of two parts are one"
    card = (folder_of(store, record) / "README.md").read_text()
    assert shards.content_hash in card
    assert "large" in card


def tasks_of(store: Store, stage: Train, inputs: Sequence[Generation], seed: int = 0) -> list[Task]:
    found: list[Task] = []

    class Looking(InlineWork):
        def map(self, phase: str, tasks: Any, do: Any, final: bool = True) -> list[Record]:
            found.extend(tasks)
            return []

    work = Looking(store, "clip", stage, inputs)
    work.seed = seed
    work.resources = find_resources([stage])
    stage.assemble(work)
    return found


def test_how_it_is_laid_over_processes_is_no_part_of_what_is_trained(
    store: Store, shards: Generation, recipe: str
) -> None:
    (plain,) = tasks_of(store, Train(recipe=recipe), [shards])
    (other,) = tasks_of(store, Train(recipe=recipe, parallel={"micro_batch": 4, "mode": "fsdp"}), [shards])
    (longer,) = tasks_of(store, Train(recipe=recipe, settings=("schedule.warmup=8",)), [shards])
    assert plain.payload == other.payload != longer.payload
    assert other.hints["how"]["parallel"]["micro_batch"] == 4


def test_every_seed_is_a_task_of_its_own_and_follows_the_dag_s(store: Store, shards: Generation, recipe: str) -> None:
    tasks = tasks_of(store, Train(recipe=recipe, seeds=3), [shards], seed=17)
    assert [task.part for task in tasks] == ["model-0", "model-1", "model-2"]
    assert [task.payload["recipe"]["seed"] for task in tasks] == [17, 18, 19]


def test_what_the_recipe_mixes_comes_from_the_nodes_of_those_names(store: Store, recipe: str) -> None:
    inputs = [write_shards(store, "web", 8), write_shards(store, "books", 8)]
    settings = ("data.mixture={web: 3, books: 1}",)
    (task,) = tasks_of(store, Train(recipe=recipe, settings=settings), inputs)
    assert task.payload["data"] == {"web": "web", "books": "books"}
    with pytest.raises(SluiceError, match=r"set data.mixture to \{web: 1, books: 1\}"):
        tasks_of(store, Train(recipe=recipe), inputs)


def test_without_shards_there_is_nothing_to_train_on(store: Store, kept: Generation, recipe: str) -> None:
    with pytest.raises(SluiceError, match="no node in `from` holds shards"):
        tasks_of(store, Train(recipe=recipe), [kept])


def test_what_another_try_would_not_mend_is_refused_in_a_line(store: Store, shards: Generation, recipe: str) -> None:
    hopeless = Train(recipe=recipe, settings=("optimizer.learning_rate=1e30",))
    with pytest.raises(SluiceError, match="step"):
        trained(store, hopeless, [shards])


def test_a_gang_that_starts_again_refuses_what_it_refused_before_it_had_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "batch = 15 does not divide over 2 processes"
    refused = tmp_path / "root" / "clip" / "checkpoints" / "abc.refused"
    tries: list[dict[str, Any]] = []

    def refuse(call: dict[str, Any]) -> None:
        tries.append(call)
        raise SluiceError(said)

    monkeypatch.setattr(gang, "train_here", refuse)
    for _ in range(2):
        with pytest.raises(SluiceError, match=said):
            gang._one_of_many({"refused": str(refused), "elastic": False})
    assert refused.read_text() == said
    assert len(tries) == 1


def test_a_store_that_does_not_answer_is_no_refusal(
    store: Store, shards: Generation, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine tries again what failed, and not what was refused."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise Unreachable("shards/00000.tar cannot be read, tried 5 times: SlowDown")

    monkeypatch.setattr("models.train.loop.train", unreachable)
    with pytest.raises(Unreachable):
        trained(store, Train(recipe=recipe), [shards])


def test_other_rules_that_keep_the_same_do_not_stop_a_training_that_was_killed(
    store: Store, shards: Generation, kept: Generation, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(gang._Progress):
        def __call__(self, samples: int) -> None:
            if samples == 40:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gang, "_Progress", Killed)
        with pytest.raises(KeyboardInterrupt):
            trained(store, Train(recipe=recipe), [shards])
    (record,) = trained(store, Train(recipe=recipe), [shards, kept])
    assert store.read_table(record, "curve").column("samples").to_pylist()[-1] == 64


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"recipe": "clip-vit-b23"}, "did you mean 'clip-vit-b32'"),
        ({"settings": ("optimizer.learning_rat=1",)}, "did you mean 'learning_rate'"),
        ({"settings": ("batch=0",)}, "batch = 0"),
        ({"samples": 4}, "less than one batch of 8"),
        ({"tiny": True}, "has no `tiny` overlay"),
        ({"parallel": {"mode": "dp"}}, "parallel.mode = 'dp'"),
    ],
)
def test_a_recipe_that_cannot_be_is_told_before_anything_starts(
    recipe: str, parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(SluiceError, match=said):
        Train(**{"recipe": recipe, **parameters}).check([])


def test_no_gradient_is_left_on_in_the_process_of_the_engine(store: Store, shards: Generation, recipe: str) -> None:
    before = torch.get_rng_state()
    trained(store, Train(recipe=recipe), [shards])
    assert torch.equal(before, torch.get_rng_state()), "other steps of the worker draw what they would have drawn"

"""BLIP in the loop: killed and called again it ends as if it had not been, queue and slow copy included."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

from models.recipe import Recipe, RecipeError
from models.train.checkpoint import Checkpoints
from models.train.loop import train
from models.train.parallel import Place
from models.trainable import Objective
from tests.models.towers import small, tiny_blip

CHILD = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from tests.models.towers.test_blip_training import run
run(Path(sys.argv[1]))
"""


def run(out: Path, weights: dict[str, str] | None = None, **given: Any) -> None:
    source = tiny_blip.BlipSource(12, Place.here())
    train(tiny_blip.recipe(**given), {}, str(out), source=source, weights=weights)


def left(out: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint: weights, moments, slow copy, queue."""
    checkpoints = Checkpoints(str(out), Place.here(), 2)
    newest = checkpoints.newest()
    assert newest is not None
    sizes = FsspecReader(newest.folder).read_metadata().state_dict_metadata
    found = {name: torch.empty(told.size, dtype=told.properties.dtype) for name, told in sizes.items()}  # type: ignore[union-attr]
    checkpoints.load(newest, found)
    checkpoints.close()
    return found


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    run(out)
    return out


def test_killed_it_ends_as_if_it_had_not_been(tmp_path: Path, unbroken: Path) -> None:
    """The child is killed as soon as it has a checkpoint; the queue of 16 has gone round by then."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stderr=subprocess.DEVNULL)
    while child.poll() is None and not list(tmp_path.glob("checkpoints/*/complete.json")):
        time.sleep(0.002)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    run(tmp_path)
    expected, found = left(unbroken), left(tmp_path)
    assert found.keys() == expected.keys()
    assert {"buffer.objectives.0.image_queue", "buffer.objectives.0.seen", "buffer.slow.text_proj.bias"} < found.keys()
    assert found["buffer.objectives.0.seen"] == 120
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert (tmp_path / "model/model.safetensors").read_bytes() == (unbroken / "model/model.safetensors").read_bytes()


def test_a_fine_tuning_begins_with_what_was_trained(unbroken: Path, tmp_path: Path) -> None:
    captioner: dict[str, Any] = {
        "model": {"models.towers.blip.Blip": {"heads": ["caption"]}},
        "objectives": [{"models.objectives.language.NextToken": {"smoothing": 0.1}}],
        "samples": 12,
        "optimizer": {"learning_rate": 1e-9},
    }
    run(tmp_path, {"pretrained": f"{unbroken}/model"}, **captioner)
    before, after = (load_file(folder / "model/model.safetensors") for folder in (unbroken, tmp_path))
    assert after.keys() == {name for name in before if name.startswith(("vision_model.", "text_decoder."))}
    for name, value in after.items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)


def test_a_fine_tuning_without_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises((ValueError, RecipeError), match="expected either a config or pretrained"):
        run(tmp_path, model={"models.towers.blip.Blip": {"heads": ["caption"]}})


def test_micro_batches_match_within_themselves(tmp_path: Path) -> None:
    """The loss falls all the same, and contrast sees the whole batch: of 12 rows and a queue of 16."""
    run(tmp_path, parallel={"micro_batch": 4}, samples=36)
    assert left(tmp_path)["buffer.objectives.0.seen"] == 36


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model of `blip`, as it is at first."""
    folder = tmp_path_factory.mktemp("pretrained")
    made = Recipe.load("blip", tiny=True)
    torch.manual_seed(0)
    made.model.build(tokenizer=small.words(300, made.data.texts.context)).eval().export(folder)
    return str(folder)


@pytest.mark.parametrize("name", ["blip", "blip-captioner", "blip-filter"])
def test_the_tiny_recipes_learn_a_batch(name: str, pretrained: str) -> None:
    made = Recipe.load(name, tiny=True, overrides=["data.texts.vocabulary=300"])
    torch.manual_seed(0)
    begin = {} if name == "blip" else {"pretrained": pretrained}
    model = made.model.build(tokenizer=small.words(300, made.data.texts.context), **begin)
    objectives: list[Objective] = [term.objective.build() for term in made.objectives]
    adam, rows = torch.optim.Adam(model.parameters(), 1e-3), small.batch(made)
    curve = []
    for _ in range(25):
        features = model(rows)
        losses = [objective(features, model.scalars()) for objective in objectives]
        means = torch.stack([loss.total / loss.count for loss in losses])
        adam.zero_grad()
        means.sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
        for part in (model, *objectives):
            part.after_step()
        curve.append(means.tolist())
    for first, last in zip(curve[0], curve[-1], strict=True):
        assert last < 0.8 * first


@pytest.mark.parametrize("name", ["blip", "blip-captioner", "blip-filter"])
def test_fine_tunings_take_what_pretraining_leaves_at_full_size_too(name: str) -> None:
    """Widths of queue and features agree, and contexts fit the places for tokens."""
    made, first = Recipe.load(name), Recipe.load("blip").model.parameters["config"]
    queues = [term.objective.parameters for term in made.objectives if term.objective.path.endswith("Contrast")]
    assert all(queue["width"] == first["image_text_hidden_size"] for queue in queues)
    assert made.data.texts.context <= first["text_config"]["max_position_embeddings"]
    side = made.model.parameters.get("image_size", first["vision_config"]["image_size"])
    assert made.data.images.side == side
    assert side % first["vision_config"]["patch_size"] == 0

"""A training that was killed and called again ends as one that never was: bit by bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.data.index import DataError
from models.recipe import RecipeError
from models.train.checkpoint import MARK, Checkpoints
from models.train.guard import TrainingError
from models.train.loop import Trained, train
from models.train.parallel import Place
from tests.models.train.toy import ToySource, recipe

TIMED = {"samples_per_second", "tokens_per_second", "waiting", "mfu"}
SETTINGS: dict[str, Any] = {
    "phases": [
        {"name": "text", "share": 0.3, "rates": {"image": 0, ".*": 1}},
        {"name": "all", "share": 0.7, "rates": {".*": 1}},
    ],
    "objectives": ["models.objectives.contrastive.InfoNCE", {"tests.models.train.toy.NextToken": {"weight": 0.5}}],
    "schedule": {"kind": "cosine", "warmup": 36},
    "parallel": {"micro_batch": 5},
    "ema": 0.8,
    "checkpoint_every": 24,
}
"""All that a training can carry along, dropout included."""
CHILD = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from tests.models.train.test_resume import run
run(Path(sys.argv[1]))
"""


def run(out: Path, stop_at: int | None = None, **changes: Any) -> Trained:
    source = ToySource(12, Place.here())
    made = recipe(**SETTINGS | changes)
    return train(made, {}, str(out), source=source, report=lambda samples, _, __: samples == stop_at)


def left(out: Path) -> tuple[bytes, list[dict[str, float]], Any]:
    """Weights to the bit, the curve without its times, and what was skipped."""
    said = json.loads((out / "model" / "training.json").read_text())
    curve = [{name: value for name, value in row.items() if name not in TIMED} for row in said["curve"]]
    return (out / "model" / "model.safetensors").read_bytes(), curve, said["skipped"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("unbroken")
    run(out)
    return left(out)


def test_stopped_again_and_again_it_ends_as_if_it_had_not_been(tmp_path: Path, unbroken: Any) -> None:
    stops = [24, 72, 120]  # in the first phase, where the second begins, and later
    for stop in stops:
        trained = run(tmp_path, stop_at=stop)
        assert trained.model is None
        assert stop < trained.samples < 240
    assert run(tmp_path).samples == 240
    assert left(tmp_path) == unbroken


def test_seeds_and_dropout_matter_to_these_tests(tmp_path: Path, unbroken: Any) -> None:
    run(tmp_path / "seed", seed=1)
    assert left(tmp_path / "seed")[0] != unbroken[0]
    run(tmp_path / "still", model="tests.models.train.toy.Toy")
    assert left(tmp_path / "still")[0] != unbroken[0]


@pytest.mark.fault(49)
def test_killed_it_ends_as_if_it_had_not_been(tmp_path: Path, unbroken: Any) -> None:
    """The child is killed as soon as it has a checkpoint, most likely while it writes the next."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stderr=subprocess.DEVNULL)
    while child.poll() is None and not list(tmp_path.glob("checkpoints/*/complete.json")):
        time.sleep(0.002)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    run(tmp_path)
    assert left(tmp_path) == unbroken


@pytest.mark.chaos
@pytest.mark.fault(49)
def test_killed_at_random_again_and_again_it_ends_as_if_it_had_not_been(tmp_path: Path, unbroken: Any) -> None:
    dice = random.Random(7)
    kills = 0
    while kills < 12:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stderr=subprocess.DEVNULL)
        before = set(tmp_path.glob("tensorboard/*"))
        while child.poll() is None and set(tmp_path.glob("tensorboard/*")) == before:
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 1.0))
        child.kill()
        kills += child.wait() != 0
        if (tmp_path / "model" / "training.json").exists():
            assert left(tmp_path) == unbroken
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
    run(tmp_path)
    assert left(tmp_path) == unbroken


def test_a_finished_training_called_again_does_no_step(tmp_path: Path, unbroken: Any) -> None:
    run(tmp_path)
    source = ToySource(12, Place.here())
    again = train(recipe(**SETTINGS), {}, str(tmp_path), source=source)
    assert source.seen == [0]  # a look at two rows, to count their operations
    assert again.model == f"{tmp_path}/model"
    assert left(tmp_path) == unbroken


def test_another_recipe_or_other_data_do_not_go_on(tmp_path: Path) -> None:
    run(tmp_path, stop_at=24)
    with pytest.raises(RecipeError, match=r"whose recipe.seed was 0, and now is 1; take another folder"):
        run(tmp_path, seed=1)
    source = ToySource(12, Place.here())
    with pytest.raises(RecipeError, match=r'whose lineage.selection was not set, and now is "abc"'):
        train(recipe(**SETTINGS), {}, str(tmp_path), source=source, lineage={"selection": "abc"})
    assert run(tmp_path, stop_at=48, parallel={"micro_batch": 3}, keep=5).samples > 48


@pytest.mark.parametrize(("setting", "known"), [("turns", True), ("context", False)])
def test_a_setting_of_a_later_version_that_is_not_made_use_of_is_no_other_training(
    tmp_path: Path, setting: str, known: bool
) -> None:
    """`turns` is null unless it is set, and `context` never is."""
    run(tmp_path, stop_at=24)
    for mark in tmp_path.glob(f"checkpoints/*/{MARK}"):
        said = json.loads(mark.read_text())
        del said["facts"]["recipe"]["data"]["texts"][setting]
        mark.write_text(json.dumps(said))
    if known:
        assert run(tmp_path).samples > 24
    else:
        with pytest.raises(RecipeError, match=r"recipe\.data\.texts\.context was not set, and now is \d+; take"):
            run(tmp_path, stop_at=48)


def test_a_mistake_in_a_restart_deletes_nothing_and_takes_no_folder_from_a_training(tmp_path: Path) -> None:
    run(tmp_path, stop_at=24)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    source = ToySource(12, Place.here())
    refused = recipe(**SETTINGS | {"model": "tests.models.train.toy.Refused"})
    with pytest.raises(RecipeError, match=r"^model: this cannot be$"):
        train(refused, {}, str(tmp_path), source=source, resume=False)
    with pytest.raises(DataError, match="holds no tars"):
        train(recipe(**SETTINGS), {"shards": str(tmp_path)}, str(tmp_path), resume=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_wandb_that_is_not_there_is_told_before_anything_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, stop_at=24)
    monkeypatch.setattr("models.train.loop.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="wandb is not installed"):
        train(recipe(**SETTINGS), {}, str(tmp_path), source=ToySource(12, Place.here()), resume=False, wandb="mine")
    assert list(tmp_path.glob("checkpoints/*/complete.json"))


def test_other_shards_under_the_same_name_are_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in ("12 samples", "13 samples"):
        monkeypatch.setattr(ToySource, "content", lambda _, content=content: {"shards": content})
        if content == "13 samples":
            with pytest.raises(RecipeError, match=r'whose data.shards was "12 samples", and now is "13 samples"'):
                run(tmp_path)
        else:
            run(tmp_path, stop_at=24)


def test_a_training_that_has_gone_on_elsewhere_meanwhile_is_not_gone_back_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, stop_at=24)
    start = Checkpoints.start

    def late(self: Checkpoints, anew: bool) -> None:
        monkeypatch.setattr(Checkpoints, "start", start)
        run(tmp_path, stop_at=72)  # by a process that was taken for dead
        start(self, anew)

    monkeypatch.setattr(Checkpoints, "start", late)
    with pytest.raises(TrainingError, match="another training has gone on in"):
        run(tmp_path)
    assert run(tmp_path).samples == 240


def test_a_checkpoint_is_written_after_half_an_hour_however_few_samples_were_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: Any
) -> None:
    monkeypatch.setattr("models.train.trainer.KEPT_EVERY_S", 0.0)
    told: list[int] = []
    source = ToySource(12, Place.here())
    settings = recipe(**SETTINGS | {"checkpoint_every": 240, "keep": 1})
    train(settings, {}, str(tmp_path), source=source, report=lambda samples, *_: told.append(samples))
    assert len(told) >= 10, "as soon as a step has said that it is time"
    assert left(tmp_path) == unbroken, "when they are written changes nothing"


def test_restarted_it_begins_anew(tmp_path: Path, unbroken: Any) -> None:
    run(tmp_path, stop_at=24, seed=1)
    train(recipe(**SETTINGS), {}, str(tmp_path), source=ToySource(12, Place.here()), resume=False)
    assert left(tmp_path) == unbroken


def test_a_loss_that_is_compared_is_of_one_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second phase begins at 72 samples, between two checkpoints."""
    found = []
    for rows in (200, 4):  # each step is read at once, or one step late as in a long training
        monkeypatch.setattr("models.train.trainer.ROWS", rows)
        run(tmp_path / str(rows), checkpoint_every=50, keep=9)
        found.append(json.loads((tmp_path / str(rows) / "checkpoints" / f"{108:012d}" / "complete.json").read_text()))
    at_once, late = (one["facts"] for one in found)
    losses = [row["loss"] for row in at_once["curve"] if 72 < row["samples"] <= 108]
    assert len(losses) == 3
    assert at_once["loss"] == pytest.approx(sum(losses) / 3)
    assert at_once["phase"] == 1
    assert (late["loss"], late["guard"]) == (at_once["loss"], at_once["guard"])
    assert late["guard"]["steps"] == 3


def test_the_best_checkpoint_can_be_what_is_exported(tmp_path: Path, unbroken: Any) -> None:
    run(tmp_path, keep=9)
    mark = tmp_path / "checkpoints" / f"{144:012d}" / "complete.json"
    said = json.loads(mark.read_text())
    said["facts"]["loss"] = 0.01
    mark.write_text(json.dumps(said))
    run(tmp_path, keep=9, export="best")
    exported = load_file(tmp_path / "model" / "model.safetensors")
    room = {f"ema.{name}": torch.zeros_like(value) for name, value in exported.items() if name != "steps"}
    checkpoints = Checkpoints(str(tmp_path), Place.here(), 9)
    best = checkpoints.best()
    assert best is not None
    checkpoints.load(best, room)
    assert all(torch.equal(exported[name.removeprefix("ema.")], value) for name, value in room.items())
    assert exported["steps"] == 12
    told = json.loads((tmp_path / "model" / "training.json").read_text())
    assert (told["samples"], told["exported"]) == (240, 144)
    assert left(tmp_path)[0] != unbroken[0]
    assert left(tmp_path)[1] == unbroken[1], "the curve is that of the whole training"
    run(tmp_path, keep=9)
    assert left(tmp_path) == unbroken


@pytest.mark.parametrize("interrupted", ["stopped", "kept by the clock"])
def test_which_checkpoint_is_the_best_does_not_depend_on_interruptions(
    interrupted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"checkpoint_every": 84, "keep": 99, "export": "best"}
    run(tmp_path / "unbroken", **settings)
    out = tmp_path / "interrupted"
    if interrupted == "stopped":
        for steps in (3, 3, 3):  # not where a checkpoint is due
            source, left_to_do = ToySource(12, Place.here()), iter(range(steps))
            made = recipe(**SETTINGS | settings)
            train(made, {}, str(out), source=source, stop=partial(_no_more, left_to_do))
    else:
        monkeypatch.setattr("models.train.trainer.KEPT_EVERY_S", 0.0)
    run(out, **settings)
    due, others = _losses(out)
    assert due == _losses(tmp_path / "unbroken")[0]
    assert len(others) >= 3
    assert left(out)[0] == left(tmp_path / "unbroken")[0]
    told = [json.loads((one / "model" / "training.json").read_text()) for one in (out, tmp_path / "unbroken")]
    assert told[0]["exported"] == told[1]["exported"]


def _no_more(steps: Iterator[int]) -> bool:
    return next(steps, None) is None


def _losses(out: Path) -> tuple[dict[int, float], dict[int, float]]:
    """By samples, of the checkpoints that were due, and of the others."""
    said = [json.loads(path.read_text()) for path in out.glob("checkpoints/*/complete.json")]
    both = (
        {one["samples"]: one["facts"]["loss"] for one in said if one["facts"]["due"] is due} for due in (True, False)
    )
    return next(both), next(both)

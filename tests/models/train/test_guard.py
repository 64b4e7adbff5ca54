"""A loss that is no number or jumps stops the training, or is gone around."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from models.train import trainer
from models.train.guard import FIRST, Guard, TrainingError
from models.train.loop import Trained, train
from models.train.parallel import Place
from tests.models.train.toy import ToySource, recipe

UNLUCKY = ["tests.models.train.toy.Unlucky"]


def run(out: Path, unlucky: set[int], **changes: Any) -> tuple[Trained, list[int]]:
    """A training whose loss is no number at some places."""
    source = ToySource(12, Place.here(), frozenset(unlucky))
    made = recipe(objectives=UNLUCKY, optimizer={"learning_rate": 1e-3}, **changes)
    return train(made, {}, str(out), source=source), source.seen


@pytest.mark.fault(50)
def test_nan_stops_the_training_names_step_and_samples_and_keeps_the_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as error:
        run(tmp_path, {150})
    told = str(error.value)
    assert told.startswith("step 13: loss = nan; its samples: sample-144, sample-145, sample-146 and 9 more, in ")
    assert "; the checkpoint of 120 samples is kept; lower optimizer.learning_rate" in told
    assert "\n" not in told
    assert json.loads((tmp_path / "trouble-144.json").read_text()) == [f"sample-{n}" for n in range(144, 156)]
    assert not (tmp_path / "model").exists()
    again, seen = run(tmp_path, set())
    assert again.samples == 240
    assert seen[1:] == list(range(120, 240, 12))
    assert all(math.isfinite(row["loss"]) for row in again.curve)


@pytest.mark.fault(50)
def test_skip_goes_back_and_leaves_the_batch_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "ROWS", 4)  # so that a loss is read one step late, as it is in a long training
    trained, seen = run(tmp_path / "skip", {150, 205}, guard={"then": "skip"})
    assert seen[1:] == [*range(0, 156, 12), 156, *range(120, 216, 12), 216, *range(180, 240, 12)]
    said = json.loads((tmp_path / "skip" / "model" / "training.json").read_text())
    assert said["left_out"] == [144, 204]
    assert trained.samples == 240
    assert all(math.isfinite(row["loss"]) for row in trained.curve)
    resumed, seen = run(tmp_path / "skip", {150, 205}, guard={"then": "skip"})
    assert (resumed.curve, seen) == (trained.curve, [0])


@pytest.mark.fault(50)
def test_a_first_batch_that_is_bad_can_be_skipped_too(tmp_path: Path) -> None:
    trained, _ = run(tmp_path, {3}, guard={"then": "skip"})
    assert math.isfinite(trained.curve[-1]["loss"])


@pytest.mark.parametrize("then", ["stop", "skip"])
def test_a_finite_jump_in_a_training_is_gone_around_too(tmp_path: Path, then: str) -> None:
    source = ToySource(12, Place.here(), frozenset({450}))
    made = recipe(objectives=["tests.models.train.toy.Jumping"], samples=600, guard={"then": then})
    if then == "skip":
        assert train(made, {}, str(tmp_path), source=source).samples == 600
        said = json.loads((tmp_path / "model" / "training.json").read_text())
        assert said["left_out"] == [444]
    else:
        with pytest.raises(TrainingError, match=r"step 38: loss = [\d.]+, a jump of \d+ deviations from"):
            train(made, {}, str(tmp_path), source=source)


def test_where_every_batch_is_bad_skipping_ends(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 21: loss = nan; .* the checkpoint of 240 samples is kept"):
        run(tmp_path, set(range(600)), guard={"then": "skip"}, samples=600)


def test_what_was_left_out_long_ago_does_not_end_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "MOST_SKIPPED", 2)
    monkeypatch.setattr(trainer, "AMONG", 10)
    trained, _ = run(tmp_path / "far", {0, 240, 480}, guard={"then": "skip"}, samples=600)
    assert trained.samples == 600
    with pytest.raises(TrainingError):
        run(tmp_path / "near", {0, 24, 48}, guard={"then": "skip"}, samples=600)


def test_a_jump_is_told_from_noise() -> None:
    guard = Guard()
    for step in range(200):
        assert guard.trouble(3 + 0.1 * math.sin(step) - step / 400, 1.0, 8) is None
    assert guard.trouble(2.9, 1.0, 8) is None
    assert "a jump of" in (guard.trouble(9.0, 1.0, 8) or "")
    assert guard.trouble(2.5, math.inf, 8) == "gradient norm = inf"
    assert guard.trouble(2.5, 1.0, 8) is None


def test_a_beginning_and_a_loss_near_zero_are_no_jumps() -> None:
    guard = Guard()
    assert all(guard.trouble(loss, 1.0, 8) is None for loss in [1.0, 50.0, 2.0, 80.0] + [0.5] * (FIRST - 5))
    learned = Guard(mean=1e-4, variance=1e-12, steps=1000)
    assert learned.trouble(5e-3, 1.0, 8) is None
    assert learned.trouble(0.5, 1.0, 8) is not None


def test_the_running_mean_and_variance_are_those_of_the_losses() -> None:
    guard, losses = Guard(), [3.0, 1.0, 2.0, 6.0]
    for loss in losses:
        guard.trouble(loss, 1.0, 8)
    assert guard.mean == pytest.approx(3)
    assert guard.variance == pytest.approx(3.5)

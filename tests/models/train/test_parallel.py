"""On several processes the same is learned as on one."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from models.recipe import RecipeError
from models.train.parallel import CPU, Place, blocks
from tests.models import gloo
from tests.models.train import processes
from tests.models.train.toy import Toy

MODES: tuple[processes.Mode, ...] = ("ddp", "fsdp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def on_two(folder: Path) -> dict[Any, Any]:
    """What came out on two processes, which also went on from a checkpoint that one process left."""
    stopped, _ = processes.training(folder / "stopped", stop_at=120)
    return {**processes.together(2, folder), "began": stopped.samples}


@pytest.fixture(scope="module")
def on_three(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What one step came to on three processes."""
    found: dict[Any, Any] = gloo.together(processes.steps, 3, tmp_path_factory.mktemp("three"))
    return found


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, torch.Tensor]:
    """Weights that one process learned without a break."""
    trained, _ = processes.training(folder / "alone")
    return weights(trained.model)


def weights(folder: str | None) -> dict[str, torch.Tensor]:
    return load_file(f"{folder}/model.safetensors")


def far(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(
        float((found[name].double() - value.double()).abs().max() / value.double().abs().max().clamp(1))
        for name, value in expected.items()
    )


@pytest.mark.parametrize(("mode", "objectives", "micro"), [*product(MODES, processes.OBJECTIVES, processes.MICROS)])
def test_gradients_losses_and_norm_are_those_of_one_process(
    on_two: dict[Any, Any], on_three: dict[Any, Any], mode: processes.Mode, objectives: str, micro: int | None
) -> None:
    expected = processes.step(objectives, None)
    for found in (on_two, on_three):
        assert far(found[mode, objectives, micro], expected) < 2e-6


@pytest.mark.parametrize("mode", MODES)
def test_what_is_frozen_takes_no_part(on_two: dict[Any, Any], mode: processes.Mode) -> None:
    expected = processes.step("both", None, frozen=True)
    assert not any(name.startswith("image") for name in expected)
    assert far(on_two[mode, "frozen"], expected) < 2e-6


@pytest.mark.parametrize("mode", MODES)
def test_a_training_on_two_processes_gives_the_weights_of_one(
    on_two: dict[Any, Any], alone: dict[str, torch.Tensor], mode: processes.Mode
) -> None:
    trained, _ = on_two[mode, "trained"]
    assert trained.skipped == {"damaged": 40}  # one a step on each process
    assert far(weights(trained.model), alone) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_what_one_process_began_two_finish_with_the_same_samples(
    on_two: dict[Any, Any], alone: dict[str, torch.Tensor], mode: processes.Mode
) -> None:
    trained, seen = on_two[mode, "resumed"]
    began = on_two["began"]  # it is told to stop once a checkpoint is whole, and that is one to three steps later
    assert 120 < began < 240
    assert seen[1:] == list(range(began, 240, 12))
    assert far(weights(trained.model), alone) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_what_two_processes_began_one_finishes_with_the_same_samples(
    on_two: dict[Any, Any], alone: dict[str, torch.Tensor], mode: processes.Mode, folder: Path, tmp_path: Path
) -> None:
    stopped, _ = on_two[mode, "stopped"]
    assert stopped.model is None
    assert 120 < stopped.samples < 240
    shutil.copytree(folder / f"{mode}-stopped", tmp_path / "on")
    trained, seen = processes.training(tmp_path / "on")
    assert seen[1:] == list(range(stopped.samples, 240, 12))
    assert far(weights(trained.model), alone) < 1e-5


def test_running_statistics_are_the_first_processs_however_often_a_training_was_stopped(tmp_path: Path) -> None:
    found = gloo.together(processes.with_statistics, 2, tmp_path)
    assert {"normed.running_mean", "normed.running_var"} < found["unbroken"].keys()
    for name, value in found["unbroken"].items():
        assert torch.equal(found["broken"][name], value), name


def test_a_batch_that_does_not_divide_over_the_processes_is_refused() -> None:
    with pytest.raises(RecipeError, match="batch = 12 does not divide over 5 processes; take as many as divide it"):
        Place(0, 5, CPU).share_of(12)


def test_blocks_are_the_layers_of_the_towers() -> None:
    model = Toy()
    assert list(blocks(model)) == [*model.image, *model.text]
    nested = nn.ModuleDict({"tower": nn.Sequential(nn.Linear(1, 1), nn.GELU(), nn.Sequential(*model.image))})
    assert list(blocks(nested)) == [*model.image]

"""A training on several workers of Ray Train that loses one of them, and one whose driver is killed (FAULTS 35, 49)."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.chaos import driver
from tests.chaos.drive import generations, hashes
from tests.chaos.driver import Driver, send, sluice, started
from tests.stages.train.conftest import RECIPE

DAG = """
dag: training
nodes:
  shards: {{steps: [{{tests.chaos.stages.Pictures: {{samples: 64}}}}]}}
  clip:
    from: shards
    workers: {{count: 2, cpus: 1}}
    steps:
      - stages.train.Train: {{recipe: {recipe}, samples: 3200, settings: [checkpoint_every=160]}}
"""

pytestmark = pytest.mark.chaos


@pytest.fixture
def dag(tmp_path: Path) -> Path:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE)
    path = tmp_path / "training.yaml"
    path.write_text(DAG.format(recipe=recipe))
    return path


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers and Ray Train load torch and transformers each, at the lowest priority."""
    monkeypatch.setattr(driver, "PATIENCE_S", 500)


def checkpoints(root: Path) -> int:
    """The samples of the newest checkpoint that is whole."""
    return max((int(path.name) for path in root.glob("clip/checkpoints/*/checkpoints/*") if whole(path)), default=0)


def whole(path: Path) -> bool:
    return (path / "complete.json").exists()


def members(running: Driver) -> list[int]:
    return [pid for pid, command in running.processes().items() if "TrainWorker" in command]


@pytest.mark.fault(35)
@pytest.mark.timeout(1200)
def test_a_gang_that_loses_a_worker_goes_on_from_its_newest_checkpoint(dag: Path, tmp_path: Path) -> None:
    calm, root = tmp_path / "calm", tmp_path / "root"
    code, said = sluice("run", dag, calm)
    assert code == 0, said
    with started(["run", dag, root]) as running:
        running.until(lambda: checkpoints(root) >= 160 and len(members(running)) == 2, "two workers trained")
        before = checkpoints(root)
        send(members(running)[0], signal.SIGKILL)
        assert running.finish() == 0, running.said()
    assert before < 3200, "it was killed in the middle"
    assert hashes(root) == hashes(calm), "the same weights"
    assert generations(root)["clip"].statuses == {"trained": 1}


@pytest.mark.fault(49)
@pytest.mark.timeout(1200)
def test_a_gang_whose_driver_is_killed_is_resumed_by_the_same_command(dag: Path, tmp_path: Path) -> None:
    calm, root = tmp_path / "calm", tmp_path / "root"
    code, said = sluice("run", dag, calm)
    assert code == 0, said
    with started(["run", dag, root]) as running:
        running.until(lambda: checkpoints(root) >= 160, "a checkpoint is whole")
        running.kill()
        running.gone()
    before = checkpoints(root)
    assert 0 < before < 3200
    code, said = sluice("run", dag, root)
    assert code == 0, said
    assert hashes(root) == hashes(calm)


@pytest.mark.timeout(1200)
def test_of_a_gang_whose_number_does_not_divide_the_batch_as_many_train_as_can(dag: Path, tmp_path: Path) -> None:
    two, three = tmp_path / "two", tmp_path / "three"
    code, said = sluice("run", dag, two)
    assert code == 0, said
    dag.write_text(dag.read_text().replace("{count: 2, cpus: 1}", "{count: 3, least: 3, cpus: 0.5}"))
    code, said = sluice("run", dag, three)
    assert code == 0, said
    assert hashes(three) == hashes(two)
    (told,) = three.glob("clip/data/*/training.json")
    assert json.loads(told.read_text())["processes"] == 2


@pytest.mark.timeout(1200)
def test_what_one_of_a_gang_refuses_is_told_in_a_line(dag: Path, tmp_path: Path) -> None:
    dag.write_text(dag.read_text().replace("checkpoint_every=160", "batch=15"))
    code, said = sluice("run", dag, tmp_path / "root")
    assert code != 0
    assert "batch = 15 does not divide over 2 processes" in said
    assert "Traceback" not in said

"""A checkpoint counts when it is whole, wherever its writing was broken off; newer ones replace older ones."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from models.train import checkpoint as module
from models.train.checkpoint import Checkpoints
from models.train.guard import TrainingError
from models.train.parallel import Place


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3, 2), value), "step": torch.tensor(int(value))}


def kept(out: str, *samples: int, keep: int = 2, losses: dict[int, float] | None = None) -> Checkpoints:
    """Checkpoints of so many samples, whose weights are that number."""
    found = Checkpoints(out, Place.here(), keep)
    for count in samples:
        found.save(count, tensors(count), {"loss": (losses or {}).get(count, 1.0), "curve": [{"samples": count}]})
        found.wait()
    return found


def loaded(checkpoints: Checkpoints) -> tuple[int, float] | None:
    newest = checkpoints.newest()
    if newest is None:
        return None
    room = tensors(-1)
    checkpoints.load(newest, room)
    assert room["step"] == newest.samples
    return newest.samples, float(room["w"].double().mean())


@pytest.fixture(params=["local", "memory", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "out")
    return f"{request.getfixturevalue('bucket') if request.param == 's3' else f'memory://{uuid4().hex}'}/out"


def test_the_newest_is_loaded_with_its_facts(out: str) -> None:
    assert loaded(Checkpoints(out, Place.here(), 2)) is None
    found = kept(out, 100, 200)
    assert loaded(found) == (200, 200.0)
    newest = found.newest()
    assert newest is not None
    assert newest.facts["curve"] == [{"samples": 200}]
    assert found.names(newest) == {"w", "step"}


def test_only_the_newest_and_the_best_stay(out: str) -> None:
    found = kept(out, 100, 200, 300, 400, 500, losses={200: 0.5})
    assert found._names() == [f"{samples:012d}" for samples in (200, 400, 500)]
    kept(out, 600, losses={600: 0.1})
    assert found._names() == [f"{samples:012d}" for samples in (500, 600)]


def test_the_best_is_of_the_newest_one_s_phase(tmp_path: Path) -> None:
    """The losses of two phases are of other data, or of more patches: the lower one is not the better."""
    found, losses = Checkpoints(str(tmp_path), Place.here(), 1), [(0, 0.5), (0, 0.1), (1, 3.0), (1, 2.0), (1, 2.5)]
    assert found.best() is None
    left = []
    for count, (phase, loss) in enumerate(losses, 1):
        found.save(count, tensors(count), {"loss": loss, "phase": phase})
        found.wait()
        best = found.best()
        assert best is not None
        left.append((best.samples, [int(name) for name in found._names()]))
    assert left == [(1, [1]), (2, [2]), (3, [3]), (4, [4]), (4, [4, 5])]


def test_the_best_is_one_that_was_due_where_there_is_one(tmp_path: Path) -> None:
    """The loss of an interruption is a mean over few steps: a lucky one is not the better for it."""
    found, best = Checkpoints(str(tmp_path), Place.here(), 9), []
    for count, (due, loss) in enumerate([(False, 0.5), (False, 0.7), (True, 3.0), (False, 0.1), (True, 2.0)], 1):
        found.save(count, tensors(count), {"loss": loss, "phase": 0, "due": due})
        found.wait()
        one = found.best()
        assert one is not None
        best.append(one.samples)
    assert best == [1, 2, 3, 3, 5]


def test_of_two_trainings_in_a_folder_the_older_stops(out: str) -> None:
    older = Checkpoints(out, Place.here(), 2)
    older.start(anew=False)
    older.save(100, tensors(100), {"loss": 1.0})
    older.wait()
    newer = Checkpoints(out, Place.here(), 2)
    newer.start(anew=False)
    older.save(200, tensors(200), {"loss": 1.0})
    with pytest.raises(TrainingError, match=r"another training has begun in .*out; this one stops"):
        older.wait()
    assert loaded(newer) == (100, 100.0)
    newer.save(200, tensors(200), {"loss": 1.0})
    newer.wait()
    assert loaded(newer) == (200, 200.0)
    newer._fs.rm(newer.out, recursive=True)
    newer.save(300, tensors(300), {"loss": 1.0})
    with pytest.raises(TrainingError, match=r"somebody deleted .*out; this one stops"):
        newer.wait()


def test_what_changes_after_save_is_not_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training goes on while a slow store takes its time."""
    begin = threading.Event()

    def slow(*args: Any, **options: Any) -> None:
        begin.wait(20)
        save(*args, **options)

    monkeypatch.setattr(module, "save", slow)
    found, weights = Checkpoints(str(tmp_path), Place.here(), 2), tensors(7)
    facts: dict[str, Any] = {"loss": 1.0, "curve": [1]}
    found.save(7, weights, facts)
    weights["w"].fill_(0)
    facts["curve"].append(2)
    assert not found.saved
    begin.set()
    found.wait()
    assert loaded(found) == (7, 7.0)
    newest = found.newest()
    assert newest is not None
    assert newest.facts["curve"] == [1]


def test_a_failed_write_is_raised_and_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = kept(str(tmp_path), 100)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(found._fs, "pipe_file", full)
    found.save(200, tensors(200), {"loss": 1.0})
    with pytest.raises(OSError, match="No space left"):
        found.wait()
    assert loaded(found) == (100, 100.0)


def _torn(folder: Path) -> None:
    (folder / "complete.json").write_bytes((folder / "complete.json").read_bytes()[:50])


def _cut(folder: Path) -> None:
    data = folder / "__0_0.distcp"
    os.truncate(data, data.stat().st_size - 1)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "no mark": lambda folder: (folder / "complete.json").unlink(),
    "half a mark": _torn,
    "data cut": _cut,
    "data lost": lambda folder: (folder / "__0_0.distcp").unlink(),
    "metadata lost": lambda folder: (folder / ".metadata").unlink(),
}


@pytest.mark.fault(49)
@pytest.mark.parametrize("damage", DAMAGE)
def test_the_newest_that_is_whole_counts_and_the_rest_is_swept_away(damage: str, tmp_path: Path) -> None:
    found = kept(str(tmp_path), 100, 200)
    DAMAGE[damage](tmp_path / "checkpoints" / f"{200:012d}")
    assert loaded(found) == (100, 100.0)
    found.start(anew=False)
    assert found._names() == [f"{100:012d}"]
    assert loaded(kept(str(tmp_path), 200)) == (200, 200.0)


@pytest.mark.fault(49)
def test_a_write_broken_off_after_any_number_of_operations_leaves_one_that_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every open, rename, removal and listing of a third save is, in its turn, the last thing that happens."""
    local = type(fsspec.filesystem("file"))
    names = ("_open", "mv", "rm_file", "rm", "makedirs", "pipe_file", "ls")
    operations, last = 0, 0
    for name in names:
        real = getattr(local, name)

        def counted(self: Any, *args: Any, real: Any = real, **options: Any) -> Any:
            nonlocal operations
            operations += 1
            if operations > last > 0:
                raise KeyboardInterrupt
            return real(self, *args, **options)

        monkeypatch.setattr(local, name, counted)
    outcomes = []
    for stop in range(1, 200):
        out = str(tmp_path / str(stop))
        found = kept(out, 100, 200, keep=1)
        operations, last = 0, stop
        found.save(300, tensors(300), {"loss": 1.0})
        try:
            found.wait()
            finished = True
        except (KeyboardInterrupt, CheckpointException):
            finished = False
        last = 0
        found.start(anew=False)
        outcomes.append(loaded(found))
        if finished:
            break
    assert finished
    before = outcomes.count((200, 200.0))
    assert before > 5
    assert outcomes == [(200, 200.0)] * before + [(300, 300.0)] * (len(outcomes) - before)


def test_anew_deletes_all(out: str) -> None:
    found = kept(out, 100, 200)
    found.start(anew=True)
    assert found.newest() is None
    assert found._names() == []


def test_a_file_that_somebody_left_beside_it_spoils_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = kept(str(tmp_path / "out"), 8, 16)
    for folder in (tmp_path / "out" / "checkpoints").iterdir():
        (folder / ".DS_Store").write_bytes(b"found")
    assert loaded(checkpoints) == (16, 16.0)

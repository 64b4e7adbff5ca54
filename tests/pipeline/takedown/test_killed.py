"""A takedown may be killed at any moment: the next command finishes it, and no run begins before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline import SluiceError, upkeep
from pipeline.leases import LEASES
from pipeline.store import Store
from pipeline.takedown import erasure
from pipeline.takedown.tombstones import check_finished, tombstones, unfinished
from tests.pipeline.takedown.erased import (
    COPIES,
    DEAD,
    GONE,
    has_no_vector,
    index,
    is_clean,
    killed_at,
    newest,
    quiet,
    take_down,
    uids,
)
from tests.takedowns import go


@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.chaos, id="every-step"), pytest.param(41, id="some")]
)
@pytest.mark.parametrize("after", [False, True])
def test_a_takedown_killed_at_any_write_is_finished_by_the_next(
    tmp_path: Path, calm: Path, step: int, after: bool
) -> None:
    at = 1
    while True:
        root = tmp_path / str(at)
        shutil.copytree(calm, root)
        dead = killed_at(at, after, root)
        store = Store(str(root))
        for name in store.names(LEASES):  # this process lives; one that was killed would be known to be dead
            store.put(f"{LEASES}/{name}", DEAD)
        if tombstones(store):
            if unfinished(store):
                with pytest.raises(SluiceError, match=r"takedown 0001 is under way .*--resume"):
                    check_finished(store)
                erasure.finish(store, quiet)
        else:
            assert upkeep.verify(store) == [], "nothing was touched before the tombstone stood"
            take_down(root, uids(*GONE))
        is_clean(root, *GONE, *COPIES)
        assert go(root)[1] == []
        assert store.names(LEASES) == [], "a dead takedown's lease is taken back"
        assert newest(store, "pool").statuses == {"success": 31, "http_503": 4, "taken_down": 5}
        shutil.rmtree(root)
        if not dead:
            break
        at += step
    assert at > 30


@pytest.mark.parametrize("after", [False, True])
def test_an_index_is_deleted_wherever_a_takedown_was_killed(tmp_path: Path, root: Path, after: bool) -> None:
    index(root)
    at, step = 1, 29
    while True:
        copy = Path(shutil.copytree(root, tmp_path / str(at)))
        dead = killed_at(at, after, copy)
        store = Store(str(copy))
        for name in store.names(LEASES):
            store.put(f"{LEASES}/{name}", DEAD)
        if tombstones(store):
            erasure.finish(store, quiet)
        else:
            take_down(copy, uids(*GONE))
        has_no_vector(copy, *GONE)
        index(copy)
        has_no_vector(copy, *GONE)
        is_clean(copy, *GONE, *COPIES)
        assert newest(store, "index").statuses == {"indexed": 31}
        shutil.rmtree(copy)
        if not dead:
            break
        at += step
    assert at > 60


def test_it_waits_for_a_run_that_writes(root: Path) -> None:
    store = Store(str(root))
    store.put(f"{LEASES}/x.lease", b'{"host": "elsewhere", "pid": 1}')
    found = erasure.search(store, uids(4), True, quiet)
    with pytest.raises(SluiceError, match=r"1 run\(s\) that write or were interrupted"):
        erasure.take_down(store, found, "", quiet)
    assert tombstones(store) == []


def test_it_does_not_wait_for_a_run_that_stopped_by_itself(root: Path) -> None:
    """It has left no file half written; one that was killed may have."""
    store = Store(str(root))
    store.put(f"{LEASES}/x.lease", b'{"host": "elsewhere", "pid": 1, "stopped": true}')
    take_down(root, uids(*GONE))
    is_clean(root, *GONE, *COPIES)
    assert store.names(LEASES) == ["x.lease"], "what it left is gone on from"
    store.put(f"{LEASES}/x.lease", DEAD)
    with pytest.raises(SluiceError, match=r"1 run\(s\) that write or were interrupted"):
        take_down(root, uids(4))


def test_no_run_begins_while_one_is_unfinished(root: Path) -> None:
    assert killed_at(12, True, root)
    with pytest.raises(
        SluiceError, match=r"takedown 0001 is under way or was interrupted; `sluice takedown .* --resume`"
    ):
        go(root)

"""`verify`, its repair and `gc`: damage is found and mended, nothing that counts is deleted (FAULTS 40)."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pipeline import Dag, SluiceError, run, upkeep
from pipeline.leases import LEASES, is_dead, lease, this_process
from pipeline.node import prepare
from pipeline.records import Generation
from pipeline.store import Store
from tests.inline import Inline

TEXT = """
dag: toys
nodes:
  urls: {steps: [{tests.toys.Numbers: {rows: 40, parts: 4}}]}
  pool: {from: urls, steps: [{tests.toys.Fetch: {fails: 1000}}]}
  scores: {from: pool, steps: [tests.toys.Times]}
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    go(tmp_path)
    return Store(str(tmp_path))


def newest(store: Store, node: str) -> Generation:
    found = store.newest(node)
    assert found is not None
    return found


def go(root: Path, *overrides: str, retry: tuple[str, ...] = ()) -> tuple[dict[str, Generation], dict[str, list[str]]]:
    executor = Inline(Store(str(root)))
    return run(Dag.parse(TEXT, overrides), str(root), executor=executor, retry=retry).generations, executor.calls


def damage(root: Path, node: str, suffix: str, how: str) -> Path:
    """Flip a bit of the part 000-00001, cut it short, or delete it."""
    (path,) = (root / node / "data").glob(f"000-00001-*.{suffix}")
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    elif how == "cut":
        path.write_bytes(bytes(data[: len(data) // 2]))
    else:
        path.unlink()
    return path


def test_an_untouched_root_is_whole(store: Store) -> None:
    read: list[int] = []
    assert upkeep.verify(store, read.append) == []
    files = [f for n in ("urls", "pool", "scores") for r in newest(store, n).records for f in r.files]
    assert sum(read) == sum(file.bytes for file in files)


@pytest.mark.fault(40)
@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
@pytest.mark.parametrize("node", ["urls", "scores"])
def test_a_damaged_pure_part_is_rebuilt_to_the_same_bytes(tmp_path: Path, store: Store, node: str, how: str) -> None:
    (whole,) = (tmp_path / node / "data").glob("000-00001-*.image.parquet")
    before = whole.read_bytes()
    path = damage(tmp_path, node, "image.parquet", how)
    (found,) = upkeep.verify(store)
    assert found.path == str(path)
    assert found.problem == ("is gone" if how == "delete" else "has other bytes than were committed")
    upkeep.repair(store, [found])
    assert upkeep.verify(store) == []
    assert path.read_bytes() == before
    assert go(tmp_path)[1] == {}


@pytest.mark.fault(40)
@pytest.mark.parametrize("how", ["flip", "delete"])
def test_pool_rows_without_bytes_are_lost_and_can_be_fetched_again(tmp_path: Path, store: Store, how: str) -> None:
    damage(tmp_path, "pool", "tar", how)
    lines = upkeep.repair(store, upkeep.verify(store)).done
    lost = 1 if how == "flip" else 10  # one image holds the flipped bit; the part holds ten
    assert lines == [f"pool part 000-00001: {lost} rows are lost; fetch them again with --retry-failed pool"]
    assert upkeep.verify(store) == []
    assert newest(store, "pool").statuses == {"http_503": 1, "success": 39 - lost, "lost": lost}
    (repaired,) = [record for record in newest(store, "pool").records if record.part == "000-00001"]
    rows = [row for row in store.read_table(repaired, "image").to_pylist() if row["status"] == "lost"]
    known = {row["sha256"] for row in rows}
    assert known == {sha256(f"image {row['n']}".encode()).hexdigest() for row in rows}, "its image is known again"
    assert {row["width"] for row in rows} == {None}
    generations, calls = go(tmp_path, retry=("pool",))
    assert calls["pool"] == ["000-00000.r1", "000-00001.r1"]
    assert generations["pool"].statuses == {"http_503": 1, "success": 39}
    assert generations["scores"].statuses == {"ok": 40}


def test_a_damaged_pool_table_loses_its_part_and_no_other(tmp_path: Path, store: Store) -> None:
    damage_table(tmp_path)
    upkeep.repair(store, upkeep.verify(store))
    assert upkeep.verify(store) == []
    assert newest(store, "pool").statuses == {"http_503": 1, "success": 29, "lost": 10}


def damage_table(root: Path) -> None:
    tables = [p for p in (root / "pool/data").glob("000-00001-*.parquet") if "captions" not in p.name]
    tables[0].write_bytes(b"PAR1")


def test_gc_takes_what_no_kept_run_references_and_nothing_else(tmp_path: Path, store: Store) -> None:
    go(tmp_path, "scores.factor=3")
    store.put("scores/data/000-00000-deadbeef.image.parquet", b"left by a killed worker")
    garbage = upkeep.find_garbage(store, keep_runs=5)
    assert garbage.paths == ["scores/data/000-00000-deadbeef.image.parquet"]
    for path in upkeep.find_garbage(store, keep_runs=1).paths:
        store.delete(path)
    assert upkeep.verify(store) == []
    assert [one.id for one in store.runs()] == ["0002"]
    _, calls = go(tmp_path)
    assert len(calls["scores"]) == 4  # the older factor's work was collected, and is not believed to be there
    assert "pool" not in calls


def test_gc_waits_for_a_run_that_writes(store: Store) -> None:
    store.put(f"{LEASES}/x.lease", b'{"host": "elsewhere", "pid": 1}')
    with pytest.raises(SluiceError, match=r"run.s. that write or were interrupted"):
        upkeep.find_garbage(store, keep_runs=1)
    upkeep.clear_leases(store)
    assert upkeep.find_garbage(store, keep_runs=1).paths == []


def test_a_lease_of_a_dead_process_of_this_machine_goes_with_the_next_run(tmp_path: Path, store: Store) -> None:
    import json
    import socket
    import subprocess

    gone = subprocess.Popen(["true"])
    gone.wait()
    store.put(f"{LEASES}/x.lease", json.dumps({"host": socket.gethostname(), "pid": gone.pid}).encode())
    go(tmp_path, "scores.factor=5")
    assert store.names(LEASES) == []


def test_a_process_with_the_number_of_a_dead_one_is_another(store: Store) -> None:
    assert not is_dead(this_process())
    assert is_dead({**this_process(), "started": "an earlier boot/17"})


def test_gc_takes_nothing_that_a_run_which_failed_goes_on_from(tmp_path: Path, store: Store) -> None:
    """Checkpoints of a training, or parts of a node that was not sealed: no generation names them yet."""

    def fail() -> None:
        with lease(store, "toys", whole=True):
            store.put("scores/checkpoints/1f/000000000100/complete.json", b"{}")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with pytest.raises(SluiceError, match=r"run.s. that write or were interrupted"):
        upkeep.find_garbage(store, keep_runs=1)
    for other in (lease(store, "others", whole=True), lease(store, "toys", whole=False)):
        with other:
            pass
    assert len(store.names(LEASES)) == 1, "runs of another DAG, or of a part of this one, went on from nothing of it"
    go(tmp_path)
    assert store.names(LEASES) == []


def test_a_run_of_a_part_of_a_dag_leaves_what_it_did_not_go_on_from(tmp_path: Path) -> None:
    """A training that was stopped keeps its checkpoints until it has ended, whatever else of its DAG is run."""
    store = Store(str(tmp_path))
    store.put(f"{LEASES}/x.lease", b'{"dag": "toys", "host": "elsewhere", "pid": 1, "stopped": true}')
    for already in (False, True):
        result = run(Dag.parse(TEXT), store.root, until="pool", executor=Inline(store))
        assert bool(result.worked) is not already
        assert store.names(LEASES) == ["x.lease"]
    go(tmp_path)
    assert store.names(LEASES) == []


@pytest.mark.fault(48)
def test_a_resource_that_changes_while_the_run_begins_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 48: never other bytes under the old key."""
    numbers = tmp_path / "numbers.txt"
    numbers.write_text("1\n")
    text = TEXT + f"  listed: {{from: pool, steps: [{{tests.toys.Listed: {{numbers: {numbers}}}}}]}}\n"

    def prepared_then_changed(*arguments: Any) -> Any:
        result = prepare(*arguments)
        if arguments[1] == "listed":
            numbers.write_text("2\n")
        return result

    monkeypatch.setattr("pipeline.driver.prepare", prepared_then_changed)
    root = str(tmp_path / "root")
    with pytest.raises(SluiceError, match=r"numbers\.txt changed while the run began; run again"):
        run(Dag.parse(text), root, executor=Inline(Store(root)))
    monkeypatch.undo()
    result = run(Dag.parse(text), root, executor=Inline(Store(root)))
    assert result.generations["listed"].statuses == {"ok": 40}


def test_damage_in_a_pool_and_in_what_was_made_from_it_is_mended_together(tmp_path: Path, store: Store) -> None:
    damage(tmp_path, "pool", "tar", "flip")
    damage(tmp_path, "scores", "image.parquet", "flip")
    assert len(upkeep.repair(store, upkeep.verify(store)).done) == 2
    assert upkeep.verify(store) == []
    generations, _ = go(tmp_path)
    assert generations["scores"].statuses == {"ok": 40}


def test_a_damaged_retry_loses_its_own_rows_only(tmp_path: Path) -> None:
    answers = tmp_path / "up"
    root = tmp_path / "root"
    go(root, "pool.fails=5", f"pool.answers={answers}")
    answers.touch()
    go(root, "pool.fails=5", f"pool.answers={answers}", retry=("pool",))
    store = Store(str(root))
    assert newest(store, "pool").statuses == {"success": 40}
    (table,) = [p for p in (root / "pool/data").glob("000-00000.r1-*.parquet") if "captions" not in p.name]
    table.write_bytes(b"PAR1")
    upkeep.repair(store, upkeep.verify(store))
    lost = newest(store, "pool").statuses["lost"]
    assert newest(store, "pool").statuses == {"success": 40 - lost, "lost": lost}
    assert lost == 2  # 0 and 20 are in part 0; 5, 10 … in the others

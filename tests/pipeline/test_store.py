"""The laws of a store, over a local disk, memory and S3 alike; `test_s3.py` has what only S3 can do wrong."""

import io
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from threading import Barrier
from uuid import uuid4

import pyarrow as pa
import pytest

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.records import File, Generation, Record, Run
from pipeline.stage import Task
from pipeline.store import DurableLocal, Store, patiently
from pipeline.upkeep import find_garbage, verify
from tests.s3 import S3, serving

TABLE = pa.table({"uid": ["a", "b"], "n": [1, 2]})


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serving() as server, server.environment():
        yield server


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "root"))
    name = f"laws-{uuid4().hex[:8]}"
    if request.param == "memory":
        return Store(f"memory://{name}")
    server: S3 = request.getfixturevalue("s3")
    return Store(f"{server.bucket(name)}/deep/root")


def commit(store: Store, node: str = "node", part: str = "000-00000", key: str = "k1") -> Record:
    with Attempt(store, node, "parts", Task(part), key) as attempt:
        attempt.write("image", TABLE)
        with attempt.create("tar") as tar:
            tar.write(b"pixels of " + part.encode())
        attempt.count({"ok": 2})
        return attempt.commit()


def generation(*records: Record, node: str = "node", key: str = "key") -> Generation:
    return Generation(node=node, number=0, key=key, identity={}, inputs={}, records=records)


# -- bytes -------------------------------------------------------------------------------------------------------------


def test_bytes_come_back_as_they_went_in(store: Store) -> None:
    data = bytes(range(256)) * 40
    store.put("node/data/x", data)
    assert store.get("node/data/x") == data
    assert store.get_range("node/data/x", 100, 300) == data[100:300]
    assert store.exists("node/data/x")
    assert not store.exists("node/data/y")
    with pytest.raises(FileNotFoundError):
        store.get("node/data/y")


def test_the_first_exclusive_put_stands_and_the_second_learns_its_bytes(store: Store) -> None:
    assert store.put_if_absent("node/commits/k", b"first") == b"first"
    assert store.put_if_absent("node/commits/k", b"second, and longer") == b"first"
    assert store.get("node/commits/k") == b"first"


def test_of_many_racing_exclusive_puts_one_wins_and_all_agree(store: Store) -> None:
    if store.root.startswith("memory:"):
        pytest.skip("memory:// looks and writes in two steps; it is for tests of one thread")
    racers = 12
    with ThreadPoolExecutor(racers) as pool:
        for round_ in range(5):
            gate = Barrier(racers)

            def race(racer: int, path: str = f"races/{round_}", gate: Barrier = gate) -> bytes:
                gate.wait()
                return store.put_if_absent(path, f"racer {racer}".encode() * 50)

            said = set(pool.map(race, range(racers)))
            assert len(said) == 1
            assert store.get(f"races/{round_}") in said


def test_names_are_sorted_without_folders_above_and_empty_where_nothing_is(store: Store) -> None:
    assert store.names("node/commits") == []
    for name in ("b.json", "a.json", "c.json"):
        store.put(f"node/commits/{name}", b"{}")
    assert store.names("node/commits") == ["a.json", "b.json", "c.json"]
    assert store.names("node") == ["commits"]
    store.delete("node/commits/b.json")
    assert store.names("node/commits") == ["a.json", "c.json"]


def test_a_listing_is_never_remembered(store: Store) -> None:
    assert store.newest_number("node") == 0
    store.put("node/generations/0001.json", b"{}")
    other = Store(store.root)
    assert store.newest_number("node") == 1
    other.put("node/generations/0002.json", b"{}")
    assert store.newest_number("node") == 2
    assert store.exists("node/generations/0002.json")


def test_a_spooled_file_is_stored_under_its_name(store: Store, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.write_bytes(b"x" * 1000)
    store.put_file("node/data/tar", spool, 1000)
    assert store.get("node/data/tar") == b"x" * 1000


def test_a_file_that_arrives_shorter_than_it_was_written_is_refused(store: Store, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.write_bytes(b"x" * 999)
    with pytest.raises(OSError, match="has 999 bytes after writing 1000; the store lost some"):
        store.put_file("node/data/tar", spool, 1000)


def test_a_final_name_takes_the_same_bytes_twice_and_other_bytes_never(store: Store, tmp_path: Path) -> None:
    for attempt, data in enumerate((b"shard", b"shard")):
        spool = tmp_path / f"spool-{attempt}"
        spool.write_bytes(data)
        store.put_file_if_absent("shards/00000.tar", spool, sha256(data).hexdigest())
    other = tmp_path / "other"
    other.write_bytes(b"other")
    with pytest.raises(SluiceError, match="exists with other bytes than this work gives"):
        store.put_file_if_absent("shards/00000.tar", other, sha256(b"other").hexdigest())
    assert store.get("shards/00000.tar") == b"shard"


def test_a_store_travels_to_a_worker(store: Store) -> None:
    store.put("node/data/x", b"1")
    there: Store = pickle.loads(pickle.dumps(store))
    assert there.get("node/data/x") == b"1"
    assert there.get(store.url("node/data/x")) == b"1"


def test_the_probe_accepts_it_twice(store: Store) -> None:
    store.probe()
    store.probe()


# -- records -----------------------------------------------------------------------------------------------------------


def test_a_second_attempt_adopts_the_first_record_and_its_own_files_stay_unnamed(store: Store) -> None:
    first = commit(store)
    second = commit(store)
    assert second == first
    assert store.record("node", "k1") == first
    assert store.committed("node") == {"k1"}
    assert len(store.names("node/data")) == 2 * len(first.files)


def test_a_record_names_files_that_can_be_read_back_and_checked(store: Store) -> None:
    record = commit(store)
    assert store.read_table(record, "image").equals(TABLE)
    tar = record.file("tar")
    assert tar is not None
    assert store.read_file(record, tar) == b"pixels of 000-00000"
    store.check_sizes([record])
    store.put(f"node/{tar.path}", b"pixels of 000-0000X")
    with pytest.raises(SluiceError, match=r"is corrupt: its sha256 is not .*verify .* --repair"):
        store.read_file(record, tar)
    store.put(f"node/{tar.path}", b"pixels")
    with pytest.raises(SluiceError, match="has 6 bytes, not the 19 that were written"):
        store.check_sizes([record])
    store.delete(f"node/{tar.path}")
    with pytest.raises(SluiceError, match="is gone though a record names it"):
        store.read_file(record, tar)
    with pytest.raises(SluiceError, match=r"is gone; delete .*k1.json and run again"):
        store.check_sizes([record])


def test_a_final_file_is_created_once_by_whoever_is_first(store: Store) -> None:
    def shard(key: str, data: bytes) -> Record:
        with Attempt(store, "shards", "write", Task("000-00000"), key) as attempt:
            with attempt.create_final("tar", "00000.tar") as tar:
                tar.write(data)
            return attempt.commit()

    first = shard("k1", b"shard")
    assert shard("k2", b"shard").files == first.files
    with pytest.raises(SluiceError, match="exists with other bytes"):
        shard("k3", b"other")
    assert store.record("shards", "k3") is None


def test_a_record_of_which_any_bit_has_flipped_is_none(store: Store) -> None:
    record = commit(store).model_copy(update={"notes": {"seconds": 1.25}})
    sound = record.to_json()
    assert Record.from_json(sound) == record
    for place in range(len(sound)):
        rotten = bytearray(sound)
        rotten[place] ^= 1
        with pytest.raises(ValueError, match=r"checksum|validation error"):
            Record.from_json(bytes(rotten))


def test_a_record_from_before_there_were_checksums_is_read(store: Store) -> None:
    record = commit(store)
    assert Record.from_json(record.model_dump_json().encode()) == record


def test_records_come_in_the_order_asked_for(store: Store) -> None:
    records = [commit(store, part=f"000-{n:05d}", key=f"k{n}") for n in range(6)]
    keys = [f"k{n}" for n in (3, 1, 99, 5)]
    assert store.records("node", keys) == [records[3], records[1], None, records[5]]


def test_two_seals_of_the_same_content_are_one_generation_and_of_other_content_two(store: Store) -> None:
    record, other = commit(store), commit(store, part="000-00001", key="k2")
    first = store.seal(generation(record))
    assert first.number == 1
    # A driver that saw no generation yet seals the same one: it is adopted.
    assert store.put_if_absent("node/generations/0001.json", b"late") == first.to_json()
    second = store.seal(generation(record, other, key="more"))
    assert second.number == 2
    assert store.newest("node") == second
    assert store.generation("node", 1) == first
    assert store.generation("node", 3) is None


def test_racing_seals_lose_no_generation(store: Store) -> None:
    if store.root.startswith("memory:"):
        pytest.skip("memory:// looks and writes in two steps; it is for tests of one thread")
    record = commit(store)
    with ThreadPoolExecutor(8) as pool:
        sealed = list(pool.map(lambda n: store.seal(generation(record, key=f"key {n % 4}")), range(8)))
    stands = [store.generation("node", number) for number in range(1, store.newest_number("node") + 1)]
    assert {g.key for g in sealed} == {g.key for g in stands if g} == {f"key {n}" for n in range(4)}
    assert all(g in stands for g in sealed)


def test_a_run_that_says_what_the_newest_says_is_that_run(store: Store) -> None:
    run = Run(id="", dag="d", text="t", generations={"node": 1})
    assert store.add_run(run).id == "0001"
    assert store.add_run(run).id == "0001"
    assert store.add_run(run.model_copy(update={"text": "u"})).id == "0002"
    assert [r.id for r in store.runs()] == ["0002", "0001"]


# -- upkeep ------------------------------------------------------------------------------------------------------------


def sealed(store: Store) -> Record:
    record = commit(store)
    store.seal(generation(record))
    store.add_run(Run(id="", dag="d", text="t", generations={"node": 1}))
    return record


def test_verify_finds_a_flipped_bit_and_a_missing_file(store: Store) -> None:
    record = sealed(store)
    read: list[int] = []
    assert verify(store, read.append) == []
    assert sum(read) == sum(file.bytes for file in record.files)
    image, tar = record.file("image"), record.file("tar")
    assert image is not None
    assert tar is not None
    broken = bytearray(store.get(f"node/{tar.path}"))
    broken[3] ^= 1
    store.put(f"node/{tar.path}", bytes(broken))
    store.delete(f"node/{image.path}")
    problems = {damage.path: damage.problem for damage in verify(store)}
    assert problems == {
        store.url(f"node/{image.path}"): "is gone",
        store.url(f"node/{tar.path}"): "has other bytes than were committed",
    }


def test_gc_takes_what_no_record_names_and_nothing_else(store: Store) -> None:
    record = sealed(store)
    commit(store)  # a zombie: its files are named by no record
    store.put("node/data/torn.parquet", b"half")
    kept = {f"node/{file.path}" for file in record.files}
    garbage = find_garbage(store, 1)
    named = {path for path in garbage.paths if path.startswith("node/data/")}
    assert named == {f"node/data/{name}" for name in store.names("node/data")} - kept
    assert len(named) == 3
    for path in garbage.paths:
        store.delete(path)
    assert verify(store) == []
    assert find_garbage(store, 1).paths == []


# -- local disks, and patience -----------------------------------------------------------------------------------------


def test_a_local_file_is_never_seen_half_written(tmp_path: Path) -> None:
    fs = DurableLocal()
    target = str(tmp_path / "deep" / "record.json")
    fs.pipe_file(target, b"first", mode="create")
    with pytest.raises(FileExistsError):
        fs.pipe_file(target, b"second", mode="create")
    assert Path(target).read_bytes() == b"first"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["record.json"], "the temporary file stayed"


@pytest.mark.parametrize("mode", ["overwrite", "create"])
@pytest.mark.parametrize("spooled", [False, True])
def test_a_local_file_is_on_the_disk_before_it_has_its_name_and_its_name_is_before_the_put_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, spooled: bool
) -> None:
    synced: list[tuple[int, bool]] = []
    target = tmp_path / "commits" / "k.json"
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append((os.fstat(handle).st_ino, target.exists())))
    if spooled:
        (tmp_path / "spool").write_bytes(b"a record")
        DurableLocal().put_file(str(tmp_path / "spool"), str(target), mode=mode)
    else:
        DurableLocal().pipe_file(str(target), b"a record", mode=mode)
    assert target.read_bytes() == b"a record"
    assert synced == [(target.stat().st_ino, False), (target.parent.stat().st_ino, True)]


def test_a_relative_root_is_the_same_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("runs/demo")
    store.put("x", b"1")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(store)).get("x") == b"1"


def test_an_adopted_file_lies_where_it_lay(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    outside = tmp_path / "outside.tar"
    outside.write_bytes(b"tar")
    file = File(kind="tar", path=str(outside), bytes=3, sha256=sha256(b"tar").hexdigest())
    record = Record(work_key="k", node="node", phase="parts", part="p", files=(file,), content_hash="")
    assert store.read_file(record, file) == b"tar"
    store.check_sizes([record])


def test_a_passing_fault_is_waited_out_and_a_final_one_is_not() -> None:
    tries: list[int] = []

    def flaps() -> str:
        tries.append(1)
        if len(tries) < 4:
            raise OSError(5, "the store blinked")
        return "done"

    assert patiently(flaps, first_wait=0.001) == "done"
    assert len(tries) == 4
    for final in (FileNotFoundError(), PermissionError(), OSError(28, "full")):
        tries.clear()

        def fails(error: OSError = final) -> None:
            tries.append(1)
            raise error

        with pytest.raises(type(final)):
            patiently(fails, first_wait=0.001)
        assert len(tries) == 1


def test_a_fault_of_a_client_library_is_a_fault_of_the_store_and_a_bug_is_not() -> None:
    from botocore.exceptions import EndpointConnectionError, NoCredentialsError

    tries: list[int] = []

    def fails(error: Exception) -> None:
        tries.append(1)
        raise error

    with pytest.raises(OSError, match="EndpointConnectionError"):
        patiently(lambda: fails(EndpointConnectionError(endpoint_url="http://nowhere")), first_wait=0.001)
    assert len(tries) == 6
    with pytest.raises(PermissionError, match="Unable to locate credentials"):
        patiently(lambda: fails(NoCredentialsError()))
    with pytest.raises(TypeError):
        patiently(lambda: fails(TypeError("a bug")))
    assert len(tries) == 8


def test_parquet_of_a_record_is_readable_by_anyone(store: Store) -> None:
    import pyarrow.parquet as pq

    record = commit(store)
    file = record.file("image")
    assert file is not None
    assert pq.read_table(io.BytesIO(store.get(f"node/{file.path}"))).equals(TABLE)

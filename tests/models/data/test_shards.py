"""Samples are found by number in any tars, wherever they lie; what is damaged is told and stops nothing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import braceexpand
import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from models.data import index as indexes
from models.data.index import DataError, expanded
from models.data.shards import Damaged, Samples, Unreachable
from tests.models.data.tars_made import pair, picture, shards, tar_of
from tests.pools import seal_node
from tests.s3 import serving
from tests.stages.test_shard import PARTS, World, kept_where


def numbers(samples: Samples) -> list[int]:
    """What `pair` wrote into every sample, once its members are looked at."""
    found = []
    for sample in samples:
        number = int(sample.key.rpartition("/")[2], 16)
        assert sample.members == {name.rpartition(".")[2]: data for name, data in pair(number)}
        found.append(number)
    return found


@pytest.fixture
def never_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a tar was scanned")

    monkeypatch.setattr(indexes, "scan", refuse)


def test_a_folder_is_read_in_the_order_of_its_names_and_by_number_from_either_end(tmp_path: Path) -> None:
    samples = Samples.open(shards(tmp_path / "set", range(25), per_shard=10))
    assert len(samples) == 25
    assert numbers(samples) == list(range(25))
    assert samples[-1] == samples[24]
    assert samples[7:9] == [samples[7], samples[8]]
    assert not samples.faults
    with pytest.raises(IndexError, match="sample 25 of 25"):
        samples[25]


def test_braces_lists_and_single_tars_name_the_same_samples(tmp_path: Path) -> None:
    folder = shards(tmp_path / "set", range(12), per_shard=5)
    assert numbers(Samples.open(f"{folder}/{{00000..00002}}.tar")) == list(range(12))
    assert numbers(Samples.open(f"{folder}/00001.tar::{folder}/00000.tar")) == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    assert numbers(Samples.open([folder / "00002.tar", folder / "{00000,00001}.tar"])) == [10, 11, *range(10)]


@pytest.mark.parametrize("pattern", ["{00..12}.tar", "{8..12}", "x{a,b}{1..3}y", "plain", "{000..2}", "{3..3}/{0..1}"])
def test_braces_are_those_of_a_shell(pattern: str) -> None:
    assert expanded(pattern) == list(braceexpand.braceexpand(pattern))


def test_shards_of_other_tools_are_read_without_an_index(tmp_path: Path) -> None:
    folder = tmp_path / "img2dataset"
    folder.mkdir()
    said = json.dumps({"caption": "a cat", "url": "http://a/1", "key": "000000001", "status": "success"}).encode()
    members = [("000000001.jpg", picture(1)), ("000000001.json", said), ("000000001.txt", b"a cat")]
    (folder / "00000.tar").write_bytes(tar_of(members))
    (folder / "00000.parquet").write_bytes(b"PAR1")
    (folder / "00000_stats.json").write_text("{}")
    (sample,) = Samples.open(folder)
    assert (sample.key, sorted(sample.members)) == ("000000001", ["jpg", "json", "txt"])

    folder = tmp_path / "clip_benchmark"
    folder.mkdir()
    rows = [[(f"s{n:07d}.cls", str(n % 3).encode()), (f"s{n:07d}.webp", picture(n, kind="WEBP"))] for n in range(7)]
    (folder / "0.tar").write_bytes(tar_of(member for row in rows for member in row))
    samples = Samples.open(folder)
    assert [sample.members["cls"] for sample in samples] == [b"0", b"1", b"2", b"0", b"1", b"2", b"0"]


# -- sluice's own ------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> tuple[World, Any]:
    """Shards of the real stage, sealed as a run seals them."""
    world = World(tmp_path / "root")
    pool = world.pool(PARTS)
    made = world.shards(pool, kept_where(world, pool), samples_per_shard=20)
    seal_node(world.store, "shards", [*made.written, made.sizes])
    return world, made


@pytest.mark.usefixtures("never_scanned")
def test_the_index_beside_sluices_shards_is_used(written: tuple[World, Any]) -> None:
    _, made = written
    samples = Samples.open(Path(made.paths[0]).parent)
    read = [(sample.key, sample.members["txt"], json.loads(sample.members["json"])["uid"]) for sample in samples]
    assert len(read) == made.sizes.notes["samples"]
    assert all(key == uid for key, _, uid in read)


def test_the_index_and_the_tars_say_the_same(written: tuple[World, Any], tmp_path: Path) -> None:
    _, made = written
    by_index = Samples.open(Path(made.paths[0]).parent)._index
    by_header = Samples.open(copied(made.paths, tmp_path / "elsewhere"))._index
    assert by_index.spans_n2.tolist() == by_header.spans_n2.tolist()
    assert by_index.ends.tolist() == by_header.ends.tolist()


def copied(paths: Sequence[str], folder: Path) -> Path:
    folder.mkdir()
    for path in paths:
        shutil.copy(path, folder)
    return folder


def test_a_node_names_its_newest_shards(written: tuple[World, Any]) -> None:
    world, made = written
    samples = Samples.open(f"{world.store.root}/shards")
    assert list(samples) == list(Samples.open(Path(made.paths[0]).parent))


def test_an_index_that_is_gone_or_damaged_is_told_and_the_tars_are_scanned(
    written: tuple[World, Any], caplog: pytest.LogCaptureFixture
) -> None:
    world, made = written
    want = list(Samples.open(f"{world.store.root}/shards"))
    paths = [Path(world.store.full(world.store.place(record, record.file("samples")))) for record in made.written]
    paths[0].write_bytes(b"PAR1")
    paths[1].unlink()
    assert list(Samples.open(f"{world.store.root}/shards")) == want
    assert caplog.text.count("is scanned, for its index") == 2


def test_generations_of_somebody_else_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = shards(tmp_path / "node/data/set", range(3), per_shard=3)
    (tmp_path / "node/generations").mkdir()
    (tmp_path / "node/generations/0001.json").write_text('["not", "sluice"]')
    assert numbers(Samples.open(folder)) == [0, 1, 2]
    assert "is none of sluice's" in caplog.text


def test_a_truncated_shard_with_an_index_keeps_its_length_and_names_what_is_missing(
    written: tuple[World, Any],
) -> None:
    _, made = written
    path = Path(made.paths[0])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    samples = Samples.open(path.parent)
    assert len(samples) == made.sizes.notes["samples"]
    assert samples.faults == {str(path): f"has {len(data) // 2} bytes, and was written with {len(data)}"}
    assert samples[0].members["jpg"]
    with pytest.raises(Damaged, match=r"00000000\.tar at byte \d+: truncated tar: it ends at byte"):
        samples[19]
    assert samples[20].members["jpg"]


# -- what may be wrong -------------------------------------------------------------------------------------------------


def test_a_truncated_tar_without_an_index_gives_what_is_whole(tmp_path: Path) -> None:
    folder = shards(tmp_path / "set", range(20), per_shard=10)
    data = (folder / "00000.tar").read_bytes()
    (folder / "00000.tar").write_bytes(data[: len(data) // 2])
    samples = Samples.open(folder)
    found = numbers(samples)
    assert found[-10:] == list(range(10, 20))
    assert found[:-10] == list(range(len(found) - 10))
    assert 1 <= len(found) - 10 < 10
    ((tar, fault),) = samples.faults.items()
    assert tar.endswith("00000.tar")
    assert "the file ends at byte" in fault


def test_a_tar_that_shrinks_or_rots_while_it_is_read_costs_its_samples_only(tmp_path: Path) -> None:
    folder = shards(tmp_path / "set", range(10), per_shard=10)
    path = folder / "00000.tar"
    samples = Samples.open(folder)
    start = int(samples._index.spans_n2[3][0])
    data = bytearray(path.read_bytes())
    data[start : start + 512] = bytes(range(256)) * 2
    path.write_bytes(data[: int(samples._index.spans_n2[8][0]) + 100])
    for number, reason in ((3, "damaged tar"), (8, "truncated tar"), (9, "truncated tar")):
        with pytest.raises(Damaged) as found:
            samples[number]
        assert found.value.reason == reason
        assert "00000.tar at byte" in str(found.value)
    assert samples[4].members["jpg"] == picture(4)


def test_a_sample_larger_than_memory_allows_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.data.shards.LARGEST", 20_000)
    (tmp_path / "0.tar").write_bytes(tar_of([*pair(0), ("1.jpg", bytes(30_000)), *pair(2)]))
    samples = Samples.open(tmp_path)
    with pytest.raises(Damaged, match="too large a sample: 30512 bytes; at most 20000 are read"):
        samples[1]
    assert samples[2].members["jpg"] == picture(2)


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("nowhere", "there is no tar"),
        ("empty", "holds no tars; expected a folder of WebDataset shards"),
        ("pipe:cat x.tar", "would run a command"),
        ("nothing://x", "Protocol not known"),
        ("", "names no shards"),
        ("blank", "holds no sample; expected WebDataset shards"),
        ("cut", r"holds no sample; expected WebDataset shards \(.*0\.tar: the file ends at byte 100"),
    ],
)
def test_what_is_no_shards_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, data in (("empty", None), ("blank", tar_of([])), ("cut", tar_of(pair(0))[:100])):
        Path(name).mkdir()
        if data is not None:
            Path(name, "0.tar").write_bytes(data)
    with pytest.raises(DataError, match=told) as found:
        Samples.open(where)
    assert "\n" not in str(found.value)


def test_a_tar_that_is_taken_away_is_an_error_and_no_skipped_sample(tmp_path: Path) -> None:
    samples = Samples.open(shards(tmp_path / "set", range(4), per_shard=4))
    (tmp_path / "set/00000.tar").unlink()
    with pytest.raises(DataError, match=r"00000\.tar can no longer be read: No such file"):
        samples[0]


# -- many threads, many tars -------------------------------------------------------------------------------------------


def test_threads_share_the_open_files_and_few_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.data.shards.OPEN", 3)
    samples = Samples.open(shards(tmp_path / "set", range(60), per_shard=2))
    before = len(os.listdir("/proc/self/fd"))
    barrier = threading.Barrier(8)

    def read(thread: int) -> list[int]:
        barrier.wait()
        order = [(7 * place + thread) % 60 for place in range(240)]
        assert [int(samples[number].key, 16) for number in order] == order
        return order

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(read, range(8)))) == 8
    assert len(os.listdir("/proc/self/fd")) <= before + 3


# -- indexes that are kept ---------------------------------------------------------------------------------------------


def test_a_kept_index_is_used_until_a_tar_changes(
    tmp_path: Path, kept_indexes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "CACHED", 5)
    folder = shards(tmp_path / "set", range(12), per_shard=4)
    cut = (folder / "00001.tar").read_bytes()[:-11_000]
    (folder / "00001.tar").write_bytes(cut)
    first = Samples.open(folder)
    assert len(list(kept_indexes.iterdir())) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexes, "scan", None)
        again = Samples.open(folder)
    assert list(again) == list(first)
    assert again.faults == first.faults
    assert again.faults
    shards(folder, range(50, 53), per_shard=4)
    assert numbers(Samples.open(folder))[:3] == [50, 51, 52]


def test_another_process_maps_a_kept_index_and_gets_a_copy_of_another(
    tmp_path: Path, kept_indexes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shards(tmp_path / "set", range(300), per_shard=300)
    copied = pickle.dumps(Samples.open(folder))
    monkeypatch.setattr(indexes, "CACHED", 5)
    for _ in range(2):  # made, and found
        sent = pickle.dumps(Samples.open(folder))
        assert len(sent) < len(copied) - 300 * 15
        assert list(pickle.loads(sent)) == list(pickle.loads(copied))
    samples = Samples.open(folder)
    shutil.rmtree(kept_indexes)
    assert list(pickle.loads(pickle.dumps(samples))) == list(pickle.loads(copied)), "nothing is kept any more"


def test_small_local_sets_leave_no_index_behind(tmp_path: Path, kept_indexes: Path) -> None:
    Samples.open(shards(tmp_path / "set", range(12), per_shard=4))
    assert not kept_indexes.exists()


def test_where_no_index_can_be_kept_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(indexes, "CACHED", 5)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = shards(tmp_path / "set", range(6), per_shard=4)
    assert numbers(Samples.open(folder)) == list(range(6))
    assert "could not be kept" in caplog.text


# -- stores ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/", recursive=True)


def test_a_remote_tar_is_scanned_once_and_a_sample_is_one_ranged_request(
    tmp_path: Path, memory: Any, kept_indexes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.put(str(shards(tmp_path / "set", range(12), per_shard=5)), "/set", recursive=True)
    assert numbers(Samples.open("memory://set")) == list(range(12))
    assert len(list(kept_indexes.iterdir())) == 2
    monkeypatch.setattr(indexes, "scan", None)
    samples = Samples.open("memory://set/{00000..00002}.tar")
    assert samples.remote
    asked: list[tuple[int, int]] = []
    plain = memory.cat_file

    def counted(path: str, start: int, end: int) -> Any:
        asked.append((start, end))
        return plain(path, start=start, end=end)

    monkeypatch.setattr(samples._fs, "cat_file", counted)
    assert samples[7].members["jpg"] == picture(7)
    ((start, end),) = asked
    assert end - start < 512 * 9


def test_a_store_that_fails_is_asked_again_and_then_it_is_an_error_not_a_skipped_sample(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.put(str(shards(tmp_path / "set", range(3), per_shard=3)), "/set", recursive=True)
    samples = Samples.open("memory://set")
    waits: list[float] = []
    monkeypatch.setattr("models.data.shards.time.sleep", waits.append)
    plain, failures = memory.cat_file, [OSError("reset by peer"), TimeoutError("slow")]

    def flaky(path: str, **span: int) -> Any:
        if failures:
            raise failures.pop()
        return plain(path, **span)

    monkeypatch.setattr(samples._fs, "cat_file", flaky)
    assert samples[1].members["jpg"] == picture(1)
    assert waits == [1, 2]
    failures += [OSError("gone\nfor good")] * 5
    with pytest.raises(Unreachable, match=r"/set/00000\.tar cannot be read, tried 5 times: gone for good"):
        samples[1]


@pytest.mark.usefixtures("never_scanned")
def test_shards_on_s3_with_sluices_index_are_opened_without_reading_a_tar(tmp_path: Path) -> None:
    with serving() as s3, s3.environment():
        bucket = s3.bucket("training")
        world = World(tmp_path / "unused")
        world.store = type(world.store)(bucket)
        pool = world.pool(PARTS)
        made = world.shards(pool, kept_where(world, pool), samples_per_shard=20)
        seal_node(world.store, "shards", [*made.written, made.sizes])
        samples = Samples.open(f"{bucket}/shards")
        assert len(samples) == made.sizes.notes["samples"]
        with ThreadPoolExecutor(8) as threads:
            read = list(threads.map(samples.read, range(len(samples))))
        assert len({sample.key for sample in read}) == len(samples)


def test_a_folder_whose_tars_are_named_one_by_one_is_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shards(tmp_path / "set", range(12), per_shard=3)
    asked: list[str] = []
    real = LocalFileSystem.ls

    def ls(self: LocalFileSystem, path: str, *arguments: Any, **options: Any) -> Any:
        asked.append(path)
        return real(self, path, *arguments, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    assert len(Samples.open([str(path) for path in sorted(folder.glob("*.tar"))])) == 12
    assert len(asked) == 1

"""The same training sees the same samples with any number of processes and threads, from any place on."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random

import psutil
import pytest
import torch
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.collate import Collate
from models.data.index import index, listed
from models.data.loader import Loader
from models.data.memory import Shared
from models.data.order import Order, dice
from models.data.rows import ATTEMPTS, DecoderDied, Processes, Some, Threads, _make
from models.data.shards import Damaged, DataError, Sample, Samples
from models.trainable import Batch
from tests.models.data.tars_made import pair, shards, tar_of

SETS = {"big": range(37), "small": range(100, 105)}
WEIGHTS = {"big": 0.8, "small": 0.2}
Row = tuple[int, float]


class Numbers(Collate[Row]):
    """The number of a sample, and what chance gave it; some samples cannot be used."""

    def __init__(self, damaged: Sequence[int] = ()) -> None:
        self.damaged = set(damaged)

    def row(self, sample: Sample, dice: Random, room: Batch, at: int) -> Row:
        number = int(sample.key, 16)
        if number in self.damaged:
            raise Damaged("spoilt", sample.key, "by a test")
        room["again"][at, 0] = number
        return number, dice.random()

    def room(self) -> dict[str, tuple[int, ...]]:
        return {"again": (1,)}

    def batch(self, rows: Sequence[Row]) -> Batch:
        return {"number": torch.tensor([row[0] for row in rows]), "chance": torch.tensor([row[1] for row in rows])}


@pytest.fixture(scope="module", autouse=True)
def little_ahead() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.data.loader.AHEAD", 40)
        yield


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Samples]:
    folder = tmp_path_factory.mktemp("sets")
    return {name: Samples.open(shards(folder / name, numbers, per_shard=10)) for name, numbers in SETS.items()}


def order_of(sets: dict[str, Samples], seed: int = 3) -> Order:
    return Order({name: len(samples) for name, samples in sets.items()}, WEIGHTS, seed)


def seen(
    sets: dict[str, Samples],
    samples: int,
    batch: int,
    world: int = 1,
    start: int = 0,
    threads: int = 2,
    damaged: Sequence[int] = (),
) -> list[tuple[int, int, float]]:
    """Place, number and chance of every sample from `start` on, in the order of the places."""
    found: list[tuple[int, int, float]] = []
    for rank in range(world):
        loader = Loader(sets, order_of(sets), Numbers(damaged), batch, rank, world, start, threads)
        with loader:
            for each in islice(loader, (samples - start) // batch):
                assert torch.equal(each["again"][:, 0], each["number"])
                columns = (each[name].tolist() for name in ("position", "number", "chance"))
                found += zip(*columns, strict=True)
    return sorted(found)


@settings(max_examples=20)
@given(st.integers(3, 24), st.sampled_from([1, 2, 3]), st.integers(1, 5), st.sampled_from([(), (3, 8, 101)]))
def test_any_number_of_processes_and_threads_sees_the_same(
    sets: dict[str, Samples], batch: int, world: int, threads: int, damaged: tuple[int, ...]
) -> None:
    samples = 3 * batch
    found = seen(sets, samples, batch, world, threads=threads, damaged=damaged)
    assert [place for place, _, _ in found] == list(range(samples))
    assert found == reference(sets, damaged)[:samples]


_references: dict[tuple[int, ...], list[tuple[int, int, float]]] = {}


def reference(sets: dict[str, Samples], damaged: tuple[int, ...]) -> list[tuple[int, int, float]]:
    """What one process with one thread sees, in batches of one."""
    if damaged not in _references:
        _references[damaged] = seen(sets, 144, 1, threads=1, damaged=damaged)
    return _references[damaged]


@settings(max_examples=20)
@given(st.integers(0, 60), st.integers(3, 12), st.integers(1, 3), st.sampled_from([(), (3, 8, 101)]))
def test_a_loader_that_begins_at_any_place_goes_on_bit_for_bit(
    sets: dict[str, Samples], start: int, batch: int, world: int, damaged: tuple[int, ...]
) -> None:
    found = seen(sets, start + 2 * batch, batch, world, start, damaged=damaged)
    assert found == reference(sets, damaged)[start : start + 2 * batch]


def test_a_rank_has_its_slice_of_every_batch(sets: dict[str, Samples]) -> None:
    with Loader(sets, order_of(sets), Numbers(), batch=10, rank=1, world=3, start=20) as loader:
        assert [next(loader)["position"].tolist() for _ in range(2)] == [[23, 24, 25], [33, 34, 35]]
        assert loader.position == 40


def test_undamaged_data_is_exactly_what_the_order_says(sets: dict[str, Samples]) -> None:
    order = order_of(sets)
    for place, number, _ in seen(sets, 100, 10):
        name, index = order.at(place)
        assert number == SETS[name][index]


class Gaussian(Numbers):
    """Takes one of the two numbers that `Random.gauss` makes at once; the dice keep the other."""

    def row(self, sample: Sample, dice: Random, room: Batch, at: int) -> Row:
        chance = dice.gauss(0, 1)
        return super().row(sample, dice, room, at)[0], chance


def test_every_place_has_dice_of_its_own_whatever_was_thrown_before(sets: dict[str, Samples]) -> None:
    order = order_of(sets)
    with Loader(sets, order, Gaussian(), batch=20, threads=1) as loader:
        found = torch.cat([next(loader)["chance"] for _ in range(3)])
    assert found.tolist() == torch.tensor([dice(order.seed, place, 0).gauss(0, 1) for place in range(60)]).tolist()


class Refusing(Gaussian):
    """Refuses half of what it is given, by the dice."""

    def row(self, sample: Sample, dice: Random, room: Batch, at: int) -> Row:
        if dice.random() < 0.5:
            raise Damaged("refused", sample.key)
        return super().row(sample, dice, room, at)


def test_another_try_for_a_place_has_dice_of_its_own(sets: dict[str, Samples]) -> None:
    order = order_of(sets)
    with Loader(sets, order, Refusing(), batch=20, threads=1) as loader:
        found = next(loader)["chance"]

    def thrown(place: int) -> float:
        tries = (dice(order.seed, place, attempt) for attempt in range(ATTEMPTS))
        return next(chance for chance in tries if chance.random() >= 0.5).gauss(0, 1)

    assert found.tolist() == torch.tensor([thrown(place) for place in range(20)]).tolist()


def test_what_cannot_be_used_is_replaced_within_its_set_counted_and_named(
    sets: dict[str, Samples], caplog: pytest.LogCaptureFixture
) -> None:
    order = order_of(sets)
    with Loader(sets, order, Numbers(damaged=[3, 8, 101]), batch=42, threads=3) as loader:
        numbers = torch.cat([next(loader)["number"] for _ in range(5)]).tolist()
    assert not {3, 8, 101} & set(numbers)
    for place, number in enumerate(numbers):
        name, index = order.at(place)
        assert number in SETS[name]
        if SETS[name][index] not in (3, 8, 101):
            assert number == SETS[name][index]
    drawn = [SETS[name][index] for name, index in map(order.at, range(210))]
    hit = sum(number in (3, 8, 101) for number in drawn)
    assert hit > 10
    assert loader.skipped["spoilt"] >= hit
    assert len(loader.named) == min(100, loader.skipped["spoilt"])
    assert "00000003: spoilt: by a test" in loader.named
    assert "left out, and another taken: 00000003: spoilt: by a test" in caplog.text


def test_counts_belong_to_a_position_however_far_ahead_threads_are(sets: dict[str, Samples]) -> None:
    counts = []
    for threads in (1, 6):
        with Loader(sets, order_of(sets), Numbers(damaged=range(0, 37, 2)), batch=8, threads=threads) as loader:
            counts.append([(next(loader), dict(loader.skipped))[1] for _ in range(4)])
            time.sleep(0.05)
            assert dict(loader.skipped) == counts[-1][-1]
    assert counts[0] == counts[1]


def test_one_usable_sample_among_ten_is_found(sets: dict[str, Samples]) -> None:
    with Loader(sets, order_of(sets), Numbers(damaged=[*range(4, 37), *range(101, 105)]), batch=20) as loader:
        assert set(next(loader)["number"].tolist()) == {0, 1, 2, 3, 100}


def test_where_nothing_can_be_used_it_is_said_in_a_line(sets: dict[str, Samples]) -> None:
    with Loader(sets, order_of(sets), Numbers(damaged=range(200)), batch=20) as loader:
        for place in (0, 20):
            told = rf"none of {ATTEMPTS} samples tried for place {place} can be used.*spoilt"
            with pytest.raises(DataError, match=told) as found:
                next(loader)
            assert "\n" not in str(found.value)


def test_a_tar_that_is_not_whole_is_counted_from_the_start(tmp_path: Path) -> None:
    folder = shards(tmp_path / "set", range(20), per_shard=10)
    data = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(data[: len(data) // 2])
    samples = Samples.open(folder)
    with Loader({"a": samples}, Order({"a": len(samples)}, {"a": 1}, 0), Numbers(), batch=len(samples)) as loader:
        assert sorted(next(loader)["number"].tolist()) == list(range(len(samples)))
        assert loader.skipped == {"damaged tar": 1}
        assert "a/" in loader.named[0]
        assert "00001.tar: the file ends at byte" in loader.named[0]
    with Loader({"a": samples}, Order({"a": len(samples)}, {"a": 1}, 0), Numbers(), 4, rank=1, world=2) as other:
        assert other.skipped == {}, "the first process counts what all see"


def test_a_tar_that_is_cut_under_the_loader_is_replaced_sample_by_sample(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar_of(member for number in range(10) for member in pair(number)))
    samples = Samples.open(tmp_path)
    with (tmp_path / "0.tar").open("r+b") as stream:
        stream.truncate(int(samples._index.spans_n2[6][0]))
    with Loader({"a": samples}, Order({"a": 10}, {"a": 1}, 0), Numbers(), batch=10) as loader:
        assert set(next(loader)["number"].tolist()) <= set(range(6))
    assert loader.skipped["truncated tar"] >= 4


def test_an_error_of_the_collator_reaches_the_trainer(sets: dict[str, Samples]) -> None:
    class Broken(Numbers):
        def row(self, sample: Sample, dice: Random, room: Batch, at: int) -> Row:
            raise KeyError("a mistake")

    with Loader(sets, order_of(sets), Broken(), batch=8) as loader, pytest.raises(KeyError, match="a mistake"):
        next(loader)


def test_samples_are_made_ahead_but_not_without_bound(sets: dict[str, Samples]) -> None:
    made, enough = [], threading.Event()

    class Counted(Numbers):
        def row(self, sample: Sample, dice: Random, room: Batch, at: int) -> Row:
            made.append(sample.key)
            if len(made) >= 40:
                enough.set()
            return super().row(sample, dice, room, at)

    with Loader(sets, order_of(sets), Counted(), batch=4) as loader:
        next(loader)
        assert enough.wait(10)
        time.sleep(0.1)
        assert 40 <= len(made) <= 48


def test_closing_ends_the_threads(sets: dict[str, Samples]) -> None:
    before = set(threading.enumerate())
    loader = Loader(sets, order_of(sets), Numbers(), batch=8, threads=4)
    next(loader)
    loader.close()
    assert [thread.name for thread in threading.enumerate() if thread not in before] == []


def test_closing_waits_for_the_samples_at_hand_alone(sets: dict[str, Samples]) -> None:
    made, reached, gate = list[int](), threading.Event(), threading.Event()

    class Gated(Numbers):
        def row(self, sample: Sample, dice: Random, room: Batch, at: int) -> Row:
            made.append(at)
            if len(made) == 25:
                reached.set()
                assert gate.wait(10)
            return super().row(sample, dice, room, at)

    loader = Loader(sets, order_of(sets), Gated(), batch=20, threads=1)
    next(loader)
    assert reached.wait(10)
    closing = threading.Thread(target=loader.close)
    closing.start()
    assert isinstance(loader._makers, Threads)
    assert loader._makers.ending.wait(10)
    gate.set()
    closing.join()
    assert len(made) == 25


def test_reading_waits_for_a_store_in_many_threads_while_few_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = Samples.open(shards(tmp_path / "set", range(30), per_shard=30))
    samples.remote = True
    together = threading.Barrier(20)  # passed only by so many reads at once
    read = samples.read
    decoding, most = [], [0]

    def slow(number: int) -> Sample:
        together.wait(10)
        return read(number)

    class Slow(Numbers):
        def row(self, sample: Sample, dice: Random, room: Batch, at: int) -> Row:
            decoding.append(sample.key)
            most[0] = max(most[0], len(decoding))
            time.sleep(0.002)
            decoding.pop()
            return super().row(sample, dice, room, at)

    monkeypatch.setattr(samples, "read", slow)
    with Loader({"a": samples}, Order({"a": 30}, {"a": 1}, 0), Slow(), batch=20, threads=2) as loader:
        assert len(next(loader)["number"]) == 20
    assert most[0] == 2


@pytest.mark.parametrize(("rank", "world", "batch"), [(0, 5, 4), (2, 2, 8), (-1, 1, 8)])
def test_a_rank_without_samples_is_refused(sets: dict[str, Samples], rank: int, world: int, batch: int) -> None:
    with pytest.raises(DataError, match=f"rank {rank} of {world}, batch of {batch}|rank {rank} of {world} processes"):
        Loader(sets, order_of(sets), Numbers(), batch, rank, world)


# -- in processes ------------------------------------------------------------------------------------------------------


def test_processes_see_the_same_as_threads_and_say_what_they_skipped(sets: dict[str, Samples]) -> None:
    found = []
    for decoders in (0, 2):
        with Loader(sets, order_of(sets), Numbers((3, 8, 101)), 12, decoders=decoders) as loader:
            rows = [{name: column.tolist() for name, column in each.items()} for each in islice(loader, 4)]
            found.append((rows, loader.skipped, loader.named))
    assert found[0] == found[1]
    assert found[0][1]["spoilt"] > 0


def test_what_a_process_made_stays_while_somebody_holds_it_and_is_gone_then(sets: dict[str, Samples]) -> None:
    def held() -> int:
        gc.collect()
        opened = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.exists()]
        return sum("memfd:sluice-batch" in name for name in opened)

    with Loader(sets, order_of(sets), Numbers(), 12, decoders=1) as loader:
        first = next(loader)
        for _ in range(20):
            next(loader)
        assert 4 <= held() < 20, "two for each block, which are taken again"
        assert torch.equal(first["again"][:, 0], first["number"])
    del loader
    assert held() == 1
    assert torch.equal(first["again"][:, 0], first["number"])
    del first
    assert held() == 0


def test_memory_is_nobody_elses_while_a_process_may_write_to_it(sets: dict[str, Samples]) -> None:
    makers = Processes(sets, order_of(sets), Slow(), 1)
    try:
        room = {"again": makers.memory.empty(1, 1)}
        place = room["again"].data_ptr()
        coming = makers.submit(Some(0, 0, [0], [0]), room)
        del room
        gc.collect()
        assert makers.memory.empty(1, 1).data_ptr() != place
        coming.result()
        del coming
        gc.collect()
        assert place in {makers.memory.empty(1, 1).data_ptr() for _ in range(1)}
    finally:
        makers.close()


class Slow(Numbers):
    def row(self, sample: Sample, dice: Random, room: Batch, at: int) -> Row:
        time.sleep(0.5)
        return super().row(sample, dice, room, at)


def test_of_a_store_a_process_reads_many_samples_at_once(tmp_path: Path) -> None:
    local = Samples.open(shards(tmp_path / "set", range(30), per_shard=30))
    fs = DirFileSystem(str(tmp_path), LocalFileSystem())
    samples = Samples(fs, index(fs, listed(fs, ["set"])))
    assert samples.remote
    assert len(samples) == len(local)
    order = Order({"a": 30}, {"a": 1}, 0)
    found = []
    for one, decoders in ((local, 0), (samples, 2)):
        with Loader({"a": one}, order, Numbers((3, 8)), 12, decoders=decoders) as loader:
            found.append([each["number"].tolist() for each in islice(loader, 4)])
    assert found[0] == found[1]


DIED = r"^a process that decodes ended by itself.*`parallel.decoders`, or 0$"


def test_an_error_waits_for_those_who_still_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, written = DirFileSystem(str(tmp_path), LocalFileSystem()), list[int]()
    shards(tmp_path / "set", range(30), per_shard=30)
    samples = {"a": Samples(fs, index(fs, listed(fs, ["set"])))}

    class Late(Numbers):
        def row(self, sample: Sample, dice: Random, room: Batch, at: int) -> Row:
            if at == 0:
                raise KeyError(at)
            time.sleep(0.3)
            written.append(at)
            return super().row(sample, dice, room, at)

    threads, memory = Threads(samples, Order({"a": 30}, {"a": 1}, 0), Late(), 1), Shared()
    monkeypatch.setattr("models.data.rows._working", [threads])
    room = memory.empty(2, 1)
    with pytest.raises(RuntimeError, match=r"^KeyError: 0"):
        _make(Some(0, 0, [0, 0], [4, 5]), {"again": memory.block(room)})
    assert written == [1]
    threads.close()
    memory.close()


def test_a_decoder_that_never_began_is_told_with_its_remedy(sets: dict[str, Samples]) -> None:
    with Loader(sets, order_of(sets), Fatal(), 12, decoders=1) as loader, pytest.raises(DecoderDied, match=DIED):
        next(loader)


def test_a_decoder_that_is_killed_between_two_batches_is_told_too(sets: dict[str, Samples]) -> None:
    with Loader(sets, order_of(sets), Numbers(), 12, decoders=1) as loader:
        next(loader)
        os.kill(decoders_of(loader)[0], signal.SIGKILL)
        time.sleep(0.5)  # a step of the trainer
        with pytest.raises(DecoderDied, match=DIED):
            list(islice(loader, 40))


class Fatal(Numbers):
    def row(self, sample: Sample, dice: Random, room: Batch, at: int) -> Row:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def decoders_of(loader: Loader[Row]) -> list[int]:
    assert isinstance(loader._makers, Processes)
    return list(loader._makers._pool._processes)


def test_what_stops_the_trainers_group_does_not_stop_its_decoders(sets: dict[str, Samples]) -> None:
    with Loader(sets, order_of(sets), Numbers(), 12, decoders=1) as loader:
        next(loader)
        assert [os.getpgid(decoder) == os.getpgrp() for decoder in decoders_of(loader)] == [False]


def test_an_error_that_cannot_be_sent_is_told_in_words(sets: dict[str, Samples]) -> None:
    told = pytest.raises(RuntimeError, match=r"^Odd: two")
    with Loader(sets, order_of(sets), Wrong(), 12, decoders=1) as loader, told:
        next(loader)


class Odd(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__("two")


class Wrong(Numbers):
    def row(self, sample: Sample, dice: Random, room: Batch, at: int) -> Row:
        raise Odd(1, 2)


def test_an_error_in_a_process_reaches_the_trainer(sets: dict[str, Samples]) -> None:
    told, none = f"^mixture.big: none of {ATTEMPTS} samples tried for place", Numbers(range(37))
    with Loader(sets, order_of(sets), none, 12, decoders=1) as loader, pytest.raises(DataError, match=told):
        next(loader)


TRAINING = """
import sys, time
from models.data.loader import Loader
from models.data.order import Order
from models.data.shards import Samples
from tests.models.data.test_loader import Numbers

if __name__ == "__main__":
    samples = Samples.open(sys.argv[1])
    loader = Loader({"a": samples}, Order({"a": len(samples)}, {"a": 1}, 0), Numbers(), 4, decoders=2)
    next(loader)
    print(*loader._makers._pool._processes, flush=True)
    time.sleep(60)
"""


def test_where_the_trainer_is_killed_its_decoders_end(tmp_path: Path) -> None:
    folder = shards(tmp_path / "set", range(30), per_shard=30)
    (tmp_path / "training.py").write_text(TRAINING)
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, str(tmp_path / "training.py"), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as training:
        assert training.stdout is not None
        decoders = [psutil.Process(int(pid)) for pid in training.stdout.readline().split()]
        assert len(decoders) == 2
        training.kill()
    assert psutil.wait_procs(decoders, timeout=20)[1] == []

"""The same training sees the same samples with any number of processes and threads, from any place on."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.collate import ENCODED, Decoded, Room
from models.data.loader import Loader
from models.data.order import Order, dice
from models.data.rows import ATTEMPTS, Some, Threads
from models.data.shards import Damaged, DataError, Sample, Samples
from tests.models.data.numbers_made import SETS, Numbers, Row, order_of, sets_in
from tests.models.data.tars_made import pair, shards, tar_of


@pytest.fixture(scope="module", autouse=True)
def little_ahead() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.data.loader.AHEAD", 40)
        patch.setattr("models.data.loader.DRAWN", 50)  # some times a test
        yield


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Samples]:
    return sets_in(tmp_path_factory.mktemp("sets"))


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

    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Row:
        chance = dice.gauss(0, 1)
        return super().row(sample, dice, room, at)[0], chance


def test_every_place_has_dice_of_its_own_whatever_was_thrown_before(sets: dict[str, Samples]) -> None:
    order = order_of(sets)
    with Loader(sets, order, Gaussian(), batch=20, threads=1) as loader:
        found = torch.cat([next(loader)["chance"] for _ in range(3)])
    assert found.tolist() == torch.tensor([dice(order.seed, place, 0).gauss(0, 1) for place in range(60)]).tolist()


class Refusing(Gaussian):
    """Refuses half of what it is given, by the dice."""

    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Row:
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


class Late(Numbers):
    """Has its image decoded with others, with dice of its own, and only then finds what cannot be used."""

    def __init__(self, damaged: Sequence[int] = (), nbytes: int = 10) -> None:
        super().__init__()
        self.undecodable, self.nbytes = set(damaged), nbytes

    def room(self) -> dict[str, tuple[int, ...]]:
        return {**super().room(), "thrown": (1,)}

    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Row:
        found = super().row(sample, dice, room, at)

        def decode() -> Decoded:
            if found[0] in self.undecodable:
                raise Damaged("spoilt", sample.key, "by a test")
            thrown = int(255 * dice.random())
            return Decoded(10, lambda: room["thrown"][at].fill_(thrown))

        room.later(at, self.nbytes, decode)
        return found


@pytest.mark.parametrize(("nbytes", "decoders", "remote"), [(10, 0, 0), (ENCODED // 3, 0, 0), (10, 1, 0), (10, 0, 1)])
def test_what_turns_out_when_others_are_decoded_is_replaced_alike(
    sets: dict[str, Samples], nbytes: int, decoders: int, remote: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, spoilt = order_of(sets), [*range(0, 37, 2), 101]
    with Loader(sets, order, Numbers(spoilt), batch=42, threads=1) as loader:
        wanted = [next(loader) for _ in range(3)]
        named, counted = loader.named, loader.skipped
    for samples in sets.values():
        monkeypatch.setattr(samples, "remote", bool(remote))
    with Loader(sets, order, Late(spoilt, nbytes), batch=42, threads=1, decoders=decoders) as loader:
        found = [next(loader) for _ in range(3)]
        assert (loader.named, loader.skipped) == (named, counted)
    for batch, other in zip(found, wanted, strict=True):
        assert all(torch.equal(batch[name], other[name]) for name in ("number", "again", "chance"))

    def second_throw(place: int, chance: float) -> int:
        tries = (dice(order.seed, place, attempt) for attempt in range(ATTEMPTS))
        own = next(one for one in tries if torch.tensor(one.random()).item() == chance)
        return int(255 * own.random())

    places, chances = (torch.cat([batch[name] for batch in found]).tolist() for name in ("position", "chance"))
    thrown = torch.cat([batch["thrown"] for batch in found])[:, 0].tolist()
    assert thrown == [second_throw(*one) for one in zip(places, chances, strict=True)]


@pytest.mark.parametrize("attempts", [3, 4])
def test_where_nothing_can_be_decoded_it_is_said_of_the_first_place(
    sets: dict[str, Samples], attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.data.rows.ATTEMPTS", attempts)
    told = pytest.raises(DataError, match=rf"none of {attempts} samples tried for place 0 can be used.*spoilt")
    with Loader(sets, order_of(sets), Late(range(200)), batch=20) as loader, told:
        next(loader)


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
        def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Row:
            raise KeyError("a mistake")

    with Loader(sets, order_of(sets), Broken(), batch=8) as loader, pytest.raises(KeyError, match="a mistake"):
        next(loader)


def test_samples_are_made_ahead_but_not_without_bound(sets: dict[str, Samples]) -> None:
    made, enough = [], threading.Event()

    class Counted(Numbers):
        def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Row:
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
        def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Row:
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

    def decode(key: str) -> Decoded:
        decoding.append(key)
        most[0] = max(most[0], len(decoding))
        time.sleep(0.002)
        decoding.pop()
        return Decoded(10, list)

    class Slow(Numbers):
        def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Row:
            if at % 2:
                decode(sample.key)
            else:
                room.later(at, 10, lambda: decode(sample.key))
            return super().row(sample, dice, room, at)

    monkeypatch.setattr(samples, "read", slow)
    with Loader({"a": samples}, Order({"a": 30}, {"a": 1}, 0), Slow(), batch=20, threads=2) as loader:
        assert len(next(loader)["number"]) == 20
    assert most[0] == 2


def test_no_more_samples_wait_to_be_decoded_than_some_megabytes(sets: dict[str, Samples]) -> None:
    done = list[str]()

    class Told(Numbers):
        def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Row:
            done.append("row")
            room.later(at, ENCODED // 3 + 1, lambda: Decoded(1, lambda: done.append("decoded")))
            return super().row(sample, dice, room, at)

    with Loader(sets, order_of(sets), Told(), batch=8, threads=1) as loader:
        next(loader)
    assert done[:12] == [*["row"] * 3, *["decoded"] * 3] * 2


@pytest.mark.parametrize("collate", [Numbers([3, 8, 101]), Late([3, 8, 101])], ids=["early", "late"])
def test_what_was_damaged_keeps_no_memory_of_its_batch(sets: dict[str, Samples], collate: Numbers) -> None:
    makers = Threads(sets, order_of(sets), collate, 1)
    room = {name: makers.memory.empty(37, *shape) for name, shape in collate.room().items()}
    places = {tensor.data_ptr() for tensor in room.values()}
    gc.disable()
    try:
        assert makers.submit(Some(0, 0, [0] * 37, list(range(37))), room).result().skipped
        makers.close()  # whose thread holds its last work otherwise
        del room
        assert makers.memory.empty(37, 1).data_ptr() in places
    finally:
        gc.enable()


@pytest.mark.parametrize(("rank", "world", "batch"), [(0, 5, 4), (2, 2, 8), (-1, 1, 8)])
def test_a_rank_without_samples_is_refused(sets: dict[str, Samples], rank: int, world: int, batch: int) -> None:
    with pytest.raises(DataError, match=f"rank {rank} of {world}, batch of {batch}|rank {rank} of {world} processes"):
        Loader(sets, order_of(sets), Numbers(), batch, rank, world)

"""Rows that other processes make: the same as threads', and nothing of them stays behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from random import Random

import psutil
import pytest
import torch
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from models.data.collate import Room
from models.data.index import index, listed
from models.data.loader import Loader
from models.data.memory import Shared
from models.data.order import Order
from models.data.rows import ATTEMPTS, GRACE_S, DecoderDied, Processes, Some, Threads, _make
from models.data.shards import DataError, Sample, Samples
from tests.models.data.numbers_made import Numbers, Row, order_of, sets_in
from tests.models.data.tars_made import shards


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Samples]:
    return sets_in(tmp_path_factory.mktemp("sets"))


@pytest.fixture(autouse=True)
def little_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.data.loader.AHEAD", 40)


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
    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Row:
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
        def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Row:
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
    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Row:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def decoders_of(loader: Loader[Row]) -> list[int]:
    assert isinstance(loader._makers, Processes)
    return list(loader._makers._pool._processes)


def test_what_stops_the_trainers_group_does_not_stop_its_decoders(sets: dict[str, Samples]) -> None:
    with Loader(sets, order_of(sets), Numbers(), 12, decoders=1) as loader:
        next(loader)
        assert [os.getpgid(decoder) == os.getpgrp() for decoder in decoders_of(loader)] == [False]


def test_where_one_of_two_idle_decoders_is_killed_the_other_keeps_nobody_waiting(sets: dict[str, Samples]) -> None:
    with Loader(sets, order_of(sets), Numbers(), 12, decoders=2) as loader:
        next(loader)
        time.sleep(0.5)  # both have nothing to do, and one holds what the other waits for
        holding = [one for one in decoders_of(loader) if "pipe_read" in Path(f"/proc/{one}/wchan").read_text()]
        os.kill((holding or decoders_of(loader))[0], signal.SIGKILL)
        with pytest.raises(DecoderDied, match=DIED):
            list(islice(loader, 40))
        started = time.monotonic()
    assert time.monotonic() - started < GRACE_S / 2


def test_an_error_that_cannot_be_sent_is_told_in_words(sets: dict[str, Samples]) -> None:
    told = pytest.raises(RuntimeError, match=r"^Odd: two")
    with Loader(sets, order_of(sets), Wrong(), 12, decoders=1) as loader, told:
        next(loader)


class Odd(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__("two")


class Wrong(Numbers):
    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Row:
        raise Odd(1, 2)


def test_an_error_in_a_process_reaches_the_trainer(sets: dict[str, Samples]) -> None:
    told, none = f"^mixture.big: none of {ATTEMPTS} samples tried for place", Numbers(range(37))
    with Loader(sets, order_of(sets), none, 12, decoders=1) as loader, pytest.raises(DataError, match=told):
        next(loader)


TRAINING = """
import sys
from itertools import islice
from models.data.loader import Loader
from models.data.order import Order
from models.data.shards import Samples
from tests.models.data.numbers_made import Numbers

if __name__ == "__main__":
    samples = Samples.open(sys.argv[1])
    loader = Loader({"a": samples}, Order({"a": len(samples)}, {"a": 1}, 0), Numbers(), 4, decoders=2)
    next(loader)
    print(*loader._makers._pool._processes, flush=True)
    sys.stdin.readline()
    print(sum(1 for _ in islice(loader, 90)), "batches more", flush=True)
    loader.close()
"""


@contextmanager
def trained_elsewhere(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A training that is killed at the end, and its two decoders."""
    (folder / "training.py").write_text(TRAINING)
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, str(folder / "training.py"), str(shards(folder / "set", range(30), per_shard=30))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, env=environment, stdin=pipe, stdout=pipe) as training:
        assert training.stdout is not None
        decoders = [psutil.Process(int(pid)) for pid in training.stdout.readline().split()]
        assert len(decoders) == 2
        yield training, decoders
        training.kill()


def test_where_the_trainer_is_killed_its_decoders_end(tmp_path: Path) -> None:
    with trained_elsewhere(tmp_path) as (_, decoders):
        pass
    assert psutil.wait_procs(decoders, timeout=20)[1] == []


def test_a_sigterm_to_every_process_is_left_to_the_trainer(tmp_path: Path) -> None:
    with trained_elsewhere(tmp_path) as (training, decoders):
        others = psutil.Process(training.pid).children(recursive=True)
        assert {decoder.pid for decoder in decoders} < {other.pid for other in others}, "and the server"
        for other in others:
            other.terminate()
        told, _ = training.communicate("go on\n", timeout=60)
    assert told == "90 batches more\n"

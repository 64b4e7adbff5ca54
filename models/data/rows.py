"""Rows of batches, made ahead: in threads, or in processes that do not wait for each other's interpreter.

Threads start at once and share all that is read; but only one at a time has the interpreter, and the more there are,
the longer each waits for it. A process costs some seconds, and a copy of the index.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context, parent_process
from random import Random
from typing import Any, NamedTuple

import torch

from models.data.collate import Collate
from models.data.memory import Block, Recycled, Shared, lent
from models.data.order import dice
from models.data.phases import Places
from models.data.shards import Damaged, DataError, Samples
from models.trainable import Batch

ATTEMPTS = 100
"""Samples that are tried for one place. Where nine in ten are damaged, one place in 37,000 finds none."""
REQUESTS = 32
"""Requests to a store at once."""
Sets = Mapping[str, Samples]
Room = dict[str, torch.Tensor]


class Some(NamedTuple):
    """Neighbouring rows of a batch."""

    first: int
    """The place of the batch's first row in the order."""
    start: int
    """Which row of the batch is the first of these."""
    sets: Sequence[int]
    numbers: Sequence[int]
    """Of which set each is, and which of its samples."""

    def each(self) -> list[Some]:
        rows = enumerate(zip(self.sets, self.numbers, strict=True), self.start)
        return [Some(self.first, at, [whose], [number]) for at, (whose, number) in rows]


class Made(NamedTuple):
    rows: list[Any]
    skipped: list[Damaged]


class Threads:
    """Rows made by threads of this process."""

    def __init__(self, sets: Sets, order: Places, collate: Collate[Any], threads: int, requests: int = REQUESTS):
        """`threads`: that decode. `requests`: threads more, where a store is read."""
        self.memory = Recycled()
        self.count = threads
        self.remote = any(sets[name].remote for name in order.names)
        # Only where more threads read than may decode; 2 us a sample of the 30 that one costs undecoded.
        cores = threading.Semaphore(threads) if self.remote else nullcontext()
        self._sets, self._order, self._collate, self._cores = sets, order, collate, cores
        self._pool = ThreadPoolExecutor(threads + requests * self.remote, "loader")
        collate.meet(sets)

    def submit(self, some: Some, room: Room) -> Future[Made]:
        return self._pool.submit(self.make, some, room)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def make(self, some: Some, room: Batch) -> Made:
        made, again = Made([], []), Random(0)  # seeded again for every sample
        for at, (whose, number) in enumerate(zip(some.sets, some.numbers, strict=True), some.start):
            name = self._order.names[whose]
            made.rows.append(self._row(some.first + at, at, name, number, again, room, made.skipped))
        return made

    def _row(
        self, place: int, at: int, name: str, number: int, again: Random, room: Batch, skipped: list[Damaged]
    ) -> Any:
        seed = self._order.seed
        for attempt in range(ATTEMPTS):
            if attempt:
                name, number = self._order.instead(place, attempt)
            try:
                sample = self._sets[name].read(number)
                with self._cores:
                    return self._collate.row(sample, dice(seed, place, attempt, again), room, at)
            except Damaged as damaged:
                skipped.append(damaged)
        raise DataError(
            f"mixture.{name}: none of {ATTEMPTS} samples tried for place {place} can be used; the last: {skipped[-1]}"
        )


class Processes:
    """The same by other processes, which write into memory that they share with this one."""

    def __init__(self, sets: Sets, order: Places, collate: Collate[Any], processes: int):
        self.memory = Shared()
        self.count = processes
        self.remote = False  # a process reads what it was given at once, in threads of its own
        context = get_context("forkserver")  # not a fork of this one, whose threads may hold locks
        context.set_forkserver_preload([type(collate).__module__])  # imported once, for all
        given = (sets, order, collate, -(-REQUESTS // processes))
        self._pool = ProcessPoolExecutor(processes, context, _begin, given)
        collate.meet(sets)

    def submit(self, some: Some, room: Room) -> Future[Made]:
        return self._pool.submit(_make, some, {name: self.memory.block(rows) for name, rows in room.items()})

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.memory.close()


# -- in such a process -------------------------------------------------------------------------------------------------

_working: list[Threads] = []


def _begin(sets: Sets, order: Places, collate: Collate[Any], requests: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C, who started this one knows
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _working.append(Threads(sets, order, collate, 1, requests))


def _end_with_parent() -> None:
    """Where it was killed, nobody else ends this process."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make(some: Some, blocks: Mapping[str, Block]) -> Made:
    threads, room = _working[0], {name: lent(block) for name, block in blocks.items()}
    if not threads.remote:
        return threads.make(some, room)
    parts = [part.result() for part in [threads.submit(one, room) for one in some.each()]]
    return Made([row for part in parts for row in part.rows], [one for part in parts for one in part.skipped])

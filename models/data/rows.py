"""Rows of batches, made ahead: in threads, or in processes that do not wait for each other's interpreter.

Threads start at once and share all that is read; but only one at a time has the interpreter, and the more there are,
the longer each waits for it. A process costs some seconds, and a copy of the index where none is kept on disk.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any, NamedTuple

import torch

from models.data.collate import Collate, Room
from models.data.memory import Block, Recycled, Shared, lent
from models.data.order import dice
from models.data.phases import Places
from models.data.shards import Damaged, DataError, Samples, Unreachable

ATTEMPTS = 100
"""Samples that are tried for one place. Where nine in ten are damaged, one place in 37,000 finds none."""
REQUESTS = 32
"""Requests to a store at once."""
TOGETHER = 64
"""Samples that a thread works on before it looks for others, at most."""
GRACE_S = 5.0
"""What a process has to finish the samples at hand."""
Sets = Mapping[str, Samples]
Tensors = dict[str, torch.Tensor]


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
        self.together = 1 if self.remote else TOGETHER
        self.ending = threading.Event()
        # Only where more threads read than may decode; 4 us a sample of the 30 that one costs undecoded.
        cores = threading.Semaphore(threads) if self.remote else nullcontext()
        self._sets, self._order, self._collate, self._cores = sets, order, collate, cores
        self._pool = ThreadPoolExecutor(threads + requests * self.remote, "loader")
        collate.meet(sets)

    def submit(self, some: Some, room: Tensors) -> Future[Made]:
        return self._pool.submit(self.make, some, room)

    def close(self) -> None:
        self.ending.set()
        self._pool.shutdown(cancel_futures=True)

    def make(self, some: Some, tensors: Tensors) -> Made:
        rows, skipped = [None] * len(some.sets), [list[Damaged]() for _ in some.sets]
        room, left = Room(tensors), deque(range(len(rows)))

        def another(row: int, damaged: Damaged) -> None:
            skipped[row].append(damaged.with_traceback(None))  # which holds the batch
            left.appendleft(row)

        while left:
            while left and not room.full:
                row = left.popleft()
                try:
                    rows[row] = self._row(some, row, skipped[row], room)
                except Damaged as damaged:
                    another(row, damaged)
            with self._cores:
                undecodable = room.finish()
            for at, told in reversed(undecodable):
                another(at - some.start, told)
        return Made(rows, [damaged for row in skipped for damaged in row])

    def _row(self, some: Some, row: int, skipped: Sequence[Damaged], room: Room) -> Any:
        """What becomes of the sample at a place, or of another one after those that were skipped. Raises `Damaged`."""
        if self.ending.is_set():
            raise CancelledError
        at, attempt = some.start + row, len(skipped)
        place, name, number = some.first + at, self._order.names[some.sets[row]], some.numbers[row]
        if attempt == ATTEMPTS:
            tried = f"none of {ATTEMPTS} samples tried for place {place} can be used; the last: {skipped[-1]}"
            raise DataError(f"mixture.{name}: {tried}")
        if attempt:
            name, number = self._order.instead(place, attempt)
        sample = self._sets[name].read(number)
        with self._cores:
            return self._collate.row(sample, dice(self._order.seed, place, attempt), room, at)


class Processes:
    """The same by other processes, which write into memory that they share with this one. Linux only."""

    def __init__(self, sets: Sets, order: Places, collate: Collate[Any], processes: int):
        if not hasattr(os, "memfd_create"):
            raise DataError(f"parallel.decoders = {processes}: this system has no memory files as Linux has; take 0")
        self.memory = Shared()
        self.count = processes
        self.together = TOGETHER
        context = get_context("forkserver")  # not a fork of this one, whose threads may hold locks
        context.set_forkserver_preload(["models.data.own_group", type(collate).__module__])
        self._ending, self._open = context.Pipe(duplex=False)
        given = (sets, order, collate, -(-REQUESTS // processes), self._ending)
        self._pool = ProcessPoolExecutor(processes, context, _begin, given)
        collate.meet(sets)

    def submit(self, some: Some, room: Tensors) -> Future[Made]:
        coming = self._pool.submit(_make, some, {name: self.memory.block(rows) for name, rows in room.items()})
        coming.add_done_callback(partial(self._done, room))
        return coming

    def _done(self, room: Tensors, coming: Future[Made]) -> None:
        """What is called when it is done has the room until then: as long as it is written to, nobody else gets it.

        Where a process died, the others are killed: they may wait for ever for what it held, and SIGTERM, with which
        the pool would end them, they do not hear.
        """
        if not coming.cancelled() and isinstance(coming.exception(), BrokenExecutor):
            for process in list((self._pool._processes or {}).values()):
                process.kill()

    def close(self) -> None:
        self._open.close()
        self._pool.shutdown(cancel_futures=True)
        self._ending.close()
        self.memory.close()


class DecoderDied(Unreachable):
    """A process that decodes ended by itself. Another one may not."""

    def __init__(self) -> None:
        super().__init__(
            "a process that decodes ended by itself: killed where memory ran out, or not even begun, for it imports "
            'the script that trains, which needs `if __name__ == "__main__":`; take fewer `parallel.decoders`, or 0'
        )


# -- in such a process -------------------------------------------------------------------------------------------------

_working: list[Threads] = []


def _begin(sets: Sets, order: Places, collate: Collate[Any], requests: int, ending: Connection) -> None:
    os.setpgid(0, 0)  # where something else had begun the server, which knows nothing of `own_group`
    torch.set_num_threads(1)
    threads = Threads(sets, order, collate, 1, requests)
    threading.Thread(target=_end, args=(threads, ending), daemon=True).start()
    _working.append(threads)


def _end(threads: Threads, ending: Connection) -> None:
    """When the trainer closed its end, or was killed: then nobody else ends this process."""
    wait_for([ending])
    threads.ending.set()
    time.sleep(GRACE_S)
    os._exit(1)


def _make(some: Some, blocks: Mapping[str, Block]) -> Made:
    threads, room = _working[0], {name: lent(block) for name, block in blocks.items()}
    try:
        if not threads.remote:
            return threads.make(some, room)
        coming = [threads.submit(one, room) for one in some.each()]
        wait(coming)  # all, for none may write there later
        parts = [part.result() for part in coming]
        return Made([row for part in parts for row in part.rows], [one for part in parts for one in part.skipped])
    except (DataError, Unreachable):
        raise
    except Exception as error:  # of a class that may not come whole through a pipe
        raise RuntimeError(f"{type(error).__name__}: {error}") from error

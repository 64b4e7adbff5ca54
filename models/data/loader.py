"""Batches in the order of the training, decoded ahead in threads.

loader = Loader({"shards": samples}, order, collate, batch=1024, rank=0, world=8, start=0)
for batch in loader: ...                 # goes on for ever; loader.position is all that a checkpoint must hold

Step s of a training sees the places s·batch to (s+1)·batch of the order, whatever the number of processes: rank r of w
gets those from batch·r/w to batch·(r+1)/w. What a place shows follows from the seed and the place alone, augmentation
included, so a loader that starts at a position gives the same bits as one that got there.
"""

from __future__ import annotations

import logging
import os
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from random import Random
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch

from models.data.memory import Recycled
from models.data.order import dice
from models.data.phases import Places
from models.data.shards import Damaged, DataError, Sample, Samples
from models.trainable import Batch

AHEAD = 2048
"""Samples that are decoded ahead, about; two batches at least, `BATCHES` at most."""
BATCHES = 16
ATTEMPTS = 100
"""Samples that are tried for one place. Where nine in ten are damaged, one place in 37,000 finds none."""
REQUESTS = 32
"""Requests to a store at once."""
TOGETHER = 64
"""Samples that a thread works on before it looks for others, at most."""
NAMED = 100
"""Damaged samples that are named, at most; all are counted."""
Row = TypeVar("Row")
log = logging.getLogger(__name__)


class Collate(ABC, Generic[Row]):
    """What becomes of samples. Its methods are called by other threads than the one that trains."""

    def meet(self, sets: Mapping[str, Samples]) -> None:
        """All sets, before the first sample: for what draws others beside the one whose turn it is."""

    def room(self) -> dict[str, tuple[int, ...]]:
        """Shapes, uint8, of what `row` writes to its place in `room`; it becomes part of the batch."""
        return {}

    @abstractmethod
    def row(self, sample: Sample, dice: Random, room: Batch, at: int) -> Row:
        """Of one sample, which is to be row `at` of the batch. All chance comes from `dice`.

        Raises `Damaged` for a sample that cannot be used.
        """

    @abstractmethod
    def batch(self, rows: Sequence[Row]) -> Batch:
        """Tensors whose row i is of `rows[i]`."""


class _Made(NamedTuple):
    rows: list[Any]
    skipped: list[Damaged]


class Loader(Iterator[Batch], Generic[Row]):
    """See the module. Images come as uint8 (n, 3, side, side) in `pixel_values`: `models.data.images.normalise` makes
    float32 of them on the device. Texts come as int64 `input_ids` and `attention_mask`, (n, context), or
    (n, captions, context) where the recipe asks for several captions. `position`, int64 (n,), is the place of each.

    What cannot be used is replaced by another sample of its set, counted in `skipped` and named in `named`. It is
    counted when the batch is handed out, so that a count belongs to a position. `DataError` is raised where nothing
    can be found for a place, `Unreachable` where a store fails.
    """

    def __init__(
        self,
        sets: Mapping[str, Samples],
        order: Places,
        collate: Collate[Row],
        batch: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        threads: int | None = None,
        pin: bool = False,
    ) -> None:
        """`batch`: samples of a step, over all processes. `start`: samples that were seen before, over all processes.
        `threads`: that decode; by default one more than there are cores for this process, for they wait for the
        interpreter's lock at times. `pin`: copy batches to pinned
        memory, from which a GPU fetches them by itself."""
        if not 0 <= rank < world <= batch:
            raise DataError(
                f"rank {rank} of {world} processes with a batch of {batch}: expected a sample for every rank"
            )
        self.position = start
        """Samples that were handed out, over all processes."""
        self.skipped: Counter[str] = Counter()
        """Damaged samples of this process by reason, and, of the first, tars that are not whole."""
        self.named: list[str] = []
        """The first of them, with details."""
        self._sets, self._order, self._collate, self._batch, self._pin = sets, order, collate, batch, pin
        self._memory = Recycled()
        collate.meet(sets)
        self._slice = batch * rank // world, batch * (rank + 1) // world
        threads = threads or len(os.sched_getaffinity(0)) + 1
        remote = any(sets[name].remote for name in order.names)
        # Only where more threads read than may decode; 2 us a sample of the 30 that one costs undecoded.
        self._cores = threading.Semaphore(threads) if remote else nullcontext()
        self._pool = ThreadPoolExecutor(threads + REQUESTS * remote, "loader")
        self._last = ThreadPoolExecutor(1, "loader-batch")
        rows = self._slice[1] - self._slice[0]
        self._depth = min(max(2, AHEAD // rows), BATCHES)
        self._together = 1 if remote else max(1, min(TOGETHER, rows * self._depth // (4 * threads)))
        self._next = start
        self._coming: deque[tuple[Future[Batch], list[Future[_Made]]]] = deque()
        for name in order.names if rank == 0 else ():  # which all processes see
            for tar, fault in sets[name].faults.items():
                self._count("damaged tar", f"{name}/{tar}: {fault}")

    def __next__(self) -> Batch:
        while len(self._coming) < self._depth:
            self._begin()
        coming, parts = self._coming.popleft()
        batch = coming.result()
        for part in parts:
            for damaged in part.result().skipped:
                self._count(damaged.reason, str(damaged))
        self.position += self._batch
        return batch

    def close(self) -> None:
        """Stop the threads; what they work on at the moment is finished."""
        self._pool.shutdown(cancel_futures=True)
        self._last.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        """Set threads to work on the next batch."""
        first, end = (self._next + place for place in self._slice)
        self._next += self._batch
        sets, numbers = self._order.span(first, end)
        whose, which = sets.tolist(), numbers.tolist()
        room = {name: self._memory.empty(end - first, *shape) for name, shape in self._collate.room().items()}
        parts = []
        for at in range(0, end - first, self._together):
            some = slice(at, at + self._together)
            parts.append(self._pool.submit(self._rows, first, at, whose[some], which[some], room))
        self._coming.append((self._last.submit(self._whole, parts, first, room), parts))

    def _whole(self, parts: Sequence[Future[_Made]], first: int, room: Batch) -> Batch:
        rows = [row for part in parts for row in part.result().rows]
        batch = {**room, **self._collate.batch(rows), "position": torch.arange(first, first + len(rows))}
        return {name: rows.pin_memory() for name, rows in batch.items()} if self._pin else batch

    def _rows(self, first: int, start: int, sets: Sequence[int], numbers: Sequence[int], room: Batch) -> _Made:
        made, again = _Made([], []), Random(0)  # seeded again for every sample
        for at, (whose, number) in enumerate(zip(sets, numbers, strict=True), start):
            made.rows.append(self._row(first, at, self._order.names[whose], number, again, room, made.skipped))
        return made

    def _row(
        self, first: int, at: int, name: str, number: int, again: Random, room: Batch, skipped: list[Damaged]
    ) -> Any:
        seed, place = self._order.seed, first + at
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

    def _count(self, reason: str, told: str) -> None:
        self.skipped[reason] += 1
        if len(self.named) < NAMED:
            self.named.append(told)
            log.warning("left out, and another taken: %s", told)

"""Batches in the order of the training, decoded ahead in threads or processes.

loader = Loader({"shards": samples}, order, collate, batch=1024, rank=0, world=8, start=0)
for batch in loader: ...                 # goes on for ever; loader.position is all that a checkpoint must hold

Step s of a training sees the places s·batch to (s+1)·batch of the order, whatever the number of processes: rank r of w
gets those from batch·r/w to batch·(r+1)/w. What a place shows follows from the seed and the place alone, augmentation
included, so a loader that starts at a position gives the same bits as one that got there.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from typing import Generic, Self

import torch

from models.data.collate import Collate, Row
from models.data.phases import Places
from models.data.rows import DecoderDied, Made, Processes, Some, Threads
from models.data.shards import DataError, Samples
from models.trainable import Batch

AHEAD = 1024
"""Samples that are decoded ahead, about; two batches at least, `BATCHES` at most."""
BATCHES = 16
DRAWN = 4096
"""Places whose samples are drawn at once, about."""
NAMED = 100
"""Damaged samples that are named, at most; all are counted."""
log = logging.getLogger(__name__)


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
        decoders: int = 0,
    ) -> None:
        """`batch`: samples of a step, over all processes. `start`: samples that were seen before, over all processes.
        `threads`: that decode; by default one more than there are cores for this process, for they wait for the
        interpreter's lock at times. `pin`: copy batches to pinned memory, from which a GPU fetches them by itself.
        `decoders`: processes that do what the threads do otherwise; they get copies of `sets` and `collate`."""
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
        self._order, self._collate, self._batch, self._pin = order, collate, batch, pin
        self._slice = batch * rank // world, batch * (rank + 1) // world
        self._makers: Threads | Processes
        if decoders:
            self._makers = Processes(sets, order, collate, decoders)
        else:
            self._makers = Threads(sets, order, collate, threads or len(os.sched_getaffinity(0)) + 1)
        self._last = ThreadPoolExecutor(1, "loader-batch")
        rows = self._slice[1] - self._slice[0]
        self._depth = min(max(2, AHEAD // rows), BATCHES)
        self._together = max(1, min(self._makers.together, rows * self._depth // (4 * self._makers.count)))
        self._next = start
        self._drawn: deque[tuple[list[int], list[int]]] = deque()
        self._coming: deque[tuple[Future[Batch], list[Future[Made]]]] = deque()
        for name in order.names if rank == 0 else ():  # which all processes see
            for tar, fault in sets[name].faults.items():
                self._count("damaged tar", f"{name}/{tar}: {fault}")

    def __next__(self) -> Batch:
        try:
            while len(self._coming) < self._depth:
                self._begin()
            coming, parts = self._coming.popleft()
            batch = coming.result()
        except BrokenExecutor as error:
            raise DecoderDied from error
        for part in parts:
            for damaged in part.result().skipped:
                self._count(damaged.reason, str(damaged))
        self.position += self._batch
        return batch

    def close(self) -> None:
        """Stop the threads or processes; the few samples that each has at hand are finished."""
        self._makers.close()
        self._last.shutdown(cancel_futures=True)
        self._coming.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        """Set threads to work on the next batch."""
        if not self._drawn:
            self._draw()
        first, end = (self._next + place for place in self._slice)
        self._next += self._batch
        whose, which = self._drawn.popleft()
        room = {name: self._makers.memory.empty(end - first, *shape) for name, shape in self._collate.room().items()}
        parts = []
        for at in range(0, end - first, self._together):
            end_at = at + self._together
            parts.append(self._makers.submit(Some(first, at, whose[at:end_at], which[at:end_at]), room))
        self._coming.append((self._last.submit(self._whole, parts, first, room), parts))

    def _draw(self) -> None:
        """Set and number of the samples of the next batches: of some at once where they are small, for 4,096 places
        take three times as long as 256. Those of other processes in between are drawn with them."""
        batches = max(1, DRAWN // self._batch)
        mine = self._slice[1] - self._slice[0]
        start, places = self._next + self._slice[0], (batches - 1) * self._batch + mine
        sets, numbers = (found.tolist() for found in self._order.span(start, start + places))
        for first in range(0, places, self._batch):
            self._drawn.append((sets[first : first + mine], numbers[first : first + mine]))

    def _whole(self, parts: Sequence[Future[Made]], first: int, room: Batch) -> Batch:
        rows = [row for part in parts for row in part.result().rows]
        batch = {**room, **self._collate.batch(rows), "position": torch.arange(first, first + len(rows))}
        return {name: rows.pin_memory() for name, rows in batch.items()} if self._pin else batch

    def _count(self, reason: str, told: str) -> None:
        self.skipped[reason] += 1
        if len(self.named) < NAMED:
            self.named.append(told)
            log.warning("left out, and another taken: %s", told)

"""Many rows at once, given back in the order they came in, with a bound on what waits for its turn."""

import asyncio
import queue
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import suppress
from typing import Final, Generic, TypeVar

from stages.download.gate import Gate, Turn

Row = TypeVar("Row")
Result = TypeVar("Result")

PARKED_PER_LANE: Final = 32
"""Rows of one host that wait for it as running tasks (some KB each); those behind them wait as what they are."""
PARKED: Final = 1024
"""Such tasks of all hosts together; past it, one for each host that has none."""


class Ordered(Generic[Row, Result]):
    """Runs `work` on every row in `loop`, and gives the results in order to another thread.

    As many rows work at once as the gate's `concurrency`; those that only wait for their host do not count, and rows of
    other hosts (`lane_of`: what is before the host is known for certain) overtake them. A new row starts only while the
    finished results that wait for an earlier row, or to be taken, weigh less than `budget`; so they never weigh more
    than `budget` and `concurrency` results. The earliest unfinished row may always go on, and the wait ends.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        gate: Gate,
        work: Callable[[Row, Turn], Awaitable[Result]],
        lane_of: Callable[[Row], str],
        weigh: Callable[[Result], int],
        budget: int,
    ) -> None:
        self._loop = loop
        self._gate = gate
        self._work = work
        self._lane_of = lane_of
        self._weigh = weigh
        self._budget = budget

    def run(self, rows: Iterable[Row]) -> Generator[Result, None, None]:
        """The results, in the order of `rows`. Whatever `work` raises ends the run and is raised here.

        Closing the generator cancels what is still running.
        """
        finished: queue.SimpleQueue[Result | None] = queue.SimpleQueue()
        run = _Run(self._gate, self._work, _Lanes(rows, self._lane_of), finished, self._weigh, self._budget)
        future = asyncio.run_coroutine_threadsafe(run.all(), self._loop)
        future.add_done_callback(lambda _: finished.put(None))
        try:
            while (result := finished.get()) is not None:
                yield result
                self._loop.call_soon_threadsafe(run.written, self._weigh(result))
            future.result()
        finally:
            future.cancel()


class _Lanes(Generic[Row]):
    """The rows that have not started: each lane in order, and no lane in the way of another."""

    def __init__(self, rows: Iterable[Row], lane_of: Callable[[Row], str]) -> None:
        self._fresh: Iterator[tuple[int, Row]] = iter(enumerate(rows))
        self._lane_of = lane_of
        self._deferred: dict[str, deque[tuple[int, Row, float]]] = {}
        self._heads: dict[int, str] = {}
        self._uncrowded: set[str] = set()
        self._quiet: set[str] = set()
        self._parked: Counter[str] = Counter()

    def parked(self, lane: str, change: int) -> None:
        """A row of this lane begins or ends to wait for its host."""
        self._parked[lane] += change
        if self._parked[lane] <= 0:
            del self._parked[lane]
        if lane in self._deferred:
            self._open(lane)

    def waits(self, index: int) -> bool:
        """Whether this row was passed over."""
        return index in self._heads

    def next(self, now: float, crowded: bool) -> tuple[int, Row, str, float] | None:
        """(index, row, lane, since when it was passed over) of the next row to start; None where there is none now.

        `crowded`: only of a lane of which no row waits.
        """
        most, open_lanes = (1, self._quiet) if crowded else (PARKED_PER_LANE, self._uncrowded)
        while open_lanes:
            lane = next(iter(open_lanes))
            if self._parked[lane] < most:
                return self._take(lane)
            open_lanes.discard(lane)
        for index, row in self._fresh:
            lane = self._lane_of(row)
            waiting = self._deferred.get(lane)
            if waiting is None and self._parked[lane] < most:
                return index, row, lane, now
            if waiting is None:
                waiting = self._deferred[lane] = deque()
                self._heads[index] = lane
                self._open(lane)
            waiting.append((index, row, now))
        return None

    def _open(self, lane: str) -> None:
        """Rows of this lane were passed over; they may start as soon as few enough of it wait."""
        if self._parked[lane] < PARKED_PER_LANE:
            self._uncrowded.add(lane)
        if not self._parked[lane]:
            self._quiet.add(lane)

    def passed_over(self, index: int) -> tuple[int, Row, str, float]:
        """A row that `waits`, whatever its lane."""
        return self._take(self._heads[index])

    def _take(self, lane: str) -> tuple[int, Row, str, float]:
        waiting = self._deferred[lane]
        index, row, since = waiting.popleft()
        del self._heads[index]
        if waiting:
            self._heads[waiting[0][0]] = lane
        else:
            del self._deferred[lane]
            self._uncrowded.discard(lane)
            self._quiet.discard(lane)
        return index, row, lane, since


class _Run(Generic[Row, Result]):
    """One run over the rows. Lives in the event loop."""

    def __init__(
        self,
        gate: Gate,
        work: Callable[[Row, Turn], Awaitable[Result]],
        lanes: _Lanes[Row],
        out: "queue.SimpleQueue[Result | None]",
        weigh: Callable[[Result], int],
        budget: int,
    ) -> None:
        self._gate = gate
        self._work = work
        self._lanes = lanes
        self._out = out
        self._weigh = weigh
        self._budget = budget
        self._finished: dict[int, Result] = {}
        self._next = 0
        self._weight = 0
        self._running = 0
        self._parked = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        self._changed = asyncio.Event()

    async def all(self) -> None:
        """Until every row has been let out."""
        self._gate.hungry.add(self._feed)
        try:
            self._feed()
            while self._error is None and (self._running or self._weight >= self._budget):
                self._changed.clear()
                await self._changed.wait()
                self._feed()
            if self._error is not None:
                raise self._error
        finally:
            self._gate.hungry.discard(self._feed)
            for task in self._tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*self._tasks, return_exceptions=True)

    def written(self, weight: int) -> None:
        """A result was taken."""
        self._add(-weight)

    def _feed(self) -> None:
        """Start rows until as many as the gate takes are on their way."""
        while self._error is None and self._running - self._parked < self._gate.concurrency:
            found = self._choose()
            if found is None:
                return
            self._running += 1
            task = asyncio.ensure_future(self._rows(*found))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _choose(self) -> tuple[int, Row, str, float] | None:
        if self._weight < self._budget:
            return self._lanes.next(self._gate.idle_s(), self._parked >= PARKED)
        return self._lanes.passed_over(self._next) if self._lanes.waits(self._next) else None

    async def _rows(self, index: int, row: Row, lane: str, since: float) -> None:
        """One row after another, as long as this is not one runner too many."""
        found: tuple[int, Row, str, float] | None = (index, row, lane, since)
        while found is not None:
            index, row, lane, since = found
            await self._one(index, row, lane, since)
            found = self._choose() if self._running - self._parked <= self._gate.concurrency else None

    async def _one(self, index: int, row: Row, lane: str, since: float) -> None:
        def parked(change: int) -> None:
            self._parked += change
            self._lanes.parked(lane, change)

        def held_back() -> bool:
            return self._weight >= self._budget and index != self._next

        turn = Turn(self._gate, index, held_back, parked, self._gate.idle_s() - since)
        try:
            result = await self._work(row, turn)
        finally:
            turn.end()
        self._finished[index] = result
        self._add(self._weigh(result))
        before = self._next
        while self._next in self._finished:
            self._out.put(self._finished.pop(self._next))
            self._next += 1
        if self._next != before and self._weight >= self._budget:
            self._open()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running -= 1
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self._error is None:
            self._error = task.exception()
        self._changed.set()

    def _add(self, weight: int) -> None:
        full = self._weight >= self._budget
        self._weight += weight
        if full and self._weight < self._budget:
            self._open()

    def _open(self) -> None:
        """There is room for more, or another row is the earliest one."""
        self._gate.release_held_back()
        self._feed()
        self._changed.set()

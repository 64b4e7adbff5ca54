"""Many rows at once, given back in the order they came in, with a bound on what waits for its turn."""

import asyncio
import queue
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from typing import Generic, TypeVar

Row = TypeVar("Row")
Result = TypeVar("Result")


class Ordered(Generic[Row, Result]):
    """Runs `work` on every row in `loop`, `concurrency` at a time, and gives the results in order to another thread.

    A new row starts only while the finished results that wait for an earlier row, or to be taken, weigh less than
    `budget`; so they never weigh more than `budget` and `concurrency` results. Rows start in order: the earliest
    unfinished one always runs, and the wait ends.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Callable[[Row], Awaitable[Result]],
        weigh: Callable[[Result], int],
        concurrency: int,
        budget: int,
    ) -> None:
        self._loop = loop
        self._work = work
        self._weigh = weigh
        self._concurrency = concurrency
        self._budget = budget

    def run(self, rows: Iterable[Row]) -> Generator[Result, None, None]:
        """The results, in the order of `rows`. Whatever `work` raises ends the run and is raised here.

        Closing the generator cancels what is still running.
        """
        finished: queue.SimpleQueue[Result | None] = queue.SimpleQueue()
        turnstile = _Turnstile[Result](finished, self._weigh, self._budget)
        future = asyncio.run_coroutine_threadsafe(self._all(iter(enumerate(rows)), turnstile), self._loop)
        future.add_done_callback(lambda _: finished.put(None))
        try:
            while (result := finished.get()) is not None:
                yield result
                self._loop.call_soon_threadsafe(turnstile.written, self._weigh(result))
            future.result()
        finally:
            future.cancel()

    async def _all(self, rows: Iterator[tuple[int, Row]], turnstile: "_Turnstile[Result]") -> None:
        async def worker() -> None:
            for index, row in rows:  # one iterator for all workers, and no await between its steps: rows start in order
                turnstile.finished(index, await self._work(row))
                await turnstile.room()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(worker())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None


class _Turnstile(Generic[Result]):
    """Lets results out in order. Lives in the event loop."""

    def __init__(self, out: "queue.SimpleQueue[Result | None]", weigh: Callable[[Result], int], budget: int) -> None:
        self._out = out
        self._weigh = weigh
        self._budget = budget
        self._waiting: dict[int, Result] = {}
        self._next = 0
        self._weight = 0
        self._open = asyncio.Event()
        self._open.set()

    def finished(self, index: int, result: Result) -> None:
        self._waiting[index] = result
        self._add(self._weigh(result))
        while self._next in self._waiting:
            self._out.put(self._waiting.pop(self._next))
            self._next += 1

    def written(self, weight: int) -> None:
        self._add(-weight)

    async def room(self) -> None:
        await self._open.wait()

    def _add(self, weight: int) -> None:
        self._weight += weight
        if self._weight < self._budget:
            self._open.set()
        else:
            self._open.clear()

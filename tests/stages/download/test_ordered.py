"""Order, bounds and errors of many rows at once."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from stages.download.ordered import Ordered


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


class Work:
    """Waits for as long as a row says (seconds) and remembers how many ran at once."""

    def __init__(self) -> None:
        self.running = self.most = self.started = 0

    async def __call__(self, seconds: float) -> float:
        self.started += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(seconds)
        self.running -= 1
        return seconds


def test_results_come_in_the_order_of_the_rows(loop: asyncio.AbstractEventLoop) -> None:
    rows = [0.05, 0.0, 0.02, 0.01, 0.0, 0.03] * 5
    work = Work()
    assert list(Ordered(loop, work, lambda _: 1, concurrency=4, budget=1000).run(rows)) == rows
    assert work.most == 4


def test_no_rows_give_no_results(loop: asyncio.AbstractEventLoop) -> None:
    assert list(Ordered(loop, Work(), lambda _: 1, concurrency=4, budget=10).run([])) == []


def test_a_slow_first_row_stops_new_rows_at_the_budget_and_not_for_ever(loop: asyncio.AbstractEventLoop) -> None:
    work = Work()
    results = Ordered(loop, work, lambda _: 1, concurrency=4, budget=10).run([0.3] + [0.0] * 100)
    first = next(results)
    assert first == 0.3
    assert work.started <= 1 + 10 + 4
    assert list(results) == [0.0] * 100


def test_a_slow_reader_stops_new_rows_too(loop: asyncio.AbstractEventLoop) -> None:
    work = Work()
    results = Ordered(loop, work, lambda _: 1, concurrency=4, budget=10).run([0.0] * 100)
    next(results)
    time.sleep(0.1)
    assert work.started <= 1 + 10 + 4
    assert len(list(results)) == 99


def test_an_error_ends_the_run_and_is_raised_as_it_was(loop: asyncio.AbstractEventLoop) -> None:
    async def work(row: int) -> int:
        await asyncio.sleep(0)
        return 1 // row

    with pytest.raises(ZeroDivisionError):
        list(Ordered(loop, work, lambda _: 1, concurrency=2, budget=10).run([1, 2, 0, 3]))


def test_leaving_early_cancels_what_runs(loop: asyncio.AbstractEventLoop) -> None:
    work = Work()
    results = Ordered(loop, work, lambda _: 1, concurrency=2, budget=10).run([0.0, 60.0, 60.0])
    assert next(results) == 0.0
    results.close()
    deadline = time.monotonic() + 5
    while asyncio.all_tasks(loop) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not asyncio.all_tasks(loop)

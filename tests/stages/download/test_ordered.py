"""Order, bounds and errors of many rows at once."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

from stages.download import ordered as module
from stages.download.gate import Gate, Turn
from stages.download.hosts import Hosts
from stages.download.leases import Alone
from stages.download.ordered import Ordered

Row = TypeVar("Row")
Result = TypeVar("Result")


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def ordered(
    loop: asyncio.AbstractEventLoop,
    work: Callable[[Row, Turn], Awaitable[Result]],
    concurrency: int,
    budget: int,
    per_host: int = 16,
) -> Ordered[Row, Result]:
    """Every result weighs 1; a row's lane is what its text begins with."""

    async def gate() -> Gate:
        return Gate(Alone(Hosts(per_host)), concurrency, 600)

    opened = asyncio.run_coroutine_threadsafe(gate(), loop).result()
    return Ordered(loop, opened, work, lambda row: str(row)[0], lambda _: 1, budget)


class Work:
    """Waits for as long as a row says (seconds) and remembers how many ran at once."""

    def __init__(self) -> None:
        self.running = self.most = self.started = 0

    async def __call__(self, seconds: float, turn: Turn) -> float:
        self.started += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(seconds)
        self.running -= 1
        return seconds


def test_results_come_in_the_order_of_the_rows(loop: asyncio.AbstractEventLoop) -> None:
    rows = [0.05, 0.0, 0.02, 0.01, 0.0, 0.03] * 5
    work = Work()
    assert list(ordered(loop, work, concurrency=4, budget=1000).run(rows)) == rows
    assert work.most == 4


def test_no_rows_give_no_results(loop: asyncio.AbstractEventLoop) -> None:
    assert list(ordered(loop, Work(), concurrency=4, budget=10).run([])) == []


def test_a_slow_first_row_stops_new_rows_at_the_budget_and_not_for_ever(loop: asyncio.AbstractEventLoop) -> None:
    work = Work()
    results = ordered(loop, work, concurrency=4, budget=10).run([0.3] + [0.0] * 100)
    first = next(results)
    assert first == 0.3
    assert work.started <= 1 + 10 + 4
    assert list(results) == [0.0] * 100


def test_a_slow_reader_stops_new_rows_too(loop: asyncio.AbstractEventLoop) -> None:
    work = Work()
    results = ordered(loop, work, concurrency=4, budget=10).run([0.0] * 100)
    next(results)
    time.sleep(0.1)
    assert work.started <= 1 + 10 + 4
    assert len(list(results)) == 99


def test_an_error_ends_the_run_and_is_raised_as_it_was(loop: asyncio.AbstractEventLoop) -> None:
    async def work(row: int, turn: Turn) -> int:
        await asyncio.sleep(0)
        return 1 // row

    with pytest.raises(ZeroDivisionError):
        list(ordered(loop, work, concurrency=2, budget=10).run([1, 2, 0, 3]))


def test_leaving_early_cancels_what_runs(loop: asyncio.AbstractEventLoop) -> None:
    work = Work()
    results = ordered(loop, work, concurrency=2, budget=10).run([0.0, 60.0, 60.0])
    assert next(results) == 0.0
    results.close()
    deadline = time.monotonic() + 5
    while asyncio.all_tasks(loop) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not asyncio.all_tasks(loop)


class Asking:
    """Asks the host that a row names with its first letter: the `slow` never have time, the others take a moment."""

    def __init__(self, released: threading.Event | None = None, slow: str = "a") -> None:
        self.released = released
        self.slow = slow
        self.asked: list[str] = []
        self.most: Counter[str] = Counter()
        self.running: Counter[str] = Counter()

    async def __call__(self, row: str, turn: Turn) -> str:
        await turn.enter(row[0])
        self.asked.append(row)
        self.running[row[0]] += 1
        self.most[row[0]] = max(self.most[row[0]], self.running[row[0]])
        while row[0] in self.slow and self.released is not None and not self.released.is_set():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        self.running[row[0]] -= 1
        turn.leave()
        return row


def test_thousands_of_rows_of_a_slow_host_do_not_stand_in_the_way_of_the_others(
    loop: asyncio.AbstractEventLoop,
) -> None:
    released = threading.Event()
    work = Asking(released)
    slow = [f"a{place}" for place in range(5000)]
    rows = [*slow, *(f"b{place}" for place in range(100)), *(f"c{place}" for place in range(100))]
    results = ordered(loop, work, concurrency=8, budget=10_000, per_host=2).run(rows)

    def release_when_the_others_are_done() -> None:
        deadline = time.monotonic() + 20
        while len(work.asked) < 202 and time.monotonic() < deadline:
            time.sleep(0.01)
        released.set()

    waiting = threading.Thread(target=release_when_the_others_are_done)
    waiting.start()
    assert list(results) == rows
    waiting.join()
    assert {row[0] for row in work.asked[:2]} == {"a"}
    assert Counter(row[0] for row in work.asked[:202]) == {"a": 2, "b": 100, "c": 100}
    assert work.most == {"a": 2, "b": 2, "c": 2}
    assert [row for row in work.asked if row[0] == "a"] == slow


def test_as_many_slow_hosts_as_it_takes_to_crowd_a_worker_do_not_stand_in_the_way_of_the_others(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PARKED_PER_LANE", 3)
    monkeypatch.setattr(module, "PARKED", 6)
    released = threading.Event()
    work = Asking(released, slow="abc")
    rows = [*(f"{lane}{place}" for place in range(50) for lane in "abc"), *(f"z{place}" for place in range(50))]
    results = ordered(loop, work, concurrency=8, budget=10_000, per_host=2).run(rows)
    opening = threading.Timer(10, released.set)  # so that it ends in any case
    opening.start()

    def release_when_the_others_are_done() -> None:
        while sum(row[0] == "z" for row in work.asked) < 50 and not released.is_set():
            time.sleep(0.01)
        released.set()

    waiting = threading.Thread(target=release_when_the_others_are_done)
    waiting.start()
    assert list(results) == rows
    waiting.join()
    opening.cancel()
    assert Counter(row[0] for row in work.asked[:56]) == {"a": 2, "b": 2, "c": 2, "z": 50}


def test_rows_behind_a_slow_host_wait_as_rows_not_as_tasks(loop: asyncio.AbstractEventLoop) -> None:
    released = threading.Event()
    work = Asking(released)
    results = ordered(loop, work, concurrency=8, budget=10_000, per_host=2).run([f"a{n}" for n in range(5000)])
    opening = threading.Timer(0.3, released.set)
    opening.start()
    next(results)
    assert len(asyncio.all_tasks(loop)) < module.PARKED_PER_LANE + 20
    assert len(list(results)) == 4999


def test_at_the_budget_the_earliest_row_goes_on_even_where_it_was_passed_over(loop: asyncio.AbstractEventLoop) -> None:
    """Rows of `a` are held up until `b` has filled the budget; then only `a` can make room again."""
    released = threading.Event()
    work = Asking(released)
    rows = [row for place in range(300) for row in (f"a{place}", f"b{place}")]
    results = ordered(loop, work, concurrency=8, budget=20, per_host=1).run(rows)
    opening = threading.Timer(0.3, released.set)
    opening.start()
    assert list(results) == rows
    assert work.most == {"a": 1, "b": 1}


def test_rows_that_are_held_back_do_not_keep_the_earliest_one_from_starting(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PARKED_PER_LANE", 1)
    monkeypatch.setattr(module, "PARKED", 3)
    released = threading.Event()
    work = Asking(released)
    rows = [f"{lane}{place}" for place in range(40) for lane in "abcd"]
    results = ordered(loop, work, concurrency=8, budget=4, per_host=1).run(rows)
    opening = threading.Timer(0.3, released.set)
    opening.start()
    assert list(results) == rows

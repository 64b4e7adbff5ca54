"""Turns at the gate: what waiting costs a row, who goes first, and that nothing is lost when rows give up."""

import asyncio
import random
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from infra.miniweb import Scripted
from infra.miniweb.http import Connection
from stages.download import leases
from stages.download.addresses import Guard
from stages.download.gate import Gate, Turn
from stages.download.hosts import Hosts, Manners, Said
from stages.download.leases import Alone
from stages.download.robots import Rules
from stages.download.statuses import RETRYABLE, FetchError
from tests.stages.download.doubles import LIMITS, Fetching


def gate(per_host: int = 1, concurrency: int = 8, wait_s: float = 60, rate: float | None = None) -> Gate:
    return Gate(Alone(Hosts(per_host, rate)), concurrency, wait_s)


def test_waiting_for_a_host_is_no_time_of_a_try(server: Scripted, guard: Guard) -> None:
    async def slow(writer: Connection) -> None:
        await asyncio.sleep(0.2)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")

    url = server.on("/gate/slow", slow)

    async def run() -> None:
        limits = replace(LIMITS, timeout_s=0.5, tries=1)
        async with Fetching(guard, limits, Manners(per_host=1)) as fetching:
            rows = await asyncio.gather(*(fetching.fetch(url) for _ in range(6)))
            assert [row.data for row in rows] == [b"x"] * 6

    asyncio.run(run())


def test_a_row_whose_turn_does_not_come_ends_and_may_be_tried_again(server: Scripted, guard: Guard) -> None:
    async def endless(writer: Connection) -> None:
        await asyncio.sleep(60)

    url = server.on("/gate/endless", endless)
    before = server.hits["/gate/endless"]

    async def run() -> None:
        async with Fetching(guard, LIMITS, Manners(per_host=1, wait_s=0.3)) as fetching:
            first = asyncio.ensure_future(fetching.fetch(url))
            await asyncio.sleep(0.05)
            with pytest.raises(FetchError, match=r"host_busy: .* was not to be asked for wait_s = 0.3"):
                await fetching.fetch(url)
            first.cancel()

    asyncio.run(run())
    assert server.hits["/gate/endless"] == before + 1
    assert "host_busy" in RETRYABLE


def test_a_row_that_has_waited_long_enough_does_not_wait_again() -> None:
    """Thousands that were passed over meanwhile end at once, and not as many at a time as are looked at together."""

    async def run() -> None:
        door = gate(per_host=1, wait_s=600)  # it is looked every 12 s
        holder = Turn(door, 0)
        await holder.enter("h")
        for order in range(1, 200):
            turn = Turn(door, order, waited_s=600)
            with pytest.raises(FetchError, match="host_busy"):
                await asyncio.wait_for(turn.enter("h"), 5)
            turn.end()
        door.close()

    asyncio.run(run())


def test_a_worker_that_is_full_lets_no_row_wait_in_vain() -> None:
    """Time in which the worker has no place is not held against the host."""

    async def run() -> None:
        door = gate(per_host=9, concurrency=1, wait_s=0.2)
        first, second = Turn(door, 0), Turn(door, 1)
        await first.enter("h")
        waiting = asyncio.ensure_future(second.enter("h"))
        await asyncio.sleep(0.6)
        first.leave()  # it keeps its place: it decodes
        await asyncio.sleep(0.1)
        assert not waiting.done()
        first.end()
        await waiting
        second.end()
        door.close()

    asyncio.run(run())


def test_the_earliest_row_goes_first() -> None:
    async def run() -> list[int]:
        door = gate(per_host=1)
        gone: list[int] = []
        holder = Turn(door, 0)
        await holder.enter("h")

        async def row(order: int) -> None:
            turn = Turn(door, order)
            await turn.enter("h")
            gone.append(order)
            turn.end()

        rows = [asyncio.ensure_future(row(order)) for order in (5, 3, 9, 1)]
        await asyncio.sleep(0.05)
        holder.end()
        await asyncio.gather(*rows)
        door.close()
        return gone

    assert asyncio.run(run()) == [1, 3, 5, 9]


@pytest.mark.parametrize("seed", range(6))
def test_rows_that_give_up_at_any_moment_leave_nothing_behind(seed: int) -> None:
    """Hundreds of rows over a few hosts, many cancelled at random: limits hold all the while, and all is free after."""
    chance = random.Random(seed)
    most: Counter[str] = Counter()
    running: Counter[str] = Counter()

    async def run() -> None:
        door = gate(per_host=3, concurrency=7)

        async def row(order: int) -> None:
            turn = Turn(door, order)
            try:
                for _ in range(chance.randrange(1, 4)):
                    host = chance.choice("abcd")
                    await turn.enter(host)
                    running[host] += 1
                    most[host] = max(most[host], running[host])
                    assert sum(running.values()) <= 7
                    try:
                        await asyncio.sleep(chance.random() * 0.004)
                    finally:
                        running[host] -= 1
                        turn.leave()
                    if chance.random() < 0.2:
                        with turn.resting():
                            await asyncio.sleep(chance.random() * 0.004)
            finally:
                turn.end()

        rows = [asyncio.ensure_future(row(order)) for order in range(300)]
        for _ in range(100):
            await asyncio.sleep(chance.random() * 0.003)
            chance.choice(rows).cancel()
        ended = await asyncio.gather(*rows, return_exceptions=True)
        assert {type(error) for error in ended} <= {type(None), asyncio.CancelledError}
        assert sum(error is None for error in ended) > 100
        assert door.free == 7
        deadline = time.monotonic() + 5
        while len(door.leases) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert len(door.leases) == 0
        last = Turn(door, 0)
        await last.enter("a")
        door.close()

    asyncio.run(run())
    assert most == {"a": 3, "b": 3, "c": 3, "d": 3}


class Silent(Alone):
    """Answers until it is told to be silent; then it answers nothing, or fails, or refuses even to be asked."""

    def __init__(self, hosts: Hosts) -> None:
        super().__init__(hosts)
        self.broken: Exception | None = None
        self.silent = False
        self.refuses = False
        self.said: list[Said] = []

    def replace(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        self.said.append(arguments[1])
        future: Future[Any] = Future()
        if self.broken is not None and self.refuses:
            raise self.broken
        if self.broken is not None:
            future.set_exception(self.broken)
            return future
        return future if self.silent else super().call(method, *arguments)


def test_a_worker_that_hears_nothing_begins_nothing_once_its_lease_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "OWN_LEASE_S", 0.3)

    async def run() -> None:
        shared = Silent(Hosts(4))
        door = Gate(shared, 8, 60)
        turn = Turn(door, 0)
        await turn.enter("h")
        shared.silent = True
        await asyncio.sleep(0.05)
        turn.leave()
        await turn.enter("h")  # the lease still holds
        turn.leave()
        await asyncio.sleep(0.4)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Turn(door, 1).enter("h"), 0.3)
        door.close()

    asyncio.run(run())


@pytest.mark.parametrize("refuses", [False, True])
def test_what_is_shared_may_fail_for_a_while(monkeypatch: pytest.MonkeyPatch, refuses: bool) -> None:
    monkeypatch.setattr(leases, "OWN_LEASE_S", 0.1)

    async def run() -> None:
        shared = Silent(Hosts(4))
        shared.broken, shared.refuses = RuntimeError("the actor died"), refuses
        door = Gate(shared, 8, 60)
        waiting = asyncio.ensure_future(Turn(door, 0).enter("h"))
        door.leases.pause("other", 5.0)
        await asyncio.sleep(0.3)
        assert not waiting.done()
        shared.broken = None
        await asyncio.wait_for(waiting, 5)
        assert [said.pauses for said in shared.said][-1] == {"other": 5.0}  # said again, for nobody heard it
        door.close()

    asyncio.run(run())


def test_a_crawl_delay_outlives_what_the_workers_share() -> None:
    async def run() -> None:
        shared = Silent(Hosts(4))
        door = Gate(shared, 8, 60)

        async def row(order: int) -> None:
            turn = Turn(door, order)
            door.leases.pace("http://h", Rules("h", delay_s=0.2))
            await turn.enter("h")
            turn.end()

        await row(0)
        rows = asyncio.gather(*(row(order) for order in range(1, 5)))
        shared.replace(Hosts(4))  # the actor has died and was started again
        await rows
        door.close()
        assert {ask.delay_s for said in shared.said for ask in said.asks.values() if ask.waiting} == {0.2}

    asyncio.run(asyncio.wait_for(run(), 10))


def test_a_busy_host_costs_no_messages_per_request() -> None:
    async def run() -> int:
        shared = Silent(Hosts(4))
        door = Gate(shared, 8, 60)
        turn = Turn(door, 0)
        for _ in range(2000):
            await turn.enter("h")
            turn.leave()
        turn.end()
        door.close()
        return len(shared.said)

    assert asyncio.run(run()) < 20


def test_after_the_run_a_worker_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "OWN_LEASE_S", 0.05)

    async def run() -> None:
        shared = Silent(Hosts(4))
        door = Gate(shared, 8, 60)
        turn = Turn(door, 0)
        await turn.enter("h")
        shared.broken = RuntimeError("the actor was killed")
        turn.end()
        await asyncio.sleep(0.2)
        said = len(shared.said)
        await asyncio.sleep(0.3)
        assert (len(shared.said), len(door.leases)) == (said, 0)
        shared.broken = None
        await Turn(door, 1).enter("h")  # and speaks again in the next one
        door.close()

    asyncio.run(run())

"""Limits per host over a whole run: four worker processes, and a server that counts."""

import asyncio
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.managers import BaseManager
from typing import Any

import pytest

from infra.miniweb import Scripted
from infra.miniweb.http import Connection
from stages.download.addresses import Guard
from stages.download.fetch import Limits
from stages.download.hosts import RENEW_S, Hosts, Manners
from stages.download.statuses import FetchError
from tests.stages.download.doubles import Fetching

WORKERS = 4
KEY = b"politeness"


class Sharing(BaseManager):
    """Keeps one `Hosts` in a process of its own."""


Sharing.register("Hosts", Hosts)


class Through:
    """A `Shared` that asks that process, one call after another."""

    def __init__(self, hosts: Any) -> None:
        self._hosts = hosts
        self._thread = ThreadPoolExecutor(1)

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        return self._thread.submit(getattr(self._hosts, method), *arguments)


def work(hosts: Any, port: int, urls: list[str]) -> Counter[str]:
    """One worker: how its rows end."""
    logged: Counter[str] = Counter()

    async def names(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async def run() -> None:
        guard = Guard(tuple(f"{host}.test:{port}" for host in "abc"))
        limits = Limits(10, 10**6, 3, "sluice/0.1 (tests)")
        manners = Manners(wait_s=60, robots=True)
        fetching = Fetching(guard, limits, manners, names, concurrency=32, shared=Through(hosts))

        async def one(url: str) -> None:
            try:
                await fetching.fetch(url)
                logged["success"] += 1
            except FetchError as failure:
                logged[failure.status] += 1

        async with fetching:
            await asyncio.gather(*map(one, urls))

    asyncio.run(run())
    return logged


class Counting(Scripted):
    """Answers after a moment; counts, by host, how many requests are open at once and when they began."""

    def __init__(self, moment_s: float) -> None:
        super().__init__(keep=True)
        self.moment_s = moment_s
        self.open: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.began: dict[str, list[float]] = {host: [] for host in "abc"}
        self.busy_at: float | None = None
        self.busy_after: int | None = None
        for host in "abc":
            self.answers[f"/{host}"] = self._counted(host)

    def _counted(self, host: str) -> Any:
        async def answer(writer: Connection) -> None:
            self.began[host].append(time.monotonic())
            self.open[host] += 1
            self.most[host] = max(self.most[host], self.open[host])
            await asyncio.sleep(self.moment_s)
            self.open[host] -= 1
            if host == "a" and self.busy_after is not None and len(self.began["a"]) >= self.busy_after:
                self.busy_after, self.busy_at = None, time.monotonic()
                writer.write(b"HTTP/1.1 429 Slow\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n")
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")

        return answer

    def urls(self, rows: dict[str, int]) -> list[str]:
        return [self.url(f"/{host}?{row}", f"{host}.test") for host, count in rows.items() for row in range(count)]


@dataclass
class Run:
    """Four workers, and what they share in a fifth process."""

    sharing: Any
    processes: ProcessPoolExecutor

    def __call__(
        self, server: Counting, rows: dict[str, int], per_host: int, rate: float | None = None
    ) -> Counter[str]:
        """How `rows` end in every one of the workers."""
        hosts = self.sharing.Hosts(per_host, rate)
        futures = [self.processes.submit(work, hosts, server.port, server.urls(rows)) for _ in range(WORKERS)]
        return sum((future.result(60) for future in futures), Counter())


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    spawning = multiprocessing.get_context("spawn")
    with Sharing(ctx=spawning) as sharing, ProcessPoolExecutor(WORKERS, spawning) as processes:
        yield Run(sharing, processes)


def test_four_workers_never_have_more_requests_open_than_a_host_allows(run: Run) -> None:
    with Counting(0.02) as server:
        ended = run(server, {"a": 100, "b": 20, "c": 1}, per_host=5)
        assert ended == {"success": WORKERS * 121}
        assert server.most["a"] == 5
        assert server.most["b"] <= 5
        assert server.most["c"] <= WORKERS
        assert server.hits["/robots.txt"] == 3


def test_four_workers_begin_no_more_requests_a_second_than_a_host_allows(run: Run) -> None:
    with Counting(0.0) as server:
        ended = run(server, {"a": 15}, per_host=16, rate=20)
        assert ended == {"success": WORKERS * 15}
        began = server.began["a"]
        late = 6  # so many may come late, and then close behind each other, on a machine that has much to do
        assert len(began) - 1 - late <= 20 * (began[-1] - began[0])
        assert max(sum(start <= other < start + 1 for other in began) for start in began) <= 20 + late
        assert sum(later - earlier < 0.02 for earlier, later in pairwise(began)) < len(began) / 2


@pytest.mark.fault(2)
def test_a_pause_that_one_worker_is_asked_for_holds_for_all(run: Run) -> None:
    with Counting(0.02) as server:
        server.busy_after = 40
        ended = run(server, {"a": 50, "b": 50}, per_host=8)
        assert ended == {"success": WORKERS * 100}
        assert server.busy_at is not None
        late = [start - server.busy_at for start in server.began["a"] if start > server.busy_at]
        assert len(late) > 50, "the pause came when all was done"
        assert not [start for start in late if RENEW_S + 0.5 < start < 1.95]
        assert [start for start in server.began["b"] if start > server.busy_at]

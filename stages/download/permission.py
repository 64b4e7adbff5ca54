"""Whether robots.txt lets us ask for a URL; the file is fetched once per origin and run, whatever worker needs it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from yarl import URL

from stages.download.gate import Gate, Turn
from stages.download.robots import Rules, parse_robots
from stages.download.statuses import FetchError

KNOWN: Final = 10_000
"""Origins whose rules a worker keeps for itself; the others it asks for again."""
SAME_FOR_ALL = frozenset({"dns_error", "connection_error", "tls_error", "timeout", "host_busy"})
"""What kept us from robots.txt would keep us from the images as well: their rows end with that word."""


class Robots:
    """What the hosts' robots.txt say, in one worker. `get` fetches a URL that needs no permission itself."""

    def __init__(self, gate: Gate, agent: str, get: Callable[[URL, Turn], Awaitable[bytes]]) -> None:
        self._gate = gate
        self._agent = agent
        self._get = get
        self._known: dict[str, tuple[float, Rules]] = {}
        self._asked: dict[str, asyncio.Task[Rules]] = {}

    async def check(self, url: URL, turn: Turn) -> None:
        """Raise `FetchError` where robots.txt forbids the URL (`robots_disallowed`) or could not be had.

        A row that has to wait for it gives its place to another.
        """
        origin = str(url.origin())
        until, rules = self._known.get(origin, (0.0, None))
        if rules is None or until < time.monotonic():
            with turn.resting():
                rules = await asyncio.shield(self._ask(origin, url, turn.order))
        if rules.refused is not None:
            raise FetchError(*rules.refused)
        if not rules.allows(url.raw_path_qs):
            raise FetchError("robots_disallowed", f"{url.raw_host}/robots.txt disallows it")
        self._gate.leases.pace(origin, rules)

    def close(self) -> None:
        for task in self._asked.values():
            task.cancel()

    def _ask(self, origin: str, url: URL, order: int) -> "asyncio.Task[Rules]":
        task = self._asked.get(origin)
        if task is None:
            task = self._asked[origin] = asyncio.ensure_future(self._find(origin, url, order))
            task.add_done_callback(lambda done: self._found(origin, done))
        return task

    def _found(self, origin: str, done: "asyncio.Task[Rules]") -> None:
        del self._asked[origin]
        if not done.cancelled() and done.exception() is None:
            self._known.pop(origin, None)
            while len(self._known) >= KNOWN:
                del self._known[next(iter(self._known))]
            rules = done.result()
            self._known[origin] = time.monotonic() + rules.kept_s, rules

    async def _find(self, origin: str, url: URL, order: int) -> Rules:
        rules = await self._gate.leases.rules(origin)
        if rules is None:
            rules = await self._fetch(url, order)
            self._gate.leases.found(origin, rules)
        return rules

    async def _fetch(self, url: URL, order: int) -> Rules:
        """RFC 9309, section 2.3.1: without such a file nothing is forbidden, where that is in doubt everything."""
        host = url.host_port_subcomponent or ""
        turn = Turn(self._gate, order)  # no earlier: the row shall find the connection still open
        try:
            return parse_robots(await self._get(url.origin() / "robots.txt", turn), self._agent, host)
        except FetchError as failure:
            return _without(failure, host, url.raw_host or "")
        finally:
            turn.end()


def _without(failure: FetchError, host: str, name: str) -> Rules:
    status = failure.status
    said = f"robots.txt: {failure.message}"
    # A redirect that leads astray says nothing of the images; the message begins with the host that is blocked.
    blocked = status == "blocked_address" and failure.message.startswith(f"{name} ")
    if status in SAME_FOR_ALL or blocked:
        return Rules(host, refused=(status, said))
    missing = status.startswith("http_") and not status.startswith("http_5") and status != "http_429"
    if missing or status in ("empty", "too_many_redirects"):
        return Rules(host, nbytes=200)
    return Rules(host, refused=("robots_unreachable", said), nbytes=400)

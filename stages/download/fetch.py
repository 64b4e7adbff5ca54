"""One URL to its bytes, or to the status that says why not: redirects by hand, one deadline, a few tries."""

import asyncio
import socket
import ssl
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from types import TracebackType
from typing import Self

from yarl import URL

from stages.download.addresses import Guard, one_line, redact, redact_all
from stages.download.answers import Head
from stages.download.body import Body, too_large
from stages.download.connect import Connections, Resolver, system_names
from stages.download.dates import date_of
from stages.download.gate import Gate, Turn
from stages.download.lists import OptOuts
from stages.download.optout import opted_out
from stages.download.permission import Robots
from stages.download.proxy import Proxy
from stages.download.retries import backoff_s, retry_after_s, tries_of
from stages.download.statuses import FetchError, passing

MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
ACCEPT = "image/jpeg, image/png, image/webp, image/gif, */*;q=0.1"
"""What the decoder takes: hosts that negotiate would send AVIF for `image/*`."""


@dataclass(frozen=True)
class Limits:
    """What one URL may cost. `timeout_s` covers a try from DNS to the last byte, redirects included."""

    timeout_s: float
    max_bytes: int
    tries: int
    user_agent: str


@dataclass(frozen=True)
class Fetched:
    """A whole body and where it came from."""

    data: bytes
    final_url: str
    content_type: str | None
    """What the host claimed, in printable characters."""
    last_modified: datetime | None = None
    """What the host claimed."""


class Fetcher:
    """Fetches URLs in the running event loop, without cookies, credentials or the environment's proxies."""

    def __init__(
        self,
        limits: Limits,
        guard: Guard,
        gate: Gate,
        robots: bool = False,
        opt_outs: OptOuts | None = None,
        resolver: Resolver = system_names,
        proxy: Proxy | None = None,
    ) -> None:
        self._limits = limits
        self._guard = guard
        self._gate = gate
        self._opt_outs = opt_outs
        self._agent = product_of(limits.user_agent)
        self._headers = f"User-Agent: {limits.user_agent}\r\nAccept: {ACCEPT}\r\nAccept-Encoding: identity\r\n"
        self._robots = Robots(gate, self._agent, self._robots_txt) if robots else None
        self.connections = Connections(guard, resolver, proxy)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._robots is not None:
            self._robots.close()
        self._gate.close()
        self.connections.close()

    async def fetch(self, text: str | None, turn: Turn) -> Fetched:
        """The body at a URL. Raises `FetchError` with the status of the last try."""
        return await self._tries(self._guard.check_url(text), turn, image=True)

    async def _robots_txt(self, url: URL, turn: Turn) -> bytes:
        return (await self._tries(url, turn, image=False)).data

    async def _tries(self, url: URL, turn: Turn, image: bool) -> Fetched:
        for tried in count(1):
            try:
                return await self._try(url, turn, image)
            except FetchError as failure:
                if tried >= tries_of(failure, self._limits.tries):
                    raise
                pause_s = backoff_s(tried) if failure.pause_s is None else 0.0
            if pause_s:
                with turn.resting():
                    await asyncio.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    async def _try(self, url: URL, turn: Turn, image: bool) -> Fetched:
        """Waiting for permission, for a host's turn and behind other names for DNS does not count as its time."""
        left_s = self._limits.timeout_s
        try:
            for _ in range(MAX_REDIRECTS + 1):
                if image:
                    await self._check_permission(url, turn)
                receiving = _Receiving(url, self._limits, self._agent if image else None)
                await turn.enter(url.host_port_subcomponent or "")
                try:
                    async with asyncio.timeout(left_s) as deadline:
                        head = await self.connections.get(url, self._headers, receiving.accept, deadline)
                        left_s = (deadline.when() or 0.0) - asyncio.get_running_loop().time()
                finally:
                    turn.leave()
                if receiving.location is None:
                    return self._finish(receiving, head)
                url = self._target(url, receiving.location)
        except TimeoutError:
            raise FetchError("timeout", f"no whole answer within timeout_s = {self._limits.timeout_s:g}") from None
        except (OSError, UnicodeError) as error:
            raise failure_of(error) from error
        raise FetchError("too_many_redirects", f"more than {MAX_REDIRECTS} redirects; the last to {redact(str(url))}")

    async def _check_permission(self, url: URL, turn: Turn) -> None:
        """Raise `FetchError` where a list of ours or the host's robots.txt forbids the URL; nothing was sent then."""
        listed = self._opt_outs.covers(url) if self._opt_outs is not None else None
        if listed is not None:
            raise FetchError("opted_out", f"opt_out lists {listed}")
        if self._robots is not None:
            await self._robots.check(url, turn)

    def _finish(self, receiving: "_Receiving", head: Head) -> Fetched:
        try:
            return receiving.finish(head)
        except FetchError as failure:
            if failure.pause_s is not None:
                self._gate.leases.pause(receiving.url.host_port_subcomponent or "", failure.pause_s)
            raise

    def _target(self, url: URL, location: str) -> URL:
        try:
            return self._guard.check_target(url, location)
        except FetchError as failure:
            raise FetchError(failure.status, f"redirected from {url.raw_host}: {failure.message}") from None


class _Receiving:
    """What one answer means: looked at when its head is there, so that no body is read in vain.

    `agent`: our product token, where headers may reserve what is fetched; None where they do not concern it.
    """

    def __init__(self, url: URL, limits: Limits, agent: str | None) -> None:
        self.url = url
        self.location: str | None = None
        """Where a redirect points; None for any other answer."""
        self._limits = limits
        self._agent = agent
        self._body: Body | None = None

    def accept(self, head: Head) -> Body | None:
        if head.code in REDIRECTS:
            self.location = head.get("location")
        if head.code != 200:
            return None
        if self._agent is not None and (reserved := opted_out(head, self._agent)):
            raise FetchError("opted_out", f"{self.url.raw_host} reserves the image: {reserved}")
        if (head.length or 0) > self._limits.max_bytes:
            raise too_large(self._limits.max_bytes)
        self._body = Body(",".join(head.all("content-encoding")), self._limits.max_bytes)
        return self._body

    def finish(self, head: Head) -> Fetched:
        if self._body is None:
            pause_s = retry_after_s(head.get("retry-after")) if head.code in (429, 503) else None
            said = f"{self.url.raw_host} answered {head.code}"
            raise FetchError(f"http_{head.code:03}", said, again=passing(head.code), pause_s=pause_s)
        claimed = head.get("content-type")
        modified = date_of(head.get("last-modified"))
        return Fetched(self._body.finish(), str(self.url), None if claimed is None else one_line(claimed), modified)


def product_of(user_agent: str) -> str:
    """The product token by which robots.txt and X-Robots-Tag name us: the first word of the user agent."""
    return user_agent.split("/")[0].split()[0]


def failure_of(error: Exception) -> FetchError:
    """The status for what the system or TLS raised, in words without the URL's query."""
    said = redact_all(str(error) or type(error).__name__)
    if isinstance(error, socket.gaierror):
        return FetchError("dns_error", said, again=error.errno == socket.EAI_AGAIN)
    if isinstance(error, ssl.SSLError):
        return FetchError("tls_error", said)
    if isinstance(error, OSError):
        return FetchError("connection_error", said, again=True)
    return FetchError("bad_url", said)

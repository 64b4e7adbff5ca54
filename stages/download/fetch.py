"""One URL to its bytes, or to the status that says why not: redirects by hand, one deadline, a few tries."""

import asyncio
import socket
import ssl
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from stages.download.addresses import Guard, one_line, redact, redact_all
from stages.download.body import Body, too_large
from stages.download.connect import CheckedConnector
from stages.download.optout import opted_out
from stages.download.retries import Pauses, backoff_s, retry_after_s
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


class Fetcher:
    """Fetches URLs in the running event loop, without cookies, credentials or the environment's proxies."""

    def __init__(self, limits: Limits, guard: Guard, resolver: AbstractResolver | None = None) -> None:
        self._limits = limits
        self._guard = guard
        self._pauses = Pauses()
        self._agent = limits.user_agent.split("/")[0].split()[0]
        self._resolver = resolver or aiohttp.ThreadedResolver()
        self._session = aiohttp.ClientSession(
            connector=CheckedConnector(guard, self._resolver),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": limits.user_agent, "Accept": ACCEPT, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # `_try` has the one deadline
            auto_decompress=False,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._session.close()
        await self._resolver.close()

    async def fetch(self, text: str | None) -> Fetched:
        """The body at a URL. Raises `FetchError` with the status of the last try."""
        url = self._guard.check_url(text)
        for tried in range(1, self._limits.tries + 1):
            await self._pauses.wait(url.authority)
            try:
                return await self._try(url)
            except FetchError as failure:
                if not failure.again or tried == self._limits.tries:
                    raise
                pause_s = backoff_s(tried) if failure.pause_s is None else failure.pause_s
            await asyncio.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    async def _try(self, url: URL) -> Fetched:
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return await self._follow(url)
        except TimeoutError:
            raise FetchError("timeout", f"no whole answer within timeout_s = {self._limits.timeout_s:g}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise failure_of(error) from error

    async def _follow(self, url: URL) -> Fetched:
        for _ in range(MAX_REDIRECTS + 1):
            async with self._session.get(url, allow_redirects=False) as response:
                location = response.headers.get("Location")
                if response.status not in REDIRECTS or location is None:
                    return await self._receive(response)
            url = self._target(url, location)
        raise FetchError("too_many_redirects", f"more than {MAX_REDIRECTS} redirects; the last to {redact(str(url))}")

    def _target(self, url: URL, location: str) -> URL:
        try:
            joined = url.join(URL(location.strip()))
        except ValueError as error:
            raise FetchError("bad_url", f"redirected to {redact(location)!r}: {redact_all(str(error))}") from None
        try:
            return self._guard.check_parsed(joined)
        except FetchError as failure:
            raise FetchError(failure.status, f"redirected from {url.raw_host}: {failure.message}") from None

    async def _receive(self, response: aiohttp.ClientResponse) -> Fetched:
        headers = response.headers
        if response.status != 200:
            raise self._refused(response)
        reserved = opted_out(headers.getall("X-Robots-Tag", ()), headers.getall("tdm-reservation", ()), self._agent)
        if reserved:
            raise FetchError("opted_out", f"{response.url.raw_host} reserves the image: {reserved}")
        if (response.content_length or 0) > self._limits.max_bytes:
            raise too_large(self._limits.max_bytes)
        body = Body(",".join(headers.getall("Content-Encoding", ())), self._limits.max_bytes)
        try:
            async for chunk in response.content.iter_any():
                body.feed(chunk)
        except (aiohttp.ClientPayloadError, ConnectionError) as error:
            raise FetchError("truncated_body", redact_all(str(error) or type(error).__name__), again=True) from error
        claimed = headers.get("Content-Type")
        return Fetched(body.finish(), str(response.url), None if claimed is None else one_line(claimed))

    def _refused(self, response: aiohttp.ClientResponse) -> FetchError:
        code = response.status
        pause_s = retry_after_s(response.headers.get("Retry-After")) if code in (429, 503) else None
        if pause_s is not None:
            self._pauses.pause(response.url.authority, pause_s)
        message = f"{response.url.raw_host} answered {code}"
        return FetchError(f"http_{code:03}", message, again=passing(code), pause_s=pause_s)


def failure_of(error: Exception) -> FetchError:
    """The status for what aiohttp or the system raised, in words without the URL's query."""
    said = redact_all(str(error) or type(error).__name__)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return FetchError("dns_error", said, again=error.os_error.errno == socket.EAI_AGAIN)
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        return FetchError("tls_error", said)
    if isinstance(error, (aiohttp.InvalidURL, UnicodeError)):
        return FetchError("bad_url", said)
    if isinstance(error, aiohttp.ClientResponseError):
        return FetchError("connection_error", f"not an HTTP answer: {redact_all(error.message)}")
    if isinstance(error, (aiohttp.ClientError, OSError)):
        return FetchError("connection_error", said, again=True)
    raise error

"""DNS and TCP for aiohttp under the guard's rules.

A name is resolved once per connection, every address of it is checked, exactly those addresses are dialled (Host and
SNI stay the name's), and the peer's address is checked again before the request is sent.
"""

import functools
import socket

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from stages.download.addresses import Guard


class CheckedResolver(AbstractResolver):
    """Refuses a name when any of its addresses is denied.

    aiohttp does not ask a resolver about literal addresses: `Guard.check_url` has seen those.
    """

    def __init__(self, guard: Guard, inner: AbstractResolver) -> None:
        self._guard = guard
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        self._guard.check_addresses(host, port, [result["host"] for result in found])
        return found

    async def close(self) -> None:
        await self._inner.close()


class Protocol(ResponseHandler):
    """aiohttp's reader of answers, with two holes closed, so that an answer's end does not depend on how packets fall.

    Bytes past the Content-Length: a parser that meets them in the same read as the headers forgets the whole answer;
    one that meets them later has the body already. So it is given the headers alone first. And chunks that are none:
    the parser gives up without telling whoever waits for the body.
    """

    def data_received(self, data: bytes) -> None:
        head, end, rest = data.partition(b"\r\n\r\n")
        super().data_received(head + end)
        if rest:
            super().data_received(rest)
        broken = self.exception()
        if broken is not None and self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(aiohttp.ClientConnectionError(f"not an HTTP answer: {broken}"))


class CheckedConnector(aiohttp.TCPConnector):
    """Checks whom it really reached, before anything is sent.

    A connection serves one request: bytes that a host sends past its Content-Length can never be taken for the next
    answer.
    """

    def __init__(self, guard: Guard, resolver: AbstractResolver) -> None:
        super().__init__(resolver=CheckedResolver(guard, resolver), force_close=True, limit=0)
        self._guard = guard
        # Private, and the only way in (aiohttp 3.14); tests notice when it no longer is.
        self._factory = functools.partial(Protocol, loop=self._loop)  # type: ignore[assignment]

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout) -> Connection:
        connection = await super().connect(req, traces, timeout)
        transport = connection.transport
        peer = transport.get_extra_info("peername") if transport is not None else None
        try:
            if not peer:
                raise aiohttp.ClientConnectionError("the connection was closed at once")
            self._guard.check_addresses(req.url.raw_host or "", req.port or 0, [peer[0]])
        except BaseException:
            connection.close()
            raise
        return connection

"""DNS and TCP for aiohttp under the guard's rules.

A name is resolved once per connection, every address of it is checked, exactly those addresses are dialled (Host and
SNI stay the name's), and the peer's address is checked again before the request is sent.
"""

import socket

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
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


class CheckedConnector(aiohttp.TCPConnector):
    """Checks whom it really reached, before anything is sent.

    A connection serves one request: bytes that a host sends past its Content-Length can never be taken for the next
    answer.
    """

    def __init__(self, guard: Guard, resolver: AbstractResolver) -> None:
        super().__init__(resolver=CheckedResolver(guard, resolver), force_close=True, limit=0)
        self._guard = guard

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

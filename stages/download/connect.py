"""DNS and TCP under the guard's rules, and the connections that may serve again.

A name is resolved once per connection, every address of it is checked, exactly those addresses are dialled (Host and
SNI stay the name's), and the peer's address is checked again before anything is sent on it, TLS included; a connection
that is used again has its peer checked again.
"""

import asyncio
import contextlib
import math
import re
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from yarl import URL

from stages.download.addresses import Guard, literal
from stages.download.answers import Head
from stages.download.connection import SCRATCH_BYTES, Accept, ClosedError, Connection
from stages.download.proxy import Proxy
from stages.download.statuses import FetchError

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""From a host name and a port to its addresses; raises `socket.gaierror`."""

NAMES_S: Final = 10.0
"""How long an answer of DNS is used again: long enough for the rows of one part that stand together."""
NAMES_KEPT: Final = 10_000
LOOKUPS: Final = 32
"""Names that are looked up at a time: a dead name server holds a thread for longer than any row waits."""
DIALLED: Final = 3
"""Addresses of one host that are tried."""
DIAL_S: Final = 3.0
"""How long each but the last of them is given."""
IDLE_S: Final = 15.0
"""How long a connection waits for another request; most servers give up on it a little later."""
IDLE_PER_HOST: Final = 64
IDLE_AT_MOST: Final = 512
"""Idle connections of a worker: each holds a socket of ours and one of a host."""

TARGET = re.compile(r"[!-~]+")

Key = tuple[str, str, int]
"""Scheme, host and port: what a connection serves."""


async def system_names(host: str, port: int) -> list[str]:
    """What the system's resolver says, in the order in which it wants them tried."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return list(dict.fromkeys(str(address[4][0]) for address in found))


@dataclass(eq=False)
class _Name:
    """A name that is looked up, or was."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    until: float = math.inf
    """By the loop's clock; for ever while nobody has answered."""
    addresses: "asyncio.Future[Sequence[str]]" = field(init=False)


class Connections:
    """The connections of one event loop; a request goes out on one that was checked, idle or new."""

    def __init__(self, guard: Guard, resolver: Resolver = system_names, proxy: Proxy | None = None) -> None:
        self._guard = guard
        self._resolver = resolver
        self._proxy = proxy
        self._loop = asyncio.get_running_loop()
        self._scratch = bytearray(SCRATCH_BYTES)
        self._names: dict[tuple[str, int], _Name] = {}
        self._lookups = asyncio.Semaphore(LOOKUPS)
        self._idle: dict[Key, deque[Connection]] = {}
        self._resting: dict[Connection, Key] = {}
        self._all: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None

    async def get(self, url: URL, headers: str, accept: Accept, deadline: asyncio.Timeout | None = None) -> Head:
        """Send a GET with these header lines to the URL's host and wait for the answer; see `Connection.ask`.

        Where the host closed an idle connection at the moment it was used again, another one is tried: nothing was
        answered, and a GET may be sent twice. `deadline` stands still while other names keep this one from being
        looked up.
        """
        key = (url.scheme, url.raw_host or "", url.port or 0)
        request = self._request(url, headers)
        while True:
            connection = self._take(key) or await self._connect(url, key, deadline)
            try:
                head = await connection.ask(request, accept)
            except (ClosedError, ConnectionResetError, BrokenPipeError):
                if connection.served == 1:
                    raise
                continue
            if head.code == 407 and self._proxy is not None and url.scheme == "http":  # none of the host's words
                raise FetchError("connection_error", "the proxy answered 407: it wants other credentials")
            return head

    def _request(self, url: URL, headers: str) -> bytes:
        target, extra = url.raw_path_qs, ""
        if self._proxy is not None and url.scheme == "http":
            target, extra = f"http://{url.host_port_subcomponent}{target}", self._proxy.headers
        if not TARGET.fullmatch(target):
            raise FetchError("bad_url", "the path or the query has characters that no request can carry")
        return f"GET {target} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n{extra}{headers}\r\n".encode("ascii")

    def __len__(self) -> int:
        """How many are open, idle ones among them."""
        return len(self._all)

    def close(self) -> None:
        for connection in list(self._all):
            connection.close()
        if self._sweeping is not None:
            self._sweeping.cancel()

    # -- connections that serve again ----------------------------------------------------------------------------------

    def _take(self, key: Key) -> Connection | None:
        waiting = self._idle.get(key)
        while waiting:
            connection = waiting[-1]  # the one used last is the least likely to have been closed
            self._forget(connection)
            if connection.open and self._loop.time() - connection.idle_since < IDLE_S:
                self._check_peer(key, connection.peer)
                return connection
            connection.close()
        return None

    def _rest(self, key: Key, connection: Connection) -> None:
        waiting = self._idle.setdefault(key, deque())
        waiting.append(connection)
        self._resting[connection] = key
        if len(waiting) > IDLE_PER_HOST:
            self._end(waiting[0])
        elif len(self._resting) > IDLE_AT_MOST:
            self._end(next(iter(self._resting)))
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(IDLE_S, self._sweep)

    def _forget(self, connection: Connection) -> None:
        """It is idle no more."""
        key = self._resting.pop(connection)
        self._idle[key].remove(connection)
        if not self._idle[key]:
            del self._idle[key]

    def _end(self, connection: Connection) -> None:
        self._forget(connection)
        connection.close()

    def _lost(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._resting:
            self._forget(connection)

    def _sweep(self) -> None:
        """Close what has been idle too long; the longest idle ones come first."""
        now = self._loop.time()
        for connection in list(self._resting):
            if now - connection.idle_since < IDLE_S:
                break
            self._end(connection)
        self._sweeping = self._loop.call_later(IDLE_S, self._sweep) if self._resting else None

    # -- new connections -----------------------------------------------------------------------------------------------

    async def _connect(self, url: URL, key: Key, deadline: asyncio.Timeout | None) -> Connection:
        _, host, port = key
        if self._proxy is None:
            dialled = await self._dial((await self._resolve(host, port, deadline))[:DIALLED], port)
        else:
            with contextlib.suppress(socket.gaierror):  # names that only the proxy knows are its to judge
                await self._resolve(host, port, deadline)
            dialled = await self._dial(await self._find(*self._proxy.where, deadline), self._proxy.where[1])
        try:
            peer = "" if self._proxy is not None else str(dialled.getpeername()[0])
            self._check_peer(key, peer)
            if self._proxy is not None and url.scheme == "https":
                await self._proxy.open_tunnel(dialled, host, port)
            return await self._wrap(dialled, key, peer)
        except BaseException:
            dialled.close()
            raise

    async def _wrap(self, dialled: socket.socket, key: Key, peer: str) -> Connection:
        scheme, host, _ = key
        connection = Connection(peer, self._scratch, lambda idle: self._rest(key, idle), self._lost)
        await self._loop.create_connection(
            lambda: connection,
            sock=dialled,
            ssl=self._context() if scheme == "https" else None,
            server_hostname=host.removesuffix(".") if scheme == "https" else None,
        )
        self._all.add(connection)
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def _check_peer(self, key: Key, peer: str) -> None:
        """Raise `FetchError` where the address that was really reached is denied."""
        if self._proxy is None:
            self._guard.check_addresses(key[1], key[2], [peer])

    async def _resolve(self, host: str, port: int, deadline: asyncio.Timeout | None) -> Sequence[str]:
        """The addresses of a host, every one of them checked. Raises `FetchError` and `socket.gaierror`."""
        found = await self._find(host, port, deadline)
        self._guard.check_addresses(host, port, found)
        return found

    async def _find(self, host: str, port: int, deadline: asyncio.Timeout | None) -> Sequence[str]:
        if literal(host) is not None:
            return [host]
        name = self._names.get((host, port))
        if name is None or name.until < self._loop.time():
            if len(self._names) >= NAMES_KEPT:
                self._names.clear()
            name = self._names[host, port] = _Name()
            name.addresses = asyncio.ensure_future(self._look_up(name, host, port))
            name.addresses.add_done_callback(lambda done: done.cancelled() or done.exception())  # its row may be gone
        if not name.begun.is_set():
            await self._begun(name, deadline)
        return await asyncio.shield(name.addresses)  # others may wait for the same answer

    async def _begun(self, name: _Name, deadline: asyncio.Timeout | None) -> None:
        """Wait until a name's turn has come."""
        ends, began = (None if deadline is None else deadline.when()), self._loop.time()
        if deadline is None or ends is None:
            await name.begun.wait()
            return
        deadline.reschedule(None)
        try:
            await name.begun.wait()
        finally:
            deadline.reschedule(ends + self._loop.time() - began)

    async def _look_up(self, name: _Name, host: str, port: int) -> Sequence[str]:
        async with self._lookups:  # for as long as the resolver is busy with it, whether its row waits or not
            name.begun.set()
            try:
                found = await self._resolver(host, port)
            except BaseException:
                if self._names.get((host, port)) is name:
                    del self._names[host, port]  # a failure is not remembered
                raise
        name.until = self._loop.time() + NAMES_S
        return found

    async def _dial(self, addresses: Sequence[str], port: int) -> socket.socket:
        """A socket connected to the first address that answers."""
        error: OSError = OSError("the name has no address")
        for place, address in enumerate(addresses):
            last = place == len(addresses) - 1
            try:
                async with asyncio.timeout(None if last else DIAL_S):
                    return await self._dial_one(address, port)
            except TimeoutError:
                if last:
                    raise
            except OSError as failure:
                error = failure
        raise error

    async def _dial_one(self, address: str, port: int) -> socket.socket:
        dialled = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            dialled.setblocking(False)
            dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.sock_connect(dialled, (address, port))
        except BaseException:
            dialled.close()
            raise
        return dialled

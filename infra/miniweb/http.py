"""HTTP/1.1 by hand: what a request asks, what an answer says, and a connection that may say anything at all."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast
from urllib.parse import unquote

MAX_HEAD = 64 << 10
"""Bytes of a request's head; requests here have no body."""


@dataclass(frozen=True)
class Request:
    """The head of a request."""

    method: str
    path: str
    """Decoded, without the query."""
    host: str
    """Of the Host header, without the port."""
    hit: int
    """Which request of this path it is, from 1."""
    head: str = ""
    """As it came."""

    @property
    def keeps_alive(self) -> bool:
        lines = self.head.lower()
        return "\r\nconnection: close" not in lines and " http/1.0\r\n" not in lines


@dataclass(frozen=True)
class Answer:
    """What the server says to one request; `hang_up` closes the connection and says nothing."""

    body: bytes = b""
    content_type: str = "image/jpeg"
    status: int = 200
    hang_up: bool = False
    headers: tuple[tuple[str, str], ...] = ()

    def head(self, closing: bool = False, length: int | None = None) -> bytes:
        """Status line and headers; `length` lies about the body."""
        phrase = HTTPStatus(self.status).phrase if self.status in STATUSES else "Unknown"
        lines = [f"HTTP/1.1 {self.status} {phrase}", f"Content-Type: {self.content_type}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines += [f"Content-Length: {len(self.body) if length is None else length}"]
        lines += ["Connection: close"] if closing else []
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


@dataclass(frozen=True)
class Raw:
    """Exactly these bytes, as fast as they are taken or with a pause after every piece; then the connection is closed.

    The pieces may be endless: whoever leaves ends them.
    """

    pieces: Callable[[], Iterable[bytes]]
    pause_s: float = 0.0


TLS_HELLO = b"\x16"
"""The first byte of a client that wants TLS, which would wait for an answer for ever."""
STATUSES = frozenset(status.value for status in HTTPStatus)
NOT_FOUND = Answer(b"nothing here\n", "text/plain", 404)
REFUSED = Answer(b"", "text/plain", 405, headers=(("Allow", "GET, HEAD"),))
TOO_LONG = Answer(b"", "text/plain", 431)
NO_TLS = Answer(b"no TLS here\n", "text/plain", 400)

Script = Callable[["Connection"], Awaitable[None]]
"""Writes an answer itself; the connection is closed after it."""
Reply = Answer | Raw | Script
Responder = Callable[[Request], "Reply | Awaitable[Reply]"]
"""Called on the server's loop: it must not block."""


class Connection(asyncio.Protocol):
    """One client. It has the `write`, `drain` and `close` of a `StreamWriter`, for scripts."""

    def __init__(
        self,
        respond: Callable[[bytes], "Request"],
        reply: Responder,
        opened: "set[Connection]",
        greeting: bytes = b"",
        keep: bool = False,
    ) -> None:
        """`keep`: raw bytes and scripts leave the connection open for the next request, unless they close it."""
        self._parse, self._reply, self._opened, self._greeting, self._keep = respond, reply, opened, greeting, keep
        self._received = bytearray()
        self._busy: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.transport: asyncio.Transport

    # -- what a script uses ------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    async def drain(self) -> None:
        """Wait until the client has taken most of what was written. Raises `ConnectionResetError` when it has left."""
        if self.transport.is_closing():
            raise ConnectionResetError("the client has left")
        await self._writable.wait()

    def close(self) -> None:
        self.transport.close()

    # -- asyncio.Protocol --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._opened.add(self)
        if self._greeting:
            self.write(self._greeting)

    def connection_lost(self, exc: Exception | None) -> None:
        self._opened.discard(self)
        self._writable.set()
        if self._busy is not None:
            self._busy.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._busy is None:
            self._serve()

    # -- requests ----------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Answer what has arrived, in order; an answer that takes time holds those behind it."""
        while self._busy is None and not self.transport.is_closing():
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                if self._received[:1] == TLS_HELLO:
                    self._send(NO_TLS, None)
                elif len(self._received) > MAX_HEAD:
                    self._send(TOO_LONG, None)
                return
            head = bytes(self._received[: end + 4])
            del self._received[: end + 4]
            request = self._parse(head)
            reply = self._reply(request) if request.method in ("GET", "HEAD") else REFUSED
            if isinstance(reply, Answer):
                self._send(reply, request)
            else:
                self._busy = asyncio.ensure_future(self._later(request, reply))

    async def _later(self, request: Request, reply: "Raw | Script | Awaitable[Reply]") -> None:
        try:
            done = await reply if isinstance(reply, Awaitable) else reply
            if isinstance(done, Answer):
                self._send(done, request)
            elif isinstance(done, Raw):
                await self._stream(done)
            else:
                await done(self)
            if not isinstance(done, Answer) and not self._keep:
                self.close()
        except ConnectionError:
            self.transport.abort()
        self._busy = None
        self._serve()

    async def _stream(self, raw: Raw) -> None:
        for piece in raw.pieces():
            self.write(piece)
            await self.drain()
            if raw.pause_s:
                await asyncio.sleep(raw.pause_s)

    def _send(self, answer: Answer, request: Request | None) -> None:
        if answer.hang_up:
            self.transport.abort()
            return
        closing = request is None or request.method not in ("GET", "HEAD") or not request.keeps_alive
        body = b"" if request is not None and request.method == "HEAD" else answer.body
        self.transport.writelines([answer.head(closing), body])
        if closing:
            self.close()


def parsed(head: bytes, count: Callable[[str], int]) -> Request:
    """A request's head; `count` gives which request of a path it is. What is no HTTP is a method of its own."""
    text = head.decode("latin-1")
    line, _, rest = text.partition("\r\n")
    method, _, target = line.partition(" ")
    raw = target.partition(" ")[0].partition("?")[0].partition("#")[0]
    path = unquote(raw) if "%" in raw else raw
    host = next((part[5:] for part in rest.split("\r\n") if part[:5].lower() == "host:"), "")
    name = host.strip().rpartition(":")[0] if host.strip()[-1:].isdigit() and ":" in host else host.strip()
    return Request(method, path, name, count(path), text)

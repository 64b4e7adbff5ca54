"""One connection to a host: requests one after another, each answered by what came after it was sent and nothing else.

A connection that ever delivered a byte beyond an answer's end, or whose answer was cut off or left alone, is closed.
Bodies of known length go from the socket to their place without copies in between.
"""

import asyncio
import select
from collections.abc import Callable
from typing import Any, Final, Protocol

from stages.download.answers import HEAD_END, MAX_HEAD, Chunks, Head, broken, parse_head
from stages.download.statuses import FetchError

SCRATCH_BYTES: Final = 64 << 10
"""One read of what has no place of its own yet: heads, chunks, bodies without a length."""
DRAINED_BYTES: Final = 16 << 10
"""A body that nobody wants, of an error or a redirect, is read up to this length: cheaper than another connection."""
DRAINED_S: Final = 2.0
"""How long such a body may take."""
INTERIM_ANSWERS: Final = 8
"""1xx answers before the real one."""


class Sink(Protocol):
    """Where a body goes."""

    def feed(self, chunk: bytes) -> None:
        """Take some bytes; `FetchError` ends the answer."""


Accept = Callable[[Head], Sink | None]
"""Looks at a head before the body is read: where the body goes; None where nobody wants it; or `FetchError`."""


class ClosedError(ConnectionError):
    """The host closed the connection before it answered at all."""


class Connection(asyncio.BufferedProtocol):
    """A connected transport. `scratch` may be shared by all connections of a loop: nothing stays in it.

    `on_idle` is called whenever an answer has ended exactly where it said and another request may be sent, `on_lost`
    once, at the end.
    """

    def __init__(
        self,
        peer: str,
        scratch: bytearray,
        on_idle: Callable[["Connection"], None],
        on_lost: Callable[["Connection"], None],
    ) -> None:
        self.peer = peer
        """The address that was dialled; "" behind a proxy."""
        self.served = 0
        """Requests that it was given, the present one among them."""
        self.idle_since = 0.0
        self._scratch = memoryview(scratch)
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._fd = -1
        self._lasting = True
        self._reset()

    def _reset(self) -> None:
        self._answer: asyncio.Future[Head] | None = None
        self._accept: Accept | None = None
        self._begun = False
        self._interim = 0
        self._read: Callable[[bytes], None] = self._read_idle
        self._start = b""
        self._head: Head | None = None
        self._sink: Sink | None = None
        self._chunks: Chunks | None = None
        self._place: memoryview | None = None
        self._body = bytearray()
        self._filled = 0

    # -- asking --------------------------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether another request may be sent: nothing is under way and the host has said nothing unasked.

        Looks into the socket as well, for what came and was not read yet.
        """
        if self._answer is not None or self._head is not None or self._transport is None:
            return False
        if self._transport.is_closing():
            return False
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not poll.poll(0)

    async def ask(self, request: bytes, accept: Accept) -> Head:
        """Send a request; the head, once the body that `accept` wanted is in its sink.

        Raises `FetchError`, `ClosedError` and what the system raises.
        """
        self.served += 1
        if self._transport is None or self._transport.is_closing():
            raise ClosedError("the connection was closed at once")
        self._reset()
        answer: asyncio.Future[Head] = self._loop.create_future()
        self._answer = answer
        self._accept = accept
        self._read = self._read_head
        self._transport.write(request)
        try:
            return await answer
        finally:
            if self._answer is answer:  # given up: what still comes would be taken for the next answer
                self._answer = None
                self.close()

    def close(self) -> None:
        self._lasting = False
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio's side ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._fd = transport.get_extra_info("socket").fileno()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._scratch if self._place is None else self._place[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        try:
            if self._place is None:
                self._read(bytes(self._scratch[:nbytes]))
            else:
                self._filled += nbytes
                beyond = self._filled - (len(self._body) - 1)
                if beyond >= 0:
                    self._whole_body(beyond)
        except FetchError as failure:
            self._fail(failure)

    def eof_received(self) -> bool:
        if self._head is not None and self._read == self._read_rest:
            self._lasting = False
            self._finish(0)
        return False  # closes the transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._lasting = False
        if self._head is not None:
            self._fail(FetchError("truncated_body", "the connection ended before the body did", again=True))
        elif self._begun:
            self._fail(FetchError("connection_error", "the connection ended within the head", again=True))
        else:
            self._fail(exc or ClosedError("the host closed the connection without an answer"))
        self._transport = None
        self._on_lost(self)

    # -- reading an answer ---------------------------------------------------------------------------------------------

    def _read_idle(self, data: bytes) -> None:
        self.close()  # nobody asked

    def _read_head(self, data: bytes) -> None:
        self._begun = True
        self._start += data
        end = HEAD_END.search(self._start)
        if end is None:
            if len(self._start) > MAX_HEAD:
                raise broken("the head never ends")
            return
        if end.start() > MAX_HEAD:
            raise broken("the head is too long")
        rest, head = self._start[end.end() :], parse_head(self._start[: end.start()].removesuffix(b"\r"))
        self._start = b""
        if 100 <= head.code < 200:
            self._interim += 1
            if head.code == 101 or self._interim > INTERIM_ANSWERS:
                raise broken(f"{self._interim} interim answers, the last {head.code}")
            if rest:
                self._read_head(rest)
            return
        self._take(head, rest)

    def _take(self, head: Head, rest: bytes) -> None:
        length = head.length
        assert self._accept is not None
        self._sink = self._accept(head)
        self._head = head
        doubtful = head.chunked and head.get("content-length") is not None  # RFC 9112, section 6.3: perhaps an attack
        self._lasting = self._lasting and head.lasting and not doubtful
        short = length is not None and length <= DRAINED_BYTES
        if self._sink is None and not (self._lasting and short):
            self._settle(self._given_answer(), head)
            self.close()
            return
        if length is not None:
            # One byte more than there should be: TLS reads no further than it is asked to, and what it has decrypted
            # and keeps shows nowhere.
            self._body = bytearray(length + 1)
            kept = rest[:length]
            self._body[: len(kept)] = kept
            self._filled = len(kept)
            if self._filled == length:
                self._whole_body(len(rest) - length)
            else:
                self._place = memoryview(self._body)
                if self._sink is None:
                    self._settle(self._given_answer(), head)
                    self._loop.call_later(DRAINED_S, self._stop_draining, self.served)
            return
        assert self._sink is not None
        if head.chunked:
            self._chunks = Chunks(self._sink.feed)
            self._read = self._read_chunks
        else:
            self._read = self._read_rest
        if rest:
            self._read(rest)

    def _read_chunks(self, data: bytes) -> None:
        assert self._chunks is not None
        eaten = self._chunks.take(data)
        if eaten is not None:
            self._finish(len(data) - eaten)

    def _read_rest(self, data: bytes) -> None:
        assert self._sink is not None
        self._sink.feed(data)

    def _whole_body(self, beyond: int) -> None:
        if self._sink is not None and len(self._body) > 1:
            self._sink.feed(bytes(memoryview(self._body)[:-1]))
        self._finish(beyond)

    def _finish(self, beyond: int) -> None:
        """The answer is whole; `beyond` bytes came behind its end, and nobody asked for those."""
        head, lasting, answer = self._head, self._lasting and not beyond, self._given_answer()
        assert head is not None
        self._reset()
        if lasting:
            # TLS may have more at hand than its last read had room for; then it has asked for a turn of its own,
            # before this one, and whoever is answered finds the connection idle or closed.
            self._loop.call_soon(self._rest, answer, head)
        else:
            self._settle(answer, head)
            self.close()

    def _rest(self, answer: asyncio.Future[Head] | None, head: Head) -> None:
        if self._lasting:
            self.idle_since = self._loop.time()
            self._on_idle(self)
        self._settle(answer, head)

    def _stop_draining(self, served: int) -> None:
        if self._head is not None and self.served == served:
            self.close()

    def _given_answer(self) -> asyncio.Future[Head] | None:
        """The answer that is waited for, which is settled from now on, whatever becomes of the connection."""
        answer, self._answer = self._answer, None
        return answer

    def _settle(self, answer: asyncio.Future[Head] | None, head: Head) -> None:
        if answer is not None and not answer.done():
            answer.set_result(head)

    def _fail(self, error: Exception) -> None:
        answer = self._given_answer()
        if answer is not None and not answer.done():
            answer.set_exception(error)
        self.close()

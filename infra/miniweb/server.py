"""A server on loopback in a thread of its own: plain answers, raw bytes, counts of who asked for what.

with serve(lambda path: Answer(path.encode(), "text/plain")) as base: ...

with Scripted() as server:            # for tests of clients
    url = server.redirect("/a", "file:///etc/passwd")
    server.raw("/b", b"HTTP/1.1 200 OK\\r\\nContent-Length: 9\\r\\n\\r\\n", b"short")
    ...
    assert server.hits["/a"] == 1
"""

import asyncio
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread
from types import TracebackType
from typing import Self

from infra.miniweb.http import NOT_FOUND, Answer, Connection, Raw, Reply, Request, Responder, Script, parsed

HOST = "127.0.0.1"
BACKLOG = 1024
"""Connections that may wait to be accepted: a downloader opens hundreds at once."""
THREADS = 2
"""Handlers that run at a time, so that the loop stays free to take requests."""
BROKEN = Answer(b"out of order\n", "text/plain", 500)


class CannotListen(OSError):
    """The port is taken, or not ours to take."""


class Server:
    """Answers with what `reply` says, while its `with` block runs.

    `hits` counts the requests by decoded path, `connections` those who came, `requests` keeps the heads if asked to.
    Only the loop's thread writes to them, so that a count that was read has been reached.
    """

    def __init__(
        self,
        reply: Responder,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        greeting: bytes = b"",
        keep: bool = False,
        keep_requests: bool = False,
    ) -> None:
        self._reply = reply
        self._wanted_port = port
        self._tls = tls
        self._greeting = greeting
        self._keep = keep
        self._keep_requests = keep_requests
        self._open: set[Connection] = set()
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Event, Thread] | None = None
        self.hits: Counter[str] = Counter()
        self.connections = 0
        self.requests: list[str] = []
        self.port = port

    @property
    def base(self) -> str:
        """`http://127.0.0.1:PORT`. Raises `RuntimeError` before it serves."""
        if self._running is None:
            raise RuntimeError(f"{type(self).__name__} has no address yet; enter it with `with`")
        return f"{'https' if self._tls else 'http'}://{HOST}:{self.port}"

    def __enter__(self) -> Self:
        """Serve. Raises `CannotListen`, in one line that names the port and the remedy."""
        listener = _listen(self._wanted_port)
        self.port = listener.getsockname()[1]
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        thread = Thread(target=lambda: asyncio.run(self._serve(listener, started)), name="miniweb", daemon=True)
        thread.start()
        self._running = (*started.result(), thread)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running is not None:
            loop, stop, thread = self._running
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            self._running = None

    async def _serve(
        self, listener: socket.socket, started: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]"
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(self._connection, sock=listener, backlog=BACKLOG, ssl=self._tls)
        except Exception as error:
            started.set_exception(error)
            return
        loop.set_exception_handler(_log_but_departures)
        stop = asyncio.Event()
        started.set_result((loop, stop))
        await stop.wait()
        server.close()
        for connection in list(self._open):
            connection.transport.abort()
        await asyncio.sleep(0)

    def _connection(self) -> Connection:
        self.connections += 1
        return Connection(self._parse, self._reply, self._open, self._greeting, self._keep)

    def _parse(self, head: bytes) -> Request:
        request = parsed(head, self._count)
        if self._keep_requests:
            self.requests.append(request.head)
        return request

    def _count(self, path: str) -> int:
        self.hits[path] += 1
        return self.hits[path]


class Scripted(Server):
    """A server that answers byte for byte what a test tells it to; 404 to all else.

    `answers[path]` says what it does, `hits[path]` counts the requests, `requests` are the heads as they came.
    """

    def __init__(
        self, tls: ssl.SSLContext | None = None, greeting: bytes = b"", keep: bool = False, port: int = 0
    ) -> None:
        """`keep`: a connection serves request after request, until an answer closes it."""
        super().__init__(self._answer, port, tls, greeting, keep, keep_requests=True)
        self.answers: dict[str, Reply] = {}

    def _answer(self, request: Request) -> Reply:
        return self.answers.get(request.path, NOT_FOUND)

    def url(self, path: str, host: str = HOST) -> str:
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{path}"

    def serve(self, path: str, body: bytes, headers: str = "", status: str = "200 OK") -> str:
        """Answer `path` with a plain response, then close; its URL. `headers` end in CRLF each."""
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        return self.raw(path, head.encode() + body)

    def redirect(self, path: str, location: str) -> str:
        return self.serve(path, b"", f"Location: {location}\r\n", "302 Found")

    def raw(self, path: str, *pieces: bytes, pause_s: float = 0.0) -> str:
        """Answer `path` with exactly these bytes, then close."""
        return self.on(path, Raw(lambda: pieces, pause_s))

    def on(self, path: str, answer: Reply | Script) -> str:
        """Answer `path` so; a function of the connection writes what it likes."""
        self.answers[path] = answer
        return self.url(path)


Handler = Callable[[str], Answer]
"""From the decoded path of a GET or HEAD; called in threads."""


@contextmanager
def serve(handler: Handler, port: int = 0) -> Iterator[str]:
    """Serve a function while the block runs; gives the base address, `http://127.0.0.1:PORT`. Port 0 takes a free one.

    A handler that fails is a 500. Raises `CannotListen`, in one line that names the port and the remedy.
    """
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="miniweb")
    with threads, Server(in_threads(handler, threads), port) as server:
        yield server.base


def in_threads(handler: Handler, threads: ThreadPoolExecutor) -> Responder:
    """A responder that may block."""

    async def respond(path: str) -> Reply:
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, handler, path)
        except Exception as error:  # whatever a handler raises is told where its server is run, and the server lives on
            asyncio.get_running_loop().call_exception_handler({"message": f"no answer to {path}", "exception": error})
            return BROKEN

    return lambda request: respond(request.path)


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port), backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise CannotListen(
            f"miniweb cannot listen on port {port} of {HOST} ({reason.lower()}); name a free one with --port"
        ) from error


def _log_but_departures(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """Clients that leave in the midst of an answer are what some of the pages are about."""
    if not isinstance(context.get("exception"), (ConnectionError, ssl.SSLError)):
        loop.default_exception_handler(context)

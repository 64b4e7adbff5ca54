"""A server on loopback that answers byte for byte what a test tells it to, and counts who asked."""

import asyncio
import ssl
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class HostileServer:
    """`url(path)` is where it listens; `answers[path]` says what it does; `hits[path]` counts the requests."""

    def __init__(self, tls: ssl.SSLContext | None = None, greeting: bytes = b"", keep: bool = False) -> None:
        """`keep`: a connection serves request after request, until an answer closes its writer."""
        self._greeting = greeting
        self._keep = keep
        self.answers: dict[str, Answer] = {}
        self.hits: Counter[str] = Counter()
        self.connections = 0
        self.requests: list[str] = []
        self._scheme = "https" if tls else "http"
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._started = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self._scheme}://{host}:{self.port}{path}"

    def serve(self, path: str, body: bytes, headers: str = "", status: str = "200 OK") -> str:
        """Answer `path` with a plain response; its URL."""
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        return self.raw(path, head.encode() + body)

    def redirect(self, path: str, location: str) -> str:
        return self.serve(path, b"", f"Location: {location}\r\n", "302 Found")

    def raw(self, path: str, *pieces: bytes) -> str:
        """Answer `path` with exactly these bytes, then close."""

        async def answer(writer: asyncio.StreamWriter) -> None:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()

        return self.on(path, answer)

    def on(self, path: str, answer: Answer) -> str:
        self.answers[path] = answer
        return self.url(path)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            writer.write(self._greeting)
            await self._serve_one(reader, writer)
            while self._keep and not writer.is_closing():
                await self._serve_one(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # the client has left
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = request.split()[1].partition("?")[0]
        self.requests.append(request)
        self.hits[path] += 1
        answer = self.answers.get(path)
        if answer is None:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        else:
            await answer(writer)
        await writer.drain()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(lambda *_: None)  # clients that hang up are what these tests are about
        server = self._loop.run_until_complete(asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=self._tls))
        self.port: int = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(_end_tasks())
        self._loop.close()


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

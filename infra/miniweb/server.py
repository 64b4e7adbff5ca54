"""HTTP/1.1 with keep-alive on loopback, in a thread of its own: a function from paths to answers becomes a server."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread

from aiohttp import web

HOST = "127.0.0.1"
BACKLOG = 1024
"""Connections that may wait to be accepted: a downloader opens hundreds at once."""
THREADS = 2
"""Answers worked out at a time, so that the loop stays free to take requests."""


class CannotListen(OSError):
    """The port is taken, or not ours to take."""


@dataclass(frozen=True)
class Answer:
    """What the server says to one request; `hang_up` closes the connection and says nothing."""

    body: bytes = b""
    content_type: str = "image/jpeg"
    status: int = 200
    hang_up: bool = False


NOT_FOUND = Answer(b"nothing here\n", "text/plain", 404)

Handler = Callable[[str], Answer]
"""From the decoded path of a GET or HEAD; called in threads."""


@contextmanager
def serve(handler: Handler, port: int = 0) -> Iterator[str]:
    """Serve while the block runs; gives the base address, `http://127.0.0.1:PORT`. Port 0 takes a free one.

    Raises `CannotListen`, in one line that names the port and the remedy.
    """
    listener = _listen(port)
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    thread = Thread(target=lambda: asyncio.run(_serve(handler, listener, started)), name="miniweb", daemon=True)
    thread.start()
    loop, stop = started.result()
    try:
        yield f"http://{HOST}:{listener.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port), backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise CannotListen(
            f"miniweb cannot listen on port {port} of {HOST} ({reason.lower()}); name a free one with --port"
        ) from error


async def _serve(
    handler: Handler,
    listener: socket.socket,
    started: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]",
) -> None:
    with ThreadPoolExecutor(THREADS, thread_name_prefix="miniweb") as threads:
        server = web.Server(_responder(handler, threads), access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=1)
        try:
            await runner.setup()
            await web.SockSite(runner, listener, backlog=BACKLOG).start()
            stop = asyncio.Event()
            started.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()
        except Exception as error:
            started.set_exception(error)
        finally:
            await runner.cleanup()
            listener.close()


def _responder(
    handler: Handler, threads: ThreadPoolExecutor
) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    async def respond(request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        answer = await asyncio.get_running_loop().run_in_executor(threads, handler, request.path)
        if answer.hang_up and request.transport is not None:
            request.transport.abort()
        return web.Response(body=answer.body, content_type=answer.content_type, status=answer.status)

    return respond

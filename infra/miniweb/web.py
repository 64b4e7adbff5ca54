"""The webs themselves: `Miniweb` answers with rendered scenes and what was planted, `Folder` with files."""

import asyncio
import mimetypes
import multiprocessing
import os
import signal
from collections import Counter, OrderedDict
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self, final
from urllib.parse import quote

import pyarrow as pa

from infra.miniweb import table
from infra.miniweb.answers import file_of, robots, with_file, without_file
from infra.miniweb.copies import Body
from infra.miniweb.http import NOT_FOUND, Answer, Reply, Request, Responder
from infra.miniweb.plan import Page, Plan
from infra.miniweb.server import THREADS, Server, in_threads


class Web:
    """Something that answers requests while its `with` block runs."""

    def __init__(self, responder: Responder, port: int = 0) -> None:
        self._server = Server(responder, port)

    @property
    def base(self) -> str:
        """`http://127.0.0.1:PORT`. Raises `RuntimeError` before it serves."""
        if not self._serving:
            raise RuntimeError(f"{type(self).__name__} has no address yet; enter it with `with`")
        return self._server.base

    @property
    def hits(self) -> Counter[str]:
        """How often each path was asked for."""
        return self._server.hits

    def url(self, path: str) -> str:
        """The address of a path, quoted."""
        return f"{self.base}/{quote(path.lstrip('/'))}"

    _serving = False

    def __enter__(self) -> Self:
        """Serve. Raises `CannotListen` where the port is taken."""
        self._server.__enter__()
        self._serving = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._serving = False
        self._server.__exit__(kind, error, trace)


@final
class Miniweb(Web):
    """Pages of rendered scenes with what was planted; entering it writes urls.parquet into `folder`, if named.

    The same (pages, seed, mix, sides, scenes, words) gives the same table (but for the port) and the same bytes under
    the same paths. `key` names the file of the answers; it must not lie where a pipeline reads. Images are rendered in
    threads, or in so many `processes`, which take half a second to start and work out long tables too. `cached_mb`
    (2^20 bytes) of images are kept for later requests. `boxes`: urls.parquet has a column with what a detector would
    find. `words`: share of the scenes over which one is written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        pages: int = 2400,
        seed: int = 17,
        mix: str = "web",
        sides: str = "small",
        evaluation: int = 200,
        scenes: str = "any",
        port: int = 0,
        key: str | os.PathLike[str] | None = None,
        processes: int = 0,
        cached_mb: int = 64,
        boxes: bool = False,
        words: float = 0.0,
    ) -> None:
        super().__init__(self._reply, port)
        self.pages = Plan(pages, seed, mix, sides, evaluation, scenes, words)
        self.folder = None if folder is None else Path(folder)
        self.key = None if key is None else Path(key)
        self._boxes = boxes
        self._processes = processes
        self._renderers: Executor | None = None
        self._files: OrderedDict[int, Body] = OrderedDict()
        self._most_bytes = cached_mb << 20
        self._cached_bytes = 0
        self._asked: dict[int, asyncio.Future[Body]] = {}

    @cached_property
    def table(self) -> pa.Table:
        """In memory what urls.parquet holds."""
        groups = table.rows(self.pages, self.base, boxes=self._boxes)
        return pa.concat_tables([table.urls(group) for group in groups])

    @cached_property
    def answers(self) -> pa.Table:
        """The answer key, in memory."""
        return pa.concat_tables(list(table.rows(self.pages, self.base)))

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            place = None if self.folder is None else self.folder / table.TABLE
            if place is not None or self.key is not None:
                spread = self._processes and len(self.pages) > table.ROWS
                table.write(self.pages, self.base, place, self.key, self._pool() if spread else None, self._boxes)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._renderers is not None:
            self._renderers.shutdown(cancel_futures=True)
            self._renderers = None

    # -- answers, on the server's loop -------------------------------------------------------------------------------

    def _reply(self, request: Request) -> "Reply | asyncio.Future[Reply]":
        if request.path == "/robots.txt":
            return robots(self.pages, request)
        page = self.pages.find(request.path)
        if page is None:
            return NOT_FOUND
        reply = without_file(page, request)
        if reply is not None:
            return reply
        cached = self._files.get(page.number)
        if cached is not None:
            self._files.move_to_end(page.number)
            return with_file(page, cached)
        return asyncio.ensure_future(self._rendered(page))

    async def _rendered(self, page: Page) -> Reply:
        """A file that many ask for at once is made once."""
        asked = self._asked.get(page.number)
        if asked is None:
            loop = asyncio.get_running_loop()
            asked = loop.run_in_executor(self._pool(), file_of, self.pages, page.number)
            self._asked[page.number] = asked
            asked.add_done_callback(lambda done: self._keep(page.number, done))
        return with_file(page, await asyncio.shield(asked))

    def _keep(self, number: int, done: "asyncio.Future[Body]") -> None:
        del self._asked[number]
        if done.cancelled() or done.exception() is not None:
            return
        self._files[number] = done.result()
        self._cached_bytes += len(done.result()[0])
        while self._cached_bytes > self._most_bytes:
            _, (dropped, _) = self._files.popitem(last=False)
            self._cached_bytes -= len(dropped)

    def _pool(self) -> Executor:
        if self._renderers is None:
            if self._processes:
                context = multiprocessing.get_context("forkserver")
                self._renderers = ProcessPoolExecutor(self._processes, context, initializer=_renderer)
            else:
                self._renderers = ThreadPoolExecutor(THREADS, thread_name_prefix="miniweb")
        return self._renderers


def _renderer() -> None:
    """Ctrl-C is for the process that serves: it ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@final
class Folder(Web):
    """The files under a folder, by their relative paths, for instance real images."""

    def __init__(self, folder: str | os.PathLike[str], port: int = 0) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="miniweb")
        super().__init__(in_threads(self._answer, self._threads), port)
        self.folder = Path(folder).resolve()

    def _answer(self, path: str) -> Answer:
        file = (self.folder / path.lstrip("/")).resolve() if "\0" not in path else self.folder
        if not file.is_relative_to(self.folder) or not file.is_file():
            return NOT_FOUND
        return Answer(file.read_bytes(), mimetypes.guess_type(file.name)[0] or "application/octet-stream")

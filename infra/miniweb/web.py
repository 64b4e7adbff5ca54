"""The webs themselves: `Miniweb` answers with rendered scenes and planted damage, `Folder` with files."""

import mimetypes
import os
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self, final
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from infra.miniweb.plan import Damage, Page, plan
from infra.miniweb.scenes import render
from infra.miniweb.server import NOT_FOUND, Answer, serve

TABLE = "urls.parquet"
SCHEMA = pa.schema([("url", pa.string()), ("alt", pa.string()), ("page_id", pa.int64())])
CACHED = 512
"""Rendered images kept for another request: some 16 MB, however many pages there are."""
WHOLE = 0.6
"""How much of a truncated image is left."""
LOGIN = b"<!doctype html>\n<title>Please log in</title>\n<p>This image is for members only.</p>\n"


class Web(ABC):
    """Something that answers requests while its `with` block runs."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self._base: str | None = None
        self._serving: AbstractContextManager[str] | None = None

    @abstractmethod
    def answer(self, path: str) -> Answer:
        """What a GET of this path gives; called in threads."""

    @property
    def base(self) -> str:
        """`http://127.0.0.1:PORT`, while it serves."""
        if self._base is None:
            raise RuntimeError(f"{type(self).__name__} has no address yet; enter it with `with`")
        return self._base

    def url(self, path: str) -> str:
        """The address of a path, quoted."""
        return f"{self.base}/{quote(path.lstrip('/'))}"

    def __enter__(self) -> Self:
        """Serve. Raises `CannotListen` where the port is taken."""
        self._serving = serve(self.answer, self.port)
        self._base = self._serving.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._serving is not None:
            self._serving.__exit__(kind, error, trace)


@final
class Miniweb(Web):
    """`pages` pages of rendered scenes with planted damage; entering it writes urls.parquet into `folder`, if named.

    The same (pages, seed) gives the same table (but for the port) and the same bytes under the same paths.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, *, pages: int = 2400, seed: int = 17, port: int = 0
    ) -> None:
        super().__init__(port)
        self.folder = None if folder is None else Path(folder)
        self.pages = plan(pages, seed)
        self._pages = {page.path: page for page in self.pages if page.path and page.damage is not Damage.REPEAT}
        self._image = lru_cache(CACHED)(_image)

    def answer(self, path: str) -> Answer:
        page = self._pages.get(path)
        if page is None:
            return NOT_FOUND
        match page.damage:
            case Damage.NOT_FOUND:
                return NOT_FOUND
            case Damage.SERVER_ERROR:
                return Answer(b"out of order\n", "text/plain", 500)
            case Damage.HANG_UP:
                return Answer(hang_up=True)
            case Damage.HTML:
                return Answer(LOGIN, "text/html")
            case _:
                return Answer(self._image(page))

    @cached_property
    def table(self) -> pa.Table:
        """url, alt, page_id: one row per page, in order, as a crawler would have found them."""
        urls = [self._listed(page) for page in self.pages]
        alts = [page.caption for page in self.pages]
        return pa.table([urls, alts, [page.number for page in self.pages]], schema=SCHEMA)

    def _listed(self, page: Page) -> str | None:
        if page.path is None:
            return None if page.number % 2 else ""
        return self.base + page.path

    def __enter__(self) -> Self:
        super().__enter__()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / f".{TABLE}.{os.getpid()}"
            pq.write_table(self.table, partial)
            partial.replace(self.folder / TABLE)
        return self


def _image(page: Page) -> bytes:
    data = render(page.scene)
    return data[: int(WHOLE * len(data))] if page.damage is Damage.TRUNCATED else data


@final
class Folder(Web):
    """The files under a folder, by their relative paths, for instance real images."""

    def __init__(self, folder: str | os.PathLike[str], port: int = 0) -> None:
        super().__init__(port)
        self.folder = Path(folder).resolve()

    def answer(self, path: str) -> Answer:
        file = (self.folder / path.lstrip("/")).resolve() if "\0" not in path else self.folder
        if not file.is_relative_to(self.folder) or not file.is_file():
            return NOT_FOUND
        return Answer(file.read_bytes(), mimetypes.guess_type(file.name)[0] or "application/octet-stream")

"""What one worker keeps alive between parts (an event loop that fetches, decoders), and how a part is done."""

import asyncio
import contextlib
import logging
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pyarrow as pa

from pipeline.stage import PoolPart
from stages.download.addresses import Guard, lane_of, redact_all
from stages.download.connect import Resolver, system_names
from stages.download.decode import Options
from stages.download.decoders import DecoderPool
from stages.download.fetch import Fetched, Fetcher, Limits
from stages.download.gate import Gate, Turn
from stages.download.hosts import Manners
from stages.download.leases import Alone
from stages.download.lists import Blocked, Lists
from stages.download.ordered import Ordered
from stages.download.outcomes import Outcome, write_pool
from stages.download.proxy import Proxy
from stages.download.statuses import RETRYABLE, FetchError

log = logging.getLogger(__name__)

WAITING_BYTES = 256 << 20
"""Finished images that wait for an earlier row; past it no new row starts until that one has ended."""
DNS_THREADS = 32
"""`getaddrinfo` blocks a thread; asyncio's own pool would have six of them on two cores."""


@dataclass(frozen=True)
class Asked:
    """What a row asks for."""

    url: str | None
    sha256: str | None
    """Of the bytes when they were first seen, in hex; None where they were not."""
    remembered: str | None = None
    """That digest, where only the pool knows it: a row that ends without bytes and may be tried again keeps it."""


@dataclass(frozen=True)
class Row:
    """What is done for one row: fetch, check, decode, check again. It knows no worker, so that it keeps none alive."""

    fetcher: Fetcher
    decoders: DecoderPool
    blocked: Blocked | None

    async def __call__(self, asked: Asked, turn: Turn) -> Outcome:
        started = time.monotonic()
        facts: dict[str, Any] = {}
        image, ending = b"", ""
        try:
            fetched = await self._fetch(asked.url, turn)
            facts = {name: getattr(fetched, name) for name in ("final_url", "content_type", "last_modified")}
            self._check_file(asked, fetched.data)
            decoded = await asyncio.wrap_future(self.decoders.submit(fetched.data))
            self._check_picture(decoded.facts.get("phash"))
            facts |= {
                **decoded.facts,
                "status": decoded.status,
                "error_message": decoded.message,
                "sha256": decoded.sha256,
                "stored_sha256": decoded.stored_sha256,
            }
            image, ending = decoded.image, decoded.ending
        except FetchError as failure:
            facts |= {"status": failure.status, "error_message": redact_all(failure.message)}
            if failure.status in RETRYABLE:
                facts["sha256"] = asked.remembered
        facts |= {"fetched_at": datetime.now(UTC), "seconds": time.monotonic() - started}
        return Outcome(facts, image, ending)

    async def _fetch(self, url: str | None, turn: Turn) -> Fetched:
        """A host may send what some parser never met: that is one row's failure, not the end of a part."""
        try:
            return await self.fetcher.fetch(url, turn)
        except FetchError:
            raise
        except Exception as error:
            log.debug("fetching a row raised what nobody expected", exc_info=error)  # it may hold a URL's secrets
            raise FetchError("connection_error", f"{type(error).__name__}: {error}") from error

    def _check_file(self, asked: Asked, data: bytes) -> None:
        """Raise `FetchError` for bytes that must not be kept, before anything decodes them."""
        if asked.sha256 is None and self.blocked is None:
            return
        digest = sha256(data).hexdigest()
        if self.blocked is not None and self.blocked.file(digest):
            raise FetchError("blocked_hash", "blocked_hashes lists the file")
        if asked.sha256 is not None and digest != asked.sha256.strip().lower():
            raise FetchError("hash_mismatch", f"first seen as sha256 {asked.sha256[:64]}, now it is {digest}")

    def _check_picture(self, phash: int | None) -> None:
        if phash is not None and self.blocked is not None and self.blocked.picture(phash):
            raise FetchError("blocked_hash", "blocked_hashes lists the picture")


class Worker:
    """Turns parts of URLs into parts of a pool; the whole of `Download` once it is open.

    Memory is bounded by `concurrency` bodies of at most `limits.max_bytes`, `WAITING_BYTES` of finished images and one
    GiB for each decoder. `close` ends its processes and threads; so does losing the last reference to it.
    """

    def __init__(
        self,
        schema: pa.Schema,
        limits: Limits,
        guard: Guard,
        options: Options,
        decode_timeout_s: float,
        concurrency: int,
        threads: int,
        manners: Manners,
        lists: Lists,
        expect_sha256: str | None = None,
        proxy: Proxy | None = None,
        resolver: Resolver = system_names,
    ) -> None:
        self._schema = schema
        self._expect_sha256 = expect_sha256
        loop = asyncio.new_event_loop()
        loop.set_default_executor(ThreadPoolExecutor(DNS_THREADS, thread_name_prefix="sluice-dns"))
        thread = threading.Thread(target=_run, args=(loop,), name="sluice-fetch", daemon=True)
        thread.start()
        self._decoders = DecoderPool(options, decode_timeout_s, threads)
        alone = self._alone = Alone(manners.hosts())

        async def opened() -> tuple[Gate, Fetcher]:  # both belong to the loop that runs them
            gate = Gate(alone, concurrency, manners.wait_s)
            return gate, Fetcher(limits, guard, gate, manners.robots, lists.opt_outs, resolver, proxy)

        self._gate, fetcher = asyncio.run_coroutine_threadsafe(opened(), loop).result()
        work = Row(fetcher, self._decoders, lists.blocked)
        self._rows: Ordered[Asked, Outcome] = Ordered(
            loop, self._gate, work, lambda row: lane_of(row.url), lambda ended: len(ended.image), WAITING_BYTES
        )
        self.close = weakref.finalize(self, _close, loop, thread, fetcher, self._decoders)
        try:
            self._decoders.wait_ready()
        except BaseException:
            self.close()
            raise

    def __call__(self, part: PoolPart) -> pa.Table:
        """Fetch every row of a part; its tar and its statistics are written through `part.create`."""
        self._gate.leases.shared = part.shared or self._alone
        with contextlib.closing(self._rows.run(self._asked(part))) as outcomes:
            return write_pool(part, outcomes, self._schema)

    def decoder_pids(self) -> list[int]:
        return self._decoders.pids()

    def _asked(self, part: PoolPart) -> list[Asked]:
        """What is to be fetched, and the digest under which it was first seen: what the input says, else the pool."""
        urls = part.image.column("url").to_pylist()
        seen: list[str | None] = [None] * len(urls)
        if self._expect_sha256 is not None:
            seen = part.image.column(self._expect_sha256).to_pylist()
        before = [None] * len(urls) if part.before is None else part.before.column("sha256").to_pylist()
        return [Asked(url, said or kept, kept) for url, said, kept in zip(urls, seen, before, strict=True)]


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """The fetching thread; it holds no reference to its worker, so that the worker can be collected."""
    loop.run_forever()
    loop.run_until_complete(_end_tasks())
    loop.close()  # does not wait for DNS threads: the system's resolver may hold them for a minute


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _close(loop: asyncio.AbstractEventLoop, thread: threading.Thread, fetcher: Fetcher, decoders: DecoderPool) -> None:
    with contextlib.suppress(TimeoutError):  # the process may be ending, and its sockets with it
        asyncio.run_coroutine_threadsafe(fetcher.close(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    decoders.close()

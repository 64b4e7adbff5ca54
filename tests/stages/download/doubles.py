"""Doubles of what the engine gives a stage, and pictures to serve."""

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.stage import Shared
from stages.download.addresses import Guard
from stages.download.connect import Connections, Resolver, system_names
from stages.download.fetch import Fetched, Fetcher, Limits
from stages.download.gate import Gate, Turn
from stages.download.hosts import Manners
from stages.download.leases import Alone
from stages.download.proxy import Proxy

MANNERS = Manners()
LIMITS = Limits(timeout_s=10, max_bytes=1_000_000, tries=3, user_agent="sluice/0.1 (tests)")
CAPTIONS = pa.schema([(name, pa.string()) for name in ("uid", "caption_id", "caption", "source")])


class Fetching:
    """A fetcher and its gate, in the running loop: `fetch` is one row."""

    def __init__(
        self,
        guard: Guard,
        limits: Limits = LIMITS,
        manners: Manners = MANNERS,
        resolver: Resolver = system_names,
        proxy: Proxy | None = None,
        concurrency: int = 64,
        shared: Shared | None = None,
    ) -> None:
        self.gate = Gate(shared or Alone(manners.hosts()), concurrency, manners.wait_s)
        self.fetcher = Fetcher(limits, guard, self.gate, manners.robots, None, resolver, proxy)

    @property
    def connections(self) -> Connections:
        return self.fetcher.connections

    async def fetch(self, url: str) -> Fetched:
        turn = Turn(self.gate, 0)
        try:
            return await self.fetcher.fetch(url, turn)
        finally:
            turn.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.fetcher.close()


def uid(url: str | None) -> str:
    return blake2b((url or "").encode(), digest_size=16).hexdigest()


class Kept(io.BytesIO):
    """A file whose content outlives `close`."""

    def close(self) -> None:
        pass


@dataclass
class Part:
    """A `PoolPart` in memory."""

    image: pa.Table
    caption: pa.Table
    before: pa.Table | None = None
    shared: Shared | None = None
    files: dict[str, Kept] = field(default_factory=dict)

    def create(self, suffix: str) -> BinaryIO:
        assert suffix not in self.files
        self.files[suffix] = Kept()
        return self.files[suffix]

    def bytes(self, suffix: str) -> bytes:
        return self.files[suffix].getvalue()

    def members(self) -> list[str]:
        """The names in the tar."""
        with tarfile.open(fileobj=io.BytesIO(self.bytes("tar"))) as tar:
            return tar.getnames()


def part_of(urls: Sequence[str | None], captions: Mapping[str, Sequence[str | None]] | None = None) -> Part:
    """A part with a row per URL; captions by URL, else one that names the URL's place."""
    rows: list[dict[str, str | None]] = []
    for place, url in enumerate(urls):
        for text in (captions or {}).get(url or "", [f"picture {place}"]):
            rows.append({"uid": uid(url), "caption_id": uid(text), "caption": text, "source": "web"})
    image = pa.table({"uid": [uid(url) for url in urls], "url": pa.array(urls, pa.string())})
    return Part(image, pa.Table.from_pylist(rows, schema=CAPTIONS))


def fetch_one(worker: Callable[[Part], pa.Table], url: str | None) -> dict[str, Any]:
    """The row that a URL ends as."""
    (row,) = worker(part_of([url])).to_pylist()
    return dict(row)


def picture(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """A smooth picture in which every place differs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def pixels(jpeg: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.mode == "RGB"
        return np.asarray(image)

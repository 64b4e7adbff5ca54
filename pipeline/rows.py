"""The rows of one part, put together from the tables of several nodes, and the pixels behind them.

Tables of one pool zip by position. A node that lacks a retried part is read through the part that was retried, by uid.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from hashlib import sha256
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pipeline.errors import SluiceError
from pipeline.records import Record
from pipeline.stage import PIXELS, Column, Device, Prepare
from pipeline.store import Store

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MAX_PIXELS = 50_000_000
CHUNK = 8
"""Images that a thread decodes at a time."""
Images = list[np.ndarray | None]
"""uint8 (height, width, 3) each, RGB; None where the pool has no image."""
Pictures = Mapping[Prepare | None, Images]
"""A batch's images by what was made of them; under None as they are."""


class PartRows:
    """Image rows and caption rows of one part with the columns that were asked for, each named `node.column`.

    `image_of` maps a caption row to its image row; captions are grouped by image, and every image has at least one.
    """

    def __init__(self, image: pa.Table, caption: pa.Table | None, pool: Record | None) -> None:
        self.image = image
        self.caption = caption
        self.pool = pool
        self.image_of = group_of(image, caption) if caption is not None else np.arange(image.num_rows)

    @classmethod
    def load(cls, store: Store, inputs: Mapping[str, Sequence[Record]], columns: Sequence[Column]) -> PartRows:
        """Read what `columns` name. The first input decides rows and order.

        Raises `SluiceError` where two tables of one part do not have the same rows.
        """
        records = {node: found[0] for node, found in inputs.items()}
        first = next(iter(records.values()))
        pixels = next((c.node for c in columns if c.name == PIXELS), None)
        base = {grain: store.read_table(first, grain, keys) for grain, keys in GRAIN_KEYS.items() if first.file(grain)}
        if "image" not in base:
            base["image"] = _images_of(base["caption"])
        tables = dict(base)
        for node, record in records.items():
            for grain in ("image", "caption"):
                types = {c.name: c.type for c in columns if c.node == node and c.grain == grain and c.name != PIXELS}
                wanted = [
                    *types,
                    *(name for name in MEMBER if grain == "image" and node == pixels and name not in types),
                ]
                if wanted:
                    found = store.read_table(record, grain, GRAIN_KEYS[grain] + wanted, types)
                    if grain not in tables:
                        tables[grain] = base[grain] = found.select(GRAIN_KEYS[grain])
                    tables[grain] = _beside(tables[grain], base[grain], found, wanted, record, GRAIN_KEYS[grain])
        return cls(tables["image"], tables.get("caption"), records[pixels] if pixels else None)

    def keys(self, grain: str) -> pa.Table:
        """The key columns of a grain."""
        table = self.image if grain == "image" or self.caption is None else self.caption
        return table.select(GRAIN_KEYS[grain])

    @property
    def uids(self) -> pa.ChunkedArray:
        return self.image.column("uid")

    def captions_of(self, images: np.ndarray) -> np.ndarray:
        """The caption rows of the given image rows, in order."""
        chosen = np.zeros(self.image.num_rows, dtype=bool)
        chosen[images] = True
        return np.flatnonzero(chosen[self.image_of])


GRAIN_KEYS = {"image": ["uid"], "caption": ["uid", "caption_id"]}
MEMBER = ["offset", "nbytes", "stored_sha256"]
"""The columns of a pool that find an image's bytes in its tar and prove them."""


def qualified(column: Column) -> str:
    """`node.column`, by which a part's tables keep columns of the same name apart."""
    return f"{column.node}.{column.name}"


def group_of(image: pa.Table, caption: pa.Table) -> np.ndarray:
    """int64 (captions,): the image row of every caption row.

    Raises `SluiceError` where captions are not grouped by image in the order of the images, one or more each.
    """
    uids = caption.column("uid").combine_chunks()
    if len(uids) == 0 and image.num_rows == 0:
        return np.zeros(0, dtype=np.int64)
    changes = np.ones(len(uids), dtype=bool)
    if len(uids) > 1:
        changes[1:] = np.asarray(pc.not_equal(uids[1:], uids[:-1]))
    groups = np.cumsum(changes) - 1
    firsts = uids.filter(pa.array(changes))
    if not firsts.equals(image.column("uid").combine_chunks().cast(firsts.type)):
        raise SluiceError(
            "captions are not grouped by image in the order of the image table; the input was not written by sluice"
        )
    return groups


def _images_of(caption: pa.Table) -> pa.Table:
    uids = caption.column("uid").combine_chunks()
    changes = np.ones(len(uids), dtype=bool)
    if len(uids) > 1:
        changes[1:] = np.asarray(pc.not_equal(uids[1:], uids[:-1]))
    return pa.table({"uid": uids.filter(pa.array(changes))})


def _beside(
    table: pa.Table, base: pa.Table, found: pa.Table, wanted: list[str], record: Record, keys: list[str]
) -> pa.Table:
    """`table` with the wanted columns of `found`: by position where the keys agree, by key where a part was retried."""
    if not all(found.column(key).equals(base.column(key)) for key in keys):
        found = _by_key(base, found, keys, record)
    for name in wanted:
        table = table.append_column(f"{record.node}.{name}", found.column(name))
    return table


def _by_key(base: pa.Table, found: pa.Table, keys: list[str], record: Record) -> pa.Table:
    def key_of(table: pa.Table) -> pa.Array:
        return pc.binary_join_element_wise(*(table.column(key).combine_chunks() for key in keys), " ")

    places = pc.index_in(key_of(base), value_set=key_of(found))
    if places.null_count:
        missing = base.column("uid").combine_chunks().filter(pc.is_null(places))[0]
        raise SluiceError(
            f"{record.node} part {record.part} has no row for uid {missing}; its tables are of different pools"
        )
    return found.take(places)


# -- batches -----------------------------------------------------------------------------------------------------------


class RowBatch:
    """The `Batch` that stages see: a table, and pixels decoded once for all steps."""

    def __init__(self, table: pa.Table, images: Images | None, prepared: Pictures | None = None) -> None:
        self.table = table
        self._images = images
        self._prepared = prepared or {}

    def matrix(self, column: str) -> np.ndarray:
        values = self.table.column(column).combine_chunks()
        if not len(values):
            return np.zeros((0, 0), dtype=np.float32)
        width = values.type.list_size if pa.types.is_fixed_size_list(values.type) else None
        flat = np.asarray(values.flatten(), dtype=np.float32)
        present = np.asarray(values.is_valid())
        count = int(present.sum())
        width = width or (len(flat) // count if count else 0)
        matrix = np.full((len(values), width), np.nan, dtype=np.float32)
        matrix[present] = flat.reshape(count, width)
        return matrix

    def images(self, prepare: Prepare | None = None) -> Images:
        if prepare in self._prepared:
            return self._prepared[prepare]
        if self._images is None:
            raise SluiceError(
                "this step gets its images as it said in `prepares`, and not whole; ask for images(prepare)"
                if self._prepared
                else f"this step did not say in `reads` that it looks at {PIXELS!r}"
            )
        return self._images if prepare is None else [None if one is None else prepare(one) for one in self._images]

    def pixels(self, side: int) -> np.ndarray:
        images = self.images()
        squares = np.zeros((len(images), side, side, 3), dtype=np.uint8)
        for row, image in enumerate(images):
            if image is not None:
                squares[row] = centre_square(image, side)
        return squares


def centre_square(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 (side, side, 3): the shorter side resized to `side` (bicubic), the centre cut out."""
    height, width = image.shape[:2]
    scale = side / min(height, width)
    resized = Image.fromarray(image).resize(
        (max(side, round(width * scale)), max(side, round(height * scale))), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - side) // 2, (resized.height - side) // 2
    return np.asarray(resized.crop((left, top, left + side, top + side)))


class _Member(NamedTuple):
    """An image's bytes in the tar, and what their sha256 must be."""

    uid: str
    data: memoryview
    sha256: str


class Decoder:
    """Reads a batch's images from the pool's tar in one range, ahead of the batch before it, decodes and prepares them.

    `wanted`: what the steps want made of every image; None among it stands for the image as it is, which is let go of
    at once where nobody wants it. All of it is done ahead in a bounded pool of threads, where another processor works
    meanwhile. One that decodes and measures on the same core is faster when it does one after the other.
    """

    def __init__(
        self, store: Store, rows: PartRows, device: Device, wanted: Sequence[Prepare | None] = (None,)
    ) -> None:
        assert rows.pool is not None
        tar = rows.pool.file("tar")
        if tar is None:
            raise SluiceError(f"{rows.pool.node} part {rows.pool.part} has no tar; run its download again")
        self._store = store
        self._place = store.place(rows.pool, tar)
        self._rows = rows
        self._wanted = tuple(dict.fromkeys(wanted))
        self._ahead = ThreadPoolExecutor(max_workers=1)
        self._threads = ThreadPoolExecutor(device.threads) if device.threads > 1 or device.kind != "cpu" else None

    def start(self, images: np.ndarray) -> Callable[[], Pictures]:
        """What gives the images once they are asked for; to be called once."""
        if self._threads is None:
            members = self._ahead.submit(self._read, images)
            return lambda: self._by_prepare(self._decode(members.result()))
        chunks = self._ahead.submit(self._start, images, self._threads)  # the next batch is read while these decode
        return lambda: self._by_prepare([one for chunk in chunks.result() for one in chunk.result()])

    def close(self) -> None:
        self._ahead.shutdown(wait=False, cancel_futures=True)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self, images: np.ndarray, threads: Executor) -> list[Future[list[Images]]]:
        members = self._read(images)
        return [threads.submit(self._decode, members[at : at + CHUNK]) for at in range(0, len(members), CHUNK)]

    def _read(self, images: np.ndarray) -> list[_Member | None]:
        assert self._rows.pool is not None
        table = self._rows.image.take(images)
        names = ("uid", *(f"{self._rows.pool.node}.{name}" for name in MEMBER))
        members = list(zip(*(table.column(name).to_pylist() for name in names), strict=True))
        present = [(offset, offset + size) for _, offset, size, _ in members if offset is not None]
        if not present:
            return [None] * len(members)
        start, end = min(first for first, _ in present), max(last for _, last in present)
        data = memoryview(self._store.get_range(self._place, start, end))
        return [
            _Member(uid, data[offset - start : offset - start + size], sha) if offset is not None else None
            for uid, offset, size, sha in members
        ]

    def _decode(self, members: Sequence[_Member | None]) -> list[Images]:
        """Of every member, what is wanted of it."""

        def one(member: _Member | None) -> Images:
            if member is None:
                return [None] * len(self._wanted)
            if sha256(member.data).hexdigest() != member.sha256:
                place = self._store.url(self._place)
                remedy = f"`sluice verify {self._store.root} --repair`"
                raise SluiceError(f"{place}: image {member.uid} is corrupt; {remedy}")
            image = decode(member.data)
            return [image if prepare is None else prepare(image) for prepare in self._wanted]

        return list(map(one, members))

    def _by_prepare(self, made: Sequence[Images]) -> Pictures:
        return {prepare: [images[place] for images in made] for place, prepare in enumerate(self._wanted)}


def decode(data: bytes | memoryview) -> np.ndarray:
    """uint8 (height, width, 3), RGB, of a JPEG, PNG, WebP or GIF of at most 50 megapixels.

    Raises what Pillow raises, and `ValueError` for too many pixels.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels; at most {MAX_PIXELS} are decoded")
        return np.asarray(image.convert("RGB"))


def ahead(decoder: Decoder | None, slices: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, Callable[[], Pictures]]]:
    """Every slice with what gives its images. Those of two slices are always on their way, the first two at once."""
    if decoder is None:
        return ((rows, dict) for rows in slices)
    waiting = deque(decoder.start(rows) for rows in slices[:2])

    def each() -> Iterator[tuple[np.ndarray, Callable[[], Pictures]]]:
        for place, rows in enumerate(slices):
            yield rows, waiting.popleft()
            if place + 2 < len(slices):
                waiting.append(decoder.start(slices[place + 2]))

    return each()


def cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Consecutive slices of at most `size` rows."""
    bounds = [*range(0, len(rows), size), len(rows)]
    return [rows[a:b] for a, b in pairwise(bounds)] if len(rows) else []

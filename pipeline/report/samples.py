"""Rows to look at: their pictures, made small and encoded anew, and their captions.

The bytes of a pool come from the web. They are checked against their sha256, decoded as stages decode them (four
formats, at most 50 megapixels), and never reach the page: what is shown are pixels that Pillow wrote.
"""

# ruff: noqa: S608 - paths and names are quoted
from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from PIL import Image

from pipeline.judge import name, text
from pipeline.pairs import Piece, Pool, Table, scan
from pipeline.records import Generation
from pipeline.report.numbers import Ask
from pipeline.rows import MEMBER, decode
from pipeline.store import Store

SIDE = 208
"""Pixels of a thumbnail's longer side: sharp at the 104 CSS pixels at which it is shown."""
QUALITY = 62
READERS = 4
"""Images read and decoded at a time: of 50 megapixels each, they hold 600 MB."""
AT_ONCE = 32
"""Images read before it is looked whether there is room for more."""
LEAST_ROOM = 2_000
"""Bytes below which no picture has room."""
PAGE_BYTES = 7_000_000
"""Bytes of all pictures of a page together, as text; what does not fit is named instead of shown."""


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a `data:` URI, its size as shown, or why there is none."""

    uri: str
    width: int
    height: int
    trouble: str = ""


NO_PICTURE = Picture("", 0, 0, "no image")
NO_ROOM = Picture("", 0, 0, "left out: the page is full")


@dataclass(frozen=True)
class Sample:
    """An image of a pool and its captions."""

    uid: str
    url: str
    status: str
    captions: Mapping[str, str]
    """By caption_id."""
    picture: Picture


class Samples:
    """The samples of one pool that a page shows, looked up together: `samples[uid]`.

    The first ones asked for get their pictures first, until the page is full.
    """

    def __init__(self, samples: Mapping[str, Sample]) -> None:
        self._samples = samples

    def __getitem__(self, uid: str) -> Sample:
        return self._samples.get(uid) or Sample(uid, "", "", {}, NO_PICTURE)

    @classmethod
    def load(cls, ask: Ask, store: Store, pool: Pool, generation: Generation, uids: Iterable[str]) -> Samples:
        """Look up `uids`, in order of how much their pictures matter; a uid comes as often as it is shown."""
        times = Counter(uids)
        wanted = list(times)
        images = _images(ask, pool, wanted)
        captions = _captions(ask, pool, wanted)
        records = {record.part: record for record in generation.records}

        def picture(uid: str) -> Picture:
            row = images.get(uid, {})
            record = records.get(str(row.get("part")))
            tar = record.file("tar") if record is not None else None
            if record is None or tar is None or row.get("offset") is None:
                return NO_PICTURE
            return _picture(store, store.place(record, tar), row["offset"], row["nbytes"], row["stored_sha256"])

        pictures: dict[str, Picture] = {}
        room = PAGE_BYTES
        with ThreadPoolExecutor(READERS) as readers:
            for start in range(0, len(wanted), AT_ONCE):
                some = wanted[start : start + AT_ONCE]
                for uid, found in zip(some, readers.map(picture, some), strict=True):
                    pictures[uid] = found if times[uid] * len(found.uri) <= room else NO_ROOM
                    room -= times[uid] * len(pictures[uid].uri)
                if room < LEAST_ROOM:
                    break
        return cls({uid: _sample(uid, images, captions, pictures.get(uid, NO_ROOM)) for uid in wanted})


def _sample(
    uid: str, images: Mapping[str, Mapping[str, Any]], captions: Mapping[str, Mapping[str, str]], picture: Picture
) -> Sample:
    row = images.get(uid, {})
    return Sample(uid, str(row.get("url") or ""), str(row.get("status") or ""), captions.get(uid, {}), picture)


def thumbnail(data: bytes) -> Picture:
    """The picture that `data` encodes, its longer side at most `SIDE` pixels, as a WebP of our own."""
    try:
        pixels = decode(data)
    except Exception as error:  # Pillow raises many kinds for hostile bytes; the row is shown without its picture
        return Picture("", 0, 0, f"cannot be decoded: {type(error).__name__}")
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=QUALITY, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode()
    return Picture(uri, image.width, image.height)


def _picture(store: Store, place: str, offset: int, nbytes: int, sha: str) -> Picture:
    try:
        data = store.get_range(place, offset, offset + nbytes)
    except OSError as error:
        return Picture("", 0, 0, f"cannot be read: {type(error).__name__}")
    if sha256(data).hexdigest() != sha:
        return Picture("", 0, 0, "corrupt; `sluice verify` says where")
    return thumbnail(data)


def _images(ask: Ask, pool: Pool, uids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """uid -> its row that counts, with the `part` that holds it."""
    table = next((t for t in pool.others if t.node == pool.pixels and t.kind == "image"), None)
    if table is None:
        return {}
    columns = [column for column in ("url", "status", *MEMBER) if column in table.schema.names]
    return {str(row["uid"]): row for row in _rows(ask, table, columns, uids)}


def _captions(ask: Ask, pool: Pool, uids: Sequence[str]) -> dict[str, dict[str, str]]:
    """uid -> caption_id -> text."""
    found: dict[str, dict[str, str]] = {}
    if "caption" in pool.captions.schema.names:
        for row in _rows(ask, pool.captions, ["caption_id", "caption"], uids):
            found.setdefault(str(row["uid"]), {})[str(row["caption_id"])] = str(row["caption"] or "")
    return found


def _rows(ask: Ask, table: Table, columns: Sequence[str], uids: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of some uids that no later part replaced."""
    if not uids:
        return []
    listed = ", ".join(text(uid) for uid in uids)
    fields = ", ".join(name(column) for column in ("uid", *columns))
    query = f"SELECT {fields}, filename FROM {scan(table, table.pieces)} WHERE uid IN ({listed})"
    pieces = {piece.path: piece for piece in table.pieces}
    rows = [(pieces[str(row.pop("filename"))], row) for row in ask(query).to_pylist()]
    replaced = {(row["uid"], part) for piece, row in rows for part in piece.supersedes}
    rows = [(piece, row) for piece, row in rows if (row["uid"], piece.part) not in replaced]
    return [{**row, "part": piece.part} for piece, row in sorted(rows, key=_place)]


def _place(found: tuple[Piece, Mapping[str, Any]]) -> str:
    return found[0].part

"""Conversations with their images as one tar of samples, byte for byte the same for the same conversations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa

from stages.kit.tar import TarWriter

INDEX = pa.schema(
    [
        ("uid", pa.string()),
        ("key", pa.string()),
        ("shard", pa.string()),
        ("image", pa.string()),
        ("image_offset", pa.int64()),
        ("image_nbytes", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_nbytes", pa.int64()),
    ]
)
"""Where every sample is: its key, its first member and its JSON, which is the last one. The first member is an image,
or the JSON itself where there is none."""


class Packer:
    """Writes samples into a stream; `index` is then the table of where they are."""

    def __init__(self, stream: BinaryIO, shard: str) -> None:
        self._tar = TarWriter(stream)
        self._shard = shard
        self._rows: list[dict[str, Any]] = []

    def add(
        self, uid: str, images: Sequence[tuple[str, bytes]], document: Mapping[str, Any], text: str | None = None
    ) -> None:
        """One sample under its uid. `images`: their endings and bytes; of several, the numbers stand before them.
        `text`: what is also said as plain text."""
        numbered = len(images) > 1
        members = [
            (f"{uid}.{number}.{ending}" if numbered else f"{uid}.{ending}", data)
            for number, (ending, data) in enumerate(images)
        ]
        if text is not None:
            members.append((f"{uid}.txt", text.encode()))
        members.append((f"{uid}.json", json.dumps(document, ensure_ascii=False).encode()))
        places = self._tar.add(members)
        first, last = members[0], members[-1]
        values = (uid, uid, self._shard, first[0], places[0], len(first[1]), places[-1], len(last[1]))
        self._rows.append(dict(zip(INDEX.names, values, strict=True)))

    def finish(self) -> pa.Table:
        """End the tar; the index."""
        self._tar.finish()
        return pa.Table.from_pylist(self._rows, schema=INDEX)

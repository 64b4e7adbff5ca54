"""The pool's tar: `{key}.jpg`, `{key}.json` and `{key}.txt` per image, as img2dataset lays it out."""

import json
import re
from collections.abc import Mapping
from typing import Any, BinaryIO

from pipeline.errors import SluiceError
from stages.kit.tar import TarWriter

KEY = re.compile(r"[0-9A-Za-z_-]+")
"""webdataset takes what follows the first dot for the extension, and a slash for a folder."""

to_json = json.JSONEncoder(default=str).encode


class SampleWriter:
    """Appends samples to a stream; the same samples give the same bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._tar = TarWriter(stream)

    def write(self, key: str, image: bytes, ending: str, caption: str, metadata: Mapping[str, Any]) -> int:
        """Append one sample; returns the offset of the image's first byte. Raises `SluiceError` for an unfit key."""
        if not KEY.fullmatch(key):
            raise SluiceError(
                f"uid {key[:80]!r} cannot name a sample; expected letters, digits, - and _, as ingest makes"
            )
        members = (
            (f"{key}.{ending}", image),
            (f"{key}.json", to_json(metadata).encode()),
            (f"{key}.txt", caption.encode(errors="replace")),
        )
        return self._tar.add(members)[0]

    def finish(self) -> None:
        """Write the end of the archive."""
        self._tar.finish()

"""The pool's tar: `{key}.jpg`, `{key}.json` and `{key}.txt` per image, as img2dataset lays it out.

The same samples give the same bytes. Headers are written by hand so that the offset of every image is known and no
clock or user enters the file.
"""

import json
import re
import tarfile
from collections.abc import Mapping
from typing import Any, BinaryIO

from pipeline.errors import SluiceError

KEY = re.compile(r"[0-9A-Za-z_-]+")
"""webdataset takes what follows the first dot for the extension, and a slash for a folder."""


class SampleWriter:
    """Appends samples to a stream; `offset` is the position of the next header."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.offset = 0

    def write(self, key: str, image: bytes, caption: str, metadata: Mapping[str, Any]) -> int:
        """Append one sample; returns the offset of the image's first byte. Raises `SluiceError` for an unfit key."""
        if not KEY.fullmatch(key):
            raise SluiceError(
                f"uid {key[:80]!r} cannot name a sample; expected letters, digits, - and _, as ingest makes"
            )
        at = self._member(f"{key}.jpg", image)
        self._member(f"{key}.json", json.dumps(metadata, indent=4, default=str).encode())
        self._member(f"{key}.txt", caption.encode(errors="replace"))
        return at

    def finish(self) -> None:
        """Write the end of the archive, padded to a whole record as tar has it."""
        end = 2 * tarfile.BLOCKSIZE
        self._put(b"\0" * (end + -(self.offset + end) % tarfile.RECORDSIZE))

    def _member(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)  # mtime 0, uid 0, gid 0, no names: the defaults
        info.size = len(data)
        info.mode = 0o644
        self._put(info.tobuf(tarfile.PAX_FORMAT))
        at = self.offset
        self._put(data)
        self._put(b"\0" * (-len(data) % tarfile.BLOCKSIZE))
        return at

    def _put(self, data: bytes) -> None:
        self._stream.write(data)
        self.offset += len(data)

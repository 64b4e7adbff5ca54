"""A tar with the same bytes for the same members always: ustar headers without clock, user or host."""

import tarfile
from typing import BinaryIO


class Archive:
    """Appends members to a stream and says where their bytes lie."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._offset = 0

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        """Append a file; the offset of its first byte in the tar, and its size."""
        info = tarfile.TarInfo(name)  # mtime 0, uid 0, gid 0 and no names are its defaults
        info.size = len(data)
        info.mode = 0o644
        self._put(info.tobuf(tarfile.USTAR_FORMAT))
        at = self._offset
        self._put(data)
        self._put(bytes(-len(data) % tarfile.BLOCKSIZE))
        return at, len(data)

    def finish(self) -> None:
        """Write the end of the archive, padded to a whole record as tar has it."""
        end = 2 * tarfile.BLOCKSIZE
        self._put(bytes(end + -(self._offset + end) % tarfile.RECORDSIZE))

    def _put(self, data: bytes) -> None:
        self._stream.write(data)
        self._offset += len(data)

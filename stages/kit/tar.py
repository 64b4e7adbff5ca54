"""A tar with the same bytes for the same members always: headers without clock, user or host."""

import tarfile
from collections.abc import Iterable
from typing import BinaryIO

NAME, SIZE, SUM = slice(0, 100), slice(124, 136), slice(148, 156)
"""Where a header of POSIX.1-1988 (ustar) has the name, the size and the sum of its own bytes."""


def _template() -> tuple[bytes, int]:
    """The header of an empty file without a name, and the sum of its bytes less name and size."""
    info = tarfile.TarInfo("")  # mtime 0, uid 0, gid 0 and no names are its defaults
    info.mode = 0o644
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[SIZE], header[SUM] = b" " * 12, b" " * 8  # the sum is taken with itself as blanks
    return bytes(header), sum(header) - sum(header[SIZE])


TEMPLATE, TEMPLATE_SUM = _template()
PADDING = [bytes(-size % tarfile.BLOCKSIZE) for size in range(tarfile.BLOCKSIZE)]


class TarWriter:
    """Appends regular files to a stream; `offset` (bytes) is the position of the next header."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.offset = 0

    def add(self, members: Iterable[tuple[str, bytes]]) -> list[int]:
        """Append files in one write; the offset of each one's first byte in the tar."""
        pieces, places = [], []
        for name, data in members:
            header = header_of(name, len(data))
            places.append(self.offset + len(header))
            padding = PADDING[len(data) % tarfile.BLOCKSIZE]
            pieces += [header, data, padding]
            self.offset += len(header) + len(data) + len(padding)
        self._stream.write(b"".join(pieces))
        return places

    def finish(self) -> None:
        """Write the end of the archive, padded to a whole record as tar has it."""
        end = 2 * tarfile.BLOCKSIZE
        end += -(self.offset + end) % tarfile.RECORDSIZE
        self._stream.write(bytes(end))
        self.offset += end


def header_of(name: str, size: int) -> bytes:
    """What `tarfile` writes before a file of `size` bytes, in a tenth of its time.

    A name that fits no ustar header, or a file of 8 GiB, gets the extended header that POSIX.1-2001 (pax) has for it.
    """
    raw = name.encode()
    if len(raw) > 100 or not name.isascii() or size >= 8**11:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        return info.tobuf(tarfile.PAX_FORMAT)
    digits = b"%011o\0" % size
    total = TEMPLATE_SUM + sum(raw) + sum(digits)
    return b"%b%b%b%06o\0 %b" % (
        raw.ljust(100, b"\0"),
        TEMPLATE[NAME.stop : SIZE.start] + digits,
        TEMPLATE[SIZE.stop : SUM.start],
        total,
        TEMPLATE[SUM.stop :],
    )

"""A tar without some of its members, everything else byte for byte."""

from __future__ import annotations

import tarfile
from collections.abc import Collection
from typing import Any, BinaryIO

from pipeline.errors import SluiceError

BLOCK = 1 << 22


def cut(
    source: BinaryIO, sink: Any, keys: Collection[str], offsets: Collection[int], name: str
) -> list[tuple[int, int]]:
    """Copy a tar but for the samples with these keys, and those whose image begins at one of `offsets` (bytes).

    Returns what was left out: (first byte, end), in order. Memory does not grow with the members' bytes.
    Raises `SluiceError` naming the file where it is no whole tar.
    """
    members, end = _members(source, name)
    at = {offset: key for key, _, offset, _ in members}
    gone = {*keys, *(at[offset] for offset in offsets if offset in at)}
    cuts = [(first, last) for key, first, _, last in members if key in gone]
    place = written = 0
    for start, stop in [*cuts, (end, end)]:
        source.seek(place)
        while place < start:
            block = source.read(min(BLOCK, start - place))
            if not block:
                raise SluiceError(f"{name} is cut off; `sluice verify --repair` first")
            sink.write(block)
            place += len(block)
            written += len(block)
        place = stop
    closing = 2 * tarfile.BLOCKSIZE
    sink.write(bytes(closing + -(written + closing) % tarfile.RECORDSIZE))
    return cuts


def _members(source: BinaryIO, name: str) -> tuple[list[tuple[str, int, int, int]], int]:
    """(key, first byte of its headers, first byte of its content, end) of every member; where the last one ends."""
    found = []
    end = 0
    try:
        with tarfile.open(fileobj=source, mode="r:") as tar:
            for info in tar:
                vars(tar)["members"].clear()  # it would keep them all
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                found.append((key_of(info.name), info.offset, info.offset_data, end))
    except tarfile.TarError as error:
        raise SluiceError(f"{name} is no whole tar ({error}); `sluice verify --repair` first") from None
    return found, end


def key_of(member: str) -> str:
    """What a sample's members share: the name up to its first dot, as webdataset splits it."""
    return member.rpartition("/")[2].partition(".")[0]

"""What lies where in a tar: its headers, and samples as consecutive members of one key.

Keys and endings are webdataset's: `folder/a.seg.png` is the member `seg.png` of the sample `folder/a`. A sample's span
is all bytes from its first header to its last member's end: whoever has read a span needs no other part of the file.
"""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BLOCK = tarfile.BLOCKSIZE
REGULAR = b"0\x007"
"""Kinds of header of a regular file, as POSIX and its forerunners had them."""
EXTENDED = b"xgXLK"
"""Kinds of header that say more of the header after them."""
FOLDER = b"5"
CHUNK = 1 << 20
"""Bytes that are read at once, where only zeros are expected."""
LONGEST = 1 << 20
"""Bytes of an extended header, at most; it holds a name."""
HEADER = struct.Struct("100s 24x 11s 21x c 100x 5s 83x ? 166x")
"""Name, octal size, kind, magic, and whether there is a prefix to the name: all there is to say of simple headers."""
SUM = slice(148, 156)
"""Where the sum of a header's bytes stands, which is taken with blanks in its own place."""

Spans = npt.NDArray[np.int64]
Members = dict[str, bytes]
ReadAt = Callable[[int, int], bytes]
"""Bytes from an offset, as many as are asked for, fewer at the end."""


class NotATar(ValueError):
    """A header that is none, or a file that ends too early; says what and at which byte."""


class Header(NamedTuple):
    kind: int
    name: str
    size: int
    """Bytes of data, which begin after the header."""


class Entry(NamedTuple):
    """A file in a tar, or what stands in the place of one."""

    kind: int
    name: str
    start: int
    """Of its first header, in bytes from the beginning of the tar."""
    begin: int
    """Of its data."""
    stop: int


class Scanned(NamedTuple):
    spans_n2: Spans
    """First byte and number of bytes of every sample, in the order of the file."""
    fault: str | None
    """Why there may have been more samples, or members that were left out."""


def key_of(name: str) -> tuple[str, str] | None:
    """Key and ending of a member; None for what belongs to no sample: hidden files, files without an ending."""
    folder = name.rfind("/") + 1
    dot = name.find(".", folder)
    if dot <= folder or name.startswith("__", folder):
        return None
    return name[:dot], name[dot + 1 :].lower()


def members_of(span: bytes) -> tuple[str, Members]:
    """Key and members of a sample, from the bytes of its span. Raises `NotATar` where these are no whole sample."""
    key, members, place, end = "", Members(), 0, len(span)
    while place + BLOCK <= end:
        name, size, kind, magic, prefix = HEADER.unpack_from(span, place)
        if kind != b"0" or magic != b"ustar" or prefix or not size.isdigit():
            return _by_all_rules(span)  # four times as slow
        begin = place + BLOCK
        stop = begin + _octal(size)
        if stop > end:
            raise NotATar(f"a member ends {stop - end} bytes later than its sample")
        key = _put(members, key, name.split(b"\0", 1)[0].decode("utf-8", "surrogateescape"), span[begin:stop])
        place = stop + -stop % BLOCK
    return (key, members) if place >= end else _by_all_rules(span)


def _by_all_rules(span: bytes) -> tuple[str, Members]:
    key, members = "", Members()
    padded = span + bytes(-len(span) % BLOCK + BLOCK)  # a block of zeros ends a tar
    for entry in entries(lambda place, nbytes: padded[place : place + nbytes], len(span)):
        if entry.kind in REGULAR:
            key = _put(members, key, entry.name, span[entry.begin : entry.stop])
    return key, members


def _put(members: Members, key: str, name: str, data: bytes) -> str:
    """Add a member to a sample; its key. Raises `NotATar`."""
    named = key_of(name)
    if named is None:
        return key
    if key and named[0] != key:
        raise NotATar(f"members of {key!r} and {named[0]!r} where one sample should be")
    if named[1] in members:
        raise NotATar(f"two members {name!r}")
    members[named[1]] = data
    return named[0]


def scan(read_at: ReadAt, nbytes: int) -> Scanned:
    """Every sample of a tar of `nbytes`, from its headers alone. What is damaged ends it, and is told in `fault`.

    The sample before the damage is left out, for it may lack members.
    """
    spans: list[tuple[int, int]] = []
    faults: list[str] = []
    last = None
    try:
        for entry in entries(read_at, nbytes):
            named = key_of(entry.name) if entry.kind in REGULAR else None
            if named is not None:
                start = spans.pop()[0] if named[0] == last else entry.start
                spans.append((start, entry.stop - start))
                last = named[0]
            elif entry.kind not in REGULAR + FOLDER and not faults:
                faults.append(f"{entry.name!r} is a link or a device, which no sample has; such members are left out")
    except NotATar as error:
        faults.append(str(error))
        del spans[-1:]
    return Scanned(np.array(spans, np.int64).reshape(-1, 2), "; ".join(faults) or None)


def entries(read_at: ReadAt, nbytes: int) -> Iterator[Entry]:
    """Everything in a tar but its extended headers. Raises `NotATar` where it is damaged, ends without an end, or does
    not end with it."""
    place = start = 0
    said: dict[str, str] = {}
    while True:
        block = read_at(place, BLOCK)
        if len(block) < BLOCK:
            raise NotATar(f"the file ends at byte {nbytes}, without the end of a tar")
        if not any(block):
            if (behind := _behind(read_at, place, nbytes)) is not None:  # a hole, or another tar
                raise NotATar(f"the tar ends at byte {place}, and at byte {behind} there is more")
            return
        found = _header(block, place)
        place += BLOCK
        if found.kind in EXTENDED:
            if found.size > LONGEST or place + found.size > nbytes:
                raise NotATar(f"an extended header of {found.size} bytes at byte {place - BLOCK}")
            said |= _said(found.kind, read_at(place, found.size))
            place += found.size + -found.size % BLOCK
            continue
        size = found.size if found.kind in REGULAR else 0
        if found.kind in REGULAR and "size" in said:
            size = _decimal(said["size"])
        if place + size > nbytes:
            raise NotATar(f"the file ends at byte {nbytes}, within a member")
        yield Entry(found.kind, said.get("path", found.name), start, place, place + size)
        place += size + -size % BLOCK
        start, said = place, {}


def _behind(read_at: ReadAt, place: int, nbytes: int) -> int | None:
    """The first block from a place on that is not only zeros; None where there is none."""
    while place < nbytes and (chunk := read_at(place, CHUNK)):
        rest = chunk.lstrip(b"\0")
        if rest:
            return (place + len(chunk) - len(rest)) // BLOCK * BLOCK
        place += len(chunk)
    return None


def _header(block: bytes, place: int) -> Header:
    """A header whose checksum fits. Raises `NotATar`."""
    name, size, kind, magic, prefix = HEADER.unpack(block)
    if kind == b"0" and magic == b"ustar" and not prefix and size.isdigit() and _sums_up(block):
        return Header(kind[0], name.split(b"\0", 1)[0].decode("utf-8", "surrogateescape"), _octal(size))
    try:
        found = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise NotATar(f"no header of a tar at byte {place}: {error}") from None
    if found.size < 0:
        raise NotATar(f"no header of a tar at byte {place}: a size of {found.size} bytes")
    return Header(found.type[0], found.name, found.size)


def _sums_up(block: bytes) -> bool:
    told = block[SUM].strip(b"\0 ")
    return told.isdigit() and _octal(told) == sum(block) - sum(block[SUM]) + 8 * ord(" ")


def _octal(digits: bytes) -> int:
    """Raises `NotATar` for an 8 or a 9."""
    try:
        return int(digits, 8)
    except ValueError:
        raise NotATar(f"{digits!r} is no octal number") from None


def _decimal(digits: str) -> int:
    """A size as an extended header has it. Raises `NotATar`."""
    if not digits.isascii() or not digits.isdigit() or len(digits) > 19:
        raise NotATar(f"an extended header says a size of {digits[:40]!r}")
    return int(digits)


def _said(kind: int, data: bytes) -> dict[str, str]:
    """Name and size, where an extended header has them."""
    if kind == ord("L"):
        return {"path": data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")}
    said: dict[str, str] = {}
    while kind in b"xX" and data:
        digits = data.split(b" ", 1)[0]
        if not digits.isdigit() or not len(digits) < int(digits) <= len(data):
            raise NotATar("an extended header that cannot be read")
        name, _, value = data[len(digits) + 1 : int(digits) - 1].partition(b"=")
        if name == b"path" or (name == b"size" and value.isdigit()):
            said[name.decode()] = value.decode("utf-8", "surrogateescape")
        data = data[int(digits) :]
    return said
